"""Kaldi's log mel filter bank, batched."""

from typing import Literal

import torch
import torchaudio
from torch import Tensor
from torch.nn import functional

from asr_lightning.audio.features import AudioState, Features
from asr_lightning.audio.normalization import Normalization
from asr_lightning.audio.spectra import next_power_of_two, power_spectrum, slaney_bank, without_empty_bands
from asr_lightning.errors import InputError


class KaldiFilterBank(Features):
    """Kaldi's `compute-fbank-feats` with `--dither=0`, batched.

    Per frame: the mean is removed, pre-emphasis, Povey window, power spectrum, mel triangles, logarithm. Equal to
    `torchaudio.compliance.kaldi.fbank`, which takes one utterance at a time, and to kaldi-native-fbank, with which
    sherpa-onnx computes features: `docs/deployment.md` has the arguments that its recognizers need.

    Args:
        sample_rate: Samples per second.
        window_seconds: Length of a frame.
        hop_seconds: Distance of frames.
        mels: Bands; D.
        minimum_hertz: Where the lowest band begins.
        maximum_hertz: Where the highest band ends; half the sample rate if None.
        scale: Multiplies the audio first. Kaldi itself reads samples in ±32768: use 32768 for its own numbers.
        normalization: Applied last.
        snip_edges: Whether all frames lie within the utterance. Otherwise frame t is centered at sample
            (t + 1/2) * hop, an utterance of S samples has S / hop frames, rounded, and what frames need beyond an end
            is reflected there.
        remove_mean: Whether the mean of every frame is removed.
        mel_scale: `kaldi`, or `slaney` with area-normalized triangles, as `LogMel` has them.

    Raises:
        InputError: The bands are too many or too narrow: one of them would hold no frequency at all.
    """

    PREEMPHASIS = 0.97

    window: Tensor
    bank: Tensor

    def __init__(
        self,
        sample_rate: int = 16_000,
        window_seconds: float = 0.025,
        hop_seconds: float = 0.010,
        mels: int = 80,
        minimum_hertz: float = 20.0,
        maximum_hertz: float | None = None,
        scale: float = 1.0,
        normalization: Normalization | None = None,
        snip_edges: bool = True,
        remove_mean: bool = True,
        mel_scale: Literal["kaldi", "slaney"] = "kaldi",
    ) -> None:
        super().__init__(mels, sample_rate, window_seconds, hop_seconds, normalization)
        self.scale, self.snip_edges, self.remove_mean = scale, snip_edges, remove_mean
        self.transform_samples = next_power_of_two(self.window_samples)
        if mel_scale == "slaney":
            bank = slaney_bank(self.transform_samples, sample_rate, mels, minimum_hertz, maximum_hertz)
        else:
            bank, _ = torchaudio.compliance.kaldi.get_mel_banks(
                mels, self.transform_samples, sample_rate, minimum_hertz, maximum_hertz or 0.0, 100.0, -500.0, 1.0
            )  # (mels, F - 1): Kaldi leaves out the highest frequency; the last three are for warping, which is off
            bank = functional.pad(bank, (0, 1)).T.contiguous()  # (F, mels)
        self.register_buffer("bank", without_empty_bands(bank), persistent=False)
        window = torch.hann_window(self.window_samples, periodic=False).pow(0.85)
        self.register_buffer("window", window, persistent=False)

    def cut(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Cut audio (B, S) of the given lengths (B,) into frames (B, T, window)."""
        if self.snip_edges:
            return super().cut(audio, lengths)
        audio = functional.pad(audio, (0, max(0, 1 - audio.shape[1])))
        count = max(1, (audio.shape[1] + self.hop_samples // 2) // self.hop_samples)
        begin = self.hop_samples // 2 - self.window_samples // 2
        end = begin + (count - 1) * self.hop_samples + self.window_samples
        ends = lengths.clamp(min=1).unsqueeze(1)  # (B, 1)
        samples = torch.arange(begin, end, device=audio.device).remainder(2 * ends)  # reflected again and again
        samples = torch.where(samples < ends, samples, 2 * ends - 1 - samples)
        return audio.gather(1, samples).unfold(1, self.window_samples, self.hop_samples)

    def stream(self, audio: Tensor, state: AudioState, last: bool = False) -> tuple[Tensor, AudioState]:
        """Compute the features of utterances that come in pieces, as `Features.stream` does.

        Raises:
            InputError: Frames reach beyond the ends, or the normalization needs the whole utterance.
        """
        if not self.snip_edges:
            raise InputError("KaldiFilterBank: features that stream need snip_edges: true, got false")
        return super().stream(audio, state, last)

    def whole_utterance(self) -> str:
        """Return what of the features needs the whole utterance: frames that reach beyond its ends."""
        return super().whole_utterance() if self.snip_edges else "snip_edges: false"

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Frames (B,) of utterances of the given samples (B,)."""
        if self.snip_edges:
            return super().frame_lengths(lengths)
        return ((lengths + self.hop_samples // 2) // self.hop_samples).clamp(min=1)

    def from_frames(self, frames: Tensor) -> Tensor:
        """Turn frames of audio (B, T, window) into log mel energies (B, T, D)."""
        frames = frames * self.scale
        if self.remove_mean:
            frames = frames - frames.mean(dim=2, keepdim=True)
        previous = torch.cat([frames[:, :, :1], frames[:, :, :-1]], dim=2)
        frames = (frames - self.PREEMPHASIS * previous) * self.window
        power = power_spectrum(frames, self.transform_samples)  # (B, T, F)
        return (power @ self.bank).clamp(min=torch.finfo(torch.float32).eps).log()
