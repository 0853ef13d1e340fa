"""The callbacks in runs: called by pytest, and started by a test as a process of two ranks."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.loggers import Logger

from asr_lightning.batch import Batch, Utterance
from asr_lightning.callbacks.initialization import FirstWeights
from asr_lightning.callbacks.measurement import Measurement
from asr_lightning.callbacks.weight_changes import DistanceFromStart, UpdateSizes, checksum, part_distances
from asr_lightning.callbacks.weight_selection import WeightSelection, select_weights
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer, load_recognizer
from tests.support import environment
from tests.support.teacher_checkpoint import configuration, save_teacher
from tests.support.transcribing_run import KnownGradients, batch_of, loader, make_trainer

RATE = 0.1  # of learning, of the planted spellers


class Reader(Logger):
    """Keeps what a logger is given to write."""

    name = version = "reader"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.seen.append({name: float(value) for name, value in metrics.items() if "/" in name})

    def log_hyperparams(self, *_: Any) -> None:
        pass


class WeightRecorder(lightning.Callback):
    """Keeps the parameters of the start and after each batch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.weights.append({name: parameter.detach().clone() for name, parameter in pl_module.named_parameters()})

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        self.on_train_start(trainer, pl_module)


class WithBadBatches(KnownGradients):
    """Skip the update of a batch named `bad`, as a recognizer skips that of an unusable batch."""

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.bad = batch.ids == ["bad"]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.bad:
            optimizer.zero_grad(set_to_none=True)


def fit(
    folder: Path, names: list[str], *callbacks: lightning.Callback, model: Any = None, **options: Any
) -> list[dict[str, float]]:
    reader = Reader()
    resume = options.pop("ckpt_path", None)
    settings = {"limit_val_batches": 0, "log_every_n_steps": 1, **options}
    trainer = make_trainer(folder, callbacks=list(callbacks), logger=reader, **settings)
    trainer.fit(model or WithBadBatches(), loader([batch_of([name]) for name in names]), ckpt_path=resume)
    return reader.seen


def norm(*tensors: torch.Tensor) -> float:
    """A second way: over one long vector."""
    return float(torch.cat([tensor.double().flatten() for tensor in tensors]).norm())


def test_sizes_are_those_of_the_steps_that_were_made(tmp_path: Path) -> None:
    callback = WeightRecorder()
    records = fit(tmp_path, ["a", "b"], callback, UpdateSizes(), gradient_clip_val=None)
    root = 2**0.5
    for number, logged in enumerate(records):
        pull = RATE * (number + 1)  # the gradients are 3 and 4 in two weights each
        expected = {"update_norm/encoder": 3 * root * pull, "update_norm/joint": 4 * root * pull}
        weights = callback.weights[number]
        encoder = norm(weights["encoder.weight"], weights["encoder.bias"])
        joint = norm(weights["joint.weight"], weights["joint.bias"])
        expected |= {"relative_update/encoder": expected["update_norm/encoder"] / encoder}
        expected |= {"relative_update/joint": expected["update_norm/joint"] / joint}
        expected |= {"update_norm/total": 5 * root * pull}
        expected |= {"relative_update/total": 5 * root * pull / norm(torch.tensor([encoder, joint]))}
        assert logged == pytest.approx(expected, rel=1e-4), "frozen parameters and parts without any are not named"


def test_sizes_are_measured_every_n_steps_of_accumulated_batches(tmp_path: Path) -> None:
    callback = UpdateSizes(every_n_steps=2)
    records = fit(tmp_path, list("abcdefgh"), callback, accumulate_grad_batches=2, log_every_n_steps=2)
    totals = [logged["update_norm/total"] / (5 * 2**0.5 * RATE) for logged in records]
    assert totals == pytest.approx([3.5, 7.5], rel=1e-4)  # the mean of 3 and 4, and of 7 and 8


@pytest.mark.parametrize("names", [["a", "bad", "c"], ["a", "none", "c"]])
def test_a_step_that_was_skipped_is_of_size_zero(tmp_path: Path, names: list[str]) -> None:
    records = fit(tmp_path, names, UpdateSizes(), DistanceFromStart())
    root = 5 * 2**0.5 * RATE
    assert [logged["update_norm/total"] / root for logged in records] == pytest.approx([1, 0, 3], rel=1e-4)
    assert [logged["distance/total"] / root for logged in records] == pytest.approx([1, 1, 4], rel=1e-4)


class Zeros(FirstWeights):
    def set_weights(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for parameter in pl_module.parameters():
            parameter.data.zero_()


def test_what_began_at_zero_has_no_relative_distance(tmp_path: Path) -> None:
    [logged] = fit(tmp_path, ["a"], DistanceFromStart(), UpdateSizes(), Zeros())
    assert logged == pytest.approx(
        {
            f"{name}/{part}": RATE * size * 2**0.5
            for name in ("distance", "update_norm")
            for part, size in (("encoder", 3), ("joint", 4), ("total", 5))
        }
    )


@pytest.mark.parametrize("first", [True, False])
def test_distance_is_from_the_selected_weights_wherever_the_callback_stands(tmp_path: Path, first: bool) -> None:
    path, teacher = save_teacher(tmp_path)
    student = build_recognizer(configuration(3))
    random = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    selected, _ = select_weights(student, teacher)
    callbacks: list[lightning.Callback] = [DistanceFromStart(), WeightSelection(str(path))]
    audio = torch.randn(3_000, generator=torch.Generator().manual_seed(0)) / 10
    batches = [Batch.collate([Utterance("one", audio, 8_000, "AB")])]
    reader = Reader()
    trainer = make_trainer(
        tmp_path, callbacks=callbacks[:: 1 if first else -1], logger=reader, limit_val_batches=0, log_every_n_steps=1
    )
    trainer.fit(student, loader(batches))
    now = dict(student.named_parameters())
    distance = norm(*[now[name].detach() - selected[name] for name in random])
    wrong = norm(*[now[name].detach() - random[name] for name in random])
    assert reader.seen[0]["distance/total"] == pytest.approx(distance, rel=1e-4)
    assert wrong > 2 * distance, "or nothing could be told apart"
    initial = load_recognizer(tmp_path / "checkpoints" / "initial.ckpt")
    assert all(torch.equal(tensor, selected[name]) for name, tensor in initial.state_dict().items())


def checkpointing(folder: Path) -> lightning.Callback:
    return lightning.pytorch.callbacks.ModelCheckpoint(folder, filename="last", every_n_train_steps=1)


def test_a_resumed_run_measures_from_its_first_start(tmp_path: Path) -> None:
    undisturbed = fit(tmp_path / "whole", list("abcd"), DistanceFromStart())
    folder = tmp_path / "parts"
    torch.manual_seed(0)
    checkpoints = folder / "checkpoints"
    options = {"enable_checkpointing": True, "ckpt_path": "last"}
    torch.manual_seed(0)
    model = WithBadBatches()
    begin = [parameter.detach().clone() for parameter in model.parameters()]
    first = fit(
        folder, list("abcd"), DistanceFromStart(), checkpointing(checkpoints), model=model, max_steps=2, **options
    )
    modified = (checkpoints / "initial.ckpt").stat().st_mtime_ns
    rest = fit(folder, list("abcd"), checkpointing(checkpoints), DistanceFromStart(), **options)
    assert len(first) == len(rest) == 2
    distances = [logged["distance/total"] / (5 * 2**0.5 * RATE) for logged in first + rest]
    assert distances == pytest.approx([1, 3, 6, 10], rel=1e-4)
    assert [logged["distance/total"] for logged in undisturbed] == pytest.approx(
        [logged["distance/total"] for logged in first + rest], rel=1e-4
    )
    assert (checkpoints / "initial.ckpt").stat().st_mtime_ns == modified, "it is written once"
    saved = torch.load(checkpoints / "initial.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(old, saved[name]) for old, name in zip(begin, dict(model.named_parameters()), strict=True))
    state = torch.load(checkpoints / "last.ckpt", weights_only=True)["callbacks"]["DistanceFromStart"]
    assert len(state["checksum"]) == 8, "and nothing else is in every checkpoint"


@pytest.mark.parametrize(
    ("spoil", "reason"), [("remove", "no checkpoint at"), ("replace", "start of another run"), ("add", "without Dist")]
)
def test_without_its_start_a_resumed_run_says_so_and_goes_on(
    tmp_path: Path, spoil: str, reason: str, recwarn: pytest.WarningsRecorder
) -> None:
    options = {"enable_checkpointing": True, "ckpt_path": "last"}
    checkpoints = tmp_path / "checkpoints"
    callbacks = [] if spoil == "add" else [DistanceFromStart()]
    fit(tmp_path, ["a", "b"], *callbacks, checkpointing(checkpoints), max_steps=1, **options)
    initial = checkpoints / "initial.ckpt"
    if spoil == "remove":
        initial.unlink()
    elif spoil == "replace":
        fit(tmp_path, ["a"], DistanceFromStart(), model=WithBadBatches())  # other random weights
    rest = fit(tmp_path, ["a", "b"], DistanceFromStart(), UpdateSizes(), checkpointing(checkpoints), **options)
    assert len(rest) == 1, "it goes on"
    assert not any(name.startswith("distance") for logged in rest for name in logged)
    assert any(reason in str(warning.message) and "left out" in str(warning.message) for warning in recwarn)


def test_a_new_training_in_the_same_folder_has_a_start_of_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        [logged] = fit(tmp_path, ["a"], DistanceFromStart(), model=WithBadBatches())
        assert logged["distance/total"] == pytest.approx(5 * 2**0.5 * RATE, rel=1e-4)


@pytest.mark.parametrize("callback", [UpdateSizes, DistanceFromStart])
def test_an_interval_that_loggers_would_misreport_is_refused(tmp_path: Path, callback: type[Measurement]) -> None:
    with pytest.raises(InputError, match=f"{callback.__name__}.every_n_steps is 3, but must divide.* 4"):
        fit(tmp_path, ["a"], callback(every_n_steps=3), log_every_n_steps=4)


def test_a_parameter_of_several_parts_is_counted_once_in_the_whole() -> None:
    module = torch.nn.Module()
    module.one, module.two = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    module.two.weight = module.one.weight
    start = {"one.weight": torch.zeros(1, 2)}
    module.one.weight.data = torch.tensor([[3.0, 4.0]])
    assert part_distances(module, start) == {"one": (5.0, 0.0), "total": (5.0, 0.0)}


def test_a_checksum_sees_one_bit_and_a_name() -> None:
    weights = {"a": torch.zeros(3), "b": torch.tensor(1.0)}
    negative = {"a": torch.tensor([0.0, 0.0, -0.0]), "b": torch.tensor(1.0)}
    renamed = {"a": torch.zeros(3), "c": torch.tensor(1.0)}
    assert len({checksum(state) for state in (weights, negative, renamed)}) == 3
    assert checksum(weights) == checksum({name: tensor.clone() for name, tensor in weights.items()})


def test_all_ranks_measure_the_same(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    result = subprocess.run(command, env=environment(), timeout=120, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert ranks[0]["seen"] == ranks[1]["seen"]
    pull = 5 * 2**0.5 * RATE  # both ranks have the same gradients, 1 and then 2 times those planted
    for name, expected in (("update_norm/total", [1, 2, 1, 2]), ("distance/total", [1, 3, 4, 6])):
        assert [logged[name] / pull for logged in ranks[0]["seen"]] == pytest.approx(expected, rel=1e-4)


class Share(lightning.LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader([batch_of([f"{self.trainer.global_rank} {number}"]) for number in range(2)])


def two_ranks(folder: Path) -> None:
    """Train an epoch, and another one after resuming."""
    for epochs in (1, 2):
        torch.manual_seed(epochs)
        trainer = make_trainer(
            folder, callbacks=[DistanceFromStart(), UpdateSizes(), checkpointing(folder / "checkpoints")],
            enable_checkpointing=True, devices=2, strategy="ddp_fork_find_unused_parameters_true", limit_val_batches=0,
            max_epochs=epochs, log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(Reporting(), datamodule=Share(), ckpt_path="last")


class Reporting(KnownGradients):
    """Writes what was logged on its rank, since the process of a rank ends with the fit, and only one has loggers."""

    def on_fit_start(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        logged = self.trainer._results.metrics(on_step=True)["log"]  # type: ignore[union-attr]
        self.seen.append({name: float(value) for name, value in logged.items()})

    def on_fit_end(self) -> None:
        path = Path(self.trainer.default_root_dir) / f"rank{self.trainer.global_rank}.pt"
        earlier = torch.load(path, weights_only=True)["seen"] if path.exists() else []
        torch.save({"seen": [*earlier, *self.seen]}, path)


if __name__ == "__main__":
    two_ranks(Path(sys.argv[1]))
