"""What all tests need."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests begin alike, whatever ran before them: `seed_everything` leaves its seed in the environment."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Manifests go to a folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ASR_LIGHTNING_CACHE", str(folder))
    return folder
