"""Arguments of optimizer and schedule that were changed before a run goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from asr_lightning.callbacks.changed_optimizer import ChangedOptimizer
from asr_lightning.errors import InputError
from tests.support.tones import batch_of, loader, make, make_trainer

COSINE = "asr_lightning.models.schedules.WarmupCosine"
RATES = "torch.optim.lr_scheduler"


def parts(lr: float, schedule: str | None, decay: float = 0.0, **arguments: Any) -> dict[str, Any]:
    scheduler = {"class_path": schedule, "init_args": arguments} if schedule else None
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": lr, "weight_decay": decay}}
    return {"optimizer": optimizer, "scheduler": scheduler}


def fit(folder: Path, steps: int, ckpt_path: Path | None = None, changed: bool = False, **config: Any) -> Any:
    """Train for some steps, save `last.ckpt`, and return the optimizer."""
    model = make(**config)
    callbacks = [ChangedOptimizer(["optimizer.lr"])] if changed else []
    trainer = make_trainer(folder, max_steps=steps, max_epochs=-1, callbacks=callbacks)
    trainer.fit(model, loader([batch_of(["BED"])] * 10), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "last.ckpt")
    return trainer.optimizers[0]


BEFORE_AND_AFTER = {
    "no schedule": (parts(0.01, None), parts(0.002, None, decay=0.1)),
    "a rate": (
        parts(0.01, COSINE, warmup_share=0.4),
        parts(0.002, COSINE, decay=0.1, warmup_share=0.4),
    ),
    "a schedule": (
        parts(0.01, COSINE, warmup_share=0.4),
        parts(0.01, COSINE, warmup_share=0.8, floor=0.1),
    ),
    "a recursive schedule": (
        parts(0.01, f"{RATES}.StepLR", step_size=2, gamma=0.5),
        parts(0.02, f"{RATES}.StepLR", step_size=3, gamma=0.1),
    ),
    "a schedule of momentum too": (
        parts(0.01, f"{RATES}.OneCycleLR", max_lr=0.01, total_steps=8),
        parts(0.01, f"{RATES}.OneCycleLR", max_lr=0.05, total_steps=12),
    ),
}


@pytest.mark.parametrize("what", BEFORE_AND_AFTER)
def test_changed_arguments_hold_as_if_they_had_from_the_beginning(what: str, tmp_path: Path) -> None:
    old, new = BEFORE_AND_AFTER[what]
    fit(tmp_path, 3, **old)
    resumed = fit(tmp_path, 5, tmp_path / "last.ckpt", changed=True, **new)
    fresh = fit(tmp_path / "new", 5, **new)
    [group], [expected] = resumed.param_groups, fresh.param_groups
    assert {**group, "params": None} == {**expected, "params": None}
    assert {float(state["step"]) for state in resumed.state.values()} == {5.0}  # what was gathered is kept


def test_the_first_step_already_has_the_new_rate(tmp_path: Path) -> None:
    fit(tmp_path, 3, **parts(0.01, None))
    old = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    fit(tmp_path, 4, tmp_path / "last.ckpt", changed=True, **parts(0.0, None))
    new = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(new[name], old[name]) for name in old)


def test_without_the_callback_the_checkpoint_s_arguments_would_hold(tmp_path: Path) -> None:
    fit(tmp_path, 3, **parts(0.01, None))
    assert fit(tmp_path, 4, tmp_path / "last.ckpt", **parts(0.002, None)).param_groups[0]["lr"] == 0.01


def test_a_schedule_that_ends_before_this_step_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, 4, **parts(0.01, f"{RATES}.OneCycleLR", max_lr=0.01, total_steps=8))
    shorter = parts(0.01, f"{RATES}.OneCycleLR", max_lr=0.01, total_steps=2)
    with pytest.raises(InputError, match="the schedule cannot be moved to step 4, .*Make it longer"):
        fit(tmp_path, 6, tmp_path / "last.ckpt", changed=True, **shorter)
