"""A tiny recognizer that hears every second word wrong: called by tests, and started by them as two processes."""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from asr_lightning.batch import Batch, Utterance
from asr_lightning.callbacks.transcripts import Transcripts
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.scoring.error_rates import ErrorRates

RATE = 100  # samples per second


def batch_of(names: Sequence[str], samples: Sequence[int] | None = None) -> Batch:
    """Utterances whose text says who they are: `say <name>`."""
    lengths = samples or [RATE] * len(names)
    audio = [torch.ones(length) for length in lengths]
    return Batch.collate(
        [
            Utterance(name, part, RATE, f"say {name}", f"speaker {name}")
            for name, part in zip(names, audio, strict=True)
        ],
        RATE,
    )


class Batches(torch.utils.data.Dataset):
    """Ready batches, one an item."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]


def loader(batches: Sequence[Batch]) -> DataLoader:
    return DataLoader(Batches(batches), batch_size=None, shuffle=False)


StepOutput = dict[str, list[list[Hypothesis]]]


def step_output(texts: list[str]) -> StepOutput:
    return {"hypotheses": [[Hypothesis((), 0.0, text=text)] for text in texts]}


class PlannedHypotheses(lightning.LightningModule):
    """Recognizes `say x` as `say deaf` in epochs before `correct_from`; rates are those of the texts."""

    def __init__(self, correct_from: int = 2) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(1, 2)
        self.joint = torch.nn.Linear(2, 1)
        self.features = torch.nn.Identity()  # no parameters
        self.correct_from = correct_from

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return self.joint(self.encoder(batch.audio.mean().reshape(1, 1))).sum()

    def on_validation_epoch_start(self) -> None:
        self.rates = {name: ErrorRates().to(self.device) for name in self.trainer.val_dataloaders}

    def on_test_epoch_start(self) -> None:
        self.rates = {name: ErrorRates().to(self.device) for name in self.trainer.test_dataloaders}

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> StepOutput:
        hears = self.current_epoch + 1 >= self.correct_from
        hypotheses = [text if hears else "say deaf" for text in batch.texts]
        list(self.rates.values())[dataloader_idx].update(batch.texts, hypotheses)
        return step_output(hypotheses)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        for name, rates in self.rates.items():
            self.log_dict({f"{name}/{rate}": value for rate, value in rates.compute().items()})

    on_test_epoch_end = on_validation_epoch_end

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(folder: Path | str, **options: Any) -> lightning.Trainer:
    warnings.filterwarnings("ignore", module="lightning")
    settings = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "max_epochs": 1,
    }
    return lightning.Trainer(**{**settings, **options})


class Beginning(lightning.Callback):
    """Keeps the weights before the first step."""

    weights: dict[str, torch.Tensor]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.weights = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}


class Corpus(lightning.LightningDataModule):
    """Two subsets of batches of one utterance, dealt out to the ranks."""

    def train_dataloader(self) -> DataLoader:
        return loader([batch_of("a"), batch_of("b")])

    def val_dataloader(self) -> dict[str, DataLoader]:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        shares = {}
        for subset, names in (("test-clean", "dbeca"), ("test-other", "xy")):
            filling = [[], names[0]] if rank else []  # an empty batch, and an utterance that the first rank has too
            shares[subset] = loader([batch_of(name) for name in [*names[rank::ranks], *filling]])
        return shares

    test_dataloader = val_dataloader


class KnownGradients(PlannedHypotheses):
    """Gradients of 3 and 4 for the two weights of each of its parts, times the batch number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor | None:
        if batch.ids == ["none"]:
            return None
        return (batch_idx + 1) * (3 * self.encoder.weight.sum() + 4 * self.joint.weight.sum())


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    trainer = make_trainer(
        arguments["folder"], devices=2, strategy="ddp", max_epochs=2, callbacks=[Transcripts(run="two_ranks")]
    )
    trainer.fit(PlannedHypotheses(), datamodule=Corpus())
