import math

import pytest
import torch
from torch import Tensor, nn

from asr_lightning.models.speech_transformer import TransformerAttention, TransformerDecoder, TransformerEncoder
from asr_lightning.nn.attention import sinusoid_axis, sinusoids
from asr_lightning.nn.axes import Axis, Tokens, Units, axis, axis_size, module_axes, units

VOCABULARY = ("<eos>", *"ABCDEFGHIJ")
MELS = 10


def shaken(module: nn.Module, seed: int = 0, std: float = 0.3) -> nn.Module:
    """Weights and biases that matter, also those that begin as zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * std
    return module.eval()


def encoder(dimension: int = 12, head_dimension: int | None = None, dropout: float = 0.0) -> TransformerEncoder:
    module = TransformerEncoder(MELS, dimension, 2, 3, 20, 7, 4, head_dimension, dropout)
    assert shaken(module) is module
    return module


def decoder(memory: Axis = sinusoid_axis(12), head_dimension: int | None = None) -> TransformerDecoder:  # noqa: B008
    module = TransformerDecoder(VOCABULARY, memory, 8, 2, 2, 20, head_dimension, dropout=0.0)
    assert shaken(module) is module
    return module


@pytest.fixture
def utterances() -> tuple[Tensor, Tensor]:
    """Random frames in place of an encoder's, of three utterances, and their numbers."""
    return torch.randn(3, 7, 12), torch.tensor([7, 2, 5])


def positions(size: int, dimension: int) -> Tensor:
    table = torch.zeros(size, dimension)
    for position in range(size):
        for column in range(dimension):
            angle = position / 10_000 ** (2 * (column // 2) / dimension)
            table[position, column] = math.cos(angle) if column % 2 else math.sin(angle)
    return table


# Against torch's own layers.


def copy_attention(ours: TransformerAttention, reference: nn.MultiheadAttention) -> None:
    parts = (ours.query, ours.key, ours.value)
    if reference.in_proj_weight is not None:
        reference.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    else:  # keys and values of another dimension than queries
        reference.q_proj_weight.copy_(ours.query.weight)
        reference.k_proj_weight.copy_(ours.key.weight)
        reference.v_proj_weight.copy_(ours.value.weight)
    reference.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    reference.out_proj.load_state_dict(ours.output.state_dict())


def copy_feed_forward(ours: nn.Sequential, norm: nn.Module, layer: nn.Module) -> None:
    norm.load_state_dict(ours[0].state_dict())
    layer.linear1.load_state_dict(ours[1].state_dict())
    layer.linear2.load_state_dict(ours[4].state_dict())


@torch.no_grad()
def test_the_encoder_is_torchs_after_subsampling_and_positions() -> None:
    ours = encoder()
    layer = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, batch_first=True, norm_first=True)
    torch_encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(12), enable_nested_tensor=False).eval()
    for our_layer, torch_layer in zip(ours.layers, torch_encoder.layers, strict=True):
        copy_attention(our_layer.attention, torch_layer.self_attn)
        torch_layer.norm1.load_state_dict(our_layer.attention_norm.state_dict())
        copy_feed_forward(our_layer.feed_forward, torch_layer.norm2, torch_layer)
    torch_encoder.norm.load_state_dict(ours.norm.state_dict())

    x, lengths = torch.randn(3, 26, MELS), torch.tensor([26, 1, 14])
    encoded, encoded_lengths = ours(x, lengths)
    assert encoded_lengths.tolist() == [7, 1, 4] and encoded.shape == (3, 7, 12)
    subsampled, _ = ours.subsampling(x, lengths)
    padding = torch.arange(7) >= encoded_lengths.unsqueeze(1)
    expected = torch_encoder(subsampled * math.sqrt(12) + positions(7, 12), src_key_padding_mask=padding)
    torch.testing.assert_close(encoded[~padding], expected[~padding], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_decoder_is_torchs_after_the_embedding(utterances: tuple[Tensor, Tensor]) -> None:
    ours = decoder()
    layer = nn.TransformerDecoderLayer(8, 2, 20, dropout=0.0, batch_first=True, norm_first=True)
    layer.multihead_attn = nn.MultiheadAttention(8, 2, kdim=12, vdim=12, batch_first=True)
    torch_decoder = nn.TransformerDecoder(layer, 2, nn.LayerNorm(8)).eval()
    for our_layer, torch_layer in zip(ours.layers, torch_decoder.layers, strict=True):
        copy_attention(our_layer.self_attention, torch_layer.self_attn)
        copy_attention(our_layer.cross_attention, torch_layer.multihead_attn)
        torch_layer.norm1.load_state_dict(our_layer.self_norm.state_dict())
        torch_layer.norm2.load_state_dict(our_layer.cross_norm.state_dict())
        copy_feed_forward(our_layer.feed_forward, torch_layer.norm3, torch_layer)
    torch_decoder.norm.load_state_dict(ours.norm.state_dict())

    encoded, lengths = utterances
    tokens = torch.randint(len(VOCABULARY), (3, 6))
    later = torch.ones(6, 6, dtype=torch.bool).triu(1)
    padding = torch.arange(7) >= lengths.unsqueeze(1)
    embedded = ours.embedding(tokens) * math.sqrt(8) + positions(6, 8)
    expected = ours.output(torch_decoder(embedded, encoded, tgt_mask=later, memory_key_padding_mask=padding))
    logits = ours(tokens, ours.remember(encoded, lengths))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_heads_of_a_dimension_of_their_own_are_the_formula() -> None:
    attention = TransformerAttention(4, units(6), heads=2, head_dimension=5, dropout=0.0)
    shaken(attention, std=0.7)
    x, memory = torch.randn(1, 3, 4), torch.randn(1, 4, 6)
    visible = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 1]]).bool()
    heads = []
    for head in (slice(0, 5), slice(5, 10)):
        query, key, value = (
            part(source[0])[:, head]
            for part, source in ((attention.query, x), (attention.key, memory), (attention.value, memory))
        )
        rows = [
            ((key[visible[index]] @ frame_query) / math.sqrt(5)).softmax(0) @ value[visible[index]]
            for index, frame_query in enumerate(query)
        ]
        heads.append(torch.stack(rows))
    expected = attention.output(torch.cat(heads, dim=1))
    torch.testing.assert_close(attention(x, *attention.remember(memory), visible)[0], expected, rtol=1e-5, atol=1e-5)


# Padding, later tokens and other utterances.


@torch.no_grad()
def test_an_utterance_is_the_same_alone_in_company_and_with_padding() -> None:
    listener, speaker = encoder(), decoder()
    x, lengths, tokens = torch.randn(3, 40, MELS) * 5, torch.tensor([24, 3, 33]), torch.randint(11, (3, 6))
    encoded, encoded_lengths = listener(x, lengths)
    logits = speaker(tokens, speaker.remember(encoded, encoded_lengths))
    for row, length in enumerate(lengths.tolist()):
        alone, alone_lengths = listener(x[row : row + 1, :length], lengths[row : row + 1])
        assert alone_lengths.tolist() == [encoded_lengths[row]] == [alone.shape[1]]
        torch.testing.assert_close(encoded[row, : alone.shape[1]], alone[0], rtol=1e-4, atol=1e-5)
        expected = speaker(tokens[row : row + 1], speaker.remember(alone, alone_lengths))
        torch.testing.assert_close(logits[row], expected[0], rtol=1e-4, atol=1e-5)


def test_a_row_without_frames_is_finite_and_so_is_its_gradient() -> None:
    listener, speaker = encoder(), decoder()
    x = torch.randn(2, 9, MELS, requires_grad=True)
    encoded, lengths = listener(x, torch.tensor([0, 9]))
    assert lengths.tolist() == [0, 3]
    memory = speaker.remember(encoded, lengths)
    assert memory[0].any(dim=2).all()  # some kernels make NaN of a row that sees nothing
    logits = speaker(torch.tensor([[0, 3], [0, 4]]), memory)
    (encoded.sum() + logits.sum()).backward()
    assert encoded.isfinite().all() and logits.isfinite().all()
    assert x.grad is not None and x.grad.isfinite().all()
    for parameter in [*listener.parameters(), *speaker.parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    alone, _ = listener(x[1:], torch.tensor([9]))
    torch.testing.assert_close(encoded[1:], alone)


@torch.no_grad()
def test_a_later_token_changes_nothing_before_it(utterances: tuple[Tensor, Tensor]) -> None:
    speaker = decoder()
    memory = speaker.remember(*utterances)
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5]]).expand(3, -1)
    changed = tokens.clone()
    changed[:, 3] = 9
    logits, changed_logits = speaker(tokens, memory), speaker(changed, memory)
    torch.testing.assert_close(changed_logits[:, :3], logits[:, :3], rtol=0.0, atol=1e-6)
    assert ((changed_logits - logits)[:, 3:].abs().amax(dim=2) > 1e-3).all()


# Token by token.


def read(speaker: TransformerDecoder, tokens: Tensor, memory: tuple[Tensor, ...], rows: int = 1) -> Tensor:
    """Logits (N, U, V), step by step, of tokens (N, U) with `rows` hypotheses to each utterance."""
    state = tuple(part.repeat_interleave(rows, dim=0) for part in speaker.initial_state(memory))
    logits = []
    for position in range(tokens.shape[1]):
        step_logits, state = speaker.step(tokens[:, position], state, memory)
        assert all(part.shape[:2] == (len(tokens), position + 1) for part in state)
        logits.append(step_logits)
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("head_dimension", [None, 3])
@torch.no_grad()
def test_token_by_token_is_as_all_at_once(utterances: tuple[Tensor, Tensor], head_dimension: int | None) -> None:
    speaker = decoder(head_dimension=head_dimension)
    memory = speaker.remember(*utterances)
    tokens = torch.randint(len(VOCABULARY), (3, 9))
    torch.testing.assert_close(read(speaker, tokens, memory), speaker(tokens, memory), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_hypotheses_of_one_utterance_are_as_each_alone(utterances: tuple[Tensor, Tensor]) -> None:
    speaker = decoder()
    memory = speaker.remember(*utterances)
    tokens = torch.randint(len(VOCABULARY), (3, 4, 5))  # (B, K, U)
    logits = read(speaker, tokens.flatten(0, 1), memory, rows=4).unflatten(0, (3, 4))
    for hypothesis in range(4):
        torch.testing.assert_close(logits[:, hypothesis], speaker(tokens[:, hypothesis], memory), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_hypotheses_go_on_from_the_states_of_their_parents(utterances: tuple[Tensor, Tensor]) -> None:
    speaker = decoder()
    memory = speaker.remember(*utterances)
    tokens = torch.randint(len(VOCABULARY), (6, 3))  # two hypotheses of each
    parents = torch.tensor([1, 1, 2, 3, 5, 4])
    state = tuple(part.repeat_interleave(2, dim=0) for part in speaker.initial_state(memory))
    for position in range(3):
        _, state = speaker.step(tokens[:, position], state, memory)
    state = tuple(part.index_select(0, parents) for part in state)
    last = torch.arange(6)
    logits, _ = speaker.step(last, state, memory)
    histories = torch.cat([tokens[parents], last.unsqueeze(1)], dim=1)
    torch.testing.assert_close(logits, read(speaker, histories, memory, rows=2)[:, -1], rtol=1e-5, atol=1e-5)
    stayed = torch.cat([tokens, last.unsqueeze(1)], dim=1)
    assert (logits - read(speaker, stayed, memory, rows=2)[:, -1]).abs().max() > 1e-2


@torch.no_grad()
def test_the_encoded_frames_are_projected_once(utterances: tuple[Tensor, Tensor]) -> None:
    speaker = decoder()
    projected: list[int] = []
    for layer in speaker.layers:
        for part in (layer.cross_attention.key, layer.cross_attention.value):
            part.register_forward_hook(lambda _, inputs, output: projected.append(len(inputs[0])))
    memory = speaker.remember(*utterances)
    assert all(len(part) == 3 for part in memory)
    read(speaker, torch.randint(len(VOCABULARY), (6, 4)), memory, rows=2)
    assert projected == [3] * 4


# Precision, dropout, and what is refused.


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["autocast", "bfloat16 weights"])
@torch.no_grad()
def test_bfloat16_hears_and_says_the_same(weights: torch.dtype, utterances: tuple[Tensor, Tensor]) -> None:
    listener, speaker = encoder(), decoder()
    (encoder_output, lengths), tokens = utterances, torch.randint(len(VOCABULARY), (3, 5))
    x, frames = torch.randn(3, 26, MELS), torch.tensor([26, 0, 14])
    encoded, _ = listener(x, frames)
    logits = speaker(tokens, speaker.remember(encoder_output, lengths))
    streams: list[torch.dtype] = []
    for module in (listener, speaker):
        module.to(weights).layers[1].register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
        rough, _ = listener(x.to(weights), frames)
        memory = speaker.remember(encoder_output.to(weights), lengths)
        together, one_by_one = speaker(tokens, memory), read(speaker, tokens, memory)
    assert memory[1].dtype == torch.bfloat16 == together.dtype and set(streams) == {weights}
    for output, expected in ((rough, encoded), (together, logits), (one_by_one, logits)):
        assert (output.float() - expected).abs().max() < 0.03 * expected.abs().max()
        assert not torch.equal(output.float(), expected)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_dropout_is_in_training_only(part: str, utterances: tuple[Tensor, Tensor]) -> None:
    encoded, lengths = utterances
    if part == "encoder":
        module: nn.Module = TransformerEncoder(12, 12, 1, 3, 20, dropout=0.3)
        arguments: tuple = (encoded, lengths)
    else:
        module = TransformerDecoder(VOCABULARY, units(12), 8, 1, 2, 20, dropout=0.3)
        arguments = (torch.zeros(3, 4, dtype=torch.int64), module.eval().remember(encoded, lengths))
    module.train()
    assert not torch.equal(*(module(*arguments)[0] for _ in range(2)))
    module.eval()
    assert torch.equal(*(module(*arguments)[0] for _ in range(2)))


def test_tokens_begin_as_large_as_positions() -> None:
    speaker = TransformerDecoder(tuple(map(str, range(500))), units(6), 64, 1, 2, 20)
    embedded = (speaker.embedding.weight.detach() * math.sqrt(64)).square().mean()
    torch.testing.assert_close(embedded, 2 * sinusoids(torch.arange(500), 64).square().mean(), rtol=0.05, atol=0.0)


@pytest.mark.parametrize(("dimension", "heads"), [(7, 1), (8, 3)])
def test_dimensions_that_do_not_fit_are_refused(dimension: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"got {dimension} and {heads} heads"):
        TransformerEncoder(MELS, dimension, 1, heads, 20)
    with pytest.raises(ValueError, match=f"got {dimension} and {heads} heads"):
        TransformerDecoder(VOCABULARY, units(6), dimension, 1, heads, 20)


# What axes mean.


def test_all_that_touches_the_residual_stream_has_its_axis() -> None:
    sizes = {12: sinusoid_axis(12), 15: axis(Units(3), Units(5))}  # no other axis is as large
    axes = module_axes(encoder(head_dimension=5))
    stream_axes = [axis for parameter in axes.values() for axis in parameter if axis_size(axis) in sizes]
    assert stream_axes and all(axis == sizes[axis_size(axis)] for axis in stream_axes)
    assert encoder().output_axis() == sinusoid_axis(12)


def test_the_decoders_axes_are_streams_heads_tokens_and_memory() -> None:
    memory = axis(Units(2), Units(7))
    tokens, heads = axis(Tokens(VOCABULARY)), axis(Units(2), Units(5))
    sizes = {8: sinusoid_axis(8), 10: heads, 11: tokens, 14: memory, 20: units(20)}
    axes = module_axes(decoder(memory, head_dimension=5))
    all_axes = [axis for parameter in axes.values() for axis in parameter]
    assert all(axis == sizes[axis_size(axis)] for axis in all_axes)
    assert axes["layers.1.cross_attention.key.weight"] == (heads, memory)
