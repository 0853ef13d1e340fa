"""What tests share: small corpora, models and runs, and processes that tests start."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a process that imports the project and its tests, with one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
