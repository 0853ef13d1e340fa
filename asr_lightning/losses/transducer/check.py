"""Whether Triton computes the transducer's loss correctly on this machine, by a small case, once per device."""

import warnings
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import linear

from asr_lightning.losses.transducer import lattice
from asr_lightning.nn.sequences import real_frames

BLANK_ID = 3  # of the small case


@cache
def kernels_work(device: torch.device) -> bool:
    """Return whether the kernels compute what plain PyTorch does on a device; warn once, in one line, where not."""
    try:
        from asr_lightning.losses.transducer import kernels  # Triton is not on every system
    except ImportError as error:
        reason = f"Triton cannot be imported ({error})"
    else:
        reason = failure(kernels, device)
    if reason:
        message = (
            f"the transducer's loss on {device} is computed by plain PyTorch, more slowly, without kernels: {reason}"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return not reason


def failure(kernels: ModuleType, device: torch.device) -> str:
    """Return the reason not to use kernels on a device, in one line; empty where they are correct."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        try:
            with torch.no_grad(), torch.device("cpu"):
                different = _differences(kernels, device, dtype)
        except Exception as error:  # whatever a compiler or driver may raise, training goes on without kernels
            words = " ".join(f"{type(error).__name__}: {error}".split())
            return words if len(words) < 300 else words[:150] + " … " + words[-150:]
        if different:
            return f"in {dtype} they give other numbers than PyTorch: {', '.join(different)}"
    return ""


def _differences(kernels: ModuleType, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Return the names of functions of kernels whose results are not those of plain PyTorch in float32 on the CPU.

    The lattice has positions for more than one warp and is divided into two blocks; lengths are unequal, one transcript
    is empty and one utterance has no frame. Both sides get the same tensors at every step, so an error is found where
    it arises.
    """
    different: set[str] = set()

    def on_device(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.to(device, copy=True) for tensor in tensors)

    def compare(name: str, results: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        for computed, exact in zip(results, expected, strict=True):
            tolerance = max(1e-5, torch.finfo(computed.dtype).eps)
            if not torch.allclose(computed.cpu().double(), exact.double(), rtol=tolerance, atol=1e-5):
                different.add(name)

    encoded, predicted, weight, gradient, targets = _small_case(dtype)
    lengths = torch.tensor([6, 4, 0, 5]), torch.tensor([69, 37, 8, 0])
    batch, frames, positions = len(targets), encoded.shape[1], targets.shape[1]
    valid = real_frames(lengths[0], frames)[:, :, None] & real_frames(lengths[1] + 1, positions)[:, None]
    normalizer, blank, label = torch.zeros(3, batch, frames, positions, dtype=torch.float32).unbind()
    expected, (first, second, third) = (normalizer, blank, label), on_device(normalizer, blank, label)
    results = first, second, third
    blocks = [(slice(0, batch), span, slice(0, positions)) for span in (slice(0, 2), slice(2, frames))]
    for block in blocks:
        hidden = lattice.hidden_units(encoded.float(), predicted.float(), block)
        compare("hidden_units", [kernels.hidden_units(*on_device(encoded, predicted), block)], [hidden])
        logits = linear(hidden, weight.float()).to(dtype)
        kernels.score(*on_device(logits, targets), on_device(*lengths), BLANK_ID, block, results)
        lattice.score(logits.float(), targets, lengths, BLANK_ID, block, expected)
    compare("score", [x.cpu()[valid] for x in results], [x[valid] for x in expected])
    visits = lattice.occupancies(blank, label, *lengths)
    compare("occupancies", kernels.occupancies(*on_device(blank, label, *lengths)), visits)
    arguments = normalizer, visits[1].float(), visits[2].float(), gradient
    for block in blocks:
        hidden = lattice.hidden_units(encoded.float(), predicted.float(), block).to(dtype)
        logits = linear(hidden.float(), weight.float()).to(dtype)
        errors = kernels.errors(*on_device(logits, targets), BLANK_ID, *on_device(*arguments), block)
        error, of_bias = lattice.errors(logits.float(), targets, BLANK_ID, *arguments, block)
        compare("errors", errors, [error, of_bias])
        of_hidden = linear(error, weight.float().T).to(dtype)
        compare("sums", kernels.sums(*on_device(of_hidden, hidden)), lattice.sums(of_hidden.float(), hidden.float()))
    return sorted(different)


def _small_case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return encoded (4, 6, 40), predicted (4, 70, 40), weight (1100, 40), gradient (4,) and targets (4, 70)."""
    generator = torch.Generator().manual_seed(1)
    encoded, predicted, weight, gradient = (
        torch.randn(size, generator=generator) for size in ((4, 6, 40), (4, 70, 40), (1100, 40), (4,))
    )
    targets = torch.randint(1100, (4, 70), generator=generator)
    return encoded.to(dtype), predicted.to(dtype), (weight / 4).to(dtype), gradient.float(), targets
