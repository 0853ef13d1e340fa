"""Whether this machine's Triton computes the transducer's loss rightly: a tiny case says so, once per device."""

import warnings
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import linear

from asr_lightning.losses import transducer_blocks
from asr_lightning.nn.sequences import real_frames

BLANK_ID = 3  # of the tiny case


def parts_for(encoded: Tensor) -> ModuleType:
    """Return the module with the functions of blocks and of the lattice that suits a tensor: kernels, or plain PyTorch.

    Kernels are for CUDA. They do not compute in float64; there, and where they do not work, PyTorch's operations do.
    """
    if not encoded.is_cuda or encoded.dtype == torch.float64:
        return transducer_blocks
    return _parts_on(encoded.device)


@cache
def _parts_on(device: torch.device) -> ModuleType:
    try:
        # Triton is not there on every system, and costs time to import.
        from asr_lightning.losses import transducer_kernels
    except ImportError as error:
        return warn(device, f"Triton cannot be imported ({error})")
    reason = failure(transducer_kernels, device)
    return warn(device, reason) if reason else transducer_kernels


def warn(device: torch.device, reason: str) -> ModuleType:
    """Say in one line why there are no kernels, and return what is used in their place."""
    message = f"the transducer's loss on {device} is computed by plain PyTorch, more slowly, without kernels: {reason}"
    warnings.warn(message, RuntimeWarning, stacklevel=3)
    return transducer_blocks


def failure(kernels: ModuleType, device: torch.device) -> str:
    """Return why kernels are not to be trusted on a device, in one line, or nothing."""
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

    The lattice has places for more than one warp, and comes in two blocks; lengths are unequal, one transcript is empty
    and one row has no frame. Both sides get the same tensors everywhere, so an error is known by its place.
    """
    plain, different = transducer_blocks, set()

    def there(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.to(device, copy=True) for tensor in tensors)

    def compare(name: str, ours: Sequence[Tensor], right: Sequence[Tensor]) -> None:
        for one, exact in zip(ours, right, strict=True):
            tolerance = max(1e-5, torch.finfo(one.dtype).eps)
            if not torch.allclose(one.cpu().double(), exact.double(), rtol=tolerance, atol=1e-5):
                different.add(name)

    encoded, predicted, weight, gradient, targets = _tiny_case(dtype)
    lengths = torch.tensor([6, 4, 0, 5]), torch.tensor([69, 37, 8, 0])
    batch, frames, places = len(targets), encoded.shape[1], targets.shape[1]
    real = real_frames(lengths[0], frames)[:, :, None] & real_frames(lengths[1] + 1, places)[:, None]
    normaliser, blank, label = torch.zeros(3, batch, frames, places, dtype=torch.float32).unbind()
    right, (first, second, third) = (normaliser, blank, label), there(normaliser, blank, label)
    ours = first, second, third
    blocks = [(slice(0, batch), some, slice(0, places)) for some in (slice(0, 2), slice(2, frames))]
    for block in blocks:
        hidden = plain.hidden_units(encoded.float(), predicted.float(), block)
        compare("hidden_units", [kernels.hidden_units(*there(encoded, predicted), block)], [hidden])
        logits = linear(hidden, weight.float()).to(dtype)
        kernels.score(*there(logits, targets), there(*lengths), BLANK_ID, block, ours)
        plain.score(logits.float(), targets, lengths, BLANK_ID, block, right)
    compare("score", [x.cpu()[real] for x in ours], [x[real] for x in right])
    visits = plain.occupancies(blank, label, *lengths)
    compare("occupancies", kernels.occupancies(*there(blank, label, *lengths)), visits)
    known = normaliser, visits[1].float(), visits[2].float(), gradient
    for block in blocks:
        hidden = plain.hidden_units(encoded.float(), predicted.float(), block).to(dtype)
        logits = linear(hidden.float(), weight.float()).to(dtype)
        errors = kernels.errors(*there(logits, targets), BLANK_ID, *there(*known), block)
        error, of_bias = plain.errors(logits.float(), targets, BLANK_ID, *known, block)
        compare("errors", errors, [error, of_bias])
        of_hidden = linear(error, weight.float().T).to(dtype)
        compare("sums", kernels.sums(*there(of_hidden, hidden)), plain.sums(of_hidden.float(), hidden.float()))
    return sorted(different)


def _tiny_case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return encoded (4, 6, 40), predicted (4, 70, 40), weight (1100, 40), gradient (4,) and targets (4, 70)."""
    generator = torch.Generator().manual_seed(1)
    encoded, predicted, weight, gradient = (
        torch.randn(size, generator=generator) for size in ((4, 6, 40), (4, 70, 40), (1100, 40), (4,))
    )
    targets = torch.randint(1100, (4, 70), generator=generator)
    return encoded.to(dtype), predicted.to(dtype), (weight / 4).to(dtype), gradient.float(), targets
