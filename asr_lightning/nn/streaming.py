"""Encoders that read speech piece by piece."""

from abc import abstractmethod

import torch
from torch import Tensor

from asr_lightning.nn.sequences import Encoder

State = tuple[Tensor, ...]  # each with the batch first


class StreamingEncoder(Encoder):
    """Base class: an encoder whose output for a piece needs no frame beyond a fixed look-ahead.

    Read piece by piece, in pieces of any sizes, an utterance is encoded as `forward` encodes it whole.

    Attributes:
        look_ahead: Frames of features after the newest encoded one that are needed to encode it.
    """

    look_ahead: int

    @abstractmethod
    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """Return the state before any frame."""

    @abstractmethod
    def stream(self, x: Tensor, lengths: Tensor, state: State, last: bool = False) -> tuple[Tensor, Tensor, State]:
        """Encode the next piece of every utterance.

        Args:
            x: Features (B, T, F); T may be 0.
            lengths: Real frames (B,) of the piece: all T of them, but in the last piece.
            state: As returned by `initial_state`, or for the previous piece.
            last: Whether no frames follow; then everything that waits for its look-ahead is encoded.

        Returns:
            What can be encoded by now (B, T', D), maybe nothing, its lengths (B,), and the state after it.
        """
