"""Small sound files of several formats and rates."""

from pathlib import Path

import numpy as np
import soundfile

Recordings = dict[str, Path]


def sweep(seconds: float, rate: int, seed: int, channels: int = 1) -> np.ndarray:
    """Tones that come and go: (S,), or (S, channels)."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate))[:, None] / rate
    pitches = random.uniform(100, 1500, size=channels)
    audio = 0.3 * np.sin(2 * np.pi * (pitches * time + 200 * time**2)) + 0.02 * random.standard_normal(time.shape)
    return audio[:, 0] if channels == 1 else audio


def write_recordings(folder: Path) -> Recordings:
    """Write a file of each format, and return their paths by name."""
    audio_files = {
        "telephone.wav": (sweep(1.4, 8_000, 1), 8_000),
        "stereo.wav": (sweep(0.5, 44_100, 2, channels=2), 44_100),
        "song.mp3": (sweep(1.1, 44_100, 3, channels=2), 44_100),
        "talk.ogg": (sweep(2.0, 48_000, 4), 48_000),
        "read.flac": (sweep(0.8, 16_000, 5), 16_000),
        "click.wav": (sweep(0.004, 16_000, 6), 16_000),  # less than one window
        "old.aiff": (sweep(0.6, 22_254, 7), 22_254),  # a Macintosh of 1984
    }
    for name, (audio, rate) in audio_files.items():
        soundfile.write(folder / name, audio, rate)
    return {name: folder / name for name in audio_files}
