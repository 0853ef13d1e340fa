"""Power spectra of frames, and banks of mel filters."""

import torch
import torchaudio
from torch import Tensor

from asr_lightning.errors import InputError


def next_power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


def slaney_bank(
    transform_samples: int, sample_rate: int, mels: int, minimum_hertz: float, maximum_hertz: float | None
) -> Tensor:
    """Return area-normalized triangles (F, mels) on Slaney's mel scale, to half the sample rate without a maximum."""
    return torchaudio.functional.melscale_fbanks(
        n_freqs=transform_samples // 2 + 1,
        f_min=minimum_hertz,
        f_max=sample_rate / 2 if maximum_hertz is None else maximum_hertz,
        n_mels=mels,
        sample_rate=sample_rate,
        norm="slaney",
        mel_scale="slaney",
    )


def power_spectrum(frames: Tensor, transform_samples: int) -> Tensor:
    """Return the power spectrum (B, T, F) of windowed frames (B, T, window), padded to the size of the transform."""
    spectrum = torch.fft.rfft(frames, n=transform_samples)
    return spectrum.real.square() + spectrum.imag.square()


def without_empty_bands(bank: Tensor) -> Tensor:
    """Return a bank (F, mels) as it is.

    Raises:
        InputError: A band of it holds no frequency.
    """
    empty = (bank.sum(dim=0) == 0).nonzero().flatten().tolist()
    if empty:
        raise InputError(
            f"mel bands {empty} of {bank.shape[1]} hold no frequency; use fewer mels, or a longer window_seconds"
        )
    return bank
