"""The features of torchaudio's and of SpeechBrain's public transducers, to the last detail.

They are centered: frame t lies around sample t * hop. Those of torchaudio reflect both ends [torchaudio,
`pipelines/rnnt_pipeline.py`], each utterance's at its own end; those of SpeechBrain have zeros there.
"""

import math

import torch
import torchaudio
from torch import Tensor
from torch.nn import functional

from asr_lightning.audio.features import POWER_FLOOR, AudioState, Features, possible_audio
from asr_lightning.errors import InputError
from asr_lightning.nn.axes import Axis, Fixed, axis
from asr_lightning.nn.sequences import real_frames

WINDOW = 400  # samples, as its transform
HOP = 160  # samples
SAMPLE_RATE = 16_000
MELS = 80
SMALLEST_DEVIATION = 1e-10  # that features are divided by
GAIN = float(torch.iinfo(torch.int16).max) ** 2  # of powers: as those of samples in ±32767


class PublicLogMel(Features):
    """Mel energies as those that torchaudio's public weights were trained on, with given means and deviations.

    A Hann window of 25 ms, mel triangles of HTK's scale without norm, and a logarithm that is linear below e.

    Args:
        mean: Of every dimension, over the training data; 0 where a checkpoint brings it.
        inverse_deviation: One over the standard deviation; likewise 1.
    """

    window: Tensor
    bank: Tensor
    mean: Tensor
    inverse_deviation: Tensor

    def __init__(self, mean: list[float] | None = None, inverse_deviation: list[float] | None = None) -> None:
        super().__init__(MELS, SAMPLE_RATE, WINDOW / SAMPLE_RATE, HOP / SAMPLE_RATE, None)
        bank = torchaudio.functional.melscale_fbanks(
            n_freqs=WINDOW // 2 + 1, f_min=0.0, f_max=SAMPLE_RATE / 2, n_mels=MELS, sample_rate=SAMPLE_RATE
        )
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("mean", torch.tensor(mean or [0.0] * MELS))
        self.register_buffer("inverse_deviation", torch.tensor(inverse_deviation or [1.0] * MELS))

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Return the axes: no two dimensions of the features belong together."""
        return {name: (axis(Fixed(MELS, "features")),) for name in ("mean", "inverse_deviation")}

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Frames (B,) of utterances of the given samples (B,)."""
        return 1 + lengths // HOP

    def from_frames(self, frames: Tensor) -> Tensor:
        """Turn frames of audio (B, T, window) into normalized features (B, T, D)."""
        spectrum = torch.fft.rfft(frames * self.window)
        power = (spectrum.real.square() + spectrum.imag.square()) @ self.bank * GAIN
        logs = torch.where(power > math.e, power.clamp(min=math.e).log(), power / math.e)
        return (logs - self.mean) * self.inverse_deviation

    def _first_samples(self) -> int:
        return WINDOW // 2 + 1

    def _begin(self, audio: Tensor) -> Tensor:
        return torch.cat([audio[:, 1 : WINDOW // 2 + 1].flip(1), audio], dim=1)

    def _finish(self, audio: Tensor) -> Tensor:
        # The next frame starts at least 240 samples before the end, so all that is reflected is there.
        return torch.cat([audio, audio[:, -WINDOW // 2 - 1 : -1].flip(1)], dim=1)

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features of a batch; see `Features`. Rows shorter than half a window are padded with zeros."""
        with torch.autocast(device_type=audio.device.type, enabled=False):
            lengths = lengths * possible_audio(audio, lengths)
            audio = audio.float().masked_fill(~real_frames(lengths, audio.shape[1]), 0.0)
            least = WINDOW // 2 + 1  # samples that can be reflected
            audio = functional.pad(audio, (0, max(0, least - audio.shape[1])))
            ends = lengths.clamp(min=least).unsqueeze(1)  # (B, 1)
            places = torch.arange(-(WINDOW // 2), audio.shape[1] + WINDOW // 2, device=audio.device).abs()
            places = torch.where(places < ends, places, 2 * (ends - 1) - places)  # (B, S + window), behind the end
            padded = audio.gather(1, places.clamp(0, audio.shape[1] - 1))
            features = self.from_frames(padded.unfold(1, WINDOW, HOP))  # (B, T, D)
            lengths = self.frame_lengths(lengths)
            features = features[:, : max(int(audio.shape[1]) // HOP + 1, 1)]
            return features.masked_fill(~real_frames(lengths, features.shape[1]).unsqueeze(2), 0.0), lengths


class DecibelLogMel(Features):
    """Mel energies in decibels as SpeechBrain's public weights were trained on, with given means and deviations.

    A Hamming window, centered, zeros before and behind the audio, triangles that are symmetric in Hertz, each as wide
    as the distance to the center before it [SpeechBrain 1.1, `processing/features.py`]. Then what is more than
    `decibels` below the loudest of the utterance is raised to that, and each dimension is normalized.

    Args:
        mels: Triangles; D.
        window_samples: Of the window and of the transform.
        decibels: Dynamic range of an utterance; None for any, with which the features stream.
        mean: Of every dimension, over the training data; 0 where a checkpoint brings it.
        deviation: The standard deviation; likewise 1.

    Raises:
        InputError: The range is not positive.
    """

    window: Tensor
    bank: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        mels: int = MELS,
        window_samples: int = 512,
        decibels: float | None = 80.0,
        mean: list[float] | None = None,
        deviation: list[float] | None = None,
    ) -> None:
        super().__init__(mels, SAMPLE_RATE, window_samples / SAMPLE_RATE, HOP / SAMPLE_RATE, None)
        if decibels is not None and not decibels > 0:
            raise InputError(f"DecibelLogMel needs decibels above 0, or none, got {decibels}")
        self.decibels = decibels
        self.register_buffer("bank", _symmetric_triangles(window_samples, mels), persistent=False)
        self.register_buffer("window", torch.hamming_window(window_samples), persistent=False)
        self.register_buffer("mean", torch.tensor(mean or [0.0] * mels))
        self.register_buffer("deviation", torch.tensor(deviation or [1.0] * mels))

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Return the axes: no two dimensions of the features belong together."""
        return {name: (axis(Fixed(self.dimension, "features")),) for name in ("mean", "deviation")}

    def whole_utterance(self) -> str:
        """Return what of the features needs the whole utterance: the range below its loudest energy."""
        return "" if self.decibels is None else f"a range of {self.decibels:g} decibels"

    def stream(self, audio: Tensor, state: AudioState, last: bool = False) -> tuple[Tensor, AudioState]:
        """Compute the features of utterances that come in pieces, as `Features.stream` does.

        Raises:
            InputError: The range is that below the loudest of the whole utterance.
        """
        if self.decibels is not None:
            raise InputError(f"DecibelLogMel: features that stream need decibels: null, got {self.decibels:g}")
        return super().stream(audio, state, last)

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Frames (B,) of utterances of the given samples (B,)."""
        return 1 + lengths // HOP

    def from_frames(self, frames: Tensor) -> Tensor:
        """Turn frames of audio (B, T, window) into normalized features (B, T, D) of any range."""
        return self._normalized(self._decibels(frames))

    def _decibels(self, frames: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(frames * self.window)
        power = (spectrum.real.square() + spectrum.imag.square()) @ self.bank
        return 10.0 * power.clamp(min=POWER_FLOOR).log10()

    def _normalized(self, levels: Tensor) -> Tensor:
        return (levels - self.mean) / self.deviation.clamp(min=SMALLEST_DEVIATION)

    def _first_samples(self) -> int:
        return 1

    def _begin(self, audio: Tensor) -> Tensor:
        return functional.pad(audio, (self.window_samples // 2, 0))

    def _finish(self, audio: Tensor) -> Tensor:
        return functional.pad(audio, (0, self.window_samples // 2))

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the features of a batch; see `Features`."""
        with torch.autocast(device_type=audio.device.type, enabled=False):
            lengths = lengths * possible_audio(audio, lengths)
            audio = audio.float().masked_fill(~real_frames(lengths, audio.shape[1]), 0.0)
            audio = functional.pad(audio, (self.window_samples // 2, self.window_samples // 2))
            levels = self._decibels(audio.unfold(1, self.window_samples, HOP))  # (B, T, D)
            lengths = self.frame_lengths(lengths)
            real = real_frames(lengths, levels.shape[1]).unsqueeze(2)
            if self.decibels is not None:
                loudest = levels.masked_fill(~real, -math.inf).amax(dim=(1, 2), keepdim=True)
                levels = torch.maximum(levels, loudest - self.decibels)
            return self._normalized(levels).masked_fill(~real, 0.0), lengths


def _symmetric_triangles(window_samples: int, mels: int) -> Tensor:
    """Return the triangles of `DecibelLogMel`, (window / 2 + 1, mels)."""
    highest = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)  # mel, of HTK's scale
    hertz = 700 * (10 ** (torch.linspace(0.0, highest, mels + 2) / 2595) - 1)
    distance = (torch.linspace(0, SAMPLE_RATE // 2, window_samples // 2 + 1).unsqueeze(1) - hertz[1:-1]).abs()
    return (1 - distance / hertz.diff()[:-1]).clamp(min=0.0)
