"""Linear layers with weights of 8 bits, for recognition on processors of small machines."""

import torch
from torch import Tensor, nn

from asr_lightning.errors import InputError

LEAST_WEIGHTS = 16_384  # of a layer; the rounding of the inputs takes longer than a smaller one saves


class Int8Linear(nn.Module):
    """A linear layer with weights of 8 bits and a scale for each output; computes no gradients.

    The inputs of each call are rounded to 7 bits by their own least and largest value, which processors without VNNI
    multiply without overflow. It runs on CPUs only.

    Args:
        linear: The layer whose weights are rounded; it is left as it is.

    Attributes:
        in_features: Of the layer.
        out_features: Likewise.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127  # (out_features,)
        zeros = torch.zeros(len(scales), dtype=torch.long)
        rounded = torch.quantize_per_channel(weight, scales, zeros, axis=0, dtype=torch.qint8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed = torch.ops.quantized.linear_prepack(rounded, bias)

    @property
    def weight(self) -> Tensor:
        """The rounded weights, (out_features, in_features)."""
        return torch.ops.quantized.linear_unpack(self._packed)[0].dequantize()

    @property
    def bias(self) -> Tensor | None:
        """The bias, (out_features,)."""
        return torch.ops.quantized.linear_unpack(self._packed)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (..., in_features); returns (..., out_features) in float32."""
        return torch.ops.quantized.linear_dynamic(x.float(), self._packed, reduce_range=True)


def use_int8(network: nn.Module, least_weights: int = LEAST_WEIGHTS) -> int:
    """Replace the linear layers of a network by layers with weights of 8 bits; return how many.

    Layers of other classes, as recurrent ones, stay as they are.

    Args:
        network: Its modules are replaced in place.
        least_weights: Layers with fewer weights stay as they are too.

    Raises:
        InputError: torch was built without layers of 8 bits, or the network has no linear layer of this size.
    """
    if torch.backends.quantized.engine in ("none", ""):
        raise InputError("int8: this build of torch has no layers of 8 bits; leave the option out")
    count = 0
    for module in [*network.modules()]:
        for name, child in [*module.named_children()]:
            if type(child) is nn.Linear and child.weight.numel() >= least_weights:
                setattr(module, name, Int8Linear(child))
                count += 1
    if not count:
        raise InputError(
            f"int8: {type(network).__name__} has no linear layers of {least_weights:,} weights or more; leave the "
            "option out"
        )
    return count
