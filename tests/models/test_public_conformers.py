"""Networks from SpeechBrain's weights compute what SpeechBrain computes with them.

The outputs of a tiny network are stored beside `tests/support/speechbrain_networks.py`, which tells how they are made.
Larger ones, up to the true sizes, are compared where SpeechBrain can be imported:

    pip install --target /tmp/peers --no-deps speechbrain==1.1.2 hyperpyyaml ruamel.yaml joblib
    PYTHONPATH=/tmp/peers pytest tests/models/test_public_conformers.py
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sentencepiece
import torch
import torchaudio
import yaml
from torch import Tensor

from asr_lightning.asr import main
from asr_lightning.callbacks.weight_selection import check_features, select_weights
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import CheckpointFiles, build_recognizer, load_recognizer
from asr_lightning.models.one_hot_transducer import OneHotTransducer
from asr_lightning.models.public_conformers import speechbrain_transducer
from asr_lightning.nn.chunked_conformer import ChunkedConformer, LayerNormConformer
from asr_lightning.nn.streaming import StreamingEncoder
from tests.support.speechbrain_networks import (
    CHUNK,
    FULL,
    LEFT_CHUNKS,
    PIECES,
    SAMPLES,
    SMALL,
    TINY,
    SpeechBrain,
    read_reference,
    speech,
    targets_of,
)

CHUNKS = {"chunk": CHUNK, "left_context": CHUNK * LEFT_CHUNKS}


class Files(NamedTuple):
    """Of a public network, and what it computes of `speech(samples)`."""

    weights: Path
    tokens: Path
    statistics: Path
    expected: dict[str, Tensor]
    samples: int
    vocabulary: int


def train_pieces(prefix: Path, count: int, **numbers: int) -> Path:
    """As SpeechBrain does: its unknown piece is number 0, and it has no others of that kind."""
    generator = random.Random(0)
    words = ["".join(generator.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=generator.randint(1, 6))) for _ in range(4_000)]
    lines = [" ".join(generator.choices(words, k=8)) for _ in range(2_000)]
    ids = {"unk_id": 0, "bos_id": -1, "eos_id": -1, "pad_id": -1, **numbers}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), vocab_size=count, hard_vocab_limit=True,
        minloglevel=2, **ids,
    )  # fmt: skip
    return prefix.with_suffix(".model")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_pieces(tmp_path_factory.mktemp("pieces") / "tokenizer", PIECES)


@pytest.fixture(scope="module")
def tiny(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tiny")
    expected = read_reference(folder)
    return Files(folder / "model.ckpt", tokens, folder / "normalizer.ckpt", expected, SAMPLES, PIECES)


@pytest.fixture(scope="module", params=["tiny", "tiny, computed now", "small", "full"])
def public(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    if request.param == "tiny":
        yield request.getfixturevalue("tiny")
        return
    pytest.importorskip("speechbrain")
    sizes: dict[str, Any] = {"tiny, computed now": TINY, "small": SMALL, "full": FULL}[request.param]
    folder, vocabulary = tmp_path_factory.mktemp("larger"), int(sizes["vocabulary"])
    network = SpeechBrain(sizes)
    network.save(folder)
    expected = network.compute(speech(30_001), targets_of(vocabulary))
    pieces = train_pieces(folder / "tokenizer", vocabulary)
    if request.param == "full":  # as the file on the hub, 334 MB
        assert round((folder / "model.ckpt").stat().st_size / 1e6) == 334
    yield Files(folder / "model.ckpt", pieces, folder / "normalizer.ckpt", expected, 30_001, vocabulary)
    (folder / "model.ckpt").unlink()


def imported(files: Files, **options: Any) -> OneHotTransducer:
    recognizer = speechbrain_transducer(files.weights, files.tokens, files.statistics, **options)
    assert isinstance(recognizer, OneHotTransducer) and not recognizer.training
    return recognizer


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    """To 1e-5 of the largest."""
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=1e-5 * max(1.0, float(theirs.abs().max())), rtol=0)


@torch.no_grad()
def test_features_log_probabilities_and_transcripts_are_speechbrains(public: Files) -> None:
    recognizer, expected = imported(public), public.expected
    audio, lengths = speech(public.samples)[None], torch.tensor([public.samples])
    features, _ = recognizer.features(audio, lengths)
    torch.testing.assert_close(features[0], expected["features"], atol=1e-4, rtol=0)  # differences of up to 100 dB
    encoded, lengths = recognizer(audio, lengths)
    assert lengths.tolist() == [encoded.shape[1]]
    assert_equal(encoded[0], expected["encoded"])
    targets = targets_of(public.vocabulary)[None]
    logits = recognizer.joint(recognizer.project(encoded).unsqueeze(2), recognizer.predict(targets).unsqueeze(1))
    assert_equal(logits.log_softmax(3)[0], expected["log_probs"])
    [[best]] = recognizer.decode(encoded, lengths)
    assert list(best.tokens) == expected["tokens"].tolist() and len(set(best.tokens)) > 1

    loss = recognizer.decoder_loss(encoded, lengths, targets, torch.tensor([4]))
    theirs = torchaudio.functional.rnnt_loss(
        logits, targets.int(), lengths.int(), torch.tensor([4]).int(), blank=0, reduction="none"
    )
    torch.testing.assert_close(loss, theirs, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_chunks_are_encoded_as_speechbrain_masks_and_streams_them(public: Files) -> None:
    recognizer = imported(public, **CHUNKS, decibels=None)
    recognizer.features.decibels = 80.0  # so that they are those that were stored
    audio, lengths = speech(public.samples)[None], torch.tensor([public.samples])
    encoded, _ = recognizer(audio, lengths)
    assert_equal(encoded[0], public.expected["chunked"])
    assert_equal(encoded[0], public.expected["streamed"])
    assert not torch.allclose(public.expected["chunked"], public.expected["encoded"], atol=1e-2)
    encoder, (features, _) = recognizer.encoder, recognizer.features(audio, lengths)
    assert isinstance(encoder, StreamingEncoder)
    state, outputs = encoder.initial_state(1, torch.device("cpu")), []
    for start in range(0, features.shape[1], 7):
        piece = features[:, start : start + 7]
        last = start + 7 >= features.shape[1]
        y, _, state = encoder.stream(piece, torch.tensor([piece.shape[1]]), state, last)
        outputs.append(y)
    assert_equal(torch.cat(outputs, dim=1)[0], public.expected["streamed"])


@torch.no_grad()
def test_features_of_any_range_stream_into_the_tokens_of_the_whole(tiny: Files) -> None:
    recognizer = imported(tiny, **CHUNKS, decibels=None)
    audio = torch.stack([speech(20_000), speech(20_000, seed=3)])
    whole = recognizer.decode(*recognizer(audio, torch.tensor([20_000, 20_000])))
    state, written = recognizer.initial_stream(2), ([], [])  # type: tuple[list[int], list[int]]
    for number, piece in enumerate(audio.split(3_001, dim=1)):
        added, state = recognizer.stream(piece, state, last=number == 6)
        for tokens, hypothesis in zip(written, added, strict=True):
            tokens.extend(hypothesis.tokens)
    assert [list(best.tokens) for [best] in whole] == list(written) and all(len(set(tokens)) > 1 for tokens in written)
    with pytest.raises(InputError, match="features that stream need decibels: null, got 80"):
        limited = imported(tiny, **CHUNKS)
        limited.stream(audio, limited.initial_stream(2))


def test_a_checkpoint_of_it_is_read_as_any_other(tiny: Files, tmp_path: Path) -> None:
    ours = imported(tiny)
    checkpoint = {"state_dict": ours.state_dict(), "hyper_parameters": dict(ours.hparams)}
    CheckpointFiles().save_checkpoint(checkpoint, tmp_path / "public.ckpt")
    again = load_recognizer(tmp_path / "public.ckpt")
    for name, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    vocabulary = again.tokenizer
    assert (len(vocabulary), vocabulary.blank_id, vocabulary.unk_id, vocabulary.eos_id) == (PIECES, 0, 0, 0)
    assert vocabulary.decode(vocabulary.encode("AB É CD")) == "AB CD" and 0 not in vocabulary.encode("AB É CD")
    assert vocabulary.loses("É") and not vocabulary.loses("A") and vocabulary.fold("AB ÉCD") == "AB ÉCD"


def student(teacher: OneHotTransducer, tokens: Path, encoder: type = LayerNormConformer) -> OneHotTransducer:
    """Half as wide, one layer less."""
    content: dict[str, Any] = dict(teacher.hparams)
    sizes = content["encoder"]["init_args"]
    halved = {name: sizes[name] // 2 for name in ("dimension", "feed_forward")}
    halved |= {"layers": sizes["layers"] - 1, "channels": [3, 1], "kernel": 5}
    torch.manual_seed(5)
    made = build_recognizer({
        "class_path": "asr_lightning.models.one_hot_transducer.OneHotTransducer",
        "init_args": {
            "tokenizer": content["tokenizer"],
            "features": {"class_path": content["features"]["class_path"],
                         "init_args": {"mels": sizes["input_dimension"]}},
            "encoder": {"class_path": f"{encoder.__module__}.{encoder.__name__}",
                        "init_args": {**sizes, **halved}},
            "predictor": {"class_path": content["predictor"]["class_path"], "init_args": {"dimension": 3}},
            "joint_dimension": 3,
        },
    })  # fmt: skip
    assert isinstance(made, OneHotTransducer)
    return made


@pytest.mark.parametrize("encoder", [LayerNormConformer, ChunkedConformer])
@torch.no_grad()
def test_weights_of_a_student_are_selected_from_it(tiny: Files, encoder: type) -> None:
    teacher = imported(tiny)
    small = student(teacher, tiny.tokens, encoder)
    check_features(small.features, teacher.features)
    weights, report = select_weights(small, teacher)
    assert all(part.source and part.share == 1.0 for part in report), [str(part) for part in report]
    small.load_state_dict(weights)
    theirs = teacher.state_dict()
    # Tokens are all kept, units of the predictor within each gate; of 7 taps the 5 in the middle; of heads every unit.
    rows = torch.cat([5 * gate + torch.tensor([0, 2, 4]) for gate in range(4)])
    wanted = theirs["prediction.predictor.layers.0.weight_ih_l0"][rows]
    assert torch.equal(weights["prediction.predictor.layers.0.weight_ih_l0"], wanted)
    taps = theirs["encoder.layers.0.convolution.filter.weight"][::2, :, 1:6]
    assert torch.equal(weights["encoder.layers.0.convolution.filter.weight"], taps)
    # Frequencies are all kept, channels evenly.
    flat = theirs["encoder.subsampling.projection.weight"].unflatten(1, (4, 2))[::2, :, :1].flatten(1)
    assert torch.equal(weights["encoder.subsampling.projection.weight"], flat)
    encoded, lengths = small.eval()(speech(SAMPLES)[None], torch.tensor([SAMPLES]))
    assert bool(encoded.isfinite().all()) and small.decode(encoded, lengths)


@torch.no_grad()
def test_the_student_of_the_documentation_gets_all_of_its_weights_from_a_teacher_of_full_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs/deployment.md").read_text("utf-8")
    [block] = [block for block in re.findall("```yaml\n(.*?)```", text, re.S) if "OneHotTransducer" in block]
    config = yaml.safe_load(block)["model"]
    monkeypatch.chdir(tmp_path)
    beside = Path(config["init_args"]["tokenizer"]["init_args"]["model"])
    beside.parent.mkdir(parents=True)
    train_pieces(tmp_path / "tokenizer", FULL["vocabulary"]).rename(beside)
    small = build_recognizer(config)
    sizes = {"dimension": FULL["dimension"], "layers": FULL["layers"], "heads": FULL["heads"],
             "feed_forward": FULL["hidden"], "channels": FULL["channels"]}  # fmt: skip
    arguments = config["init_args"]
    arguments["encoder"]["init_args"] |= sizes
    arguments["predictor"]["init_args"]["dimension"] = FULL["predictor"]
    teacher = build_recognizer({**config, "init_args": {**arguments, "joint_dimension": FULL["joint"]}})
    assert sum(parameter.numel() for parameter in teacher.parameters()) == 80_614_816
    _, report = select_weights(small, teacher)
    assert all(part.source and part.share == 1.0 for part in report)


def changed(files: Files, path: Path, **weights: Tensor | None) -> Files:
    """The same with other weights by name; None: without."""
    content = {**torch.load(files.weights), **{name.replace("__", "."): value for name, value in weights.items()}}
    torch.save({name: value for name, value in content.items() if value is not None}, path)
    return files._replace(weights=path)


def test_wrong_weights_are_named(tiny: Files, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    own = torch.load(tiny.weights)
    for weights, message in (
        ({"7__w__weight": None}, "3 linear layers without a bias, .* found 2 and 1"),
        ({"8__w__weight": own["7.w.weight"]}, "3 linear layers without a bias, .* found 4 and 1"),
        (
            {"0__convblock_0__convs__conv_1__conv__weight": torch.zeros(1)},
            "found 0.convblock_0.convs.conv_1",
        ),
        (
            {"3__rnn__weight_hh_l0": torch.zeros(15, 5)},
            "another network: .*hh_l0 is of \\(15, 5\\), expected \\(20, 5\\)",
        ),  # a GRU
        ({"3__rnn__weight_hh_l0": None}, "none that become .*hh_l0"),
        ({"2__Embedding__weight": torch.randn(40, 39)}, "one-hot vectors and the blank as zeros, .* 40 x 39"),
        ({"2__Embedding__weight": torch.eye(40)}, "one-hot vectors and the blank as zeros"),
        ({"2__Embedding__weight": None}, "none that become embedding.weight"),
        ({"1__transformer__encoder__layers__1__mha_layer__in_proj_weight": torch.zeros(7, 3)}, "another network"),
        (
            {"1__transformer__encoder__layers__0__mha_layer__in_proj_weight": torch.zeros(24)},
            r"packed is of",
        ),
        (
            {"1__transformer__encoder__layers__0__mha_layer__value_bias_weight": torch.zeros(8)},
            "found 1.trans.*value",
        ),
        ({"4__w__weight": torch.full((6, 8), torch.nan)}, "finite weights, found others in 4.w.weight"),
        (
            {"0__convblock_0__convs__norm_0__norm__weight": torch.zeros(16, 3)},
            r"norms of \[\[8, 3\].*found \[\[16",
        ),
    ):
        with pytest.raises(InputError, match=f"model.ckpt: .*{message}"):
            imported(changed(tiny, path, **weights))
    path.write_bytes(tiny.weights.read_bytes()[:2_000])
    with pytest.raises(InputError, match=r"model.ckpt: expected weights of SpeechBrain's Conformer transducer: "):
        imported(tiny._replace(weights=path))
    torch.save([torch.zeros(1)], path)
    with pytest.raises(InputError, match=r"Conformer transducer, found list"):
        imported(tiny._replace(weights=path))
    with pytest.raises(InputError, match=r"none.ckpt: .*[Nn]o such file"):
        imported(tiny._replace(weights=tmp_path / "none.ckpt"))


def test_wrong_statistics_pieces_and_options_are_named(tiny: Files, tmp_path: Path) -> None:
    path = tmp_path / "normalizer.ckpt"
    for content, message in (
        ({"count": 1}, "glob_mean and glob_std, found count"),
        ({"glob_mean": torch.zeros(16), "glob_std": torch.ones(15)}, "as many means as deviations, found 16 and 15"),
        ({"glob_mean": torch.zeros(16), "glob_std": torch.full((16,), torch.inf)}, "finite vectors"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=f"normalizer.ckpt: .*{message}"):
            imported(tiny._replace(statistics=path))
    torch.save({"glob_mean": torch.zeros(80), "glob_std": torch.ones(80)}, path)
    with pytest.raises(InputError, match="halve 80 features, .* statistics of the same network"):
        imported(tiny._replace(statistics=path))
    for name, count, numbers in (("fewer", 37, {}), ("others", PIECES, {"unk_id": 2, "bos_id": 0, "eos_id": 1})):
        other = train_pieces(tmp_path / name, count, **numbers)
        found = f"found {count} with number {numbers.get('unk_id', 0)}"
        with pytest.raises(InputError, match=f"{name}.model: .*40 pieces .* is number 0, {found}"):
            imported(tiny._replace(tokens=other))
    with pytest.raises(InputError, match="normalizer.ckpt is not a SentencePiece model"):
        imported(tiny._replace(tokens=tiny.statistics))
    with pytest.raises(InputError, match="expected a chunk where there is a left context"):
        imported(tiny, left_context=8)
    with pytest.raises(InputError, match="expected an activation of gelu, relu, silu, got elu"):
        imported(tiny, activation="elu")


def test_the_command_writes_a_checkpoint(tiny: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["--weights", tiny.weights, "--tokens", tiny.tokens, "--statistics", tiny.statistics]

    def run(*arguments: object) -> int:
        return main(["import", "speechbrain", *map(str, [*named, *arguments])])

    assert run("--output", tmp_path / "run/whole.ckpt") == 0
    assert "40 tokens with the blank" in capsys.readouterr().out
    assert (tmp_path / "run/tokens.model").read_bytes() == tiny.tokens.read_bytes()
    whole = load_recognizer(tmp_path / "run/whole.ckpt")
    assert type(whole.encoder) is LayerNormConformer and whole.features.whole_utterance() == "a range of 80 decibels"
    assert run("--chunk", 4, "--decibels", 0, "--window", 400, "--output", tmp_path / "chunked.ckpt") == 0
    chunked = load_recognizer(tmp_path / "chunked.ckpt")
    assert isinstance(chunked.encoder, ChunkedConformer)
    assert (chunked.encoder.chunk, chunked.encoder.left_context, chunked.features.window_samples) == (4, 16, 400)
    assert not chunked.features.whole_utterance()
    assert run("--left-context", 4, "--output", tmp_path / "none.ckpt") == 2
    assert "expected a chunk" in capsys.readouterr().err and not (tmp_path / "none.ckpt").exists()
