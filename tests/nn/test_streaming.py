"""Encoders that stream: read in pieces against read whole, and the whole against attention that is written out."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from asr_lightning.errors import InputError
from asr_lightning.nn.axes import Fixed, module_axes
from asr_lightning.nn.chunked_conformer import (
    ChunkedConformer,
    ChunkedConvolution,
    LayerNormConformer,
    ReflectedSubsampling,
)
from asr_lightning.nn.conformer import Conformer, DepthwiseConvolution, StreamingConformer
from asr_lightning.nn.recurrent import StreamingLSTMEncoder
from asr_lightning.nn.sequences import silence_padding
from asr_lightning.nn.streaming import StreamingEncoder

CPU = torch.device("cpu")
SIZES = {"input_dimension": 7, "dimension": 8, "layers": 3, "heads": 2, "feed_forward": 10, "channels": 3}


def conformer(chunk: int = 3, left_context: int = 4, kernel: int = 4, **options: int) -> StreamingConformer:
    torch.manual_seed(1)
    encoder = StreamingConformer(
        **{**SIZES, **options}, kernel=kernel, chunk=chunk, left_context=left_context, largest_chunk=5
    )
    for name, buffer in encoder.named_buffers():  # as after training
        buffer.uniform_(0.5, 1.5) if name.endswith("running_variance") else buffer.normal_()
    return encoder.double().eval()


def lstm(subsampling: int = 4) -> StreamingLSTMEncoder:
    torch.manual_seed(1)
    return StreamingLSTMEncoder(7, 6, 2, 3, subsampling).double().eval()


def layer_norms(chunk: int = 3, left_context: int = 4, kernel: int = 5, **options: Any) -> ChunkedConformer:
    torch.manual_seed(1)
    sizes = {**SIZES, "channels": [3, 2], **options}
    encoder = ChunkedConformer(**sizes, kernel=kernel, chunk=chunk, left_context=left_context, largest_chunk=9)
    return encoder.double().eval()


ENCODERS: dict[str, Callable[[], StreamingEncoder]] = {
    "chunks": conformer,
    "chunks of one frame": lambda: conformer(1, 2),
    "no left context": lambda: conformer(2, 0),
    "more left context than chunk": lambda: conformer(2, 9),
    "kernel of one frame": lambda: conformer(kernel=1),
    "chunks beyond the utterance": lambda: conformer(1000, 1),
    "half the frames": lambda: conformer(subsampling=2),
    "an eighth of the frames": lambda: conformer(subsampling=8),
    "wide heads": lambda: conformer(head_dimension=5),
    "LayerNorm in chunks": layer_norms,
    "LayerNorm in chunks of one frame": lambda: layer_norms(1, 2),
    "LayerNorm, no left context": lambda: layer_norms(2, 0),
    "LayerNorm, a kernel of several chunks": lambda: layer_norms(2, 9, kernel=11),
    "LayerNorm, kernel of one frame": lambda: layer_norms(kernel=1),
    "LayerNorm, chunks beyond the utterance": lambda: layer_norms(1000, 1),
    "LayerNorm, half the frames": lambda: layer_norms(channels=[3]),
    "LayerNorm, an eighth of the frames": lambda: layer_norms(channels=[3, 2, 3], input_dimension=7),
    "LSTM": lstm,
    "LSTM of half the frames": lambda: lstm(2),
}
PIECES = [[67], [1] * 67, [7] * 9 + [4], [0, 33, 0, 34], [10, 57], [66, 1, 0], [13, 12, 42]]


def in_pieces(encoder: StreamingEncoder, x: Tensor, ends: Tensor, pieces: list[int]) -> tuple[Tensor, Tensor]:
    """Encode x in pieces; rows end in the last one."""
    state, outputs, lengths = encoder.initial_state(len(x), CPU), [], torch.zeros_like(ends)
    start = 0
    for number, piece in enumerate(x.split(pieces, dim=1)):
        last = number == len(pieces) - 1
        piece_ends = ends - start if last else torch.full_like(ends, piece.shape[1])
        y, encoded, state = encoder.stream(piece, piece_ends, state, last)
        assert y.shape[1] == int(encoded.max())
        assert last or encoded.tolist() == [y.shape[1]] * len(x)
        outputs.append(y)
        lengths, start = lengths + encoded, start + piece.shape[1]
    return torch.cat(outputs, dim=1), lengths


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("pieces", PIECES, ids=str)
@torch.no_grad()
def test_pieces_of_any_size_are_encoded_as_the_whole(name: str, pieces: list[int]) -> None:
    encoder, x = ENCODERS[name](), torch.randn(3, 67, 7, dtype=torch.float64)
    first = sum(pieces[:-1])
    ends = torch.tensor([67, first + (67 - first + 1) // 2, first])  # the last row has no frame in the last piece
    expected, wanted = encoder(x, ends)
    y, lengths = in_pieces(encoder, x, ends, pieces)
    assert lengths.tolist() == wanted.tolist()
    difference = silence_padding(y[:, : expected.shape[1]] - expected[:, : y.shape[1]], wanted)
    assert y.shape[1] == int(wanted.max()) and float(difference.abs().max()) < 1e-9


@torch.no_grad()
def test_the_whole_pass_is_attention_that_is_written_out() -> None:
    """One block, whose attention is computed frame by frame from the frames that its chunk may see."""
    encoder = conformer(layers=1, kernel=1)
    x, ends = torch.randn(2, 40, 7, dtype=torch.float64), torch.tensor([40, 23])
    encoded, lengths = encoder(x, ends)
    block, attention = encoder.layers[0], encoder.layers[0].attention
    frames, _ = encoder.subsampling(x, ends)
    half = frames + 0.5 * block.first_feed_forward(frames)
    normed = block.attention_norm(half)
    query, key, value = (
        part(normed).unflatten(2, (2, 4)) for part in (attention.query, attention.key, attention.value)
    )
    for row, length in enumerate(lengths.tolist()):
        for i in range(length):
            start = i // 3 * 3
            visible = list(range(max(0, start - 4), min(start + 3, length)))
            mixed = torch.zeros(2, 4, dtype=torch.float64)
            for head in range(2):
                scores = []
                for j in visible:
                    angles = [(i - j) * 10_000 ** (-2 * k / 8) for k in range(4)]
                    waves = torch.tensor([f(a) for a in angles for f in (math.sin, math.cos)], dtype=torch.float64)
                    position = attention.position(waves).unflatten(0, (2, 4))[head]
                    content = (query[row, i, head] + attention.content_bias[head]) @ key[row, j, head]
                    scores.append((content + (query[row, i, head] + attention.position_bias[head]) @ position) / 2)
                mixed[head] = torch.stack(scores).softmax(0) @ value[row, visible, head]
            y = half[row, i] + attention.output(mixed.flatten())
            y = y + block.convolution(y.view(1, 1, -1), torch.tensor([1])).flatten()
            y = block.norm(y + 0.5 * block.second_feed_forward(y))
            torch.testing.assert_close(y, encoded[row, i], atol=1e-6, rtol=0)  # relative sinusoids are float32


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_no_frame_beyond_the_look_ahead_is_needed_and_all_within_it_are(name: str) -> None:
    encoder, x = ENCODERS[name](), torch.randn(1, 64, 7, dtype=torch.float64)
    ahead, size = min(encoder.look_ahead, 64), torch.tensor([64])
    changed_beyond, changed_within = x.clone(), x.clone()
    changed_beyond[:, ahead:] = 9.0
    changed_within[:, ahead - 1] = 9.0
    [first, beyond, within] = (encoder(features, size)[0][0, 0] for features in (x, changed_beyond, changed_within))
    assert torch.equal(first, beyond) and not torch.equal(first, within)


@torch.no_grad()
def test_what_is_kept_between_pieces_does_not_grow() -> None:
    for encoder in (conformer(), layer_norms(), lstm()):
        state, sizes = encoder.initial_state(2, CPU), []
        for _ in range(8):
            x = torch.randn(2, 3 * encoder.look_ahead, 7, dtype=torch.float64)
            _, _, state = encoder.stream(x, torch.tensor([x.shape[1]] * 2), state)
            sizes.append(sum(part.numel() for part in state))
        assert len(set(sizes)) == 1


def test_training_draws_chunks_from_the_generator_of_the_step() -> None:
    encoder, lengths = conformer().train(), torch.tensor([40])

    def chunk_size(seed: int) -> int:
        torch.manual_seed(seed)
        return int(encoder.visible(lengths, 40)[0, 0].sum())

    sizes = [chunk_size(seed) for seed in range(400)]
    assert sizes == [chunk_size(seed) for seed in range(400)]
    assert set(sizes) == {1, 2, 3, 4, 5, 40} and 160 < sizes.count(40) < 240
    assert all(20 < sizes.count(size) < 65 for size in range(1, 6))
    encoder.largest_chunk = 0
    assert chunk_size(1) == 3
    encoder.eval().largest_chunk = 5
    encoder.use_chunk(7)
    assert chunk_size(1) == 7 and encoder.look_ahead == 28


def test_training_draws_chunks_and_contexts_as_the_recipe_of_speechbrain() -> None:
    encoder, draws = layer_norms().train(), []
    encoder.largest_chunk = 32
    torch.manual_seed(1)
    for _ in range(2_000):
        draws.append(encoder.chunk_now(5_000))
    chunked = [(chunk, left) for chunk, left in draws if chunk < 5_000]
    limited = [(chunk, left // chunk) for chunk, left in chunked if left < 5_000]
    assert 1_120 < len(chunked) < 1_280 and 0.71 < len(limited) / len(chunked) < 0.79
    assert all(left % chunk == 0 for chunk, left in chunked if left < 5_000)
    assert {chunk for chunk, _ in chunked} == set(range(8, 33)) and {left for _, left in limited} == set(range(2, 33))
    encoder.largest_chunk = 0
    assert encoder.chunk_now(5_000) == (3, 4) == encoder.eval().chunk_now(7)
    assert LayerNormConformer(7, 8, 1, 2, 8).chunks(70) is None


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
@torch.no_grad()
def test_reflected_ends_are_those_of_each_utterance(frames: int) -> None:
    """Against torch's padding by reflection, which needs two frames; of one frame all are the same."""
    subsampling = ReflectedSubsampling(7, 4, [3, 2], 0.0).double().eval()
    x = torch.randn(2, 9, 7, dtype=torch.float64)
    y, lengths = subsampling(x, torch.tensor([9, frames]))
    expected = x[1:, None, :frames]  # (1, C, T, F)
    for convolution, norm in zip(subsampling.convolutions, subsampling.norms, strict=True):
        alone = expected.shape[2] == 1
        padded = torch.nn.functional.pad(expected, (1, 1, 0 if alone else 1, 0 if alone else 1), mode="reflect")
        padded = padded.expand(-1, -1, 3, -1) if alone else padded
        expected = torch.nn.functional.leaky_relu(norm(convolution(padded).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    expected = subsampling.projection(expected.permute(0, 2, 3, 1).flatten(2))
    assert lengths.tolist() == [3, -(-frames // 4)]
    torch.testing.assert_close(y[1, : lengths[1]], expected[0])


@pytest.mark.parametrize("chunk", [1, 2, 3, 8, 100, None])
@torch.no_grad()
def test_convolution_in_chunks_sees_no_frame_behind_them(chunk: int | None) -> None:
    convolution = ChunkedConvolution(4, 5, 0.0).double().eval()
    x, lengths = torch.randn(2, 11, 4, dtype=torch.float64), torch.tensor([11, 6])
    y = convolution(x, lengths, chunk)
    gated = torch.nn.functional.glu(convolution.gated(convolution.norm(x)), dim=2)
    for row, length in enumerate(lengths.tolist()):
        for t in range(length):
            end = length if chunk is None else min((t // chunk + 1) * chunk, length)
            seen = [(tap, t + tap - 2) for tap in range(5) if 0 <= t + tap - 2 < end]
            mixed = sum(gated[row, j] * convolution.filter.weight[:, 0, tap] for tap, j in seen)
            mixed = torch.nn.functional.silu(convolution.filter_norm(mixed + convolution.filter.bias))
            torch.testing.assert_close(y[row, t], convolution.output(mixed))


def test_every_frame_has_a_finite_gradient_with_padding_beyond_the_left_context() -> None:
    encoder = conformer(2, 0).train()
    encoder.largest_chunk = 0
    x = torch.randn(2, 80, 7, dtype=torch.float64, requires_grad=True)
    y, lengths = encoder(x, torch.tensor([80, 3]))
    silence_padding(y, lengths).square().sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all()) and not x.grad[1, 3:].any()


@torch.no_grad()
def test_the_causal_convolution_ends_with_the_newest_frame() -> None:
    convolution = DepthwiseConvolution(2, 3, causal=True).double()
    x, weight = torch.randn(1, 5, 2, dtype=torch.float64), convolution.filter.weight[:, 0]
    padded = torch.cat([torch.zeros(1, 2, 2, dtype=torch.float64), x], dim=1)
    expected = torch.stack([(padded[0, t : t + 3].T * weight).sum(dim=1) for t in range(5)]) + convolution.filter.bias
    torch.testing.assert_close(convolution(x, torch.tensor([5]))[0], expected)


def test_axes_are_those_of_the_offline_encoder_but_for_the_taps() -> None:
    offline = module_axes(Conformer(**SIZES, kernel=5))
    streaming = module_axes(StreamingConformer(**SIZES, kernel=5))
    different = {name for name in offline if offline[name] != streaming[name]}
    assert offline.keys() == streaming.keys()
    assert different == {f"layers.{layer}.convolution.depthwise.filter.weight" for layer in range(3)}
    assert streaming["layers.0.convolution.depthwise.filter.weight"][2] == ((Fixed(5, "taps"),),)


def test_impossible_sizes_and_training_are_named() -> None:
    with pytest.raises(InputError, match="chunk=0"):
        conformer(0)
    with pytest.raises(InputError, match="left_context=-1"):
        conformer(left_context=-1)
    with pytest.raises(InputError, match="ChunkedConformer needs a chunk from 1.*chunk=0"):
        layer_norms(0)
    with pytest.raises(InputError, match="heads divide, and an odd kernel.*kernel=4"):
        layer_norms(kernel=4)
    with pytest.raises(InputError, match="two or more frequencies left"):
        layer_norms(channels=[2, 2, 2, 2])
    encoder = conformer().train()
    with pytest.raises(InputError, match=r"in training: call eval\(\)"):
        encoder.stream(torch.zeros(1, 4, 7), torch.tensor([4]), encoder.initial_state(1, CPU))
