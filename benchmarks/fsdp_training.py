"""Memory of two processes that share weights (FSDP), beside two that each have all (DDP), on the CPU.

    python benchmarks/fsdp_training.py [EXPERIMENT.yaml] [--processes 2] [--utterance-seconds 3] [--steps 2]

Training steps as `lightning fit` makes them, on two utterances of noise a process; every row is of fresh processes.
What is held is counted after the last step: parameters, their gradients' place, and the optimizer's state. The peak is
the process's resident memory, of which some was there before the network was built.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from timing import peak_memory
from torch import Tensor
from torch.distributed.tensor import DTensor
from training_speed import random_batch

from asr_lightning.models.checkpoints import build_recognizer

MIB = 2**20


class MemoryRecorder(lightning.Callback):
    """Counts what a process holds, and the seconds of the last step."""

    def __init__(self) -> None:
        self.row: dict[str, float] = {}
        self.before = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Keep the time."""
        self.before = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        """Count."""
        parameters = list(pl_module.parameters())
        state = [
            value for parameter_state in trainer.optimizers[0].state.values() for value in parameter_state.values()
        ]
        self.row = {
            "parameters": mebibytes(parameters),
            "optimizer": mebibytes(state),
            "seconds": time.perf_counter() - self.before,
        }


def mebibytes(tensors: list[Any]) -> float:
    """Return the size of this process's part of some tensors."""
    local = [
        tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors if isinstance(tensor, Tensor)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in local) / MIB


def train(options: argparse.Namespace) -> None:
    """Make the steps of one process, and write down what they took."""
    baseline, held = peak_memory(), MemoryRecorder()
    torch.manual_seed(1)
    recognizer = build_recognizer(yaml.safe_load(options.experiment.read_text())["model"])
    sharing = ModelParallelStrategy(options.processes, 1, save_distributed_checkpoint=False)
    trainer = lightning.Trainer(
        strategy=sharing if options.strategy == "FSDP" else DDPStrategy(),
        accelerator="cpu", devices=options.processes, max_steps=options.steps, callbacks=[held], gradient_clip_val=5.0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    batches = [random_batch(2 * options.utterance_seconds, options.utterance_seconds) for _ in range(options.steps)]
    loader: Any = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(recognizer, loader)
    row = {**held.row, "before": baseline, "peak": peak_memory()}
    (options.folder / f"{options.strategy}{trainer.global_rank}.json").write_text(json.dumps(row))


def main() -> None:
    """Print a row per strategy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", type=Path, default=Path("experiments/rnnt_teacher.yaml"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--utterance-seconds", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--strategy", help=argparse.SUPPRESS)  # what the processes are told that are started here
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.strategy:
        train(options)
        return
    names = ["parameters", "optimizer", "before", "peak", "seconds"]
    print("| strategy | MiB of parameters | of optimizer | resident MiB before | at most | seconds of the last step |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for strategy in ("DDP", "FSDP"):
        with tempfile.TemporaryDirectory() as folder:
            processes = ["--standalone", "--nproc-per-node", str(options.processes)]
            start = [sys.executable, "-m", "torch.distributed.run", *processes, *sys.argv]
            subprocess.run([*start, "--strategy", strategy, "--folder", folder], check=True, stdout=sys.stderr)
            rows = [json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())]
        cells = [" / ".join(f"{row[name]:.1f}" for row in rows) for name in names]
        print(f"| {strategy} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
