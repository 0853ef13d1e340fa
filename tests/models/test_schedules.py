"""Learning rates over a run: against closed forms, and step by step in trainings of any length."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from asr_lightning.errors import InputError
from asr_lightning.models.schedules import RunSchedule, TriStage, WarmupCosine, WarmupInverseRoot
from tests.support.tones import batch_of, loader, make, make_trainer

DEMO = Path(__file__).parents[2] / "experiments" / "demo"
CLASSES = "asr_lightning.models.schedules"


def rates(make: Callable[[torch.optim.Optimizer], RunSchedule], total: int, steps: int) -> list[float]:
    """The learning rate of each step of a run, with a peak of 2."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler, learning_rates = make(optimizer), []
    scheduler.begin(total)
    for _ in range(steps):
        learning_rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return learning_rates


def test_cosine_rises_and_falls_to_its_floor_at_the_end_of_the_run() -> None:
    learning_rates = rates(lambda optimizer: WarmupCosine(optimizer, 1 / 3, floor=0.1), 12, 15)
    assert learning_rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert learning_rates[8] == pytest.approx(0.2 + 1.8 * 0.5)
    assert learning_rates[12:] == pytest.approx([0.2] * 3)
    assert rates(lambda optimizer: WarmupCosine(optimizer, 0.0), 2, 2) == pytest.approx([2.0, 1.0])


def test_inverse_root_halves_after_four_times_the_warm_up() -> None:
    learning_rates = rates(lambda optimizer: WarmupInverseRoot(optimizer, 0.2), 20, 20)
    assert learning_rates[3] == pytest.approx(2.0) == max(learning_rates)
    assert learning_rates[15] == pytest.approx(1.0)
    assert rates(lambda optimizer: WarmupInverseRoot(optimizer, 0.0), 20, 1) == [2.0]


def test_three_stages_end_with_the_run() -> None:
    learning_rates = rates(lambda optimizer: TriStage(optimizer, 4 / 12, 3 / 12, floor=0.01), 12, 20)
    assert learning_rates[:4] == pytest.approx([0.02, 0.515, 1.01, 1.505])
    assert learning_rates[4:8] == pytest.approx([2.0] * 4)
    assert learning_rates[12:] == pytest.approx([0.02] * 8)
    falls = [
        math.log(later / earlier) for earlier, later in zip(learning_rates[7:12], learning_rates[8:13], strict=True)
    ]
    assert falls == pytest.approx([math.log(0.01) / 5] * 5)


def test_the_korean_schedule_is_that_of_its_toolkit() -> None:
    """389,100 steps: up in 400, constant until the middle, then down to 5 %, which it reaches at the end only."""
    path = DEMO.parent / "ds2_kspon.yaml"
    arguments = yaml.safe_load(path.read_text())["model"]["init_args"]["scheduler"]["init_args"]
    learning_rates = rates(lambda optimizer: TriStage(optimizer, **arguments), 1000, 1001)
    assert learning_rates[1:500] == pytest.approx([2.0] * 499)
    assert learning_rates[500] == pytest.approx(2.0) and learning_rates[501] < 2.0
    assert learning_rates[750] == pytest.approx(2.0 * math.sqrt(0.05))
    assert learning_rates[999] > 2.0 * 0.05 and learning_rates[1000] == pytest.approx(2.0 * 0.05)


# The demo's figures in README were made with rates by these numbers of steps, which are those of its corpora; only the
# language model's run has 768, while its schedule was written for 780.
STEPS = {
    "rnnt_teacher": (100, 1724), "rnnt": (50, 1724), "speech_transformer": (400, 2225), "hybrid_mmi": (20, 434),
    "lm_char": (20, 768), "ds2": (100, 1075), "jasper": (100, 1075), "conformer_ctc": (100, 1075),
    "las": (100, 1085), "e2e": (100, 1085), "hybrid": (100, 1085),
}  # fmt: skip

LATER = (
    "las_chan",
    "rnnt_export",
    "rnnt_streaming_random",
    "rnnt_streaming_teacher",
    "rnnt_streaming_ws",
)  # experiments that never had another schedule than that of their YAML
PATHS = [
    path for path in sorted(DEMO.glob("*.yaml")) if path.stem not in LATER and not path.stem.endswith("_inside")
]  # those analyze a network that another file trains


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_demo_has_the_rates_that_its_figures_were_made_with(path: Path) -> None:
    scheduler = yaml.safe_load(path.read_text())["model"]["init_args"]["scheduler"]
    assert scheduler["class_path"] == f"{CLASSES}.WarmupCosine"
    warmup, total = STEPS[next(name for name in STEPS if path.stem.startswith(name))]
    floor = 0.02 if path.stem == "lm_char" else 0.05

    def expected_rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total - warmup))
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))

    learning_rates = rates(lambda optimizer: WarmupCosine(optimizer, **scheduler["init_args"]), total, total + 2)
    assert learning_rates == [2.0 * expected_rate(step) for step in range(total + 2)]  # to the bit


class Rates(lightning.Callback):
    """The learning rate of each optimizer step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.seen.append(float(optimizer.param_groups[0]["lr"]))


def fit(folder: Path, batches: int = 5, ckpt_path: Path | None = None, **options: Any) -> list[float]:
    cosine = {"class_path": f"{CLASSES}.WarmupCosine", "init_args": {"warmup_share": 0.25}}
    model = make(optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 2.0}}, scheduler=cosine)
    model.requires_grad_(False)
    model.joint.output.bias.requires_grad_(True)  # type: ignore[attr-defined, union-attr]
    model.loss = lambda batch: model.joint.output.bias.sum() + torch.zeros(len(batch))  # type: ignore[assignment, attr-defined]
    recorder = Rates()
    saving = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = make_trainer(
        folder, callbacks=[recorder, saving], enable_checkpointing=True, **{"max_epochs": 3, **options}
    )
    trainer.fit(model, loader([batch_of(["A"])] * batches), ckpt_path=ckpt_path)
    return recorder.seen


RUNS: dict[str, tuple[dict[str, Any], int]] = {
    "epochs": ({}, 15),
    "accumulation": ({"accumulate_grad_batches": 2}, 9),
    "fewer batches": ({"limit_train_batches": 4}, 12),
    "a share of the batches": ({"limit_train_batches": 0.5, "accumulate_grad_batches": 2}, 3),
    "steps": ({"max_steps": 7, "max_epochs": -1}, 7),
    "steps before epochs": ({"max_steps": 8}, 8),
}


@pytest.mark.parametrize("name", RUNS)
def test_shares_are_those_of_the_steps_that_the_trainer_makes(tmp_path: Path, name: str) -> None:
    options, total = RUNS[name]
    expected = rates(lambda optimizer: WarmupCosine(optimizer, 0.25), total, total)
    assert fit(tmp_path, **options) == expected
    for step in (1, total // 2 + 1):  # a resumed run has the same rates, to the bit
        assert fit(tmp_path / "again", ckpt_path=tmp_path / f"step={step}.ckpt", **options) == expected[step:]


def test_a_longer_run_goes_on_as_if_it_had_always_been_longer(tmp_path: Path) -> None:
    fit(tmp_path)
    longer = rates(lambda optimizer: WarmupCosine(optimizer, 0.25), 20, 20)
    assert fit(tmp_path / "more", ckpt_path=tmp_path / "step=15.ckpt", max_epochs=4) == longer[15:]


def test_a_run_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a run with an end.*max_epochs"):
        fit(tmp_path, max_epochs=-1, max_time="00:00:01:00")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda optimizer: WarmupCosine(optimizer, warmup_steps=5, total_steps=9), "got warmup_steps 5, total_steps 9"),
        (lambda optimizer: WarmupInverseRoot(optimizer, warmup_steps=10_000), "WarmupInverseRoot: .* got warmup_steps"),
        (lambda optimizer: TriStage(optimizer, hold_steps=5), "got hold_steps 5. Write warmup_share"),
        (lambda optimizer: TriStage(optimizer, 0.6, 0.5), "together at most 1, got warmup_share 0.6, hold_share 0.5"),
        (lambda optimizer: WarmupCosine(optimizer, -0.1), "shares of the run from 0 to 1"),
        (lambda optimizer: TriStage(optimizer, floor=0.0), "a floor of more than 0"),
    ],
)
def test_what_is_no_share_is_refused(make: Callable[[torch.optim.Optimizer], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0))


def test_a_schedule_that_nobody_tells_the_length_of_the_run_is_refused() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = WarmupCosine(optimizer)
    optimizer.step()
    with pytest.raises(InputError, match="expected the number of steps of the run .*begin_schedules"):
        schedule.step()


def test_a_model_whose_checkpoint_counts_steps_is_still_read() -> None:
    old = {"class_path": f"{CLASSES}.WarmupCosine", "init_args": {"warmup_steps": 3, "total_steps": 10}}
    model = make(scheduler=old)
    with pytest.raises(InputError, match="expected shares of the run, got warmup_steps 3, total_steps 10"):
        model.configure_optimizers()
