"""What every encoder is."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from asr_lightning.nn.axes import Axis


class Encoder(nn.Module, ABC):
    """Base class: `(features (B, T, F), lengths (B,)) -> (encoded (B, T', D), lengths (B,))`.

    Args:
        input_dimension: F, dimension of the features it reads.
        dimension: D of its output.
    """

    def __init__(self, input_dimension: int, dimension: int) -> None:
        super().__init__()
        self.input_dimension = input_dimension
        self.dimension = dimension

    @abstractmethod
    def output_axis(self) -> Axis:
        """Say what the output's dimensions mean."""

    @abstractmethod
    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features x (B, T, F) of the given lengths (B,)."""
