"""Speech features, computed from batches of audio on whatever device the audio is on.

Every feature is `(audio (B, S), lengths (B,)) -> (features (B, T, D), lengths (B,))`. A frame never looks at padding:
there is no centering, so frame t covers samples `t * hop` to `t * hop + window`, and an utterance of S samples has
`1 + (S - window) // hop` frames, one at least; `KaldiFilterBank` can do otherwise. Frames beyond an utterance's end are
exactly zero.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional

from asr_lightning.audio.normalization import Normalization
from asr_lightning.audio.spectra import next_power_of_two, power_spectrum, slaney_bank, without_empty_bands
from asr_lightning.errors import InputError
from asr_lightning.nn.sequences import real_frames

MOST_WEIGHTS = 10_000_000  # of a filter bank: those of speech have some 20,000
LOUDEST = 1e6  # of a sample: powers of louder ones may be more than float32 holds; files have to keep to [-1, 1]
POWER_FLOOR = 1e-10  # of a spectrum of audio in [-1, 1]; digital silence becomes log(1e-10) = -23.03


class AudioState(NamedTuple):
    """State of the features of a stream.

    Attributes:
        waiting: Samples (B, W) from the start of the next frame on.
        started: Whether the first frame has been computed.
    """

    waiting: Tensor
    started: bool


class Features(nn.Module, ABC):
    """Base class: cuts audio into frames, calls `from_frames`, normalizes, and sets frames beyond the ends to zero.

    Computed in float32, also under autocast. Durations that are no whole number of samples are cut, as Kaldi does.

    Args:
        dimension: D.
        sample_rate: Samples per second of the audio it will be given.
        window_seconds: Length of a frame.
        hop_seconds: From one frame's start to the next one's.
        normalization: Applied last.

    Attributes:
        dimension: D.
        sample_rate: Samples per second.
        hop_seconds: The true distance of frames, `hop_samples / sample_rate`.
        window_samples: Samples of a frame.
        hop_samples: Samples between the starts of frames.

    Raises:
        InputError: The window or hop is shorter than it can be, or the window holds far more than any sound needs.
    """

    def __init__(
        self,
        dimension: int,
        sample_rate: int,
        window_seconds: float,
        hop_seconds: float,
        normalization: Normalization | None,
    ) -> None:
        super().__init__()
        self.dimension = dimension
        self.sample_rate = sample_rate
        self.window_samples = _samples(window_seconds, sample_rate)
        self.hop_samples = _samples(hop_seconds, sample_rate)
        if self.window_samples < 2 or self.hop_samples < 1:
            raise InputError(
                "features need a window of at least 2 samples and a hop of at least 1, got "
                f"window_seconds={window_seconds} and hop_seconds={hop_seconds} at sample_rate={sample_rate}"
            )
        if self.window_samples * dimension > MOST_WEIGHTS:
            raise InputError(
                f"expected features of at most {MOST_WEIGHTS:,} = samples in a window x dimensions, got "
                f"{self.window_samples:,} x {dimension:,} (window_seconds={window_seconds}, sample_rate={sample_rate})"
            )
        self.hop_seconds = self.hop_samples / sample_rate
        self.normalization = normalization
        if normalization is not None:
            normalization.allocate(dimension)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Features":
        """Move to a device, but stay in float32 where a network computes in half or double precision."""
        buffers = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in buffers.items():
            if (moved := self.get_buffer(name)).dtype != buffer.dtype:
                owner, _, leaf = name.rpartition(".")
                self.get_submodule(owner)._buffers[leaf] = buffer.to(moved.device)
        return self

    @abstractmethod
    def from_frames(self, frames: Tensor) -> Tensor:
        """Turn frames of audio (B, T, window) into features (B, T, D)."""

    def check_rate(self, sample_rate: int) -> None:
        """Refuse audio of another rate.

        Raises:
            InputError: It is not the one that the features are made for.
        """
        if sample_rate != self.sample_rate:
            raise InputError(
                f"the features are made for audio of {self.sample_rate} Hz, got {sample_rate} Hz: set `sample_rate` of "
                "the features and of the data to the same number, or resample the audio"
            )

    def whole_utterance(self) -> str:
        """Return what of the features needs the whole utterance; empty if they stream."""
        streams = self.normalization is None or self.normalization.streams
        return "" if streams else type(self.normalization).__name__

    def initial_state(self, batch_size: int, device: torch.device) -> AudioState:
        """Return the state of `stream` before any audio."""
        return AudioState(torch.zeros(batch_size, 0, device=device), started=False)

    def stream(self, audio: Tensor, state: AudioState, last: bool = False) -> tuple[Tensor, AudioState]:
        """Compute the features of utterances that come in pieces; together they are what `forward` makes of the whole.

        Args:
            audio: The next samples (B, S) in [-1, 1], all of them real; S may be 0.
            state: As `initial_state` or the piece before gave it.
            last: Whether no samples follow.

        Returns:
            The frames that are complete by now, (B, T, D) float32, maybe none, and the state after them.

        Raises:
            InputError: Something of them needs the whole utterance.
        """
        if needs := self.whole_utterance():
            raise InputError(
                f"{needs} needs the whole utterance; features that stream have GlobalNormalization, or none"
            )
        audio = torch.cat([state.waiting, audio.float()], dim=1)
        if last and not state.started and audio.shape[1] < self._first_samples():
            features, _ = self(audio, torch.full((len(audio),), audio.shape[1], device=audio.device))
            return features, AudioState(audio[:, :0], started=True)
        with torch.autocast(device_type=audio.device.type, enabled=False):
            if not state.started:
                if audio.shape[1] < self._first_samples():
                    return audio.new_zeros(len(audio), 0, self.dimension), AudioState(audio, started=False)
                audio = self._begin(audio)
            if last:
                audio = self._finish(audio)
            # A hop may be longer than a window; then a frame waits for the start of the next.
            needed = self.window_samples if last else max(self.window_samples, self.hop_samples)
            frames = max(0, (audio.shape[1] - needed) // self.hop_samples + 1)
            new_state = AudioState(audio[:, frames * self.hop_samples :], started=True)
            if not frames:
                return audio.new_zeros(len(audio), 0, self.dimension), new_state
            features = self.from_frames(audio.unfold(1, self.window_samples, self.hop_samples)[:, :frames])
            if self.normalization is not None:
                lengths = torch.full((len(audio),), frames, device=audio.device)
                features = self.normalization(features, lengths)
            return features, new_state

    def _first_samples(self) -> int:
        """Return how many samples the first frame needs."""
        return self.window_samples

    def _begin(self, audio: Tensor) -> Tensor:
        """Return the first samples (B, S) of utterances with what frames need before them."""
        return audio

    def _finish(self, audio: Tensor) -> Tensor:
        """Return the last samples (B, S) of utterances, from the next frame's start on, with what frames need after."""
        return audio

    def cut(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Cut audio (B, S), which is zero beyond its lengths (B,), into frames (B, T, window)."""
        audio = functional.pad(audio, (0, max(0, self.window_samples - audio.shape[1])))
        return audio.unfold(1, self.window_samples, self.hop_samples)

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Frames (B,) of utterances of the given samples (B,)."""
        return (1 + (lengths - self.window_samples) // self.hop_samples).clamp(min=1)

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features of a batch.

        Args:
            audio: (B, S) in [-1, 1]. What it holds beyond the lengths is ignored.
            lengths: (B,) real samples of each row; fewer than a window's are filled up with zeros to one window. A row
                whose samples are not possible, as `possible_audio` says, counts as one window of silence: nothing
                that learns from features, as running statistics, is spoiled by it.

        Returns:
            features (B, T, D) float32, and how many frames of each row are real, (B,).
        """
        with torch.autocast(device_type=audio.device.type, enabled=False):
            possible = possible_audio(audio, lengths)  # (B,)
            lengths = lengths * possible
            audio = audio.float().masked_fill(~real_frames(lengths, audio.shape[1]), 0.0)
            features = self.from_frames(self.cut(audio, lengths))  # (B, T, D)
            lengths = self.frame_lengths(lengths)
            if self.normalization is not None:
                features = self.normalization(features, lengths)
            return features.masked_fill(~real_frames(lengths, features.shape[1]).unsqueeze(2), 0.0), lengths


def possible_audio(audio: Tensor, lengths: Tensor) -> Tensor:
    """Return which rows of audio (B, S) of the given lengths (B,) have numbers of a possible size only: (B,) bools.

    Files with other samples are not read; this is for audio from elsewhere. It does not wait for the device.
    """
    return ((audio.abs() <= LOUDEST) | ~real_frames(lengths, audio.shape[1])).all(dim=1)  # no comparison holds for NaN


class PowerSpectrogram(Features):
    """Natural logarithm of the power spectrum [Amodei et al. 2016], floored at 1e-10: log power, not log(1 + power).

    A Hann window of 20 ms, transformed without zero padding: 161 dimensions at 16 kHz, as Deep Speech 2 has.

    Args:
        sample_rate: Samples per second.
        window_seconds: Length of a frame.
        hop_seconds: Distance of frames.
        normalization: Applied last.
    """

    window: Tensor

    def __init__(
        self,
        sample_rate: int = 16_000,
        window_seconds: float = 0.020,
        hop_seconds: float = 0.010,
        normalization: Normalization | None = None,
    ) -> None:
        dimension = _samples(window_seconds, sample_rate) // 2 + 1
        super().__init__(dimension, sample_rate, window_seconds, hop_seconds, normalization)
        self.register_buffer("window", torch.hann_window(self.window_samples), persistent=False)

    def from_frames(self, frames: Tensor) -> Tensor:
        """Turn frames of audio (B, T, window) into log power (B, T, D)."""
        return power_spectrum(frames * self.window, self.window_samples).clamp(min=POWER_FLOOR).log()


class LogMel(Features):
    """Natural logarithm of the energies in mel bands [Chan et al. 2016], floored at 1e-10.

    Hann window, transform of the next power of two, Slaney's mel scale and area-normalized triangles.

    Args:
        sample_rate: Samples per second.
        window_seconds: Length of a frame.
        hop_seconds: Distance of frames.
        mels: Bands; D.
        minimum_hertz: Where the lowest band begins.
        maximum_hertz: Where the highest band ends; half the sample rate if None.
        normalization: Applied last.

    Raises:
        InputError: The bands are too many or too narrow: one of them would hold no frequency at all.
    """

    window: Tensor
    bank: Tensor

    def __init__(
        self,
        sample_rate: int = 16_000,
        window_seconds: float = 0.025,
        hop_seconds: float = 0.010,
        mels: int = 80,
        minimum_hertz: float = 0.0,
        maximum_hertz: float | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__(mels, sample_rate, window_seconds, hop_seconds, normalization)
        self.transform_samples = next_power_of_two(self.window_samples)
        bank = slaney_bank(self.transform_samples, sample_rate, mels, minimum_hertz, maximum_hertz)
        self.register_buffer("bank", without_empty_bands(bank), persistent=False)
        self.register_buffer("window", torch.hann_window(self.window_samples), persistent=False)

    def from_frames(self, frames: Tensor) -> Tensor:
        """Turn frames of audio (B, T, window) into log mel energies (B, T, D)."""
        power = power_spectrum(frames * self.window, self.transform_samples)  # (B, T, F)
        return (power @ self.bank).clamp(min=POWER_FLOOR).log()


class MFCC(LogMel):
    """Mel-frequency cepstral coefficients [KoSpeech report, table]: orthonormal cosine transform (type II) of `LogMel`.

    Args:
        coefficients: How many to keep, from the lowest; D.
        sample_rate: Samples per second.
        window_seconds: Length of a frame.
        hop_seconds: Distance of frames.
        mels: Bands that are transformed.
        minimum_hertz: Where the lowest band begins.
        maximum_hertz: Where the highest band ends; half the sample rate if None.
        normalization: Applied last.

    Raises:
        InputError: More coefficients than bands, or bands that are too narrow.
    """

    cosines: Tensor

    def __init__(
        self,
        coefficients: int = 40,
        sample_rate: int = 16_000,
        window_seconds: float = 0.025,
        hop_seconds: float = 0.010,
        mels: int = 80,
        minimum_hertz: float = 0.0,
        maximum_hertz: float | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__(sample_rate, window_seconds, hop_seconds, mels, minimum_hertz, maximum_hertz, None)
        if not 1 <= coefficients <= mels:
            raise InputError(f"MFCC needs 1 <= coefficients <= mels, got coefficients={coefficients} and mels={mels}")
        cosines = torchaudio.functional.create_dct(coefficients, mels, norm="ortho")  # (mels, coefficients)
        self.register_buffer("cosines", cosines, persistent=False)
        self.dimension = coefficients
        self.normalization = normalization
        if normalization is not None:
            normalization.allocate(coefficients)

    def from_frames(self, frames: Tensor) -> Tensor:
        """Turn frames of audio (B, T, window) into cepstral coefficients (B, T, D)."""
        return super().from_frames(frames) @ self.cosines


def _samples(seconds: float, sample_rate: int) -> int:
    return int(seconds * sample_rate + 1e-6)  # 0.029 s * 16,000 Hz is not to become 463
