import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from asr_lightning.asr import main
from asr_lightning.batch import Batch, Utterance
from asr_lightning.callbacks.teacher_similarity import layer_outputs
from asr_lightning.callbacks.weight_selection import select_weights, teacher_modules
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.tools.teacher_report import layer_fits
from data_modules.spoken_korean import synthesize
from tests.support.planted_teachers import ARCHITECTURES, RATE, pair, plant, recognizer
from tests.support.teacher_checkpoint import save_teacher


def speech() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    utterances = [
        Utterance(str(row), torch.randn(size, generator=generator) / 10, RATE, "AB")
        for row, size in enumerate((9_000, 16_000, 12_300))
    ]
    return [Batch.collate(utterances[:2]), Batch.collate(utterances[2:])]


def fits_of(student: Any, teacher: Any, rule: Any = "first") -> Any:
    torch.manual_seed(3)
    selected = pair("lstm, lstm predictor")[0] if student.encoder.__class__.__name__ == "LSTMEncoder" else None
    selected = selected or pair("conformer, stateless predictor")[0]
    selected.load_state_dict(select_weights(student, teacher, rule)[0])
    return layer_fits(student, selected, teacher, teacher_modules(student, teacher, rule), speech())


def test_layers_of_a_planted_teacher_are_those_of_the_student() -> None:
    """A student that is hidden in the teacher, and one of other weights, which gets it by selection."""
    hidden, teacher = pair("lstm, lstm predictor")
    plant(hidden, teacher)
    [first, second], frames = fits_of(hidden, teacher)
    assert frames == sum(len(layer_outputs(hidden, ["layers.0"], [batch])[0]) for batch in speech())
    for fit in (
        first,
        second,
    ):  # as planted they compute the same, each unit twice; "random" is the hidden student here
        assert fit.random == pytest.approx(1.0, abs=1e-4)
        assert fit.student == fit.name
    assert first.to_below is None and 0 < second.to_below < 0.9999
    assert (first.kept, second.kept) == ("encoder.layers.1", "encoder.layers.0")
    assert first.to_kept == pytest.approx(second.to_kept) == pytest.approx(second.to_below)
    encoder, predictor = ARCHITECTURES["lstm, lstm predictor"]
    other = recognizer(encoder(False), predictor(False), False, seed=2)
    [first, _], _ = fits_of(other, teacher)
    assert first.random < 0.98


def test_a_layer_that_changes_nothing_is_missed_little() -> None:
    student, teacher = pair("conformer, stateless predictor", layers=3)
    silent = teacher.encoder.layers[2]
    with torch.no_grad():
        for part in (silent.first_feed_forward[4], silent.second_feed_forward[4], silent.attention.output,
                     silent.convolution.output):  # fmt: skip
            part.weight.zero_()
            part.bias.zero_()
        for norm in (teacher.encoder.layers[1].norm, silent.norm):
            norm.weight.fill_(1.0)
            norm.bias.zero_()
    fits, _ = fits_of(student, teacher)
    assert [fit.student for fit in fits] == ["encoder.layers.0", "encoder.layers.1", ""]
    skipped = fits[2]
    assert skipped.to_kept == pytest.approx(1.0, abs=1e-5) == skipped.to_below
    assert skipped.kept == "encoder.layers.1" and skipped.selected is None and skipped.random is None
    assert fits[1].to_below < 0.999
    last, _ = fits_of(student, teacher, "last")
    assert [fit.student for fit in last] == ["", "encoder.layers.0", "encoder.layers.1"]
    assert last[0].to_kept == pytest.approx(fits[1].to_below)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    synthesize(folder, 0.1, 0.5, workers=1, progress=False)
    return folder


def model(config: dict[str, Any], hidden: int, layers: int) -> dict[str, Any]:
    encoder = {**config["init_args"]["encoder"], "init_args": {**config["init_args"]["encoder"]["init_args"]}}
    encoder["init_args"] |= {"hidden": hidden, "layers": layers}
    features = config["init_args"]["features"]
    tokenizer = {"class_path": "asr_lightning.text.hangul.JamoTokenizer"}
    arguments = {"tokenizer": tokenizer, "features": features, "encoder": encoder}
    return {"class_path": "asr_lightning.models.ctc.CTCRecognizer", "init_args": arguments}


@pytest.mark.parametrize(("hidden", "depth", "rule", "kept"), [
    (16, 3, "first", [0, 1]), (24, 4, "uniform", [0, 2])
])  # fmt: skip
def test_the_command_prints_and_writes_what_a_student_gets(
    tmp_path: Path, config: dict[str, Any], corpus: Path, capsys: pytest.CaptureFixture[str],
    hidden: int, depth: int, rule: str, kept: list[int],
) -> None:  # fmt: skip
    path, teacher = save_teacher(tmp_path, model(config, hidden, depth))
    data = {"root": str(corpus), "train_subsets": ["train"], "validation_subsets": ["dev"], "workers": 0}
    content = {
        "model": model(config, 8, 2),
        "data": {"class_path": "data_modules.ksponspeech.KsponSpeechDataModule", "init_args": data},
        "weight_selection": {"teacher": "elsewhere.ckpt", "layers": rule},
    }
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(yaml.safe_dump(content))
    output = tmp_path / "out"
    options = ["--config", str(experiment), "--output", str(output), "--utterances", "2", "--device", "cpu"]
    assert main(["teacher", str(path), *options]) == 0
    printed = capsys.readouterr().out
    rows = {row["parameter"]: row for row in csv.DictReader((output / "weights.csv").open())}
    student = build_recognizer(content["model"])
    assert [*rows] == [*student.state_dict()]
    weight = rows["encoder.layers.1.forward_lstm.weight_hh_l0"]
    assert weight["from"] == f"encoder.layers.{kept[1]}.forward_lstm.weight_hh_l0" and float(weight["share"]) == 1
    assert (weight["shape"], weight["teacher_shape"]) == ("32 × 8", f"{4 * hidden} × {hidden}")
    assert weight["axes"] == f"all 4 gates × 8 of {hidden} | 8 of {hidden}"
    layers = list(csv.DictReader((output / "layers.csv").open()))
    assert [row["teacher_layer"] for row in layers] == [f"encoder.layers.{n}" for n in range(depth)]
    assert [row["student_layer"] for row in layers] == [
        f"encoder.layers.{kept.index(n)}" if n in kept else "" for n in range(depth)
    ]
    for row in layers:
        assert (row["selected"] == "") == (row["student_layer"] == "")
        assert 0 < float(row["to_kept"]) < 1 and row["kept_layer"] != row["teacher_layer"]
    assert f"(layers {rule}, elements uniform)" in printed and "encoder.layers.1" in printed
    assert f"{depth - 2} of {depth} layers are skipped" in printed
    sizes = [sum(tensor.numel() for tensor in net.state_dict().values()) for net in (student, teacher)]
    assert f"{sizes[0]:,}" in printed and f"{sizes[0] / sizes[1]:.1%}" in printed


def test_a_teacher_that_is_too_small_is_refused(
    tmp_path: Path, config: dict[str, Any], corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = save_teacher(tmp_path, model(config, 4, 2))
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(yaml.safe_dump({"model": model(config, 8, 2)}))
    assert main(["teacher", str(path), "--config", str(experiment), "--output", str(tmp_path)]) == 2
    assert "a teacher must be at least as large as its student" in capsys.readouterr().err


def test_tokens_that_the_teacher_lacks_stay_random(tmp_path: Path, config: dict[str, Any]) -> None:
    small = {"class_path": "asr_lightning.text.tokenizers.CharacterTokenizer"}
    config["init_args"]["tokenizer"] = small
    student = build_recognizer(config)
    teacher = build_recognizer(config)
    tokens = student.tokenizer.tokens[:-4]

    teacher.joint = type(teacher.joint)(tokens, 8)
    received = {part.name: part.share for part in select_weights(student, teacher)[1]}
    assert received["joint.output.bias"] == pytest.approx(len(tokens) / len(student.tokenizer.tokens))
    assert received["encoder.layers.0.forward_lstm.weight_hh_l0"] == 1.0
