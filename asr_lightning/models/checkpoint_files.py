"""How checkpoints come to the disk: whole or not at all."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from asr_lightning.errors import InputError
from asr_lightning.files import replacing
from asr_lightning.models.checkpoints import read_checkpoint


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, and moves it there when all of it is on the disk.

    Lightning's own writer puts it into the system's folder for temporary files first. Where that is another file system
    the move is a copy over the old checkpoint, which a full disk or a killed process leaves in halves.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401 - Lightning's own signature
        """Write a checkpoint.

        Raises:
            InputError: It cannot be written; what stood at `path` before is still there.
        """
        path = Path(path)
        try:
            for left in path.parent.glob(f".{path.name}.*"):  # by a process that was killed
                left.unlink(missing_ok=True)
            with replacing(path) as half, half.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"the checkpoint {path} cannot be written: {error}. Expected room for it on the disk, and leave to "
                "write there. Make room, and go on from the last whole checkpoint with --ckpt_path last."
            ) from error

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
        """Read a checkpoint to the CPU without running any code that it may hold, whatever Lightning asks for.

        Raises:
            InputError: It is no whole checkpoint.
        """
        return read_checkpoint(path)
