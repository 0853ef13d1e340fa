"""Callbacks of every run: the command line sets them up once, whatever the experiment lists."""

from collections import Counter
from pathlib import Path
from typing import Any

import lightning
import pytest
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from asr_lightning import cli
from asr_lightning.ablations.overrides import CALLBACK_KEYS
from asr_lightning.callbacks.best_checkpoints import BestCheckpoints
from asr_lightning.callbacks.weight_selection import WeightSelection
from tests.support.commands import exit_message

pytestmark = pytest.mark.usefixtures("outside_the_project")

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
OWN = "asr_lightning.callbacks"
SAVING = "lightning.pytorch.callbacks.ModelCheckpoint"
LISTED = [  # the callbacks of every run as experiments listed them, before these had keys
    {"class_path": f"{OWN}.transcripts.Transcripts"},
    {"class_path": f"{OWN}.gradients.GradientNorms"},
    {"class_path": f"{OWN}.movement.UpdateSizes"},
    {"class_path": f"{OWN}.movement.DistanceFromStart"},
    {"class_path": f"{OWN}.throughput.Throughput"},
    {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
    {"class_path": SAVING, "init_args": {"filename": "last", "every_n_epochs": 1, "enable_version_counter": False}},
    {
        "class_path": SAVING,
        "init_args": {"filename": "last-step", "every_n_train_steps": 50, "enable_version_counter": False},
    },
    {"class_path": f"{OWN}.choosing.BestCheckpoints", "init_args": {"keep": 3}},
    {"class_path": f"{OWN}.weight_selection.WeightSelection", "init_args": {"teacher": "teacher.ckpt"}},
]


@pytest.fixture
def trainer_of(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - a function
    """Returns the trainer of a command, which is not run."""
    trainers: list[lightning.Trainer] = []
    monkeypatch.setattr(cli.CommandLine, "_run_subcommand", lambda self, _: trainers.append(self.trainer))

    def make(*arguments: str) -> lightning.Trainer:
        cli.main(list(arguments))
        return trainers[-1]

    return make


def names(trainer: lightning.Trainer) -> Counter[str]:
    return Counter(
        f"{type(callback).__name__} {callback.filename}"
        if isinstance(callback, ModelCheckpoint)
        else type(callback).__name__
        for callback in trainer.callbacks  # type: ignore[attr-defined]
    )


def change(path: Path, key: str, value: Any) -> None:  # noqa: ANN401
    experiment = yaml.safe_load(path.read_text())
    *folders, last = key.split(".")
    part = experiment
    for folder in folders:
        part = part[folder]
    part[last] = value
    path.write_text(yaml.safe_dump(experiment))


def test_every_run_writes_transcripts_measurements_and_checkpoints(unread: Path, trainer_of: Any) -> None:
    trainer = trainer_of("fit", "-c", str(unread), "--checkpoints.every_n_steps", "7")
    counts = names(trainer)
    expected = [
        *("Transcripts", "GradientNorms", "UpdateSizes", "DistanceFromStart", "Throughput", "LearningRateMonitor"),
        *("ModelCheckpoint last", "ModelCheckpoint last-step", "Initialization"),
    ]
    assert all(counts[name] == 1 for name in expected), counts
    assert not counts["WeightSelection"] and not any(name.startswith("Best") for name in counts)  # tests are no choice
    [step] = [callback for callback in trainer.checkpoint_callbacks if callback.filename == "last-step"]
    assert step._every_n_train_steps == 7
    assert trainer.num_sanity_val_steps == 0


def test_an_experiment_that_lists_them_itself_has_none_twice(unread: Path, trainer_of: Any) -> None:
    change(unread, "data.init_args.test_subsets", ["test-other"])  # test-clean is to choose by
    change(unread, "weight_selection", {"teacher": "teacher.ckpt"})
    trainer = trainer_of("fit", "-c", str(unread))
    change(unread, "trainer.callbacks", LISTED)
    experiment = yaml.safe_load(unread.read_text())
    del experiment["weight_selection"]
    unread.write_text(yaml.safe_dump(experiment))
    listed_trainer = trainer_of("fit", "-c", str(unread))
    assert names(trainer) == names(listed_trainer)
    assert names(trainer)["WeightSelection"] == names(trainer)["BestCheckpoints best-{epoch}-{step}"] == 1
    for one in (trainer, listed_trainer):  # what is resumed from holds the choice of its own epoch
        choosing = [callback.monitor is not None for callback in one.checkpoint_callbacks]
        assert choosing[0] and choosing == sorted(choosing, reverse=True)
    by_type = {type(callback): callback for callback in listed_trainer.callbacks}  # with the experiment's arguments
    assert by_type[BestCheckpoints].save_top_k == 3 and by_type[WeightSelection].teacher == "teacher.ckpt"
    assert {type(callback): callback for callback in trainer.callbacks}[BestCheckpoints].save_top_k == 10


def test_arguments_of_a_key_and_of_a_list_are_not_both_taken(unread: Path) -> None:
    change(unread, "trainer.callbacks", LISTED[:1])
    message = exit_message("fit", "-c", str(unread), "--transcripts.examples", "0")
    assert message.startswith("error: Transcripts is listed in trainer.callbacks, and transcripts has arguments")


def test_a_measurement_is_left_out_by_zero_steps_and_a_choice_by_zero_checkpoints(
    unread: Path,
    trainer_of: Any,
) -> None:
    change(unread, "data.init_args.test_subsets", ["test-other"])
    none = [f"--{key}.every_n_steps=0" for key in ("gradient_norms", "update_sizes", "distance_from_start")]
    counts = names(
        trainer_of("fit", "-c", str(unread), *none, "--checkpoints.best", "0", "--checkpoints.every_n_steps", "0")
    )
    assert not counts & Counter(["GradientNorms", "UpdateSizes", "DistanceFromStart", "ModelCheckpoint last-step"])
    assert not any(name.startswith("Best") for name in counts) and counts["ModelCheckpoint last"] == 1
    message = exit_message("fit", "-c", str(unread), "--checkpoints.best", "-1")
    assert "checkpoints.best: expected 0 or more, got -1" in message


def test_a_language_model_has_no_transcripts(trainer_of: Any) -> None:
    counts = names(trainer_of("fit", "-c", str(EXPERIMENTS / "demo/lm_char.yaml")))
    assert not counts["Transcripts"] and not counts["Throughput"]
    assert counts["GradientNorms"] == counts["ModelCheckpoint last"] == 1


def test_a_second_experiment_adds_what_looks_inside(unread: Path, trainer_of: Any) -> None:
    inside = EXPERIMENTS / "demo/rnnt_ws_inside.yaml"
    trainer = trainer_of("test", "-c", str(unread), "-c", str(inside))
    kinds = [type(callback).__name__ for callback in trainer.callbacks]
    added = ["Activations", "TSNE", "Neighbours", "Alignments"]
    assert [kind for kind in kinds if kind in {*added, "Transcripts"}] == ["Transcripts", *added]
    change(unread, "trainer.callbacks", LISTED[:6])
    listed_trainer = trainer_of("test", "-c", str(unread), "-c", str(inside))
    assert names(listed_trainer) == names(trainer)


def test_a_saved_configuration_makes_the_same_callbacks(unread: Path, trainer_of: Any, capsys: Any) -> None:
    change(unread, "weight_selection", {"teacher": "teacher.ckpt", "layers": "uniform"})
    first = names(trainer_of("fit", "-c", str(unread)))
    capsys.readouterr()
    assert exit_message("fit", "-c", str(unread), "--print_config") == "0"
    saved = unread.with_name("saved.yaml")
    saved.write_text(capsys.readouterr().out)
    assert set(CALLBACK_KEYS) <= set(yaml.safe_load(saved.read_text()))
    assert names(trainer_of("fit", "-c", str(saved))) == first


def test_ablations_know_the_keys() -> None:
    assert set(CALLBACK_KEYS) == {*cli.CALLBACKS, "checkpoints"}
