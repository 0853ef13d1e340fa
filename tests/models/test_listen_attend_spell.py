from functools import partial

import pytest
import torch

from asr_lightning.errors import InputError
from asr_lightning.models.listen_attend_spell import Speller
from asr_lightning.nn.axes import module_axes, units
from asr_lightning.nn.mechanisms import AdditiveAttention, LocationAwareAttention, MultiHeadAttention

VOCABULARY = ("<blank>", "<unk>", "<eos>", "A", "B", "C", "D")
ATTENTIONS = {
    "additive": partial(AdditiveAttention, dimension=6),
    "location": partial(LocationAwareAttention, dimension=6, channels=2, filter_frames=3),
    "multi-head": partial(MultiHeadAttention, dimension=8, heads=2),
}


def speller(attention: str = "location", **changes: float) -> Speller:
    return Speller(VOCABULARY, units(10), ATTENTIONS[attention], hidden=5, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_token_by_token_is_as_all_at_once(attention: str) -> None:
    decoder, tokens = speller(attention, layers=2), torch.randint(7, (3, 8))
    memory = decoder.remember(torch.randn(3, 9, 10), torch.tensor([9, 4, 6]))
    logits = decoder(tokens, memory)
    state = decoder.initial_state(memory)
    for place in range(8):
        one, state = decoder.step(tokens[:, place], state, memory)
        torch.testing.assert_close(one, logits[:, place])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_it_computes_what_the_paper_says(attention: str) -> None:
    decoder, tokens = speller(attention, layers=2).eval(), torch.tensor([[2, 4, 5]])
    memory = decoder.remember(torch.randn(1, 9, 10), torch.tensor([9]))
    cells = [(torch.zeros(1, 5), torch.zeros(1, 5)) for _ in range(2)]
    context, weights = torch.zeros(1, decoder.context_dimension), decoder.attention.initial_weights(memory)
    expected = []
    for token in tokens[0]:
        x = torch.cat([decoder.embedding.weight[token].unsqueeze(0), context], dim=1)
        for layer, cell in enumerate(decoder.cells):
            cells[layer] = cell(x, cells[layer])
            x = cells[layer][0]
        context, weights = decoder.attention(x, weights, memory)
        expected.append(decoder.output(torch.cat([x, context], dim=1)))
    torch.testing.assert_close(decoder(tokens, memory), torch.stack(expected, dim=1))


def test_hypotheses_of_an_utterance_follow_their_parents() -> None:
    decoder = speller()
    memory = decoder.remember(torch.randn(2, 9, 10), torch.tensor([9, 4]))
    state = tuple(part.repeat_interleave(2, dim=0) for part in decoder.initial_state(memory))
    _, state = decoder.step(torch.tensor([2, 2, 2, 2]), state, memory)
    _, state = decoder.step(torch.tensor([3, 4, 5, 6]), state, memory)
    parents = torch.tensor([1, 1, 3, 2])
    logits, _ = decoder.step(torch.tensor([3, 4, 3, 4]), tuple(part[parents] for part in state), memory)
    for row, (utterance, tokens) in enumerate([(0, [2, 4, 3]), (0, [2, 4, 4]), (1, [2, 6, 3]), (1, [2, 5, 4])]):
        one = tuple(part[utterance : utterance + 1] for part in memory)
        torch.testing.assert_close(logits[row], decoder(torch.tensor([tokens]), one)[0, -1])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_frames_are_prepared_once_however_many_tokens_follow(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, prepared = speller(attention), []
    keys = decoder.attention.keys
    monkeypatch.setattr(decoder.attention, "keys", lambda encoded: prepared.append(len(encoded)) or keys(encoded))
    memory = decoder.remember(torch.randn(2, 9, 10), torch.tensor([9, 4]))
    decoder(torch.randint(7, (2, 8)), memory).sum().backward()
    state = decoder.initial_state(memory)
    for token in range(7):
        _, state = decoder.step(torch.tensor([token, token]), state, memory)
    assert prepared == [2]


def test_no_sampling_is_the_transcript_and_evaluation_never_samples() -> None:
    decoder, tokens = speller(sampling=1.0), torch.randint(7, (3, 8))
    memory = decoder.remember(torch.randn(3, 9, 10), torch.tensor([9, 4, 6]))
    sampled, expected = decoder.train()(tokens, memory), decoder.eval()(tokens, memory)
    torch.testing.assert_close(sampled[:, 0], expected[:, 0])  # the first token is never replaced
    assert (sampled[:, 2:] - expected[:, 2:]).abs().amax() > 1e-3
    decoder.sampling = 0.0
    torch.testing.assert_close(decoder.train()(tokens, memory), expected)


def test_tokens_are_replaced_one_by_one_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder, tokens = speller(sampling=0.3).train(), torch.full((200, 20), 3)
    torch.nn.init.zeros_(decoder.output.weight)
    with torch.no_grad():
        decoder.output.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -50.0, 0.0, 0.0, 0.0]))  # it never says what is true
    memory = decoder.remember(torch.randn(200, 2, 10), torch.full((200,), 2))
    read: list[torch.Tensor] = []
    monkeypatch.setattr(decoder.embedding, "forward", lambda token: read.append(token) or torch.zeros(200, 5))
    decoder(tokens, memory)
    replaced = torch.stack(read, dim=1) != 3  # (utterance, place)
    assert not replaced[:, 0].any()
    assert replaced[:, 1:].float().mean() == pytest.approx(0.3, abs=0.03)
    assert 0 < replaced[:, 1:].sum(dim=1).min() and replaced[:, 1:].sum(dim=1).max() < 19  # not utterance by utterance
    drawn = torch.stack(read, dim=1)[replaced]
    shares = torch.bincount(drawn, minlength=7) / len(drawn)
    assert shares[3] == 0 and shares[[0, 1, 2, 4, 5, 6]].tolist() == pytest.approx([1 / 6] * 6, abs=0.04)


def test_sampling_learns_from_the_truth_not_from_the_draw() -> None:
    decoder = speller(sampling=1.0).train()
    memory = decoder.remember(torch.randn(2, 9, 10, requires_grad=True), torch.tensor([9, 4]))
    decoder(torch.randint(7, (2, 5)), memory).sum().backward()  # the draw has no gradient, and needs none
    assert all(parameter.grad is not None for parameter in decoder.cells.parameters())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_axis_is_known(attention: str) -> None:
    decoder = speller(attention)
    assert set(module_axes(decoder)) == set(decoder.state_dict())


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="got 1.5"):
        speller(sampling=1.5)
