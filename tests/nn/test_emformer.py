"""The Emformer against torchaudio's, and read in pieces against read whole."""

import pytest
import torch
from torch import Tensor
from torchaudio.models import emformer_rnnt_model

from asr_lightning.errors import InputError
from asr_lightning.nn.axes import module_axes
from asr_lightning.nn.emformer import Emformer

NAMES = {  # of torchaudio's layers
    "attention.emb_to_query": "query", "attention.emb_to_key_value": "key_value", "attention.out_proj": "output",
    "layer_norm_input": "attention_norm", "pos_ff.0": "feed_forward_norm", "pos_ff.1": "expansion",
    "pos_ff.4": "contraction", "layer_norm_output": "norm",
}  # fmt: skip


def small(**arguments: int) -> Emformer:
    sizes = {"projection": 6, "subsampling": 2, "layers": 3, "heads": 3, "feed_forward": 10, "segment": 3}
    torch.manual_seed(1)
    return Emformer(5, **{**sizes, "left_context": 4, "right_context": 2, **arguments}).eval()  # type: ignore[arg-type]


def torchaudios(ours: Emformer) -> torch.nn.Module:
    """torchaudio's transcriber with the weights of ours, without what it has behind its Emformer."""
    reference = emformer_rnnt_model(
        input_dim=5, encoding_dim=ours.dimension, num_symbols=4, segment_length=ours.segment * ours.subsampling,
        right_context_length=ours.right_context * ours.subsampling,
        time_reduction_input_dim=ours.projection.out_features, time_reduction_stride=ours.subsampling,
        transformer_num_heads=3, transformer_ffn_dim=10, transformer_num_layers=3, transformer_dropout=0.0,
        transformer_activation="gelu", transformer_left_context_length=ours.left_context,
        transformer_max_memory_size=0, transformer_weight_init_scale_strategy="depthwise",
        transformer_tanh_on_mem=True, symbol_embedding_dim=4, num_lstm_layers=1, lstm_layer_norm=True,
        lstm_layer_norm_epsilon=1e-3, lstm_dropout=0.0,
    ).transcriber.eval()  # fmt: skip
    weights = {"input_linear.weight": ours.projection.weight}
    for number, layer in enumerate(ours.layers):
        for name, our_name in NAMES.items():
            for kind in ("weight", "bias"):
                value = layer.get_parameter(f"{our_name}.{kind}")
                weights[f"transformer.emformer_layers.{number}.{name}.{kind}"] = value
    weights |= {"output_linear.weight": torch.eye(ours.dimension), "output_linear.bias": torch.zeros(ours.dimension)}
    reference.load_state_dict(weights, strict=False)
    reference.layer_norm = torch.nn.Identity()
    return reference


def lengths_of(x: Tensor) -> Tensor:
    return torch.full((len(x),), x.shape[1])


@pytest.mark.parametrize("frames", [2, 5, 6, 12, 13, 47, 60])
@torch.no_grad()
def test_a_whole_utterance_is_encoded_as_torchaudio_does(frames: int) -> None:
    ours = small()
    x = torch.randn(1, frames, 5)
    expected, _ = torchaudios(ours)(torch.nn.functional.pad(x, (0, 0, 0, 4)), torch.tensor([frames + 4]))
    y, lengths = ours(x, lengths_of(x))
    assert lengths.tolist() == [y.shape[1]] == [frames // 2]
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_segments_are_encoded_as_torchaudio_streams_them() -> None:
    ours = small()
    reference, x, state, expected = torchaudios(ours), torch.randn(2, 10 * 6 + 4, 5), None, []
    for start in range(0, 60, 6):
        y, _, state = reference.infer(x[:, start : start + 10], torch.tensor([10, 10]), state)
        expected.append(y)
    y, lengths, _ = ours.stream(x, lengths_of(x), ours.initial_state(2, torch.device("cpu")))
    assert lengths.tolist() == [30, 30]
    torch.testing.assert_close(y, torch.cat(expected, dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("pieces", [[64], [1] * 64, [7] * 9 + [1], [0, 33, 0, 31], [10, 54], [63, 1, 0]])
@pytest.mark.parametrize("contexts", [(4, 2), (0, 0), (7, 3), (1, 0)])
@torch.no_grad()
def test_pieces_of_any_size_are_encoded_as_the_whole(pieces: list[int], contexts: tuple[int, int]) -> None:
    encoder = small(left_context=contexts[0], right_context=contexts[1])
    x, state, outputs = torch.randn(2, 64, 5), encoder.initial_state(2, torch.device("cpu")), []
    expected, _ = encoder(x, lengths_of(x))
    for number, piece in enumerate(x.split(pieces, dim=1)):
        y, lengths, state = encoder.stream(piece, lengths_of(piece), state, last=number == len(pieces) - 1)
        assert lengths.tolist() == [y.shape[1]] * 2
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_last_piece_ends_where_each_utterance_does() -> None:
    encoder = small()
    x, ends = torch.randn(3, 40, 5), torch.tensor([40, 33, 31])
    expected, wanted = encoder(x, ends)
    y, _, state = encoder.stream(x[:, :30], torch.tensor([30] * 3), encoder.initial_state(3, torch.device("cpu")))
    rest, _, _ = encoder.stream(x[:, 30:], ends - 30, state, last=True)
    both = torch.cat([y, rest], dim=1)
    for row, length in enumerate(wanted.tolist()):
        torch.testing.assert_close(both[row, :length], expected[row, :length], atol=1e-5, rtol=0)


@torch.no_grad()
def test_no_frame_beyond_the_look_ahead_is_needed() -> None:
    encoder = small()
    x = torch.randn(1, 60, 5)
    changed = x.clone()
    changed[:, encoder.look_ahead :] = 9.0
    first, other = (encoder(features, lengths_of(features))[0] for features in (x, changed))
    torch.testing.assert_close(first[:, : encoder.segment], other[:, : encoder.segment])
    assert not torch.allclose(first[:, encoder.segment], other[:, encoder.segment])


def test_impossible_sizes_are_named() -> None:
    with pytest.raises(InputError, match="heads that divide projection \\* subsampling = 12, got 5"):
        small(heads=5)
    with pytest.raises(InputError, match="segment=0"):
        small(segment=0)


def test_axes_are_those_of_groups_and_heads() -> None:
    axes = module_axes(small())
    assert [[factor.size for factor in axis[0]] for axis in axes["layers.1.key_value.weight"]] == [[2, 3, 4], [2, 6]]
