"""The features of torchaudio's public transducers, to the last detail [torchaudio, `pipelines/rnnt_pipeline.py`].

They are centered: frame t lies around sample t * hop, and both ends are reflected, each utterance's at its own end.
"""

import math

import torch
import torchaudio
from torch import Tensor
from torch.nn import functional

from asr_lightning.audio.features import Features, possible_audio
from asr_lightning.nn.axes import Axis, Fixed, axis
from asr_lightning.nn.sequences import real_frames

WINDOW = 400  # samples, as its transform
HOP = 160  # samples
SAMPLE_RATE = 16_000
MELS = 80
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
