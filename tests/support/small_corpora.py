"""Corpora of noise in LibriSpeech's layout, made on the spot."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 16_000


def write_chapter(
    folder: Path, texts: dict[str, str], seconds: Sequence[float], suffix: str = ".flac", sample_rate: int = SAMPLE_RATE
) -> None:
    """Noise of the given durations, and its transcripts."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (id, duration) in enumerate(zip(texts, seconds, strict=True)):
        noise = 0.1 * np.random.default_rng(number).standard_normal(round(duration * sample_rate))
        soundfile.write(folder / f"{id}{suffix}", noise, sample_rate)
    lines = "".join(f"{id} {text}\n" for id, text in texts.items())
    (folder / f"{folder.parent.name}-{folder.name}.trans.txt").write_text(lines, encoding="utf-8")


def make_subset(
    root: Path, subset: str, count: int, *, seed: int = 0, suffix: str = ".flac", longest: float = 1.0
) -> list[str]:
    """Utterances of 0.2 to `longest` seconds by three speakers; returns their ids."""
    random = np.random.default_rng(seed)
    ids = []
    for speaker in range(3):
        utterance_ids = [f"{subset}-{speaker}-{number:04d}" for number in range(speaker, count, 3)]
        seconds = random.uniform(0.2, longest, len(utterance_ids))
        texts = {id: f"THE TEXT OF {id}" for id in utterance_ids}
        write_chapter(root / subset / f"speaker{speaker}" / "1", texts, seconds, suffix)
        ids += utterance_ids
    return sorted(ids)
