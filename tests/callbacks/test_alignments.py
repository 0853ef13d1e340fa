import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from asr_lightning.callbacks.alignments import Alignments
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer
from tests.support.activations_run import Corpus
from tests.support.hybrids import hybrid, write_states
from tests.support.tones import (
    RATE,
    TEXTS,
    attention_decoder,
    ctc,
    deep_speech_2,
    lstm_encoder,
    make_trainer,
    speller,
    transducer,
)

DECODER = {
    "class_path": "asr_lightning.models.speech_transformer.TransformerDecoder",
    "init_args": {"dimension": 32, "layers": 2, "heads": 2, "feed_forward": 64, "dropout": 0.0},
}
MODELS: dict[str, tuple[dict[str, Any], set[str], bool]] = {  # what is drawn, and whether there are posteriors
    "speller": (
        attention_decoder(encoder=lstm_encoder(20), decoder=speller("AdditiveAttention")), {"decoder.attention"}, False
    ),
    "with CTC": (
        attention_decoder(encoder=lstm_encoder(20), decoder=speller("MultiHeadAttention", heads=2), ctc_weight=0.3),
        {"decoder.attention, head 1", "decoder.attention, head 2"},
        True,
    ),
    "Transformer": (
        attention_decoder(encoder=lstm_encoder(20), decoder=DECODER),
        {f"decoder.layers.{layer}.cross_attention, head {head}" for layer in (0, 1) for head in (1, 2)},
        False,
    ),
    "transducer": (transducer(), {"emission"}, False),
    "CTC": (ctc(deep_speech_2()), set(), True),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_recognizer_is_drawn_and_measured(tmp_path: Path, name: str) -> None:
    config, maps, posteriors = MODELS[name]
    torch.manual_seed(2)
    recognizer = build_recognizer(config)
    if name == "transducer":  # untrained, it would emit nothing
        with torch.no_grad():
            recognizer.joint.output.bias[recognizer.tokenizer.blank_id] -= 1.0
    trainer = make_trainer(tmp_path, callbacks=[Alignments(utterances=3)])
    trainer.test(recognizer, datamodule=Corpus(), verbose=False)
    folder = tmp_path / "alignments" / "test"
    measured = ["figures.csv"] if maps else []
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*measured, *(f"tone-{number}{suffix}" for number in range(3) for suffix in (".png", ".svg", ".npz", ".flac"))]
    )
    with np.load(folder / "tone-1.npz") as archive:
        attentions = {key.removeprefix("attention/") for key in archive if key.startswith("attention/")}
        assert attentions <= maps and (attentions == maps or not len(archive["tokens"]))
        assert ("posteriors" in archive) == posteriors
        for attention in attentions:
            weights = archive[f"attention/{attention}"]
            np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-3)
            assert len(weights) == len(archive["tokens"]) + (name != "transducer")
        if posteriors:
            np.testing.assert_allclose(archive["posteriors"].sum(axis=1), 1.0, atol=1e-4)
    audio, rate = soundfile.read(folder / "tone-1.flac")
    assert rate == RATE and len(audio) == 0.1 * RATE * len(TEXTS[1])
    if not maps:
        return
    with (folder / "figures.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["utterance"] for line in lines} <= {f"tone-{number}" for number in range(8)}
    assert {line["attention"] for line in lines} <= maps
    assert len(lines) == 8 * len(maps) or name == "transducer"
    assert all(0.0 <= float(line[key]) <= 1.0 for line in lines for key in ("monotonicity", "coverage", "sharpness"))


def test_only_the_subsets_that_are_wanted(tmp_path: Path) -> None:
    def test(subset: str) -> None:
        trainer = make_trainer(tmp_path, callbacks=[Alignments(utterances=2, subsets=[subset])])
        trainer.test(build_recognizer(MODELS["with CTC"][0]), datamodule=Corpus(), verbose=False)

    test("test-clean")
    figures = tmp_path / "alignments" / "test" / "figures.csv"
    assert len(figures.read_text().splitlines()[1:]) == 2 * 8
    with pytest.raises(InputError, match=r"no alignments: .* subsets dev-clean of this test"):
        test("dev-clean")
    assert not figures.exists()


def test_a_network_without_attention_and_ctc_is_refused_before_it_recognizes(tmp_path: Path) -> None:
    recognizer = build_recognizer(hybrid(write_states(tmp_path / "states")))
    trainer = make_trainer(tmp_path, callbacks=[Alignments()])
    with pytest.raises(InputError, match=r"got a BLSTMHMM, which has none: .*asr align"):
        trainer.test(recognizer, datamodule=Corpus(), verbose=False)


def test_a_transducer_that_emits_nothing_has_no_alignments(tmp_path: Path) -> None:
    recognizer = build_recognizer(transducer())
    with torch.no_grad():
        recognizer.joint.output.bias[recognizer.tokenizer.blank_id] += 50.0
    trainer = make_trainer(tmp_path, callbacks=[Alignments()])
    with pytest.raises(InputError, match="no alignments: nothing was recognized .* train the network longer"):
        trainer.test(recognizer, datamodule=Corpus(), verbose=False)


def test_another_test_replaces_the_pictures(tmp_path: Path) -> None:
    config, _, _ = MODELS["with CTC"]
    for count in (4, 1):
        trainer = make_trainer(tmp_path, callbacks=[Alignments(utterances=count)])
        trainer.test(build_recognizer(config), datamodule=Corpus(), verbose=False)
    assert [path.name for path in (tmp_path / "alignments" / "test").glob("*.png")] == ["tone-0.png"]


def test_only_what_it_has_written_is_removed(tmp_path: Path) -> None:
    config, _, _ = MODELS["with CTC"]
    folder = tmp_path / "alignments" / "test"
    user_files = [folder / "notes.txt", folder / "mine.png", folder / "tone-0.txt", folder / "kept" / "deep.txt"]
    for path in user_files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    outside = tmp_path / "outside.png"
    outside.write_text("mine")
    (folder.parent / ".test.drawn").write_text('"../../outside"\n"tone-7"\nhalf a li')
    (folder / "tone-7.png").write_text("of an earlier test")
    for _ in range(2):
        trainer = make_trainer(tmp_path, callbacks=[Alignments(utterances=1)])
        trainer.test(build_recognizer(config), datamodule=Corpus(), verbose=False)
        assert [path.read_text() for path in [*user_files, outside]] == ["mine"] * 5
        assert {path.name for path in folder.glob("tone-*")} == {
            f"tone-0{end}" for end in (".png", ".svg", ".npz", ".flac", ".txt")
        }
    assert [path.name for path in folder.parent.glob(".*")] == [".test.drawn"]
