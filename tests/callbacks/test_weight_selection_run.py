"""The callback in runs: called by pytest, and started by a test as a process of two ranks."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from asr_lightning.batch import Batch, Utterance
from asr_lightning.callbacks.initialization import Initialization
from asr_lightning.callbacks.weight_selection import WeightSelection, select_weights
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer
from tests.support import environment
from tests.support.planted_teachers import MELS, RATE
from tests.support.teacher_checkpoint import configuration, save_teacher
from tests.support.transcribing_run import Beginning, loader, make_trainer


def batches(count: int = 2) -> Any:
    audio = torch.randn(count, 3_000, generator=torch.Generator().manual_seed(0)) / 10
    return loader([Batch.collate([Utterance(str(row), samples, RATE, "AB")]) for row, samples in enumerate(audio)])


def fit(
    folder: Path, selection: WeightSelection, student: Any = None, ckpt_path: Path | None = None, **options: Any
) -> tuple[lightning.Trainer, dict[str, Tensor]]:
    """Train the student; return the trainer, and the weights it began with."""
    beginning = Beginning()
    trainer = make_trainer(folder, callbacks=[selection, beginning], limit_val_batches=0, **options)
    trainer.fit(student or build_recognizer(configuration(3)), batches(), ckpt_path=ckpt_path)
    return trainer, beginning.weights


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_training_begins_with_the_selected_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, teacher = save_teacher(tmp_path)
    student = build_recognizer(configuration(3))
    initial = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    options = {"layers": "last", "elements": "random_consistent", "seed": 5}
    expected, report = select_weights(student, teacher, **options)
    with caplog.at_level("INFO", "lightning.pytorch"):
        trainer, first = fit(tmp_path, WeightSelection(str(path), **options), student)
    assert equal(first, expected)
    assert not equal(first, initial)
    assert not equal(student.state_dict(), first), "it was trained"
    printed = caplog.text
    assert f"from {path}: layers last, elements random_consistent, axes along their meaning" in printed
    for entry in report:
        assert str(entry) in printed
    assert "all 4 gates × 3 of 6 | all 2 directions × 3 of 6" in printed
    blind = fit(tmp_path, WeightSelection(str(path), axis_aware=False))[1]
    assert equal(blind, select_weights(student, teacher, axis_aware=False)[0])


def test_a_run_that_is_resumed_keeps_its_weights(tmp_path: Path) -> None:
    path, _ = save_teacher(tmp_path)
    trainer, _ = fit(tmp_path, WeightSelection(str(path)), max_steps=1)  # in the middle of the epoch
    middle = tmp_path / "middle.ckpt"
    trainer.save_checkpoint(middle)
    saved = torch.load(middle, weights_only=True)["state_dict"]
    path.unlink()  # nor is the teacher needed again
    trainer, resumed = fit(tmp_path, WeightSelection(str(path)), ckpt_path=middle, max_epochs=2)
    assert equal(resumed, saved)
    assert trainer.global_step > 1


def test_a_second_fit_goes_on(tmp_path: Path) -> None:
    path, _ = save_teacher(tmp_path)
    selection, student = WeightSelection(str(path)), build_recognizer(configuration(3))
    fit(tmp_path, selection, student)
    trained = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    assert equal(fit(tmp_path, selection, student)[1], trained)


def test_a_missing_teacher_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no teacher's checkpoint at .*none\.ckpt.*make it with `make teacher`"):
        fit(tmp_path, WeightSelection(str(tmp_path / "none.ckpt"), made_by="make teacher"))


def test_a_truncated_teacher_is_refused(tmp_path: Path) -> None:
    path, _ = save_teacher(tmp_path)
    path.write_bytes(path.read_bytes()[:5_000])
    with pytest.raises(InputError, match="not a complete checkpoint"):
        fit(tmp_path, WeightSelection(str(path)))


NORMALIZED = {"normalization": "asr_lightning.audio.normalization.UtteranceNormalization"}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (("MFCC", {}), "checkpoint .* MFCC of 8 dimensions.*model.* LogMel of 8"),
        (("KaldiFilterBank", {}), "KaldiFilterBank"),
        (("LogMel", {"mels": 10}), "LogMel of 10 dimensions.*LogMel of 8 dimensions"),
        (("LogMel", {"sample_rate": 16_000}), "at 16000 Hz.*at 8000 Hz"),
        (("LogMel", {"hop_seconds": 0.02}), "every 160.*every 80"),
        (("LogMel", {"maximum_hertz": 3_000.0}), "trained on other features"),
        (("LogMel", NORMALIZED), "UtteranceNormalization.*NoneType"),
    ],
)
def test_a_teacher_of_other_features_is_refused(
    tmp_path: Path, features: tuple[str, dict[str, Any]], message: str
) -> None:
    name, options = features
    config = configuration(6, name, **options)
    config["init_args"]["encoder"]["init_args"]["input_dimension"] = options.get("mels", MELS)
    path, _ = save_teacher(tmp_path, config)
    with pytest.raises(InputError, match=f"the checkpoint was trained on other features.*({message})|{message}"):
        fit(tmp_path, WeightSelection(str(path)))


def test_statistics_of_the_features_come_from_the_teacher(tmp_path: Path) -> None:
    normalized = {"normalization": "asr_lightning.audio.normalization.GlobalNormalization"}
    path, teacher = save_teacher(tmp_path)
    teacher = build_recognizer(configuration(6, **normalized))
    teacher.features.normalization.count.fill_(3)
    teacher.features.normalization.squares.fill_(9)
    torch.save({"state_dict": teacher.state_dict(), "hyper_parameters": dict(teacher.hparams)}, path)
    _, first = fit(tmp_path, WeightSelection(str(path)), build_recognizer(configuration(3, **normalized)))
    assert int(first["features.normalization.count"]) == 3
    assert bool((first["features.normalization.squares"] == 9).all())


def test_all_ranks_begin_with_the_same_weights(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    result = subprocess.run(command, env=environment(), timeout=120, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert ranks[0]["seed"] != ranks[1]["seed"], "or there would be nothing to see"
    for moment in ("drawn", "first", "last"):
        assert equal(ranks[0][moment], ranks[1][moment]), moment
    assert not equal(ranks[0]["drawn"], ranks[0]["first"])
    assert not equal(ranks[0]["first"], ranks[0]["last"])
    assert result.stderr.count("weight selection from") == 1, "printed once, where a terminal shows it"


class Unlike(lightning.Callback):
    """Gives each rank random numbers of its own, and keeps the weights that Initialization drew with them."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        torch.manual_seed(trainer.global_rank)
        self.seed = torch.initial_seed()
        Initialization("he").on_fit_start(trainer, pl_module)
        self.drawn = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        first = next(callback for callback in trainer.callbacks if isinstance(callback, Beginning)).weights
        content = {"seed": self.seed, "drawn": self.drawn, "first": first, "last": pl_module.state_dict()}
        torch.save(content, Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt")


def two_ranks(folder: Path) -> None:
    path, _ = save_teacher(folder)
    options = {"devices": 2, "strategy": "ddp_fork", "limit_val_batches": 0}  # forks spare a second start of Python
    trainer = make_trainer(folder, callbacks=[Unlike(), WeightSelection(str(path)), Beginning()], **options)
    trainer.fit(build_recognizer(configuration(3)), batches())


if __name__ == "__main__":
    two_ranks(Path(sys.argv[1]))
