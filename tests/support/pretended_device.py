"""A pretended device: tensors that claim not to be on the CPU, and a count of what makes the host wait for them.

The numbers are on the CPU, so all is computed truly. The device calls itself `meta`, since of all devices but the CPU
that is the only one whose backward pass needs no driver. What is not of the CPU takes the branches of a GPU.
"""

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
ROOT = Path(__file__).parents[2]
READS = {  # operators whose result, or its shape, the host has to know
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "histc", "allclose",
    "unique_dim", "unique_consecutive", "_unique", "_unique2", "_pack_padded_sequence",
}  # fmt: skip
LENGTHS_READ = {"_ctc_loss": (2, 3), "_ctc_loss_backward": (3, 4)}  # arguments that torch copies to the CPU


class Elsewhere(Tensor):
    """A tensor on the device, around one on the CPU."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "Elsewhere":
        dense = (
            {"strides": here.stride(), "storage_offset": here.storage_offset()} if here.layout is torch.strided else {}
        )
        wrapper = Tensor._make_wrapper_subclass(cls, here.size(), dtype=here.dtype, device=DEVICE, **dense)
        wrapper.here = here
        return wrapper

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.here!r})"

    def tolist(self) -> Any:
        return self.to("cpu").tolist()  # torch does not ask subclasses

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{operator} was called outside of Waits")


class Accelerator(CPUAccelerator):
    """Lets Lightning train on the device, with `SingleDeviceStrategy`."""

    def setup_device(self, device: torch.device) -> None:
        assert device == DEVICE


class Waits(TorchDispatchMode):
    """Computes on `Elsewhere`, and counts by operator and function of the project where the host would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device_tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Elsewhere)]
        target = kwargs.get("device")
        on_device = torch.device(target).type == DEVICE.type if target is not None else bool(device_tensors)
        reason = waits(operator, args, kwargs, bool(device_tensors), on_device)
        if reason:
            self.seen[f"{reason} in {place()}"] += 1
        if not device_tensors and not on_device:
            return operator(*args, **kwargs)
        cpu_args, cpu_kwargs = tree_map(lambda leaf: leaf.here if isinstance(leaf, Elsewhere) else leaf, (args, kwargs))
        if target is not None:
            cpu_kwargs["device"] = torch.device("cpu")
        result = operator(*cpu_args, **cpu_kwargs)
        if not on_device or result is None:
            return result
        wrapped = tree_map(lambda leaf: Elsewhere(leaf) if isinstance(leaf, Tensor) else leaf, result)
        return return_and_correct_aliasing(operator, args, kwargs, wrapped) if device_tensors else wrapped


def waits(operator: Any, args: Any, kwargs: Any, reads_device: bool, on_device: bool) -> str:
    """Return why the host waits; nothing if it does not."""
    name = operator.overloadpacket.__name__
    if name == "_to_copy" and on_device != reads_device and not kwargs.get("non_blocking"):
        return "copy to the device" if on_device else "copy from the device"
    if name == "_to_copy" and reads_device and not on_device:
        return "copy from the device"
    if name in ("copy_", "_foreach_copy_"):
        target, source = (any(isinstance(leaf, Elsewhere) for leaf in tree_leaves(arg)) for arg in args[:2])
        waiting = target != source and not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking")
        return ("copy to the device" if target else "copy from the device") if waiting else ""
    if not reads_device:
        return ""
    if name in READS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        return name
    if name in LENGTHS_READ and any(isinstance(args[n], Elsewhere) for n in LENGTHS_READ[name]):
        return f"{name} with lengths on the device"
    if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return f"{name} with a mask"
        if any(not isinstance(index, Elsewhere) for index in indices):
            return f"{name} with places from the CPU"
    return ""


def place() -> str:
    """Return the innermost function of the project, or else of the libraries, that is at work."""
    frames = [
        frame for frame in traceback.extract_stack() if frame.filename != __file__ and "/torch/" not in frame.filename
    ]
    project_frames = [frame for frame in frames if frame.filename.startswith(str(ROOT / "asr_lightning"))]
    frame = project_frames[-1] if project_frames else frames[-1]
    return f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.name}"


@contextmanager
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Compute on the device; there is no autocast on it."""
    autocast: Callable[..., Any] = torch.autocast

    def without(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == DEVICE.type else autocast(device_type, *args, **kwargs)

    def tensor(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        result = make(data, **kwargs)  # of `meta`, torch would make one without numbers
        return result if device is None else result.to(device)

    make = torch.tensor
    monkeypatch.setattr(torch, "tensor", tensor)
    enabled = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "autocast", without)
    monkeypatch.setattr(
        sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_: None
    )  # of devices it knows
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != DEVICE.type and enabled(kind))
    with Waits() as waiting:
        yield waiting
