"""What all tests of data modules need."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Manifests go to a folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ASR_LIGHTNING_CACHE", str(folder))
    return folder
