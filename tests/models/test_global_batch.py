"""The gradient of a step is that of its global batch, however many parts it comes in."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from asr_lightning.callbacks.gradients import GradientNorms
from asr_lightning.errors import InputError
from asr_lightning.models import recognizer as recognizer_module
from tests.support import SUPPORT, environment, sentences, shared_run
from tests.support.sentences import TEXTS
from tests.support.shared_run import IMPOSSIBLE, batch_of
from tests.support.tones import loader, make, make_trainer

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
UNEVEN = [["CAB", "BED", "A DEAF BEE"], ["GAD"], ["HE FED"]]  # the second step of two parts has one
UNUSABLE = [["CAB", IMPOSSIBLE], [IMPOSSIBLE], [IMPOSSIBLE, "BED", "GAD"], ["EGG"]]
FIRST_UNUSABLE = [[IMPOSSIBLE], ["CAB", IMPOSSIBLE, "GAD"], ["BED"], [IMPOSSIBLE]]


class Steps(Callback):
    """The logged values of each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []
        self.step = 0

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def joined(batches: list[list[str]], parts: int) -> list[list[str]]:
    return [sum(batches[first : first + parts], []) for first in range(0, len(batches), parts)]


def fit(
    folder: Path, batches: list[list[str]], parts: int = 1, **options: Any
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    recognizer, steps = make(optimizer=SGD), Steps()
    trainer = make_trainer(
        folder, accumulate_grad_batches=parts, callbacks=[GradientNorms(), steps], log_every_n_steps=1, **options
    )
    trainer.fit(recognizer, loader([batch_of(texts) for texts in batches]))
    return dict(recognizer.named_parameters()), steps.seen


@pytest.mark.filterwarnings("ignore:.*utterances were skipped")
@pytest.mark.parametrize(
    ("batches", "parts", "clip"),
    [(UNEVEN, 2, None), (UNEVEN, 4, None), (UNEVEN, 2, 0.5), (UNUSABLE, 3, None), (FIRST_UNUSABLE, 3, None)],
)
def test_accumulated_parts_make_the_step_of_one_batch(
    tmp_path: Path, batches: list[list[str]], parts: int, clip: float | None
) -> None:
    expected, logged = fit(tmp_path, joined(batches, parts), gradient_clip_val=clip)
    parameters, part_logs = fit(tmp_path, batches, parts, gradient_clip_val=clip)
    start = dict(make(optimizer=SGD).named_parameters())
    assert len(part_logs) == len(logged) == -(-len(batches) // parts)
    for values, expected_values in zip(part_logs, logged, strict=True):
        assert values["train/loss"] == pytest.approx(expected_values["train/loss"], rel=1e-4, nan_ok=True)
        assert values["grad_norm/total"] == pytest.approx(expected_values["grad_norm/total"], rel=1e-3)
    for name, value in expected.items():
        torch.testing.assert_close(parameters[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert max(float((value - start[name]).detach().abs().max()) for name, value in expected.items()) > 1e-3


def test_one_batch_a_step_is_the_plain_mean_to_the_last_bit(tmp_path: Path) -> None:
    parameters, logged = fit(tmp_path, [["CAB", "BED", "GAD"]])
    plain = make(optimizer=SGD).train()
    loss = plain.loss(batch_of(["CAB", "BED", "GAD"])).sum() / 3
    loss.backward()
    assert logged[0]["train/loss"] == float(loss)
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameters[name], parameter), name


@pytest.mark.filterwarnings("ignore:.*utterances were skipped")
def test_a_step_without_any_usable_loss_has_none_to_log(tmp_path: Path) -> None:
    _, logged = fit(tmp_path, [[IMPOSSIBLE], ["CAB"]])
    assert logged[0]["train/loss"] != logged[0]["train/loss"], "a zero would look like a perfect one"
    assert logged[1]["train/loss"] > 0


def spoil(step: int) -> Callable[[torch.Tensor], torch.Tensor]:
    passes = iter(range(100))
    return lambda gradient: gradient * (torch.nan if next(passes) == step else 1.0)


@pytest.mark.parametrize("step", [0, 1])
def test_a_bad_step_names_what_was_in_all_its_batches(tmp_path: Path, step: int) -> None:
    recognizer = make(optimizer=SGD)
    next(recognizer.parameters()).register_hook(spoil(step))
    trainer = make_trainer(tmp_path, accumulate_grad_batches=2)
    with pytest.warns(UserWarning, match=r"step 0 is skipped; learned from tone-0, tone-1, tone-3$"):
        trainer.fit(recognizer, loader([batch_of(["CAB", "BED"]), batch_of(["GAD"]), batch_of(["EGG"])]))


def test_the_names_of_a_large_step_are_the_first_and_how_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recognizer_module, "LOST_BATCHES_IN_A_ROW", 1)
    recognizer = make(optimizer=SGD)
    next(recognizer.parameters()).register_hook(spoil(0))
    parts = [batch_of(["CAB"]) for _ in range(21)]
    for number, batch in enumerate(parts):
        batch.ids[0] = f"name-{number}"
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(InputError, match=r"name-19 … \(21 in all\)"):
        make_trainer(tmp_path, accumulate_grad_batches=21).fit(recognizer, loader(parts))


def test_a_language_model_counts_the_tokens_of_all_parts(tmp_path: Path) -> None:
    batches = [TEXTS[:2], TEXTS[2:3], TEXTS[3:4]]
    results = []
    for parts in (1, 2):
        model = sentences.make(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5))
        step_batches = joined(batches, 2) if parts == 1 else batches
        trainer = make_trainer(tmp_path, accumulate_grad_batches=parts, limit_val_batches=0)
        trainer.fit(model, loader([sentences.batch_of(*texts) for texts in step_batches]))
        assert trainer.global_step == 2
        results.append((dict(model.named_parameters()), float(trainer.callback_metrics["train/loss"])))
    (expected, loss), (accumulated, loss_of_parts) = results
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(accumulated[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_two_ranks_with_uneven_parts_train_as_one_process_with_whole_batches(tmp_path: Path) -> None:
    options = json.dumps({"folder": str(tmp_path), "ranks": 2, "parts": 2})
    ended = subprocess.run(
        [sys.executable, str(SUPPORT / "shared_run.py"), options],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    shared_run.run(str(tmp_path), 1, parts=2)
    single, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for name, expected in single["weights"].items():
        torch.testing.assert_close(first["weights"][name], expected, rtol=1e-4, atol=1e-6, msg=name)
        assert torch.equal(first["weights"][name], second["weights"][name]), name
    for name in ("train/loss", "grad_norm/total", "update_norm/total"):
        assert first["logged"][name] == pytest.approx(single["logged"][name], rel=1e-3), name
        assert second["logged"][name] == first["logged"][name], name
