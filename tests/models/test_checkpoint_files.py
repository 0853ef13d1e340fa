"""A checkpoint is written as a whole or the old one stays, whatever happens during the write."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import CheckpointFiles


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Let no file get longer than `room` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def weights(value: float) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((10_000,), value)}}  # 40 kB


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return torch.equal(first["state_dict"]["weight"], second["state_dict"]["weight"])


@pytest.mark.parametrize("room", [0, 1_000, 39_000])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, room: int) -> None:
    files, path = CheckpointFiles(), tmp_path / "checkpoints/last.ckpt"
    files.save_checkpoint(weights(1.0), path)
    with full_disk(room), pytest.raises(InputError, match="last.ckpt cannot be written.*--ckpt_path last"):
        files.save_checkpoint(weights(2.0), path)
    assert same(files.load_checkpoint(path), weights(1.0))
    assert os.listdir(path.parent) == ["last.ckpt"]  # no half file takes up room


def test_a_killed_writer_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    files, path = CheckpointFiles(), tmp_path / "last.ckpt"
    files.save_checkpoint(weights(1.0), path)
    if (child := os.fork()) == 0:
        torch.save = lambda checkpoint, file: (file.write(b"half"), file.flush(), os._exit(9))  # type: ignore[assignment]
        files.save_checkpoint(weights(2.0), path)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(os.listdir(tmp_path)) == 2
    assert same(files.load_checkpoint(path), weights(1.0))
    files.save_checkpoint(weights(3.0), path)
    assert same(files.load_checkpoint(path), weights(3.0))
    assert os.listdir(tmp_path) == ["last.ckpt"]
