"""A callback for the experiment of `test_cluster.py`."""

import json
from pathlib import Path
from typing import Any

import lightning

from asr_lightning.batch import Batch


class Recorder(lightning.Callback):
    """Writes down what each process trains on, its share of the loss, and the error rates that it computed."""

    def write(self, trainer: lightning.Trainer, **row: Any) -> None:
        with (Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": trainer.current_epoch, **row}) + "\n")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        environment = type(trainer._accelerator_connector.cluster_environment).__name__  # type: ignore[attr-defined]
        self.write(trainer, ids=batch.ids, loss=float(outputs["loss"]), environment=environment)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("dev/")}
        del logged["dev/real_time_factor"]  # of a clock
        self.write(trainer, rates=logged)
