"""Augmentation of training data: masks over features; noise, babble and telephones over audio."""

import functools
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
import torch
from scipy import signal
from torch import Tensor, nn

from asr_lightning.audio.reading import UNKNOWN, check_samples, open_sound
from asr_lightning.audio.resampling import resample
from asr_lightning.errors import InputError

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".opus"}
TELEPHONE_RATE = 8_000  # samples per second
TELEPHONE_BAND = (300.0, 3_400.0)  # Hz
CODECS = {"mu-law": "ULAW", "a-law": "ALAW", "gsm": "GSM610"}  # as libsndfile calls them


class SpecAugment(nn.Module):
    """Zeroes random stretches of time and bands of frequency, in training mode only [Park et al. 2019].

    Widths are uniform from zero to their maximum, positions uniform within the real frames. Zero is the mean of
    normalized features, so give it those. Masks are drawn on the features' device, without waiting for it.

    Args:
        time_masks: Masks over time of each utterance.
        time_mask_frames: Frames of the longest mask.
        time_mask_fraction: Of an utterance's frames, the most that one mask takes: a mask has at most
            `min(time_mask_frames, time_mask_fraction * length)` frames, so that all of them together take
            at most `time_masks * time_mask_fraction` of the utterance.
        frequency_masks: Masks over frequency of each utterance.
        frequency_mask_bands: Dimensions of the widest mask.
        warmup_epochs: Epochs in which masks grow: in epoch e, counted from 0, the longest and widest ones are
            e / warmup_epochs of those above, and all of them from epoch `warmup_epochs` on. Attention decoders align
            late, or not at all, where masks are wide from the first step. 0 for full masks at once.

    Attributes:
        epoch: The epoch in training, set by the recognizer at every step.

    Raises:
        InputError: A negative number, or a fraction that is not in [0, 1].
    """

    def __init__(
        self,
        time_masks: int = 2,
        time_mask_frames: int = 100,
        time_mask_fraction: float = 0.05,
        frequency_masks: int = 2,
        frequency_mask_bands: int = 27,
        warmup_epochs: int = 0,
    ) -> None:
        super().__init__()
        sizes = (time_masks, time_mask_frames, frequency_masks, frequency_mask_bands, warmup_epochs)
        if min(sizes) < 0 or not 0.0 <= time_mask_fraction <= 1.0:
            raise InputError(
                "SpecAugment needs masks, sizes and epochs >= 0 and 0 <= time_mask_fraction <= 1, got "
                f"(time_masks, time_mask_frames, frequency_masks, frequency_mask_bands, warmup_epochs)={sizes} "
                f"and time_mask_fraction={time_mask_fraction}"
            )
        self.time_masks = time_masks
        self.time_mask_frames = time_mask_frames
        self.time_mask_fraction = time_mask_fraction
        self.frequency_masks = frequency_masks
        self.frequency_mask_bands = frequency_mask_bands
        self.warmup_epochs = warmup_epochs
        self.epoch = 0

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Mask features.

        Args:
            features: (B, T, D), normalized to zero mean.
            lengths: (B,) real frames of each row.

        Returns:
            (B, T, D), a copy; in evaluation mode the features themselves.

        Raises:
            InputError: The features have fewer dimensions than `frequency_mask_bands`.
        """
        if not self.training:
            return features
        batch, frames, dimension = features.shape
        if self.frequency_mask_bands > dimension:
            raise InputError(
                f"frequency_mask_bands={self.frequency_mask_bands} is wider than the features, which have "
                f"{dimension} dimensions; choose about a third of them"
            )
        epochs = self.warmup_epochs or 1
        elapsed = min(self.epoch, epochs) if self.warmup_epochs else epochs  # epochs of growth so far
        longest = (lengths * self.time_mask_fraction).long().clamp(max=self.time_mask_frames)  # (B,)
        longest = longest * elapsed // epochs
        time = _random_masks(self.time_masks, longest, lengths, frames)  # (B, T)
        bands = torch.full_like(lengths, dimension)  # (B,)
        widest = torch.full_like(lengths, self.frequency_mask_bands * elapsed // epochs)  # (B,)
        frequency = _random_masks(self.frequency_masks, widest, bands, dimension)  # (B, D)
        return features.masked_fill(time.unsqueeze(2) | frequency.unsqueeze(1), 0.0)


def _random_masks(masks: int, longest: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Draw masks of 0 to `longest` (B,) positions within the first `lengths` (B,) of `size`: True (B, size)."""
    draws = torch.rand(2, lengths.shape[0], masks, device=lengths.device)  # below 1
    widths = (draws[0] * (longest.unsqueeze(1) + 1)).long()  # (B, masks)
    starts = (draws[1] * (lengths.unsqueeze(1) - widths + 1)).long().unsqueeze(2)  # (B, masks, 1)
    positions = torch.arange(size, device=lengths.device)
    return ((positions >= starts) & (positions < starts + widths.unsqueeze(2))).any(dim=1)


class AddNoise:
    """Adds noise to some utterances at a random signal-to-noise ratio [Chan et al. 2016: noised training data].

    The noise is a random excerpt of a random file below `root`, or, without a folder, colored noise, from white
    (equal power at every frequency) to brown (power falling with the square of the frequency). All randomness is the
    generator's: the same generator state gives the same result. A sum that leaves [-1, 1] is scaled to fit.

    Args:
        root: Folder of WAV, FLAC, OGG or MP3 files, searched with its subfolders; None for colored noise.
        snr_db: Lowest and highest ratio of the powers of speech and noise, in decibels; uniform between.
        probability: Of an utterance to be noised.
        sample_rate: Samples per second of the audio it will be given; noise files are resampled to it.

    Raises:
        InputError: No audio file below `root`, an unreadable one (when it is drawn), or unusable numbers.
    """

    def __init__(
        self,
        root: str | None = None,
        snr_db: tuple[float, float] = (10.0, 30.0),
        probability: float = 0.5,
        sample_rate: int = 16_000,
    ) -> None:
        check_probability("AddNoise", probability)
        if snr_db[0] > snr_db[1]:
            raise InputError(f"AddNoise needs snr_db from low to high, got snr_db={tuple(snr_db)}")
        self.snr_db = snr_db
        self.probability = probability
        self.sample_rate = sample_rate
        self.paths = None if root is None else find_audio(root, "AddNoise")

    def __call__(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Perhaps add noise to a waveform (S,), on the CPU; silence and what is not noised come back as they are."""
        if _uniform(generator) >= self.probability:
            return waveform
        low, high = self.snr_db
        snr_db = low + (high - low) * _uniform(generator)
        if self.paths is None:
            noise = colored_noise(len(waveform), generator)
        else:
            path = self.paths[whole_number(len(self.paths), generator)]
            noise = read_excerpt(path, len(waveform), self.sample_rate, generator)
        return mix(waveform, noise, snr_db)


class AddMusan:
    """Adds noise, music or babble from a folder in MUSAN's layout, as is usual with it [Snyder et al. 2015 and 2018].

    One of the folders `noise`, `music` and `speech` that exist below `root` is drawn, and an excerpt of one of its
    files, or the sum of several of `speech`, is added at a signal-to-noise ratio of that kind. All randomness
    is the generator's. A sum that leaves [-1, 1] is scaled to fit.

    Args:
        root: The folder with `noise`, `music` and `speech`, each searched with its subfolders.
        noise_db: Lowest and highest ratio of the powers of speech and noise, in decibels; uniform between.
        music_db: The same of music.
        babble_db: The same of babble.
        talkers: Fewest and most voices of babble.
        probability: Of an utterance to be noised.
        sample_rate: Samples per second of the audio it will be given; files are resampled to it.

    Raises:
        InputError: No such folder below `root`, one without audio, an unreadable file (when it is drawn), or unusable
            numbers.
    """

    def __init__(
        self,
        root: str,
        noise_db: tuple[float, float] = (0.0, 15.0),
        music_db: tuple[float, float] = (5.0, 15.0),
        babble_db: tuple[float, float] = (13.0, 20.0),
        talkers: tuple[int, int] = (3, 7),
        probability: float = 0.5,
        sample_rate: int = 16_000,
    ) -> None:
        check_probability("AddMusan", probability)
        ranges = {"noise": noise_db, "music": music_db, "speech": babble_db}
        if any(low > high for low, high in ranges.values()) or not 1 <= talkers[0] <= talkers[1]:
            raise InputError(
                "AddMusan needs ranges from low to high and 1 talker or more, got "
                f"noise_db={noise_db}, music_db={music_db}, babble_db={babble_db} and talkers={talkers}"
            )
        kinds = [kind for kind in ranges if (Path(root) / kind).is_dir()]
        if not kinds:
            raise InputError(f"AddMusan needs a folder with noise, music or speech in it, found none in {root}")
        self.paths = {kind: find_audio(str(Path(root) / kind), "AddMusan") for kind in kinds}
        self.snr_db = {kind: tuple(ranges[kind]) for kind in kinds}
        self.talkers = tuple(talkers)
        self.probability = probability
        self.sample_rate = sample_rate

    def __call__(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Perhaps add noise to a waveform (S,), on the CPU; silence and what is not noised come back as they are."""
        if _uniform(generator) >= self.probability or not len(waveform):
            return waveform
        kind = list(self.paths)[whole_number(len(self.paths), generator)]
        low, high = self.snr_db[kind]
        snr_db = low + (high - low) * _uniform(generator)
        fewest, most = self.talkers if kind == "speech" else (1, 1)
        voices = fewest + whole_number(most - fewest + 1, generator)
        noise = torch.zeros_like(waveform)
        for _ in range(voices):
            path = self.paths[kind][whole_number(len(self.paths[kind]), generator)]
            voice = read_excerpt(path, len(waveform), self.sample_rate, generator)
            noise += voice / voice.square().mean().sqrt().clamp(min=1e-8)  # all voices alike
        return mix(waveform, noise, snr_db)


class Telephone:
    """Passes some utterances through a telephone: 300 to 3,400 Hz, 8,000 samples per second, and a codec.

    The result has the length and sample rate of what was given, and nothing above 4 kHz. It depends on the audio
    and the codec alone; the generator draws the codec, and whether there is a change.

    Args:
        codecs: One is drawn for each utterance: `mu-law` and `a-law` [ITU-T G.711], `gsm` (GSM 06.10).
        probability: Of an utterance to be changed.
        sample_rate: Samples per second of the audio it will be given.

    Raises:
        InputError: Another codec, none, or a probability out of range.
    """

    def __init__(
        self,
        codecs: Sequence[Literal["mu-law", "a-law", "gsm"]] = ("mu-law",),
        probability: float = 0.5,
        sample_rate: int = 16_000,
    ) -> None:
        check_probability("Telephone", probability)
        if not codecs or set(codecs) - set(CODECS):
            raise InputError(f"Telephone needs codecs of {', '.join(CODECS)}, got {list(codecs)}")
        self.codecs = list(codecs)
        self.probability = probability
        self.sample_rate = sample_rate

    def __call__(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Perhaps pass a waveform (S,) through a telephone, on the CPU."""
        if _uniform(generator) >= self.probability or not len(waveform):
            return waveform
        codec = self.codecs[whole_number(len(self.codecs), generator)]
        narrow = resample(waveform.numpy(), self.sample_rate, TELEPHONE_RATE)
        filtered = signal.sosfilt(_telephone_band(), narrow)
        file = io.BytesIO()
        soundfile.write(file, filtered.clip(-1, 1), TELEPHONE_RATE, format="WAV", subtype=CODECS[codec])
        file.seek(0)
        decoded = soundfile.read(file, dtype="float32")[0][: len(narrow)]  # GSM fills its last frame
        restored = resample(decoded, TELEPHONE_RATE, self.sample_rate)[: len(waveform)]
        return torch.from_numpy(np.pad(restored, (0, len(waveform) - len(restored))))


class InTurn:
    """Applies several augmentations one after another, as rooms, then noise, then telephones.

    Args:
        steps: Called in this order, each with a waveform (S,) and the generator.
    """

    def __init__(self, steps: list[Callable[..., Any]]) -> None:
        self.steps = steps

    def __call__(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Change a waveform (S,), on the CPU."""
        for step in self.steps:
            waveform = step(waveform, generator)
        return waveform


@functools.cache
def _telephone_band() -> np.ndarray:
    return signal.butter(4, TELEPHONE_BAND, "bandpass", fs=TELEPHONE_RATE, output="sos")


def mix(speech: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """Add noise (S,) to speech (S,) at a ratio of their powers; silent speech or noise adds nothing."""
    speech_power, noise_power = speech.square().mean(), noise.square().mean()
    if not (speech_power > 0.0 and noise_power > 0.0):
        return speech
    noisy = speech + noise * torch.sqrt(speech_power / noise_power) * 10.0 ** (-snr_db / 20.0)
    return noisy / noisy.abs().max().clamp(min=1.0)


def read_excerpt(path: Path, samples: int, sample_rate: int, generator: torch.Generator) -> Tensor:
    """Read a random part (S,) of a file, which is repeated if it is too short.

    Raises:
        InputError: The file cannot be used.
    """
    try:
        with open_sound(str(path)) as file:
            rate, frames = file.samplerate, file.frames
            if frames >= UNKNOWN:
                raise InputError("its header gives no length")
            length = math.ceil(samples * rate / sample_rate)
            file.seek(whole_number(max(1, frames - length + 1), generator))
            audio = file.read(length, dtype="float32", always_2d=True).mean(axis=1)  # the mean of the channels
            if frames and len(audio) < min(length, frames):
                raise InputError("cut off: it ends before its header says")
            check_samples(audio)
    except (InputError, soundfile.LibsndfileError) as error:
        raise InputError(f"cannot read the noise file {path}: {error}; remove or replace it") from error
    if len(audio) == 0:
        raise InputError(f"the noise file {path} holds no samples; remove or replace it")
    if len(audio) < length:
        audio = np.roll(audio, whole_number(len(audio), generator))
        audio = np.resize(audio, length)  # numpy's resize repeats
    return torch.from_numpy(resample(audio, rate, sample_rate)[:samples])


def find_audio(root: str, name: str) -> list[Path]:
    """Return the audio files of a folder and its subfolders, sorted.

    Raises:
        InputError: There are none; the message names the class `name`.
    """
    paths = sorted(
        path for path in Path(root).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and not path.is_dir()
    )
    if not paths:
        state = "holds none" if Path(root).is_dir() else "does not exist"
        raise InputError(f"{name} needs a folder with {sorted(AUDIO_SUFFIXES)} files; {root} {state}")
    return paths


def check_probability(name: str, probability: float) -> None:
    """Check a probability of the class `name`.

    Raises:
        InputError: It is none.
    """
    if not 0.0 <= probability <= 1.0:
        raise InputError(f"{name} needs a probability from 0 to 1, got probability={probability}")


def colored_noise(samples: int, generator: torch.Generator) -> Tensor:
    """Draw noise (S,) whose power falls as frequency to a random power between 0 (white) and 2 (brown)."""
    exponent = 2.0 * _uniform(generator)
    spectrum = torch.fft.rfft(torch.randn(samples, generator=generator))  # (samples // 2 + 1,)
    frequency = torch.arange(len(spectrum)).clamp(min=1)
    return torch.fft.irfft(spectrum * frequency ** (-exponent / 2.0), n=samples)


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def whole_number(below: int, generator: torch.Generator) -> int:
    """Draw a whole number from 0 to one less than `below`."""
    return int(torch.randint(below, (), generator=generator))
