"""Lightning's averages of weights beside callbacks that set the first weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor

from asr_lightning import cli
from asr_lightning.batch import Batch, Utterance
from asr_lightning.callbacks.initialization import Initialization
from asr_lightning.callbacks.weight_changes import DistanceFromStart
from asr_lightning.callbacks.weight_selection import WeightSelection, select_weights
from asr_lightning.models.checkpoints import build_recognizer, load_recognizer, read_checkpoint
from tests.support.teacher_checkpoint import configuration, save_teacher
from tests.support.tones import RATE, TEXTS, write_corpus
from tests.support.transcribing_run import loader, make_trainer

DECAY = 0.6
NORMALIZED = {"normalization": "asr_lightning.audio.normalization.GlobalNormalization"}
Weights = dict[str, Tensor]


def copied(module: lightning.LightningModule) -> Weights:
    return {name: value.clone() for name, value in module.state_dict().items()}


class Seen(lightning.Callback):
    """Weights after each optimizer step, and those of each validation by the number of steps before it."""

    def __init__(self) -> None:
        self.trained: list[Weights] = []
        self.validated: dict[int, Weights] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.trained.append(copied(pl_module))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        self.trained.append(copied(pl_module))

    def on_validation_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        self.validated[trainer.global_step] = copied(pl_module)


def spoken(count: int = 3) -> Iterator[Batch]:
    for row in range(count):
        audio = torch.randn(2_000, generator=torch.Generator().manual_seed(row)) / 10
        yield Batch.collate([Utterance(str(row), audio, 8_000, "AB")])


def fit(
    folder: Path, callbacks: list[lightning.Callback], ckpt_path: str | None = None, **options: Any
) -> tuple[lightning.LightningModule, Seen]:
    torch.manual_seed(0)
    config = configuration(3, **NORMALIZED)
    config["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    student, record = build_recognizer(config), Seen()
    settings = {"max_epochs": 2, "val_check_interval": 1, "enable_checkpointing": True, **options}
    trainer = make_trainer(folder, callbacks=[*callbacks, record], **settings)
    trainer.fit(student, loader(list(spoken())), loader(list(spoken(1))), ckpt_path=ckpt_path)
    return student, record


def assert_same(weights: Weights, expected: Weights) -> None:
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6, msg=name)


def averaged(trained: list[Weights], first: int, decay: float | None) -> dict[int, Weights]:
    """Averages by hand after each step, begun with the step of index `first`; before it, the weights themselves."""
    averages = dict(enumerate(trained))
    for step in range(first + 2, len(trained)):
        share = decay if decay is not None else (step - first - 1) / (step - first)
        averages[step] = {
            name: value if "normalization" in name else share * averages[step - 1][name] + (1 - share) * value
            for name, value in trained[step].items()
        }
    return averages


CASES: dict[str, tuple[Any, int, float | None]] = {
    "from the first step": (lambda: EMAWeightAveraging(decay=DECAY), 0, DECAY),
    "from a later step": (lambda: EMAWeightAveraging(decay=DECAY, update_starting_at_step=3), 3, DECAY),
    "never": (lambda: EMAWeightAveraging(decay=DECAY, update_starting_at_step=99), 99, DECAY),
    "equal weights": (lambda: WeightAveraging(), 0, None),
    "without buffers": (lambda: EMAWeightAveraging(decay=DECAY, use_buffers=False), 0, DECAY),
}


@pytest.mark.parametrize(
    ("case", "averaging_first"),
    [(case, True) for case in CASES] + [("from the first step", False), ("from a later step", False)],
)
def test_what_is_validated_and_saved_begins_with_the_selected_weights(
    tmp_path: Path, case: str, averaging_first: bool
) -> None:
    path, teacher = save_teacher(tmp_path, configuration(6, **NORMALIZED))
    make, first, decay = CASES[case]
    saving = ModelCheckpoint(tmp_path, save_last=True, save_top_k=-1, filename="{step}", every_n_train_steps=1)
    weights = ModelCheckpoint(tmp_path / "weights", filename="{step}", save_weights_only=True, every_n_train_steps=2)
    weights.save_top_k = -1  # `every_n_train_steps` tells the two apart
    callbacks = [WeightSelection(str(path)), DistanceFromStart(), saving, weights]
    callbacks = [make(), *callbacks] if averaging_first else [*callbacks, make()]
    student, record = fit(tmp_path, callbacks)
    selected, _ = select_weights(student, teacher)
    assert_same(record.trained[0], selected)
    assert_same(record.validated[0], selected)
    assert_same(load_recognizer(tmp_path / "checkpoints" / "initial.ckpt").state_dict(), selected)
    by_hand = averaged(record.trained, first, decay)
    assert len(by_hand) == 7 and record.validated.keys() == by_hand.keys()
    for step, expected in by_hand.items():
        assert_same(record.validated[step], expected)
    for step in (2, 6):
        assert_same(load_recognizer(tmp_path / f"step={step}.ckpt").state_dict(), by_hand[step])
        assert_same(load_recognizer(tmp_path / "weights" / f"step={step}.ckpt").state_dict(), by_hand[step])
    assert_same(student.state_dict(), by_hand[6])
    names = [name for name in selected if "normalization" not in name]
    assert max(float((record.trained[6][name] - by_hand[6][name]).abs().max()) for name in names) > 1e-3 or first > 6
    assert int(by_hand[6]["features.normalization.count"]) > int(by_hand[1]["features.normalization.count"]) > 0


@pytest.mark.parametrize("case", ["from the first step", "from a later step"])
def test_a_resumed_run_goes_on_as_an_undisturbed_one(tmp_path: Path, case: str) -> None:
    make = CASES[case][0]
    undisturbed, record = fit(tmp_path / "whole", [make(), Initialization("he")], max_steps=6)
    for steps in (3, 6):  # the end of the first epoch
        saving = ModelCheckpoint(
            tmp_path / "parts", filename="last", every_n_train_steps=1, enable_version_counter=False
        )
        options = {"max_steps": steps, "ckpt_path": None if steps == 3 else str(tmp_path / "parts" / "last.ckpt")}
        resumed, parts = fit(tmp_path / "parts", [make(), Initialization("he"), saving], **options)
    assert_same(parts.trained[-1], record.trained[-1])
    assert_same(resumed.state_dict(), undisturbed.state_dict())
    for step in (4, 5, 6):
        assert_same(parts.validated[step], record.validated[step])


@pytest.mark.parametrize(("start", "averages"), [(2, True), (9, False)])
def test_stochastic_weight_averaging_ends_with_weights_of_the_run(tmp_path: Path, start: int, averages: bool) -> None:
    path, teacher = save_teacher(tmp_path, configuration(6, **NORMALIZED))
    swa = StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=start, annealing_epochs=1)
    student, record = fit(tmp_path, [swa, WeightSelection(str(path))], max_epochs=3, val_check_interval=None)
    assert_same(record.trained[0], select_weights(student, teacher)[0])
    last = record.trained[-1]
    expected = last
    if averages:  # the weights at the beginnings of the second and the third epoch
        parts = record.trained[3], record.trained[6]
        expected = {name: (parts[0][name] + parts[1][name]) / 2 for name in last if "normalization" not in name}
        expected |= {name: value for name, value in last.items() if "normalization" in name}
    assert_same(student.state_dict(), expected)


def test_an_experiment_with_both_saves_and_tests_the_averaged_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr("sys.argv", ["lightning"])
    for subset in ("train", "dev"):
        write_corpus(tmp_path / "corpus", subset, TEXTS[:2])
    path, teacher = save_teacher(tmp_path)
    data = {"root": "corpus", "train_subsets": ["train"], "validation_subsets": ["dev"], "test_subsets": ["dev"]}
    data |= {"batch_seconds": 1.0, "workers": 0, "sample_rate": RATE}
    callbacks = "lightning.pytorch.callbacks"
    experiment = {
        "model": configuration(3),
        "data": {"class_path": "data_modules.librispeech.LibriSpeechDataModule", "init_args": data},
        "trainer": {
            "default_root_dir": "run", "max_epochs": 2, "enable_progress_bar": False, "accelerator": "cpu",
            "enable_model_summary": False, "logger": False,
            "callbacks": [
                {"class_path": f"{callbacks}.EMAWeightAveraging", "init_args": {"update_starting_at_epoch": 99,
                                                                                "update_starting_at_step": 99}},
                {"class_path": f"{callbacks}.ModelCheckpoint", "init_args": {"save_last": True}},
                {"class_path": "asr_lightning.callbacks.weight_changes.DistanceFromStart"},
                {"class_path": "asr_lightning.callbacks.weight_selection.WeightSelection",
                 "init_args": {"teacher": str(path)}},
            ],
        },
    }  # fmt: skip
    Path("experiment.yaml").write_text(yaml.safe_dump(experiment))
    cli.main(["fit", "--config", "experiment.yaml"])
    last = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    checkpoint = read_checkpoint(last)
    assert_same(checkpoint["state_dict"], checkpoint["current_model_state"])
    selected, _ = select_weights(build_recognizer(configuration(3)), teacher)
    assert_same(read_checkpoint("run/checkpoints/initial.ckpt")["state_dict"], selected)
    moved = (load_recognizer(last).state_dict()["joint.output.bias"] - selected["joint.output.bias"]).abs().max()
    assert float(moved) > 1e-4, "it was trained"
    cli.main(["test", "--config", "experiment.yaml", "--ckpt_path", last])
    cli.main(["fit", "--config", "experiment.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "3"])
    further = read_checkpoint(last)
    assert further["global_step"] > checkpoint["global_step"]
    assert_same(further["state_dict"], further["current_model_state"])
