"""Convolutions between features and the layers of an encoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr_lightning.nn.axes import Axis, Fixed, Taps, Units, axis, units
from asr_lightning.nn.batch_norm import MaskedBatchNorm, MaskedBatchNorm2d
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.sequences import Encoder, real_frames, silence_padding

CLIP = 20.0  # of the clipped ReLU [Amodei et al. 2016, "Deep Speech 2", 3.1]


def clipped_relu(x: Tensor) -> Tensor:
    """Return min(max(x, 0), 20)."""
    return x.clamp(0.0, CLIP)


class Convolutions2d(Encoder):
    """Convolutions over time and frequency, each with BatchNorm and clipped ReLU [Amodei et al. 2016, 3.5].

    The published filters are, as (frequencies, frames), 41 x 11 and 21 x 11 with strides 2 x 2 and 2 x 1 and 32
    channels each, the default and that of KoSpeech; or these two and a third of 21 x 11, stride 2 x 1, 96 channels.

    Args:
        input_dimension: Dimension of the features.
        channels: Of each layer.
        kernels: (frequencies, frames) of each layer, odd.
        strides: (frequencies, frames) of each layer.
        batch_norm: Whether every convolution has BatchNorm after it, and then no bias.

    Raises:
        ValueError: The lists differ in length, or a kernel is even.
    """

    def __init__(
        self,
        input_dimension: int,
        channels: Sequence[int] = (32, 32),
        kernels: Sequence[Sequence[int]] = ((41, 11), (21, 11)),
        strides: Sequence[Sequence[int]] = ((2, 2), (2, 1)),
        batch_norm: bool = True,
    ) -> None:
        _check(channels, kernels, strides, [size for kernel in kernels for size in kernel])
        frequencies = input_dimension
        for stride, _ in strides:
            frequencies = -(-frequencies // stride)
        super().__init__(input_dimension, channels[-1] * frequencies)
        self.channels, self.frequencies = channels[-1], frequencies
        self.time_strides = [stride for _, stride in strides]
        self.convolutions = nn.ModuleList(
            _convolution2d(inputs, outputs, kernel, stride, not batch_norm)
            for inputs, outputs, kernel, stride in zip([1, *channels[:-1]], channels, kernels, strides, strict=True)
        )
        self.norms = nn.ModuleList(MaskedBatchNorm2d(size) for size in channels if batch_norm)

    def output_axis(self) -> Axis:
        """Axis of the output: channels × frequencies."""
        return axis(Units(self.channels), Fixed(self.frequencies, "frequencies"))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return frames of channels × frequencies (B, T', D) of x (B, T, F)."""
        x = silence_padding(x, lengths).unsqueeze(1)  # (B, C, T, F)
        for layer, (convolution, stride) in enumerate(zip(self.convolutions, self.time_strides, strict=True)):
            x = convolution(x)
            lengths = (lengths + stride - 1) // stride
            x = clipped_relu(self.norms[layer](x, lengths) if self.norms else x)
            x = silence_padding(x.transpose(1, 2), lengths).transpose(1, 2)
        return x.transpose(1, 2).flatten(2), lengths  # (B, C, T', F') -> (B, T', C · F')


def _convolution2d(inputs: int, channels: int, kernel: Sequence[int], stride: Sequence[int], bias: bool) -> nn.Conv2d:
    (bands, frames), (band_stride, frame_stride) = kernel, stride
    padding = (frames // 2, bands // 2)
    return nn.Conv2d(inputs, channels, (frames, bands), (frame_stride, band_stride), padding, bias=bias)


class Convolutions1d(Encoder):
    """Convolutions over time, each with BatchNorm and clipped ReLU [Amodei et al. 2016, 3.5].

    Args:
        input_dimension: Dimension of the features.
        channels: Of each layer; the paper has 1,280 in one, 640 in each of two, 512 in each of three.
        kernels: Frames of each layer, odd: 11; 5 and 5; 5, 5 and 5.
        strides: Frames of each layer: 2; 1 and 2; 1, 1 and 2.
        batch_norm: Whether every convolution has BatchNorm after it, and then no bias.

    Raises:
        ValueError: The lists differ in length, or a kernel is even.
    """

    def __init__(
        self,
        input_dimension: int,
        channels: Sequence[int] = (1280,),
        kernels: Sequence[int] = (11,),
        strides: Sequence[int] = (2,),
        batch_norm: bool = True,
    ) -> None:
        _check(channels, kernels, strides, kernels)
        super().__init__(input_dimension, channels[-1])
        self.strides = list(strides)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=not batch_norm)
            for inputs, outputs, kernel, stride in zip(
                [input_dimension, *channels[:-1]], channels, kernels, strides, strict=True
            )
        )
        self.norms = nn.ModuleList(MaskedBatchNorm(size) for size in channels if batch_norm)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the first layer, which reads features."""
        first = self.convolutions[0]
        assert isinstance(first, nn.Conv1d)
        features = axis(Fixed(self.input_dimension, "features"))
        return {"convolutions.0.weight": (units(first.out_channels), features, axis(Taps(first.kernel_size[0])))}

    def output_axis(self) -> Axis:
        """Axis of the output: hidden units."""
        return units(self.dimension)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return frames of channels (B, T', D) of x (B, T, F)."""
        for layer, (convolution, stride) in enumerate(zip(self.convolutions, self.strides, strict=True)):
            x = convolution(silence_padding(x, lengths).transpose(1, 2)).transpose(1, 2)
            lengths = (lengths + stride - 1) // stride
            x = clipped_relu(self.norms[layer](x, lengths) if self.norms else x)
        return silence_padding(x, lengths), lengths


class VGG(Encoder):
    """Pairs of 3 x 3 convolutions with BatchNorm and clipped ReLU, and pooling that halves time and frequency.

    Source: Simonyan and Zisserman 2015, as used in speech recognition [Hori et al. 2017, 4; Kim, Bae, Won 2021].

    Args:
        input_dimension: Dimension of the features.
        channels: Of each pair.
        batch_norm: Whether every convolution has BatchNorm after it, and then no bias.
    """

    def __init__(self, input_dimension: int, channels: Sequence[int] = (64, 128), batch_norm: bool = True) -> None:
        frequencies = input_dimension
        for _ in channels:
            frequencies = (frequencies + 1) // 2
        super().__init__(input_dimension, channels[-1] * frequencies)
        self.channels, self.frequencies = channels[-1], frequencies
        sizes = [size for channel in channels for size in (channel, channel)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm)
            for inputs, outputs in zip([1, *sizes[:-1]], sizes, strict=True)
        )
        self.norms = nn.ModuleList(MaskedBatchNorm2d(size) for size in sizes if batch_norm)

    def output_axis(self) -> Axis:
        """Axis of the output: channels × frequencies."""
        return axis(Units(self.channels), Fixed(self.frequencies, "frequencies"))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return frames of channels × frequencies (B, T', D) of x (B, T, F)."""
        x = silence_padding(x, lengths).unsqueeze(1)  # (B, C, T, F)
        for layer, convolution in enumerate(self.convolutions):
            x = convolution(x)
            x = clipped_relu(self.norms[layer](x, lengths) if self.norms else x)
            x = silence_padding(x.transpose(1, 2), lengths).transpose(1, 2)
            if layer % 2:  # values are not negative, so zeros after the end do not change the maximum
                x = functional.max_pool2d(x, 2, ceil_mode=True)
                lengths = (lengths + 1) // 2
        return x.transpose(1, 2).flatten(2), lengths


def _check(channels: Sequence[int], kernels: Sequence[object], strides: Sequence[object], sizes: Sequence[int]) -> None:
    if not len(channels) == len(kernels) == len(strides) or not channels or any(size % 2 == 0 for size in sizes):
        raise ValueError(
            "convolutions need channels, odd kernels and strides for each layer, got "
            f"channels={list(channels)}, kernels={list(kernels)} and strides={list(strides)}"
        )


class ConvolutionalSubsampling(nn.Module):
    """3 × 3 convolutions of stride 2 over time and frequency, each halving both, then a projection.

    Each convolution makes T / 2 frames, rounded up, of T. Its output t is of the frames 2t - 1, 2t and 2t + 1, so that
    every group of `factor` input frames gives an output frame that needs no later group, as streaming requires.

    Args:
        input_dimension: F, dimension of the features.
        dimension: D of the output.
        channels: C of every convolution.
        factor: Input frames per output frame: 2, 4 or 8.
        dropout: Of the output.

    Raises:
        ValueError: The factor is none of these.
    """

    def __init__(
        self, input_dimension: int, dimension: int, channels: int, factor: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if factor not in (2, 4, 8):
            raise ValueError(f"subsampling factor must be 2, 4 or 8, got {factor}")
        self.channels = channels
        self.factor = factor
        self.input_dimension = self.frequencies = input_dimension
        inputs = 1
        convolutions = []
        for _ in range(factor.bit_length() - 1):
            convolutions.append(nn.Conv2d(inputs, channels, kernel_size=3, stride=2, padding=1))
            self.frequencies = (self.frequencies + 1) // 2
            inputs = channels
        self.convolutions = nn.ModuleList(convolutions)
        self.projection = nn.Linear(channels * self.frequencies, dimension)
        self.dropout = Dropout(dropout)

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the projection, which reads channels × frequencies."""
        flattened = axis(Units(self.channels), Fixed(self.frequencies, "frequencies"))
        return {"projection.weight": (units(self.projection.out_features), flattened)}

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Subsample x (B, T, F) to (B, T / factor, D)."""
        x = silence_padding(x, lengths)
        for number in range(len(self.convolutions)):
            x, lengths = self._halve(number, x, lengths)
        return self._project(x), lengths

    def initial_state(self, batch_size: int, device: torch.device) -> tuple[Tensor, ...]:
        """Return the frames that wait (B, 0, F), and the frame before them of each convolution's input (B, 1, …)."""
        zeros = self.projection.weight.new_zeros(batch_size, 1, self.input_dimension, device=device)
        left, frequencies = [zeros], self.input_dimension
        for _ in self.convolutions[1:]:
            frequencies = (frequencies + 1) // 2
            left.append(zeros.new_zeros(batch_size, 1, frequencies, self.channels))
        return (zeros[:, :0], *left)

    def stream(
        self, x: Tensor, lengths: Tensor, state: tuple[Tensor, ...], last: bool = False
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Subsample the complete groups of frames; see `StreamingEncoder.stream`."""
        waiting, *left = state
        x, lengths = torch.cat([waiting, x], dim=1), lengths + waiting.shape[1]
        ready = x.shape[1] if last else x.shape[1] // self.factor * self.factor
        x, waiting = x[:, :ready], x[:, ready:]
        lengths = lengths.clamp(max=ready)
        if not ready:
            return x.new_zeros(len(x), 0, self.projection.out_features), lengths, (waiting, *left)
        x, next_left = silence_padding(x, lengths), []
        for number, left_frame in enumerate(left):
            next_left.append(x[:, -1:])
            x, lengths = self._halve(number, x, lengths, left_frame)
        return self._project(x), lengths, (waiting, *next_left)

    def _halve(self, number: int, x: Tensor, lengths: Tensor, left: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve x (B, T, F) or (B, T, F, C) to (B, T / 2, F / 2, C), with the frame to its left, zeros if None."""
        convolution = self.convolutions[number]
        assert isinstance(convolution, nn.Conv2d)
        # (B, C, T, F), with channels last in memory, also of all later tensors: half the time on a CPU
        if left is None:
            x = convolution((x.unsqueeze(3) if x.dim() == 3 else x).permute(0, 3, 1, 2))
        else:
            x = functional.pad(torch.cat([left, x], dim=1).flatten(2), (0, 0, 0, x.shape[1] % 2))
            x = x.unflatten(2, (-1, convolution.in_channels)).permute(0, 3, 1, 2)
            x = functional.conv2d(x, convolution.weight, convolution.bias, stride=2, padding=(0, 1))
        lengths = (lengths + 1) // 2
        with torch.no_grad():  # `relu` gives no gradient to a 0
            x.masked_fill_(~real_frames(lengths, x.shape[2])[:, None, :, None], 0.0)
        return x.relu_().permute(0, 2, 3, 1), lengths

    def _project(self, x: Tensor) -> Tensor:
        """Project x (B, T, F, C) to (B, T, D)."""
        return self.dropout(self.projection(x.transpose(2, 3).flatten(2)))
