"""Jasper, an encoder of convolutions over time [Li et al. 2019, "Jasper: an end-to-end neural acoustic model"]."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from asr_lightning.nn.axes import Axis, Fixed, Taps, axis, units
from asr_lightning.nn.batch_norm import MaskedBatchNorm
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.sequences import Encoder, silence_padding


class Jasper(Encoder):
    """A convolution of stride 2, blocks of convolutions with dense residuals, and two convolutions [§2.1, §2.2].

    The published 10x5 has ten blocks, two of each kind, of five convolutions each; 5x3 has one of each kind, of three.
    With dense residuals a block adds the inputs of all blocks before it, each after a convolution of one frame and
    BatchNorm; otherwise it adds only its own input.

    Args:
        input_dimension: Dimension of the features.
        repeats: Convolutions in each block.
        channels: Of each kind of block.
        kernels: Frames under the convolutions of each kind of block, odd.
        dropouts: Of each kind of block.
        copies: Blocks of each kind.
        dense: Whether residuals are dense.
        prologue: Channels and frames of the first convolution, of stride 2.
        epilogue: Channels and frames of the second last convolution, of dilation 2.
        dimension: D of the output: channels of the last convolution.
        epilogue_dropout: Of the last two.

    Raises:
        ValueError: The lists differ in length, or a kernel is even.
    """

    def __init__(
        self,
        input_dimension: int,
        repeats: int = 5,
        channels: Sequence[int] = (256, 384, 512, 640, 768),
        kernels: Sequence[int] = (11, 13, 17, 21, 25),
        dropouts: Sequence[float] = (0.2, 0.2, 0.2, 0.3, 0.3),
        copies: int = 2,
        dense: bool = True,
        prologue: tuple[int, int] = (256, 11),
        epilogue: tuple[int, int] = (896, 29),
        dimension: int = 1024,
        epilogue_dropout: float = 0.4,
    ) -> None:
        super().__init__(input_dimension, dimension)
        if not len(channels) == len(kernels) == len(dropouts) or any(
            kernel % 2 == 0 for kernel in (*kernels, prologue[1])
        ):
            raise ValueError(
                "Jasper needs channels, odd kernels and dropouts for each kind of block, got "
                f"channels={list(channels)}, kernels={list(kernels)} and dropouts={list(dropouts)}"
            )
        self.dense = dense
        self.prologue = Convolution(input_dimension, *prologue, stride=2)
        self.blocks = nn.ModuleList()
        inputs = [prologue[0]]
        for size, kernel, dropout in zip(channels, kernels, dropouts, strict=True):
            for _ in range(copies):
                residuals = inputs if dense else inputs[-1:]
                self.blocks.append(JasperBlock(residuals, size, kernel, repeats, dropout))
                inputs = [*inputs, size]
        self.epilogue = nn.ModuleList(
            [Convolution(inputs[-1], *epilogue, dilation=2), Convolution(epilogue[0], dimension, 1)]
        )
        self.prologue_dropout, self.epilogue_dropout = Dropout(dropouts[0]), Dropout(epilogue_dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the first convolution, which reads features."""
        convolution = self.prologue.convolution
        features = axis(Fixed(self.input_dimension, "features"))
        taps = axis(Taps(convolution.kernel_size[0]))
        return {"prologue.convolution.weight": (units(convolution.out_channels), features, taps)}

    def output_axis(self) -> Axis:
        """Axis of the output: hidden units."""
        return units(self.dimension)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, F) as (B, T / 2, D)."""
        x, lengths = self.prologue(x, lengths)
        inputs = [self.prologue_dropout(torch.relu(x))]
        for block in self.blocks:
            inputs.append(block(inputs if self.dense else inputs[-1:], lengths))
        x = inputs[-1]
        for convolution in self.epilogue:
            x, _ = convolution(x, lengths)
            x = self.epilogue_dropout(torch.relu(x))
        return x, lengths


class JasperBlock(nn.Module):
    """Convolutions with BatchNorm, ReLU and dropout; the residuals are added before the last ReLU.

    Args:
        read: Channels of each residual; the last is also the input of the first convolution.
        channels: Of the convolutions.
        kernel: Frames under each convolution.
        repeats: Number of convolutions.
        dropout: After each convolution.
    """

    def __init__(self, read: Sequence[int], channels: int, kernel: int, repeats: int, dropout: float) -> None:
        super().__init__()
        inputs = [read[-1]] + [channels] * (repeats - 1)
        self.convolutions = nn.ModuleList(Convolution(size, channels, kernel) for size in inputs)
        self.residuals = nn.ModuleList(Convolution(size, channels, 1) for size in read)
        self.dropout = Dropout(dropout)

    def forward(self, read: Sequence[Tensor], lengths: Tensor) -> Tensor:
        """Transform the last of the tensors `read`, each (B, T, D), and add all of them as residuals."""
        x = read[-1]
        *convolutions, last = self.convolutions
        for convolution in convolutions:
            x = self.dropout(torch.relu(convolution(x, lengths)[0]))
        x, _ = last(x, lengths)
        for residual, block_input in zip(self.residuals, read, strict=True):
            x = x + residual(block_input, lengths)[0]
        return self.dropout(torch.relu(x))


class Convolution(nn.Module):
    """Convolution over time and BatchNorm, with zeros after the end of an utterance."""

    def __init__(self, inputs: int, channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.convolution = nn.Conv1d(inputs, channels, kernel, stride, padding, dilation, bias=False)
        self.norm = MaskedBatchNorm(channels)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Filter x (B, T, D) along time."""
        stride = self.convolution.stride[0]
        x = self.convolution(silence_padding(x, lengths).transpose(1, 2)).transpose(1, 2)
        lengths = (lengths + stride - 1) // stride
        return self.norm(x, lengths), lengths
