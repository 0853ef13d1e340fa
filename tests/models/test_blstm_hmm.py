"""The hybrid on tones, with states, alignments and graphs made by hand."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asr_lightning.batch import Batch, Utterance
from asr_lightning.errors import InputError
from asr_lightning.hmm.graph import as_graph, expand_to_states, numerator_transducer
from asr_lightning.losses.graphs import GraphBatch
from asr_lightning.losses.lattice_free_mmi import lattice_free_mmi_loss
from asr_lightning.models.blstm_hmm import ALIGNMENTS, BLSTMHMM, DECODING_GRAPH, PHONE_GRAMMAR, read_graph
from asr_lightning.models.checkpoints import build_recognizer, load_recognizer
from tests.support.hybrids import hybrid, phones_of, write_states
from tests.support.tones import RATE, TEXTS, batch_of, lstm_encoder, make_trainer, speak

COMMAND = "asr hybrid"


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_states(tmp_path_factory.mktemp("hybrid") / "states")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder that a test may spoil."""
    return write_states(tmp_path / "states")


def make(folder: Path, **changes: Any) -> BLSTMHMM:
    torch.manual_seed(1)
    recognizer = build_recognizer(hybrid(folder, **changes))
    assert isinstance(recognizer, BLSTMHMM)
    return recognizer.eval()


def log_posteriors(recognizer: BLSTMHMM, batch: Batch) -> tuple[Tensor, Tensor]:
    encoded, lengths = recognizer(batch.audio, batch.audio_lengths)
    return recognizer.output(encoded).log_softmax(dim=2), lengths


def test_frames_of_letters_are_where_they_sound() -> None:
    """The alignments by hand agree with the strongest frequency of each frame."""
    for text in TEXTS:
        letters = [letter for letter, frames in phones_of(text) for _ in range(frames)]
        frames = speak(text).unfold(0, RATE // 40, RATE // 100)
        assert len(frames) == len(letters) == len(aligned_pdfs(text))
        peaks = torch.fft.rfft(frames * torch.hann_window(RATE // 40)).abs()[:, 3:].argmax(dim=1) + 3
        for index, (letter, peak, frame) in enumerate(zip(letters, peaks.tolist(), frames, strict=True)):
            if frame[60:140].abs().max() > 0.2 and set(letters[max(0, index - 2) : index + 3]) == {letter}:
                assert peak * 40 == pytest.approx(350 + 420 * (ord(letter) - ord("A")), abs=40)


def aligned_pdfs(text: str) -> list[int]:
    """The pdf of each frame, by hand: SIL, SPN and eight letters have three pdfs each, in this order."""
    pdfs = []
    for phone, frames in phones_of(text):
        number = 0 if phone == "SIL" else 2 + ord(phone) - ord("A")
        pdfs += [3 * number + state for state, share in enumerate(np.array_split(range(frames), 3)) for _ in share]
    return pdfs


@torch.no_grad()
def test_cross_entropy_is_the_mean_over_frames(states: Path) -> None:
    recognizer, batch = make(states), batch_of()
    scores, lengths = log_posteriors(recognizer, batch)
    expected = []
    for row, (text, length) in enumerate(zip(TEXTS, lengths.tolist(), strict=True)):
        pdfs = aligned_pdfs(text)
        assert len(pdfs) == length
        expected.append(-sum(float(scores[row, frame, pdf]) for frame, pdf in enumerate(pdfs)) / length)
    torch.testing.assert_close(recognizer.loss(batch), torch.tensor(expected))


@torch.no_grad()
def test_without_an_alignment_the_loss_of_an_utterance_is_infinite_and_others_are_untouched(states: Path) -> None:
    recognizer, batch = make(states), batch_of()
    expected = recognizer.loss(batch)
    ids = [*batch.ids]
    ids[2] = "nobody"
    losses = recognizer.loss(replace(batch, ids=ids))
    assert losses[2] == torch.inf and expected.isfinite().all()
    rest = torch.arange(len(batch)) != 2
    assert torch.equal(losses[rest], expected[rest])
    assert (recognizer.loss(replace(batch, ids=["nobody"] * len(batch))) == torch.inf).all()


def test_the_gradient_of_an_utterance_that_is_left_out_is_no_nan(states: Path) -> None:
    recognizer, batch = make(states, mmi_weight=0.5), batch_of(["A CAB", "BED", "FADE"])
    losses = recognizer.loss(replace(batch, ids=["tone-0", "tone-2", "nobody"], texts=["A CAB", "ZOO", "BED"]))
    assert losses.isfinite().tolist() == [True, False, False]
    losses[0].backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in recognizer.parameters())


@torch.no_grad()
def test_lattice_free_mmi_is_that_of_graphs_built_directly(states: Path) -> None:
    recognizer, batch = make(states, mmi_weight=1.0, mmi_scale=0.7), batch_of()
    scores, lengths = log_posteriors(recognizer, batch)
    model, grammar = recognizer.states, read_graph(states / PHONE_GRAMMAR)
    numerators = GraphBatch.collate(
        [as_graph(model, numerator_transducer(model, text.split(), grammar)) for text in TEXTS]
    )
    denominators = GraphBatch.collate([as_graph(model, expand_to_states(model, grammar, scale=1.0))])
    expected = (
        lattice_free_mmi_loss(0.7 * (scores - recognizer.log_priors), lengths, numerators, denominators) / lengths
    )
    assert expected.isfinite().all() and (expected > 0).all()  # every numerator is a part of the denominator
    losses = recognizer.loss(batch)
    torch.testing.assert_close(losses, expected)
    frames = make(states).loss(batch)
    mixed = make(states, mmi_weight=0.25, mmi_scale=0.7).loss(batch)
    torch.testing.assert_close(mixed, 0.75 * frames + 0.25 * expected)


@pytest.mark.parametrize("text", ["A ZOO", "HEAD", "", "EGG " * 30], ids=str.split)
@torch.no_grad()
def test_what_no_graph_can_say_has_an_infinite_loss_by_itself(states: Path, text: str) -> None:
    """An unknown word, phones that the grammar has not seen together, no words, and too many words for the frames."""
    recognizer, batch = make(states, mmi_weight=1.0), batch_of()
    expected = recognizer.loss(batch)
    losses = recognizer.loss(replace(batch, texts=[TEXTS[0], text, *TEXTS[2:]]))
    assert losses[1] == torch.inf
    torch.testing.assert_close(losses[[0, *range(2, 8)]], expected[[0, *range(2, 8)]])


@torch.no_grad()
def test_mmi_needs_no_alignments_and_cross_entropy_no_graphs(own: Path) -> None:
    (own / DECODING_GRAPH).unlink()
    (own / PHONE_GRAMMAR).rename(own / "kept")
    assert make(own).loss(batch_of()).isfinite().all()
    (own / "kept").rename(own / PHONE_GRAMMAR)
    (own / ALIGNMENTS).unlink()
    assert make(own, mmi_weight=1.0).loss(batch_of()).isfinite().all()


@torch.no_grad()
def test_priors_are_shares_of_the_aligned_frames(states: Path) -> None:
    recognizer = make(states)
    counts = np.bincount([pdf for text in TEXTS for pdf in aligned_pdfs(text)], minlength=30)
    noise = [3, 4, 5]  # SPN was never spoken
    assert np.flatnonzero(counts == 0).tolist() == noise
    aligned = counts > 0
    np.testing.assert_allclose(
        recognizer.log_priors.numpy()[aligned], np.log(counts[aligned] / counts.sum()), rtol=1e-5
    )
    assert recognizer.log_priors[noise].tolist() == [0.0] * 3  # so that they gain nothing by being rare
    encoded = torch.randn(2, 5, recognizer.encoder.dimension)
    posteriors = recognizer.output(encoded).softmax(dim=2)
    torch.testing.assert_close(recognizer.log_likelihoods(encoded).exp(), posteriors / recognizer.log_priors.exp())


@torch.no_grad()
def test_planted_words_are_recognized(states: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer, batch = make(states), batch_of()
    texts = [
        TEXTS[number] for number in (3, 0, 7, 1, 6, 2, 5, 4)
    ]  # not those of the audio: only the planted scores count
    batch = Batch.collate([Utterance(text, speak(text), RATE, "") for text in texts])

    def planted(encoded: Tensor) -> Tensor:
        scores = torch.full((*encoded.shape[:2], recognizer.states.pdfs), -20.0)
        for row, text in enumerate(texts):
            pdfs = torch.tensor(aligned_pdfs(text))
            scores[row, torch.arange(len(pdfs)), pdfs] = 0.0
        return scores

    assert recognizer.transcribe(batch) != texts
    monkeypatch.setattr(recognizer, "log_likelihoods", planted)
    assert recognizer.transcribe(batch) == texts
    scores = [hypothesis.score for [hypothesis] in recognizer.recognize(batch)]
    assert all(np.isfinite(scores))


def test_an_encoder_that_leaves_frames_out_is_refused(states: Path) -> None:
    batch = batch_of()
    recognizer = make(states, encoder=lstm_encoder(20, subsampling=2))
    for use in (recognizer.loss, recognizer.recognize):
        with pytest.raises(InputError, match=r"each feature frame, but the LSTMEncoder made \d+ of \d+: .* of 1, or"):
            use(batch)


@pytest.mark.parametrize("changes", [{"hop_seconds": 0.02}, {"window_seconds": 0.05}], ids=str)
def test_features_with_other_frames_than_the_alignments_are_refused(states: Path, changes: dict[str, float]) -> None:
    features = hybrid()["init_args"]["features"]
    features = {**features, "init_args": {**features["init_args"], **changes}}
    with pytest.raises(
        InputError, match=r"tone-0 was aligned with 48 frames, but its features have \d+: .* align again"
    ):
        make(states, features=features).loss(batch_of())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mmi_weight": 1.5}, "from 0 to 1"),
        ({"mmi_weight": -0.1}, "from 0 to 1"),
        ({"mmi_scale": 0.0}, "above 0"),
        ({"ctc_weight": 0.3}, "no CTC output: leave ctc_weight at 0, got 0.3"),
    ],
)
def test_numbers_out_of_range_are_refused(states: Path, changes: dict[str, float], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        make(states, **changes)


SPOILT: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("one two three\n" * 5),
    "noise": lambda path: path.write_bytes(bytes(range(255, -1, -1)) * 20),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "noise inside": lambda path: path.write_bytes(path.read_bytes()[:60] + b"\xfe" * (path.stat().st_size - 60)),
}
USES: dict[str, Callable[[Path], Any]] = {
    "phones.txt": make,
    "tree": make,
    "transitions.npy": make,
    "lexicon.txt": make,
    ALIGNMENTS: lambda folder: make(folder).loss(batch_of()),
    PHONE_GRAMMAR: lambda folder: make(folder, mmi_weight=1.0).loss(batch_of()),
    DECODING_GRAPH: lambda folder: make(folder).recognize(batch_of()),
}
STATES = ("phones.txt", "transitions.npy", "lexicon.txt")  # tests/hmm damages them
SPOILT_FILES = [(name, spoil) for name in USES for spoil in (["missing"] if name in STATES else SPOILT)]


@pytest.mark.parametrize(("name", "spoil"), SPOILT_FILES)
def test_a_file_that_is_missing_or_damaged_is_named(own: Path, name: str, spoil: str) -> None:
    SPOILT[spoil](own / name)
    with pytest.raises(InputError) as error:
        USES[name](own)
    assert str(own) in str(error.value) and name in str(error.value)


def test_a_missing_folder_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path / 'nowhere'}.*{COMMAND}"):
        make(tmp_path / "nowhere")


@torch.no_grad()
def test_a_checkpoint_brings_the_weights_and_priors_and_the_folder_the_rest(own: Path, tmp_path: Path) -> None:
    search = {"class_path": "asr_lightning.hmm.search.GraphSearch", "init_args": {"acoustic_scale": 0.7, "beam": 9.0}}
    recognizer, trainer, path = make(own, mmi_weight=0.5, search=search), make_trainer(tmp_path), tmp_path / "last.ckpt"
    trainer.strategy.connect(recognizer)
    trainer.save_checkpoint(path)
    loaded = load_recognizer(path)
    assert isinstance(loaded, BLSTMHMM)
    assert (loaded.search.acoustic_scale, loaded.search.beam, loaded.mmi_weight) == (0.7, 9.0, 0.5)
    assert torch.equal(loaded.loss(batch_of()), recognizer.loss(batch_of()))
    assert loaded.transcribe(batch_of()) == recognizer.transcribe(batch_of())
    own.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=rf"last.ckpt: .*{own}.*{COMMAND}"):
        load_recognizer(path)


def test_states_are_compared_by_what_they_are_and_not_by_their_folder(tmp_path: Path) -> None:
    folder, path = write_states(tmp_path / "states"), tmp_path / "last.ckpt"
    recognizer = make(folder)
    torch.save({"state_dict": recognizer.state_dict(), "hyper_parameters": dict(recognizer.hparams)}, path)
    elsewhere = write_states(tmp_path / "copy", spoken={"some": "BED"})  # aligned anew
    assert load_recognizer(path, hybrid(elsewhere)).folder == elsewhere  # type: ignore[attr-defined]
    others = [text.replace("H", "I") for text in TEXTS]
    write_states(folder, others, spoken={"some": "BED"})  # as many states, of other phones, in the same folder
    for experiment in (None, hybrid(folder)):
        with pytest.raises(InputError, match=r"last.ckpt: the network was made from other files .*:\n  tied states: "):
            load_recognizer(path, experiment)


def test_training_brings_the_loss_down_and_the_words_right(states: Path) -> None:
    recognizer, batch = make(states, mmi_weight=0.3), batch_of()
    optimizer = recognizer.configure_optimizers()
    first = recognizer.loss(batch).mean().item()
    transcripts = recognizer.transcribe(batch)
    for _ in range(40):
        optimizer.zero_grad()
        loss = recognizer.train().loss(batch).mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * first
    assert transcripts != TEXTS and recognizer.eval().transcribe(batch) == TEXTS
    rearranged = batch_of(["BED EGG", "CAGED FACE"])  # the words in another order
    assert recognizer.transcribe(rearranged) == rearranged.texts
