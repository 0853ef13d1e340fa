"""Weights, gradients and optimizer state shared between processes: FSDP [Zhao et al. 2023, "PyTorch FSDP"].

Each process holds a part of every parameter; torch's `fully_shard` does the work.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from asr_lightning.errors import InputError


def share_weights(module: nn.Module, encoder: nn.Module, mesh: DeviceMesh) -> None:
    """Divide every parameter of a module among the processes; a second call changes nothing.

    The weights of one layer of the encoder at a time are gathered, while it computes. All other weights are gathered
    from the module's `forward` to the end of the backward pass, since decoders use them outside of `forward`.

    Args:
        module: Changed in place.
        encoder: The encoder of the module, whose layers are shared one by one.
        mesh: Lightning's, with the dimensions `data_parallel` and `tensor_parallel`.

    Raises:
        InputError: `tensor_parallel` is above 1: its processes would compute the same.
    """
    if isinstance(module, FSDPModule):
        return
    if (size := mesh["tensor_parallel"].size()) > 1:
        raise InputError(
            f"ModelParallelStrategy: expected a tensor_parallel_size of 1, got {size}: no layer is split. Set "
            f"--trainer.strategy.init_args.data_parallel_size {mesh.size()} and "
            "--trainer.strategy.init_args.tensor_parallel_size 1"
        )
    for layer in _layers(encoder):
        fully_shard(layer, mesh=mesh["data_parallel"], reshard_after_forward=True)
    fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=False)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the entries of the outermost `ModuleList`s."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def gather_weights(module: nn.Module) -> None:
    """Give every process all weights, and the buffers of the first process; nothing changes where none are shared.

    Until `release_weights`, processes compute independently: in an evaluation one of them may have more batches.
    """
    with torch.inference_mode(False):  # training uses the same memory
        for part in _shared_parts(module):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
    if isinstance(module, FSDPModule):
        for buffer in module.buffers():  # as DistributedDataParallel does: running statistics differ
            torch.distributed.broadcast(buffer, src=0)


def release_weights(module: nn.Module) -> None:
    """Undo `gather_weights`."""
    for part in _shared_parts(module):
        part.set_reshard_after_forward(part is not module, recurse=False)
        part.reshard()


def _shared_parts(module: nn.Module) -> list[FSDPModule]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes, which all have to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor, other: Tensor) -> Tensor:
    """Return this process's part of a tensor that is the same on all, if `other` is shared; else the tensor itself."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)
