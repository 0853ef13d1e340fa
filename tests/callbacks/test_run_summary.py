"""Summary before a run: the same steps on any number of devices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asr_lightning.callbacks import run_summary
from asr_lightning.callbacks.run_summary import RunSummary
from data_modules.librispeech import LibriSpeechDataModule
from tests.support.tones import RATE, TEXTS, make, make_trainer, write_corpus

COSINE = {"class_path": "asr_lightning.models.schedules.WarmupCosine", "init_args": {"warmup_share": 0.25}}


def summary_lines(folder: Path, monkeypatch: pytest.MonkeyPatch, scheduler: Any = COSINE, **options: Any) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(run_summary, "rank_zero_info", messages.append)
    if not (folder / "corpus").exists():
        write_corpus(folder / "corpus", "train", TEXTS * 3)
    data = LibriSpeechDataModule(
        str(folder / "corpus"),
        train_subsets=["train"],
        validation_subsets=[],
        batch_seconds=3.0,
        workers=0,
        sample_rate=RATE,
        speed_factors=[0.8, 1.0],
    )
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.002}}
    trainer = make_trainer(folder, callbacks=[RunSummary()], **{"max_epochs": 2, **options})
    trainer.fit(make(optimizer=optimizer, scheduler=scheduler), datamodule=data)
    [message] = messages
    return message.splitlines()


def test_steps_batches_and_rates_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = np.array([len(text) * 0.1 for text in TEXTS * 3])
    lines = summary_lines(tmp_path, monkeypatch)
    steps = int(lines[0].split()[-1].rstrip("."))
    mean = seconds.sum() * np.mean([1 / 0.8, 1.0]) / steps
    assert steps > 5
    assert lines == [
        f"Optimizer steps: {2 * steps}, in 2 epochs of {steps}.",
        f"A step: {mean:.0f} s of audio of {24 / steps:.1f} utterances in the mean, at most 3 with padding; in 1 "
        "parts of at most about 3, 1 processes × 1 (accumulate_grad_batches).",
        f"Learning rate: 0.002 at its peak, after {round(0.5 * steps)} steps of warm-up (WarmupCosine).",
    ]
    cut = summary_lines(tmp_path, monkeypatch, accumulate_grad_batches=3)
    assert [cut[0], cut[2]] == [lines[0], lines[2]]
    assert cut[1] == lines[1].replace("in 1 parts of at most about 3, 1 processes × 1",
                                      "in 3 parts of at most about 1, 1 processes × 3")  # fmt: skip
    assert (
        "alone" not in cut[1]
        and "3 with padding, longer ones alone; in 6"
        in summary_lines(tmp_path, monkeypatch, accumulate_grad_batches=6)[1]
    ), "an utterance of more than half a second"


def test_other_runs_are_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 2}}
    assert summary_lines(tmp_path, monkeypatch, None)[2] == "Learning rate: 0.002, constant."
    lines = summary_lines(tmp_path, monkeypatch, scheduler, max_steps=4)
    assert lines[0].startswith("Optimizer steps: 4, in 0.") and "epochs of" in lines[0]
    assert lines[2] == "Learning rate: 0.002 before StepLR changes it."
    endless = summary_lines(tmp_path, monkeypatch, None, max_epochs=-1, max_time="00:00:00:01")
    assert endless[0].endswith("in an epoch, without a limit.")
