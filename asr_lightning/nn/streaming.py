"""Encoders that read speech piece by piece."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from asr_lightning.nn.attention import RelativeSelfAttention
from asr_lightning.nn.sequences import Encoder, real_frames

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


class ChunkedLayer(nn.Module):
    """Base class: a layer of a `ChunkedEncoder`, a Conformer block with its parts in the order of Gulati et al. 2020.

    Attributes:
        convolution: As `ChunkedConvolution`: with a `stream`.
    """

    first_feed_forward: nn.Module
    attention_norm: nn.Module
    attention: RelativeSelfAttention
    convolution: Any
    second_feed_forward: nn.Module
    norm: nn.Module

    def stream(
        self, x: Tensor, lengths: Tensor, left: tuple[Tensor, Tensor], visible: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Transform a piece with the left context of attention and convolution.

        Args:
            x: The piece (B, T, D).
            lengths: (B,) real frames of it.
            left: What attention (B, L, 2 inner) and convolution (B, C, D) keep to its left.
            visible: True where its frames attend, (B, 1 or T, L + T).

        Returns:
            (B, T, D), and what is kept to the left of the next piece.
        """
        key_values, left_frames = left
        x = torch.add(x, self.first_feed_forward(x), alpha=0.5)
        attended, key_values = self.attention.stream(self.attention_norm(x), key_values, visible)
        x = x + attended
        convolved, left_frames = self.convolution.stream(x, lengths, left_frames)
        x = x + convolved
        return self.norm(torch.add(x, self.second_feed_forward(x), alpha=0.5)), (key_values, left_frames)


class ChunkedEncoder(StreamingEncoder):
    """Base class: layers that attend within chunks of frames and to some frames to their left.

    Attributes:
        subsampling: As `ConvolutionalSubsampling`.
        layers: Each a `ChunkedLayer`.
        chunk: Encoded frames of a chunk outside of training.
        left_context: Encoded frames before a chunk that it attends to.
        convolution_context: Frames that the convolution of a layer keeps to the left of a piece.
        largest_chunk: Largest of the limited chunks drawn in training; 0: training has chunks of `chunk` frames.
    """

    subsampling: Any  # a module with `factor`, `initial_state` and `stream`
    layers: nn.ModuleList
    chunk: int
    left_context: int
    convolution_context: int
    largest_chunk: int

    def use_chunk(self, chunk: int) -> None:
        """Use chunks of so many encoded frames from now on."""
        self.chunk = chunk
        self.look_ahead = chunk * self.subsampling.factor

    @abstractmethod
    def draw_chunk(self, size: int) -> tuple[int, int]:
        """Return a random size of chunks for rows of `size` frames, and a left context."""

    def chunk_now(self, size: int) -> tuple[int, int]:
        """Return the size of chunks for rows of `size` frames, and the left context; random ones in training."""
        return self.draw_chunk(size) if self.training and self.largest_chunk else (self.chunk, self.left_context)

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """Return the state before any frame.

        It is the frames that wait for the rest of a chunk (B, 0, D), the number of encoded frames (B,), then for every
        layer keys and values to the left (B, left_context, 2 inner) and frames to the left of the convolution
        (B, convolution_context, D), and the state of the subsampling.
        """
        subsampling = self.subsampling.initial_state(batch_size, device)
        zeros = subsampling[0].new_zeros(batch_size, self.convolution_context, self.dimension)
        state = [zeros[:, :0], torch.zeros(batch_size, dtype=torch.long, device=device)]
        for layer in self.layers:
            assert isinstance(layer, ChunkedLayer)
            inner = layer.attention.key.out_features
            state += [zeros.new_zeros(batch_size, self.left_context, 2 * inner), zeros]
        return (*state, *subsampling)

    def stream(self, x: Tensor, lengths: Tensor, state: State, last: bool = False) -> tuple[Tensor, Tensor, State]:
        """Encode all complete chunks; in the last piece all frames."""
        waiting, encoded, *past = state
        of_layers, subsampling = past[: 2 * len(self.layers)], tuple(past[2 * len(self.layers) :])
        x, lengths, subsampling = self.subsampling.stream(x, lengths, subsampling, last)
        x, lengths = torch.cat([waiting, x], dim=1), lengths + waiting.shape[1]
        ready = x.shape[1] if last else x.shape[1] // self.chunk * self.chunk
        lengths = lengths.clamp(max=ready)
        outputs = [x[:, :0]]
        for start in range(0, ready, self.chunk):
            y = x[:, start : min(start + self.chunk, ready)]
            chunk_lengths = (lengths - start).clamp(min=0)
            left_visible = torch.arange(-self.left_context, 0, device=x.device) + encoded.unsqueeze(1) >= 0  # (B, L)
            visible = torch.cat([left_visible, real_frames(chunk_lengths, y.shape[1])], dim=1).unsqueeze(1)
            visible = visible | ~visible.any(dim=2, keepdim=True)
            for number, layer in enumerate(self.layers):
                assert isinstance(layer, ChunkedLayer)
                left = of_layers[2 * number], of_layers[2 * number + 1]
                y, of_layers[2 * number : 2 * number + 2] = layer.stream(y, chunk_lengths, left, visible)
            outputs.append(y)
            encoded = encoded + chunk_lengths.clamp(max=y.shape[1])
        return torch.cat(outputs, dim=1), lengths, (x[:, ready:], encoded, *of_layers, *subsampling)


def visible_in_chunks(lengths: Tensor, size: int, chunk: int, left_context: int) -> Tensor:
    """Return where frames attend, (B, size, size), of rows of the given lengths (B,): to their chunk and to its left.

    Args:
        lengths: (B,) real frames.
        size: Frames of the padded rows.
        chunk: Frames of a chunk.
        left_context: Frames before a chunk that it attends to.
    """
    frames = torch.arange(size, device=lengths.device)
    starts = (frames // chunk * chunk).unsqueeze(1)  # (T, 1)
    within = (frames >= starts - left_context) & (frames < starts + chunk)  # (T, T)
    visible = within & real_frames(lengths, size).unsqueeze(1)
    return visible | ~visible.any(dim=2, keepdim=True)  # padding that sees no real frame attends to all
