"""A training run that writes down what it was given: called by tests, and started by them as a process to be killed."""

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from asr_lightning.batch import Batch
from asr_lightning.callbacks.stopping import OtherParts
from data_modules.corpus import CorpusDataModule
from data_modules.librispeech import LibriSpeechDataModule
from data_modules.mixture import MixtureDataModule
from data_modules.shards import ShardsDataModule


class Collector(lightning.LightningModule):
    """Appends epoch, ids and a checksum of the audio of each batch to a log, one for each rank."""

    def __init__(self, log: str, die_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.log_path = log
        self.die_at = die_at

    def write(self, kind: str, batch: Batch) -> None:
        row = {"kind": kind, "epoch": self.current_epoch, "ids": batch.ids, "sum": float(batch.audio.double().sum())}
        with open(f"{self.log_path}.{self.global_rank}", "a") as file:
            file.write(json.dumps(row) + "\n")

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        if self.die_at is not None and self.trainer.fit_loop.total_batch_idx == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.write("train", batch)
        return self.weight * batch.audio.sum()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.write(f"validation {list(self.trainer.val_dataloaders)[dataloader_idx]}", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(
    log: str,
    data: dict[str, Any],
    trainer: dict[str, Any],
    checkpoint: dict[str, Any] | None = None,
    resume: str | None = None,
    die_at: int | None = None,
    shards: bool = False,
) -> list[dict[str, Any]]:
    """Train, and return the rows that this process wrote."""
    warnings.filterwarnings("ignore", module="lightning")
    count = len(rows(log))
    saving = [ModelCheckpoint(filename="{step}-{epoch}", save_top_k=-1, **checkpoint)] if checkpoint else []
    fit = lightning.Trainer(
        **{"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False},
        **{"use_distributed_sampler": False, "num_sanity_val_steps": 0, "limit_val_batches": 0, **trainer},
        callbacks=[OtherParts(), *saving],
        enable_checkpointing=bool(checkpoint),
    )
    fit.fit(Collector(log, die_at), datamodule=make(data, shards), ckpt_path=resume)
    return rows(log)[count:]


def make(data: dict[str, Any], shards: bool) -> CorpusDataModule:
    """The corpus, or a mixture of those that `corpora` holds the arguments of."""
    if "corpora" in data:
        corpora = {name: LibriSpeechDataModule(**arguments) for name, arguments in data["corpora"].items()}
        return MixtureDataModule(**{**data, "corpora": corpora})
    return ShardsDataModule(**data) if shards else LibriSpeechDataModule(**data)


def rows(log: str, rank: int = 0) -> list[dict[str, Any]]:
    """The rows that a rank wrote."""
    path = Path(f"{log}.{rank}")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == "__main__":
    run(**json.loads(sys.argv[1]))
