"""Utterances one by one: read, played at another speed, with noise; and made into batches."""

import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from lhotse import MonoCut
from torch import Tensor
from torch.utils.data import Dataset
from torchaudio.transforms import Resample

from asr_lightning.audio import reading
from asr_lightning.audio.resampling import resample, sixteen_bits
from asr_lightning.batch import Batch, Utterance
from data_modules.manifest import Manifest
from data_modules.workers import threads

Noise = Callable[..., Any]
"""Called with a waveform (S,) and a `torch.Generator`, returns a waveform (S,).

Typed loosely, because jsonargparse reads `Callable[..., Tensor]` as the wish for a subclass of `Tensor`.
"""


@dataclass(frozen=True)
class UnreadableUtterance:
    """An utterance that could not be read."""

    id: str
    reason: str


ReadAudio = Callable[[MonoCut], np.ndarray]
"""Gives the audio (S,) of a cut in [-1, 1], at the sample rate of its recording."""


def read_audio(cut: MonoCut) -> np.ndarray:
    """Read the file of a cut, or its part of it: (S,) in [-1, 1], at the file's own sample rate.

    Raises:
        ValueError: The file cannot be used, or is not as long as the manifest says.
    """
    return decode_audio(cut, str(cut.recording.sources[0].source))


def decode_audio(cut: MonoCut, file: str | BinaryIO) -> np.ndarray:
    """Decode a file that holds the recording of a cut: (S,) in [-1, 1], at the file's own sample rate.

    Not by `cut.load_audio`: lhotse 1.33 re-raises libsndfile's errors in a form that cannot even be printed.

    Raises:
        ValueError: The file cannot be used, or is not as long as the manifest says.
    """
    recording, custom = cut.recording, cut.custom or {}
    samples: int | None = custom.get("samples")
    audio, sample_rate = reading.read_audio(file, custom.get("channel"), custom.get("first", 0), samples)
    expected = recording.num_samples if samples is None else samples
    if sample_rate != recording.sampling_rate or abs(len(audio) - expected) > reading.TOLERANCE * sample_rate:
        raise ValueError(
            f"{len(audio)} samples at {sample_rate} Hz, expected {expected} at {recording.sampling_rate} Hz"
        )
    return audio


def read_at(sample_rate: int, read: ReadAudio, cut: MonoCut) -> np.ndarray:
    """Read the audio of a cut as it is trained on and kept in shards: (S,), at `sample_rate`, rounded to 16 bits.

    It has as many samples as the duration of the cut; what a decoder gives more or less, 25 ms at most, is cut or zero.

    Raises:
        Exception: It cannot be read, or has impossible samples.
    """
    audio = read(cut)
    reading.check_samples(audio)
    resampled = resample(audio, cut.recording.sampling_rate, sample_rate)
    exact = np.zeros(round(cut.duration * sample_rate), np.float32)
    exact[: len(resampled)] = resampled[: len(exact)]
    return sixteen_bits(exact)


class SpeechDataset(Dataset):
    """Utterances of several manifests; an item is asked for as (epoch, number) and depends on nothing else.

    Args:
        manifests: By subset name.
        sample_rate: Of the audio.
        read_audio: Gives a cut's waveform.
        seed: Of the augmentation.
        speed_factors: One is drawn per utterance and epoch.
        noise: Applied to the waveform after the speed.
        at_once: Utterances of a batch that are read at the same time, where reading is mostly waiting.
        prefix: Of the names of the subsets, as a mixture of corpora calls them.
    """

    def __init__(
        self,
        manifests: dict[str, Manifest],
        sample_rate: int,
        read_audio: ReadAudio = read_audio,
        seed: int = 1,
        speed_factors: Sequence[float] = (),
        noise: Noise | None = None,
        at_once: int = 1,
        prefix: str = "",
    ) -> None:
        self.manifests = manifests
        self.subsets = list(manifests)
        self.sample_rate = sample_rate
        self.read_audio = read_audio
        self.seed = seed
        self.speed_factors = speed_factors
        self.noise = noise
        self.at_once = at_once
        self.prefix = prefix
        self._ends = np.cumsum([len(part) for part in manifests.values()])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def durations(self) -> np.ndarray:
        """(N,) seconds, before speed perturbation."""
        return np.concatenate([np.zeros(0, np.float32), *(part.durations for part in self.manifests.values())])

    @property
    def ids(self) -> np.ndarray:
        """(N,) uint32, a hash of the id of each utterance."""
        return np.concatenate([np.zeros(0, np.uint32), *(part.ids for part in self.manifests.values())])

    def __getitem__(self, key: tuple[int, int]) -> Utterance | UnreadableUtterance:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Utterance | UnreadableUtterance]:
        """Read a batch; this is what torch's `DataLoader` asks for."""
        cuts = [self._find(number) for _, number in keys]
        if self.at_once == 1:
            waveforms = [self._read(cut) for _, cut in cuts]
        else:
            with threads(self.at_once) as pool:
                waveforms = list(pool.map(self._read, [cut for _, cut in cuts]))
        return [
            samples if isinstance(samples, UnreadableUtterance) else self._utterance(subset, cut, samples, epoch)
            for (epoch, _), (subset, cut), samples in zip(keys, cuts, waveforms, strict=True)
        ]

    def _find(self, number: int) -> tuple[str, MonoCut]:
        """Return the subset and the cut of an utterance."""
        index = int(np.searchsorted(self._ends, number, side="right"))
        part = self.manifests[self.subsets[index]]
        return self.subsets[index], part[number - int(self._ends[index]) + len(part)]

    def _read(self, cut: MonoCut) -> np.ndarray | UnreadableUtterance:
        try:
            return read_at(self.sample_rate, self.read_audio, cut)
        except Exception as error:  # every decoder has its own; one file must not end a run of days
            return UnreadableUtterance(
                cut.id, f"{cut.recording.sources[0].source}: {' '.join(str(error).split())[:200]}"
            )

    def _utterance(self, subset: str, cut: MonoCut, samples: np.ndarray, epoch: int) -> Utterance:
        audio = self._augment(torch.from_numpy(samples), cut.id, epoch)
        supervision = cut.supervisions[0]
        text, speaker = supervision.text or "", supervision.speaker or ""
        return Utterance(cut.id, audio, self.sample_rate, text, speaker, f"{self.prefix}{subset}")

    def _augment(self, audio: Tensor, id: str, epoch: int) -> Tensor:
        if not self.speed_factors and self.noise is None:
            return audio
        entropy = np.random.SeedSequence([self.seed, epoch, zlib.crc32(id.encode())])
        generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
        if self.speed_factors:
            factor = self.speed_factors[int(torch.randint(len(self.speed_factors), (), generator=generator))]
            audio = change_speed(audio, factor, self.sample_rate)
        return self.noise(audio, generator) if self.noise else audio


def change_speed(audio: Tensor, factor: float, sample_rate: int) -> Tensor:
    """Play (S,) faster by a factor, pitch included, so that S/factor samples are left.

    Args:
        audio: (S,).
        factor: In hundredths; rates without a common divisor would need filters of gigabytes.
        sample_rate: Of the audio.
    """
    hundredths = round(100 * factor)
    return audio if hundredths == 100 else _resampler(sample_rate * hundredths // 100, sample_rate)(audio)


@functools.cache
def _resampler(old_rate: int, new_rate: int) -> Resample:
    return Resample(old_rate, new_rate)


def collate(items: list[Utterance | UnreadableUtterance], sample_rate: int) -> tuple[Batch, list[tuple[str, str]]]:
    """Make a batch of the utterances that could be read, beside the (id, reason) of those that could not."""
    utterances = [item for item in items if isinstance(item, Utterance)]
    return Batch.collate(utterances, sample_rate), [
        (item.id, item.reason) for item in items if isinstance(item, UnreadableUtterance)
    ]
