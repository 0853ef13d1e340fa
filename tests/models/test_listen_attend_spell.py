import itertools
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from asr_lightning.decoding.attention import AttentionSearch, State
from asr_lightning.decoding.language_model import LanguageModel
from asr_lightning.errors import InputError
from asr_lightning.models.listen_attend_spell import Speller
from asr_lightning.nn.axes import module_axes, units
from asr_lightning.nn.mechanisms import AdditiveAttention, FixedContext, LocationAwareAttention, MultiHeadAttention
from asr_lightning.text.tokenizers import CharacterTokenizer, Tokenizer
from tests.oracles.attention_orders import ORDERS, Spelling

VOCABULARY = ("<blank>", "<unk>", "<eos>", "A", "B", "C", "D")
ATTENTIONS = {
    "additive": partial(AdditiveAttention, dimension=6),
    "location": partial(LocationAwareAttention, dimension=6, channels=2, filter_frames=3),
    "sharpened": partial(LocationAwareAttention, dimension=6, channels=2, filter_frames=3, sharpening=2.0),
    "multi-head": partial(MultiHeadAttention, dimension=8, heads=2),
    "fixed": FixedContext,
}
every_order = pytest.mark.parametrize("query_state", ORDERS)
every_attention = pytest.mark.parametrize("attention", ATTENTIONS)


def speller(attention: str = "location", vocabulary: tuple[str, ...] = VOCABULARY, **changes: object) -> Speller:
    return Speller(vocabulary, units(10), ATTENTIONS[attention], hidden=5, **changes)  # type: ignore[arg-type]


@every_order
@every_attention
def test_token_by_token_is_as_all_at_once(attention: str, query_state: str) -> None:
    decoder, tokens = speller(attention, layers=2, query_state=query_state), torch.randint(7, (3, 8))
    memory = decoder.remember(torch.randn(3, 9, 10), torch.tensor([9, 4, 6]))
    logits = decoder(tokens, memory)
    state = decoder.initial_state(memory)
    for position in range(8):
        step_logits, state = decoder.step(tokens[:, position], state, memory)
        torch.testing.assert_close(step_logits, logits[:, position])


def spelled(decoder: Speller, frames: Tensor, tokens: Sequence[int]) -> Spelling:
    """Logits, states and attention by the second implementation."""
    weights = {name: value.double().numpy() for name, value in decoder.state_dict().items()}
    return ORDERS[decoder.query_state](weights, frames.double().numpy(), tokens, decoder.attention.sharpening)


def distinct(decoder: Speller, seed: int = 0) -> Speller:
    """Larger weights than torch's own, so that every part of the decoder matters."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in decoder.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return decoder.eval()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["location", "sharpened"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@every_order
def test_a_second_implementation_computes_the_same(query_state: str, layers: int, attention: str) -> None:
    decoder = distinct(speller(attention, layers=layers, query_state=query_state)).double()
    encoded, lengths = torch.randn(3, 9, 10, dtype=torch.float64), torch.tensor([9, 4, 1])
    tokens = torch.randint(7, (3, 6))
    states: list[list[Tensor]] = [[] for _ in range(layers)]
    for layer, cell in enumerate(decoder.cells):
        cell.register_forward_hook(lambda _, inputs, output, layer=layer: states[layer].append(output[0]))
    attention_weights: list[Tensor] = []
    decoder.attention.register_forward_hook(lambda _, inputs, output: attention_weights.append(output[1]))
    logits = decoder(tokens, decoder.remember(encoded, lengths))
    for row, length in enumerate(lengths.tolist()):
        expected = spelled(decoder, encoded[row, :length], tokens[row].tolist())
        np.testing.assert_allclose(logits[row].numpy(), np.stack(expected.logits), rtol=1e-9, atol=1e-9)
        for layer in range(layers):
            layer_states = torch.stack([state[row] for state in states[layer]]).numpy()
            np.testing.assert_allclose(layer_states, np.stack(expected.states)[:, layer], rtol=1e-9, atol=1e-9)
        weights = torch.stack([step_weights[row, 0, :length] for step_weights in attention_weights]).numpy()
        np.testing.assert_allclose(weights, np.stack(expected.attention), rtol=1e-9, atol=1e-9)


@torch.no_grad()
@every_order
def test_only_states_of_the_previous_order_have_read_the_frames_of_their_own_character(query_state: str) -> None:
    decoder = distinct(speller(layers=2, query_state=query_state))
    states: list[Tensor] = []
    decoder.cells[1].register_forward_hook(lambda _, inputs, output: states.append(output[0]))
    for encoded in (torch.randn(1, 9, 10), torch.randn(1, 9, 10)):
        decoder(torch.tensor([[2, 4]]), decoder.remember(encoded, torch.tensor([9])))
    first, second = (states[step] - states[step + 2] for step in (0, 1))  # of one utterance and of the other
    assert (first.abs().amax() > 1e-3) == (query_state == "previous")
    assert second.abs().amax() > 1e-3


class Letters(CharacterTokenizer):
    """Five tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = self.tokens[:5]


class Pairs(LanguageModel):
    """The next token depends on the last one."""

    def __init__(self) -> None:
        logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(9))
        self.log_probs = logits.log_softmax(dim=1)

    def prepare(self, tokenizer: Tokenizer, device: torch.device) -> None:
        pass

    def initial_state(self, batch_size: int) -> State:
        return (torch.zeros(batch_size, 1),)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        return self.log_probs[tokens], state

    def score(self, texts: Sequence[str]) -> list[float]:
        raise NotImplementedError

    def log_prob(self, text: Sequence[int]) -> float:
        return sum(
            float(self.log_probs[previous, following]) for previous, following in itertools.pairwise([*text, text[0]])
        )


def attention_log_prob(decoder: Speller, frames: Tensor, text: Sequence[int], eos: int) -> float:
    """Log probability of a text and its end, by the second implementation."""
    total = 0.0
    for logits, token in zip(spelled(decoder, frames, [eos, *text]).logits, [*text, eos], strict=True):
        total += float(logits[token] - logits.max() - math.log(np.exp(logits - logits.max()).sum()))
    return total


@torch.no_grad()
@pytest.mark.parametrize(("ctc_weight", "language_model_weight"), [(0.0, 0.0), (0.3, 0.6)])
@every_order
def test_a_wide_beam_finds_the_best_of_all_texts(
    query_state: str, ctc_weight: float, language_model_weight: float
) -> None:
    tokenizer, model = Letters(), Pairs()
    decoder = distinct(speller(vocabulary=tokenizer.tokens, layers=2, query_state=query_state))
    encoded, lengths = torch.randn(2, 3, 10), torch.tensor([3, 2])
    ctc_logits = torch.randn(2, 3, 5).index_fill(2, torch.tensor([tokenizer.eos_id]), -20.0)
    fused = {"language_model": model, "language_model_weight": language_model_weight} if language_model_weight else {}
    search = AttentionSearch(beam=60, ctc_weight=ctc_weight, tokens_per_frame=1.0, **fused)  # type: ignore[arg-type]
    results = search(decoder, decoder.remember(encoded, lengths), lengths, tokenizer, ctc_logits)
    letters = [token for token in range(5) if token not in (tokenizer.blank_id, tokenizer.eos_id)]
    for row, length in enumerate(lengths.tolist()):
        scores = {}
        for text in itertools.chain(*(itertools.product(letters, repeat=count) for count in range(length + 1))):
            scores[text] = (1 - ctc_weight) * attention_log_prob(decoder, encoded[row, :length], text, tokenizer.eos_id)
            scores[text] += language_model_weight * model.log_prob([tokenizer.eos_id, *text])
            if ctc_weight:
                log_probs = ctc_logits[row, :length].log_softmax(dim=1)
                sizes = torch.tensor(length), torch.tensor(len(text))
                target = torch.tensor(text, dtype=torch.int64)
                scores[text] -= ctc_weight * float(
                    torch.nn.functional.ctc_loss(log_probs, target, *sizes, reduction="sum")
                )
        ranked = sorted(scores, key=lambda text: -scores[text])
        near = [text for text in ranked if scores[text] > scores[ranked[0]] - 9.9]  # the search stops 10 nats behind
        assert len(near) > 3 and [hypothesis.tokens for hypothesis in results[row]][: len(near)] == near
        for hypothesis in results[row]:
            assert hypothesis.score == pytest.approx(scores[hypothesis.tokens], abs=1e-3)


@every_order
def test_hypotheses_of_an_utterance_follow_their_parents(query_state: str) -> None:
    decoder = speller(query_state=query_state)
    memory = decoder.remember(torch.randn(2, 9, 10), torch.tensor([9, 4]))
    state = tuple(part.repeat_interleave(2, dim=0) for part in decoder.initial_state(memory))
    _, state = decoder.step(torch.tensor([2, 2, 2, 2]), state, memory)
    _, state = decoder.step(torch.tensor([3, 4, 5, 6]), state, memory)
    parents = torch.tensor([1, 1, 3, 2])
    logits, _ = decoder.step(torch.tensor([3, 4, 3, 4]), tuple(part[parents] for part in state), memory)
    for row, (utterance, tokens) in enumerate([(0, [2, 4, 3]), (0, [2, 4, 4]), (1, [2, 6, 3]), (1, [2, 5, 4])]):
        utterance_memory = tuple(part[utterance : utterance + 1] for part in memory)
        torch.testing.assert_close(logits[row], decoder(torch.tensor([tokens]), utterance_memory)[0, -1])


@every_order
@every_attention
def test_the_frames_are_prepared_once_however_many_tokens_follow(
    attention: str, query_state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, prepared = speller(attention, query_state=query_state), []
    keys = decoder.attention.keys
    monkeypatch.setattr(decoder.attention, "keys", lambda encoded: prepared.append(len(encoded)) or keys(encoded))
    memory = decoder.remember(torch.randn(2, 9, 10), torch.tensor([9, 4]))
    decoder(torch.randint(7, (2, 8)), memory).sum().backward()
    state = decoder.initial_state(memory)
    for token in range(7):
        _, state = decoder.step(torch.tensor([token, token]), state, memory)
    assert prepared == [2]


@every_order
def test_no_sampling_is_the_transcript_and_evaluation_never_samples(query_state: str) -> None:
    decoder, tokens = speller(sampling=1.0, query_state=query_state), torch.randint(7, (3, 8))
    memory = decoder.remember(torch.randn(3, 9, 10), torch.tensor([9, 4, 6]))
    sampled, expected = decoder.train()(tokens, memory), decoder.eval()(tokens, memory)
    torch.testing.assert_close(sampled[:, 0], expected[:, 0])  # the first token is never replaced
    assert (sampled[:, 2:] - expected[:, 2:]).abs().amax() > 1e-3
    decoder.sampling = 0.0
    torch.testing.assert_close(decoder.train()(tokens, memory), expected)


@every_order
def test_tokens_are_replaced_one_by_one_as_often_as_asked(query_state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder, tokens = speller(sampling=0.3, query_state=query_state).train(), torch.full((200, 20), 3)
    torch.nn.init.zeros_(decoder.output.weight)
    with torch.no_grad():
        decoder.output.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -50.0, 0.0, 0.0, 0.0]))  # it never emits the true token
    memory = decoder.remember(torch.randn(200, 2, 10), torch.full((200,), 2))
    read: list[torch.Tensor] = []
    monkeypatch.setattr(decoder.embedding, "forward", lambda token: read.append(token) or torch.zeros(200, 5))
    decoder(tokens, memory)
    replaced = torch.stack(read, dim=1) != 3  # (utterance, position)
    assert not replaced[:, 0].any()
    assert replaced[:, 1:].float().mean() == pytest.approx(0.3, abs=0.03)
    assert 0 < replaced[:, 1:].sum(dim=1).min() and replaced[:, 1:].sum(dim=1).max() < 19  # not utterance by utterance
    sampled = torch.stack(read, dim=1)[replaced]
    shares = torch.bincount(sampled, minlength=7) / len(sampled)
    assert shares[3] == 0 and shares[[0, 1, 2, 4, 5, 6]].tolist() == pytest.approx([1 / 6] * 6, abs=0.04)


@every_order
def test_sampling_learns_from_the_truth_not_from_the_draw(query_state: str) -> None:
    decoder = speller(sampling=1.0, query_state=query_state).train()
    memory = decoder.remember(torch.randn(2, 9, 10, requires_grad=True), torch.tensor([9, 4]))
    decoder(torch.randint(7, (2, 5)), memory).sum().backward()  # the draw has no gradient, and needs none
    assert all(parameter.grad is not None for parameter in decoder.cells.parameters())


@every_order
@every_attention
def test_every_axis_is_known(attention: str, query_state: str) -> None:
    decoder = speller(attention, query_state=query_state)
    assert set(module_axes(decoder)) == set(decoder.state_dict())


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="got 1.5"):
        speller(sampling=1.5)
