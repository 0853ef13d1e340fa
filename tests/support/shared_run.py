"""Three steps of training and a validation: called by tests on one process, started by them on two."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from asr_lightning.batch import Batch
from asr_lightning.callbacks.gradients import GradientNorms
from asr_lightning.callbacks.weight_changes import DistanceFromStart, UpdateSizes
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.fsdp import full_tensor
from tests.support.tones import RATE, loader, make_trainer, transducer, utterances

IMPOSSIBLE = "ABC" * 40  # CTC cannot align that
SPOKEN = {utterance.text: utterance for utterance in utterances(["CAB", "BED", "A DEAF BEE", "GAD", "HE FED", "EGG"])}
SPOKEN[IMPOSSIBLE] = replace(SPOKEN["EGG"], id="impossible", text=IMPOSSIBLE)

TRAINING = [  # what each of two ranks is given in each step
    [["CAB", "BED", "A DEAF BEE"], ["GAD"]],
    [["HE FED", "EGG"], []],
    [["GAD", IMPOSSIBLE], ["EGG", "BED"]],
]
VALIDATION = [[["CAB", "EGG"], ["HE FED"]], [["A DEAF BEE"], []]]


def batch_of(texts: list[str]) -> Batch:
    return Batch.collate([SPOKEN[text] for text in texts], RATE)


class Corpus(lightning.LightningDataModule):
    """The batches above, or on one process those of both ranks joined, and of all parts of a step."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def share(self, steps: list[list[list[str]]]) -> list[Batch]:
        if self.trainer.world_size == 1:
            return [batch_of([text for texts in step for text in texts]) for step in steps]
        return [batch_of(step[self.trainer.global_rank]) for step in steps]

    def train_dataloader(self) -> Any:
        if self.trainer.world_size > 1:
            return loader(self.share(TRAINING))
        steps = [TRAINING[first : first + self.parts] for first in range(0, len(TRAINING), self.parts)]
        return loader(self.share([[share for part in step for share in part] for step in steps]))

    def val_dataloader(self) -> dict[str, Any]:
        return {"clean": loader(self.share(VALIDATION)), "other": loader(self.share(VALIDATION[:1]))}


def run(folder: str, ranks: int, strategy: str = "ddp", encoder: dict[str, Any] | None = None, parts: int = 1) -> None:
    """Train with steps of so many parts, write down the weights and what was logged, and save a checkpoint."""
    torch.manual_seed(3)
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}}
    other = {"encoder": encoder} if encoder else {}
    recognizer = build_recognizer(transducer(ctc_weight=0.3, optimizer=optimizer, **other))
    sharing = ModelParallelStrategy(ranks, 1, save_distributed_checkpoint=False)
    options: dict[str, Any] = {}
    if ranks > 1:
        options = {"strategy": sharing if strategy == "fsdp" else strategy, "accumulate_grad_batches": parts}
    measured = [GradientNorms(), UpdateSizes(), DistanceFromStart()]
    trainer = make_trainer(folder, devices=ranks, log_every_n_steps=1, callbacks=measured, **options)
    start = {name: value.clone() for name, value in recognizer.state_dict().items()}
    trainer.fit(recognizer, datamodule=Corpus(parts))
    trainer.save_checkpoint(Path(folder) / "last.ckpt")
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    weights = {name: full_tensor(value) for name, value in recognizer.state_dict().items()}
    torch.save(
        {"start": start, "weights": weights, "logged": logged}, Path(folder) / f"{ranks}-{trainer.global_rank}.pt"
    )


if __name__ == "__main__":
    run(**json.loads(sys.argv[1]))
