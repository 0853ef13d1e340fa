"""What is done to training data so that there is more of it: masks over features, noise over audio."""

import math
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor, nn

from asr_lightning.audio.reading import UNKNOWN, check_samples, open_sound
from asr_lightning.errors import InputError

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3"}


class SpecAugment(nn.Module):
    """Zeroes random stretches of time and bands of frequency, in training mode only [Park et al. 2019].

    Widths are uniform from zero to their maximum, places uniform within the real frames. Zero is the mean of
    normalized features, so give it those. Drawn on the features' device; nothing waits for the device.

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
            features: (B, T, D), normalised to zero mean.
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
        grown = min(self.epoch, epochs) if self.warmup_epochs else epochs  # epochs of growth that are over
        longest = (lengths * self.time_mask_fraction).long().clamp(max=self.time_mask_frames)  # (B,)
        longest = longest * grown // epochs
        time = _random_masks(self.time_masks, longest, lengths, frames)  # (B, T)
        bands = torch.full_like(lengths, dimension)  # (B,)
        widest = torch.full_like(lengths, self.frequency_mask_bands * grown // epochs)  # (B,)
        frequency = _random_masks(self.frequency_masks, widest, bands, dimension)  # (B, D)
        return features.masked_fill(time.unsqueeze(2) | frequency.unsqueeze(1), 0.0)


def _random_masks(masks: int, longest: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Draw masks of 0 to `longest` (B,) places within the first `lengths` (B,) of `size` places: True (B, size)."""
    draws = torch.rand(2, lengths.shape[0], masks, device=lengths.device)  # below 1
    widths = (draws[0] * (longest.unsqueeze(1) + 1)).long()  # (B, masks)
    starts = (draws[1] * (lengths.unsqueeze(1) - widths + 1)).long().unsqueeze(2)  # (B, masks, 1)
    places = torch.arange(size, device=lengths.device)
    return ((places >= starts) & (places < starts + widths.unsqueeze(2))).any(dim=1)


class AddNoise:
    """Adds noise to some utterances at a random signal-to-noise ratio [Chan et al. 2016: noised training data].

    The noise is a random excerpt of a random file below `root`, or, without a folder, coloured noise, from white
    (equal power at every frequency) to brown (power falling with the square of the frequency). All randomness is the
    generator's: the same generator state gives the same result. A sum that leaves [-1, 1] is scaled to fit.

    Args:
        root: Folder of WAV, FLAC, OGG or MP3 files, searched with its subfolders; None for coloured noise.
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
        if snr_db[0] > snr_db[1] or not 0.0 <= probability <= 1.0:
            raise InputError(
                "AddNoise needs snr_db from low to high and a probability from 0 to 1, got "
                f"snr_db={tuple(snr_db)} and probability={probability}"
            )
        self.snr_db = snr_db
        self.probability = probability
        self.sample_rate = sample_rate
        self.paths: list[Path] | None = None
        if root is not None:
            names = (path for path in Path(root).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
            self.paths = sorted(path for path in names if not path.is_dir())
            if not self.paths:
                found = "holds none" if Path(root).is_dir() else "does not exist"
                raise InputError(f"AddNoise needs a folder with {sorted(AUDIO_SUFFIXES)} files; {root} {found}")

    def __call__(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Perhaps add noise to a waveform (S,), on the CPU; silence and what is not noised come back as they are."""
        if _uniform(generator) >= self.probability:
            return waveform
        low, high = self.snr_db
        snr_db = low + (high - low) * _uniform(generator)
        noise = self._excerpt(len(waveform), generator) if self.paths else coloured_noise(len(waveform), generator)
        speech_power, noise_power = waveform.square().mean(), noise.square().mean()
        if not (speech_power > 0.0 and noise_power > 0.0):
            return waveform
        noisy = waveform + noise * torch.sqrt(speech_power / noise_power) * 10.0 ** (-snr_db / 20.0)
        return noisy / noisy.abs().max().clamp(min=1.0)

    def _excerpt(self, samples: int, generator: torch.Generator) -> Tensor:
        """Read a random part (S,) of a random file, which is repeated if it is too short."""
        assert self.paths
        path = self.paths[_integer(len(self.paths), generator)]
        try:
            with open_sound(str(path)) as file:
                rate, frames = file.samplerate, file.frames
                if frames >= UNKNOWN:
                    raise InputError("its header gives no length")
                wanted = math.ceil(samples * rate / self.sample_rate)
                file.seek(_integer(max(1, frames - wanted + 1), generator))
                audio = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)  # the mean of the channels
                if frames and len(audio) < min(wanted, frames):
                    raise InputError("cut off: it ends before its header says")
                check_samples(audio)
        except (InputError, soundfile.LibsndfileError) as error:
            raise InputError(f"cannot read the noise file {path}: {error}; remove or replace it") from error
        if len(audio) == 0:
            raise InputError(f"the noise file {path} holds no samples; remove or replace it")
        if len(audio) < wanted:
            audio = np.roll(audio, _integer(len(audio), generator))
            audio = np.resize(audio, wanted)  # numpy's resize repeats
        noise = torch.from_numpy(audio)
        if rate != self.sample_rate:
            noise = torchaudio.functional.resample(noise, rate, self.sample_rate)
        return noise[:samples]


def coloured_noise(samples: int, generator: torch.Generator) -> Tensor:
    """Draw noise (S,) whose power falls as frequency to a random power between 0 (white) and 2 (brown)."""
    exponent = 2.0 * _uniform(generator)
    spectrum = torch.fft.rfft(torch.randn(samples, generator=generator))  # (samples // 2 + 1,)
    frequency = torch.arange(len(spectrum)).clamp(min=1)
    return torch.fft.irfft(spectrum * frequency ** (-exponent / 2.0), n=samples)


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _integer(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))
