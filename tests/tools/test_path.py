import copy
import csv
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from PIL import Image

from asr_lightning.asr import main
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer, load_recognizer
from asr_lightning.tools.weight_lines import find_config, load_pair, measure_line, name_of, read_batches
from data_modules.spoken_korean import synthesize


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little Korean speech."""
    folder = tmp_path_factory.mktemp("speech")
    synthesize(folder, 0.1, 0.5, workers=1, progress=False)
    return folder


@pytest.fixture
def experiment(tmp_path: Path, config: dict[str, Any], speech: Path) -> Path:
    arguments = {name: config["init_args"][name] for name in ("features", "encoder")}
    arguments["tokenizer"] = {"class_path": "asr_lightning.text.hangul.JamoTokenizer"}
    model = {"class_path": "asr_lightning.models.ctc.CTCRecognizer", "init_args": arguments}
    data = {"root": str(speech), "train_subsets": ["train"], "validation_subsets": ["dev"], "workers": 0}
    path = tmp_path / "experiment.yaml"
    content = {
        "model": model,
        "data": {"class_path": "data_modules.ksponspeech.KsponSpeechDataModule", "init_args": data},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def save(folder: Path, experiment: Path, seed: int, **changes: Any) -> Path:
    """A run of a network that never trained, with a config.yaml in its logs."""
    config = copy.deepcopy(yaml.safe_load(experiment.read_text()))
    config["model"]["init_args"] |= changes
    torch.manual_seed(seed)
    recognizer = build_recognizer(config["model"])
    path = folder / "checkpoints" / "last.ckpt"
    for part in (path.parent, folder / "logs" / "version_2", folder / "logs" / "version_10"):
        part.mkdir(parents=True)
    (folder / "logs" / "version_10" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "logs" / "version_2" / "config.yaml").write_text("old")
    content = {"state_dict": recognizer.state_dict(), "hyper_parameters": dict(recognizer.hparams)}
    torch.save({**content, "pytorch-lightning_version": lightning.__version__}, path)
    return path


def test_ends_are_the_losses_of_the_checkpoints_themselves(tmp_path: Path, experiment: Path) -> None:
    first, second = (save(tmp_path / f"net{seed}" / "seed1", experiment, seed) for seed in (1, 2))
    subset, batches = read_batches(experiment, None, 3, 1)
    assert subset == "dev"
    assert sum(map(len, batches)) == 3
    line = measure_line((first, second), subset, batches, [0.0, 0.5, 1.0], False, "cpu")
    line_losses = [point.loss for _, point in line.points]
    checkpoint_losses = []
    for path in (first, second):
        recognizer = load_recognizer(path)
        with torch.inference_mode():
            checkpoint_losses.append(torch.cat([recognizer.loss(batch) for batch in batches]).double())
    assert [line_losses[0], line_losses[2]] == pytest.approx(
        [float(losses.mean()) for losses in checkpoint_losses], rel=1e-12
    )
    assert abs(line_losses[0] - line_losses[2]) > 1e-3, "or the two are not told apart"
    flat = measure_line((first, first), subset, batches, [-0.25, 0.0, 0.3, 1.0, 1.25], False, "cpu")
    assert len({point.loss for _, point in flat.points}) == 1
    assert flat.barrier == 0.0


def test_the_command_writes_a_table_and_a_picture(
    tmp_path: Path, experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (str(save(tmp_path / f"net{seed}" / "seed4", experiment, seed)) for seed in (1, 2))
    output = tmp_path / "out"
    options = ["--points", "3", "--from", "0", "--to", "1", "--utterances", "1", "--error-rates", "--device", "cpu"]
    pairs = ["--between", first, second, "--between", first, first]
    assert main(["path", *pairs, "--output", str(output), "--subset", "train", *options]) == 0
    rows = list(csv.DictReader((output / "path.csv").open()))
    names = ("net1 seed 4", "net2 seed 4")
    assert [(row["first"], row["second"], row["alpha"]) for row in rows] == [
        (names[0], other, alpha) for other in names[::-1] for alpha in ("0", "0.5", "1")
    ]
    assert {row["subset"] for row in rows} == {"train"}
    assert {row["utterances"] for row in rows} == {"1"}
    assert rows[3]["loss"] == rows[4]["loss"] == rows[5]["loss"] == rows[0]["loss"] != rows[2]["loss"]
    assert all(float(row["wer"]) > 0 for row in rows)
    assert Image.open(output / "path.png").size == (2400, 1020)
    printed = capsys.readouterr().out
    assert f"{float(rows[0]['loss']):.3f}" in printed
    assert "barrier" in printed


def test_the_draw_of_utterances_is_that_of_the_seed(experiment: Path) -> None:
    def sample(count: int, seed: int) -> list[str]:
        return sorted(name for batch in read_batches(experiment, "dev", count, seed)[1] for name in batch.ids)

    all_ids = sample(0, 1)
    assert len(all_ids) == len(set(all_ids)) > 3
    assert sample(3, 1) == sample(3, 1)
    assert len({tuple(sample(3, seed)) for seed in range(8)}) > 1
    assert set(sample(3, 1)) < set(all_ids)


def test_networks_that_compute_something_else_are_refused(tmp_path: Path, experiment: Path) -> None:
    first = save(tmp_path / "a", experiment, 1)
    layers = {"input_dimension": 20, "hidden": 12, "layers": 1, "channels": 2}
    encoder = {"class_path": "asr_lightning.nn.recurrent.LSTMEncoder"}
    wider = save(tmp_path / "b", experiment, 1, encoder={**encoder, "init_args": {**layers, "hidden": 14}})
    with pytest.raises(InputError, match=r"expected the same architecture, got\n  encoder\.hidden: 12 and 14"):
        load_pair(first, wider, "cpu")
    tokens = save(
        tmp_path / "c", experiment, 1, tokenizer={"class_path": "asr_lightning.text.tokenizers.CharacterTokenizer"}
    )
    with pytest.raises(InputError, match="the same tokens"):
        load_pair(first, tokens, "cpu")
    trained = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    deaf = {**encoder, "init_args": {**layers, "dropout": 0.4}}
    other = save(tmp_path / "d", experiment, 1, optimizer=trained, encoder=deaf)
    load_pair(first, other, "cpu")  # only trained otherwise


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--points", "1"], "--from, --to and --points: expected 2 or more values"),
        (["--from", "0.5"], "range that holds 0 and 1"),
        (["--subset", "nowhere"], "nowhere"),
        (["--config", "missing.yaml"], "missing.yaml: No such file"),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, experiment: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = str(save(tmp_path / "a", experiment, 1))
    assert main(["path", "--between", first, first, "--output", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err


def test_the_experiment_is_that_of_the_newest_log(tmp_path: Path, experiment: Path) -> None:
    first = save(tmp_path / "a", experiment, 1)
    assert find_config(first) == tmp_path / "a" / "logs" / "version_10" / "config.yaml"
    with pytest.raises(InputError, match="give --config"):
        find_config(tmp_path / "elsewhere" / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/demo/rnnt_ws/seed1/checkpoints/last.ckpt", "rnnt_ws seed 1"),
        ("runs/rnnt/checkpoints/initial.ckpt", "rnnt initial"),
        ("downloads/some.ckpt", "some"),
    ],
)
def test_names_are_short(path: str, name: str) -> None:
    assert name_of(Path(path)) == name
