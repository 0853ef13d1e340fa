"""Weights, gradients and optimiser state that processes share, each holding a part (FSDP; torch's `fully_shard`).

[Zhao et al. 2023, "PyTorch FSDP"]
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from asr_lightning.errors import InputError


def share(module: nn.Module, encoder: nn.Module, mesh: DeviceMesh) -> None:
    """Leave each process its part of every parameter of a module; nothing changes where this was done before.

    The layers of the encoder are whole one at a time, while they compute. What remains is whole from `forward` of the
    module to the end of the backward pass: decoders read these weights outside of it.

    Args:
        module: Changed in place.
        encoder: The part of it that has layers.
        mesh: Lightning's, with the dimensions `data_parallel` and `tensor_parallel`.

    Raises:
        InputError: The mesh has processes that would compute the same.
    """
    if isinstance(module, FSDPModule):
        return
    if (same := mesh["tensor_parallel"].size()) > 1:
        raise InputError(
            f"ModelParallelStrategy: expected a tensor_parallel_size of 1, got {same}: no layer is split. Set "
            f"--trainer.strategy.init_args.data_parallel_size {mesh.size()} and "
            "--trainer.strategy.init_args.tensor_parallel_size 1"
        )
    for layer in _layers(encoder):
        fully_shard(layer, mesh=mesh["data_parallel"], reshard_after_forward=True)
    fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=False)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the entries of the outermost lists."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def make_whole(module: nn.Module) -> None:
    """Give every process all weights, and the buffers of the first one; nothing changes where none are shared.

    Until `make_shared` processes compute without each other, as an evaluation does, where one may have more to do.
    """
    with torch.inference_mode(False):  # the memory is that of training too
        for part in _shared_parts(module):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
    if isinstance(module, FSDPModule):
        for buffer in module.buffers():  # as DistributedDataParallel does: running statistics differ
            torch.distributed.broadcast(buffer, src=0)


def make_shared(module: nn.Module) -> None:
    """Take back what `make_whole` did."""
    for part in _shared_parts(module):
        part.set_reshard_after_forward(part is not module, recurse=False)
        part.reshard()


def _shared_parts(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, on every process; all have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return this process's part of a tensor that is the same on all, if they share the other one; all of it if not."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)
