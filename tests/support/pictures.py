"""Pixels and colors of a picture."""

from pathlib import Path

import matplotlib.image
import numpy as np
from matplotlib.colors import to_rgb


def pixels(path: Path) -> np.ndarray:
    return matplotlib.image.imread(path)[..., :3]  # (height, width, 3), 0 to 1


def count(image: np.ndarray, color: str) -> int:
    return int((np.abs(image - to_rgb(color)).max(axis=2) < 0.02).sum())
