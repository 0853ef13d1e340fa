"""Search with a decoder that is a table, so that all texts can be enumerated."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from asr_lightning.decoding.attention import AttentionSearch, State
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.decoding.language_model import LanguageModel
from asr_lightning.errors import InputError
from asr_lightning.text.tokenizers import CharacterTokenizer, Tokenizer

BLANK, END = 0, 2
LETTERS = (1, 3, 4)
LIMIT = 4  # tokens, of 4 frames


class Letters(CharacterTokenizer):
    """Five tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = self.tokens[:5]


class Table:
    """The next token depends on the utterance and on the last two tokens; the state is the position in the table."""

    def __init__(self, utterances: int, seed: int = 0, scale: float = 1.5) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = scale * torch.randn(utterances, 5, 5, 5, generator=generator)
        self.steps = 0

    def initial_state(self, memory: State) -> State:
        return (torch.full_like(memory[0], END),)

    def step(self, tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        self.steps += 1
        beam = len(tokens) // len(memory[0])
        return self.logits[memory[0].repeat_interleave(beam), state[0], tokens], (tokens,)

    def log_prob(self, utterance: int, tokens: Sequence[int]) -> float:
        total, previous, last = 0.0, END, END
        for token in (*tokens, END):
            total += float(self.logits[utterance, previous, last].log_softmax(dim=0)[token])
            previous, last = last, token
        return total


class Pairs(LanguageModel):
    """The next token depends on the last; a text is worth minus its length."""

    def __init__(self, seed: int = 9) -> None:
        self.logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed))

    def prepare(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.prepared = len(tokenizer), device

    def initial_state(self, batch_size: int) -> State:
        return (torch.zeros(batch_size, 1),)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        assert len(state[0]) == len(tokens)
        return self.logits[tokens].log_softmax(dim=1), state

    def score(self, texts: Sequence[str]) -> list[float]:
        return [-float(len(text)) for text in texts]

    def log_prob(self, tokens: Sequence[int]) -> float:
        pairs = itertools.pairwise((END, *tokens, END))
        return sum(float(self.logits[previous].log_softmax(dim=0)[token]) for previous, token in pairs)


def find(table: Table, search: AttentionSearch, ctc_logits: Tensor | None = None) -> list[list[Hypothesis]]:
    count = len(table.logits)
    return search(table, (torch.arange(count),), torch.full((count,), LIMIT), Letters(), ctc_logits)


def everything() -> list[tuple[int, ...]]:
    return [text for length in range(LIMIT + 1) for text in itertools.product(LETTERS, repeat=length)]


def greedy(table: Table, utterance: int) -> tuple[int, ...]:
    tokens: list[int] = []
    previous, last = END, END
    while len(tokens) < LIMIT:
        logits = table.logits[utterance, previous, last].clone()
        logits[BLANK] = -math.inf
        if (token := int(logits.argmax())) == END:
            break
        tokens.append(token)
        previous, last = last, token
    return tuple(tokens)


WIDE = 500  # more than there are texts


@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_the_best_of_all_texts_and_ranks_the_rest(seed: int) -> None:
    table = Table(3, seed)
    for utterance, hypotheses in enumerate(find(table, AttentionSearch(beam=WIDE, tokens_per_frame=1.0))):
        scores = {text: table.log_prob(utterance, text) for text in everything()}
        ranked = sorted(scores, key=lambda text: -scores[text])
        assert [hypothesis.tokens for hypothesis in hypotheses[:20]] == ranked[:20]
        for hypothesis in hypotheses:
            assert hypothesis.score == pytest.approx(scores[hypothesis.tokens], abs=1e-4)
            assert hypothesis.parts["attention"] == pytest.approx(hypothesis.score, abs=1e-4)


@pytest.mark.parametrize("seed", range(10))
def test_a_beam_of_one_is_greedy_and_a_wider_one_finds_nothing_worse(seed: int) -> None:
    table = Table(4, seed)
    narrow = find(table, AttentionSearch(beam=1, tokens_per_frame=1.0))
    assert [best.tokens for [best] in narrow] == [greedy(table, utterance) for utterance in range(4)]
    wide = find(table, AttentionSearch(beam=6, tokens_per_frame=1.0))
    for [best], hypotheses in zip(narrow, wide, strict=True):
        assert hypotheses[0].score >= best.score - 1e-5
        assert [hypothesis.score for hypothesis in hypotheses] == sorted(
            (hypothesis.score for hypothesis in hypotheses), reverse=True
        )
        assert 1 <= len(hypotheses) <= 6 and len({hypothesis.tokens for hypothesis in hypotheses}) == len(hypotheses)


@pytest.mark.parametrize("beam", [1, 3])
def test_an_utterance_is_found_the_same_alone_and_in_company(beam: int) -> None:
    search = AttentionSearch(beam=beam, tokens_per_frame=1.0)
    table = Table(4, seed=3)
    together = find(table, search)
    for utterance in range(4):
        [alone] = search(table, (torch.tensor([utterance]),), torch.tensor([LIMIT]), Letters())
        assert [hypothesis.tokens for hypothesis in alone] == [hypothesis.tokens for hypothesis in together[utterance]]


def test_each_utterance_has_its_own_limit() -> None:
    table = Table(2, seed=1)
    table.logits[..., END] = -9.0  # the end is improbable
    hypotheses = AttentionSearch(tokens_per_frame=1.5)(table, (torch.arange(2),), torch.tensor([4, 1]), Letters())
    assert [len(hypothesis.tokens) for [hypothesis] in hypotheses] == [6, 2]
    for utterance, [hypothesis] in enumerate(hypotheses):
        assert hypothesis.score == pytest.approx(table.log_prob(utterance, hypothesis.tokens), abs=1e-4)


def test_numbers_that_overflowed_end_too() -> None:
    table = Table(2, seed=1)
    table.logits[0] = math.nan
    broken, intact = find(table, AttentionSearch(beam=2, tokens_per_frame=1.0))
    assert [hypothesis.tokens for hypothesis in broken] == [()] and broken[0].score == -math.inf
    assert intact == find(Table(2, seed=1), AttentionSearch(beam=2, tokens_per_frame=1.0))[1]


def ctc_of(logits: Tensor, text: Sequence[int]) -> float:
    """The log probability of a text by CTC logits (T, V)."""
    return -float(
        torch.nn.functional.ctc_loss(
            logits.log_softmax(dim=1),
            torch.tensor(text, dtype=torch.int64),
            torch.tensor(len(logits)),
            torch.tensor(len(text)),
            reduction="sum",
        )
    )


@pytest.mark.parametrize(("ctc_weight", "language_weight"), [(0.4, 0.7), (0.0, 0.7), (0.4, 0.0), (1.0, 0.0)])
@pytest.mark.parametrize("limit", [LIMIT, 2])
def test_one_search_with_all_opinions_ranks_all_texts(ctc_weight: float, language_weight: float, limit: int) -> None:
    table, model = Table(2, seed=5), Pairs()
    ctc_logits = torch.randn(2, LIMIT, 5, generator=torch.Generator().manual_seed(7))
    ctc_logits[:, :, END] = -20.0
    search = AttentionSearch(
        WIDE, ctc_weight, model if language_weight else None, language_weight, tokens_per_frame=limit / LIMIT
    )
    for utterance, hypotheses in enumerate(find(table, search, ctc_logits)):
        parts = {
            text: {
                "attention": table.log_prob(utterance, text),
                **({"ctc": ctc_of(ctc_logits[utterance], text)} if ctc_weight else {}),
                **({"language_model": model.log_prob(text)} if language_weight else {}),
            }
            for text in everything()
            if len(text) <= limit
        }
        weights = {"attention": 1 - ctc_weight, "ctc": ctc_weight, "language_model": language_weight}
        totals = {text: sum(weights[name] * value for name, value in terms.items()) for text, terms in parts.items()}
        ranked = sorted((text for text in totals if totals[text] > -math.inf), key=lambda text: -totals[text])
        assert [hypothesis.tokens for hypothesis in hypotheses[:10]] == ranked[:10]
        assert any(len(hypothesis.tokens) == limit for hypothesis in hypotheses)
        for hypothesis in hypotheses:
            assert hypothesis.score == pytest.approx(totals[hypothesis.tokens], abs=1e-3)
            assert hypothesis.parts == pytest.approx(parts[hypothesis.tokens], abs=1e-3)


def test_an_end_that_is_forced_costs_what_every_end_costs() -> None:
    table = Table(1, seed=1)
    table.logits[..., END] = -6.0
    search = AttentionSearch(3, language_model=(model := Pairs()), language_model_weight=2.0, tokens_per_frame=0.5)
    [hypotheses] = find(table, search)
    for hypothesis in hypotheses:
        assert len(hypothesis.tokens) == 2
        expected = table.log_prob(0, hypothesis.tokens) + 2.0 * model.log_prob(hypothesis.tokens)
        assert hypothesis.score == pytest.approx(expected, abs=1e-4)


class NoEnd(Pairs):
    """Gives the end no probability."""

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logits, state = super().step(tokens, state)
        return logits.index_fill(1, torch.tensor([END]), -math.inf), state


def test_what_can_never_end_is_returned_unfinished_and_without_a_probability() -> None:
    table = Table(2, seed=1)
    search = AttentionSearch(2, language_model=NoEnd(), language_model_weight=0.5, tokens_per_frame=1.0)
    for [hypothesis] in find(table, search):
        assert len(hypothesis.tokens) == LIMIT and hypothesis.score == -math.inf
        assert math.isfinite(hypothesis.parts["attention"]) and hypothesis.parts["language_model"] == -math.inf


@pytest.mark.parametrize("beam", [1, 3])
def test_no_more_tokens_than_frames_with_ctc_alone_and_in_company(beam: int) -> None:
    table = Table(2, seed=1)
    table.logits[..., END] = -9.0  # attention makes the end improbable, and CTC has a single frame
    table.logits[..., 3] = 9.0
    ctc_logits = torch.zeros(2, 3, 5)
    search = AttentionSearch(beam, ctc_weight=0.5, end_threshold=1.5)
    together = search(table, (torch.arange(2),), torch.tensor([3, 1]), Letters(), ctc_logits)
    [alone] = search(table, (torch.tensor([1]),), torch.tensor([1]), Letters(), ctc_logits[1:, :1])
    for hypotheses in (together[1], alone):
        assert hypotheses[0].tokens == (3,)
        expected = 0.5 * table.log_prob(1, (3,)) + 0.5 * ctc_of(ctc_logits[1, :1], (3,))
        assert hypotheses[0].score == pytest.approx(expected, abs=1e-3)
    assert [hypothesis.tokens for hypothesis in together[1]] == [hypothesis.tokens for hypothesis in alone]


def test_rescoring_ranks_by_the_formula_of_the_paper() -> None:
    table = Table(2, seed=6)
    search = AttentionSearch(WIDE, language_model=Pairs(), rescoring_weight=0.5, tokens_per_frame=1.0)
    for utterance, hypotheses in enumerate(find(table, search)):
        lengths = {text: len(Letters().decode(text)) for text in everything()}
        expected = {
            text: table.log_prob(utterance, text) / max(1, length) - 0.5 * length for text, length in lengths.items()
        }
        assert hypotheses[0].score == pytest.approx(expected[hypotheses[0].tokens], abs=1e-4)
        assert hypotheses[0].score == pytest.approx(max(expected.values()), abs=1e-4)
        assert hypotheses[0].parts["rescoring"] == -float(lengths[hypotheses[0].tokens])


def test_rescoring_of_weight_zero_does_not_ask_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pairs, "score", lambda *_: [-math.inf])  # 0 times this is NaN
    [hypotheses] = find(Table(1), AttentionSearch(1, 0.0, Pairs(), 0.5, rescoring_weight=0.0))
    assert math.isfinite(hypotheses[0].score)


def test_length_normalization_ranks_the_complete() -> None:
    table = Table(2, seed=8)
    for utterance, hypotheses in enumerate(find(table, AttentionSearch(WIDE, length_power=1.0, tokens_per_frame=1.0))):
        expected = {text: table.log_prob(utterance, text) / (len(text) + 1) for text in everything()}
        complete = {hypothesis.tokens for hypothesis in hypotheses}
        assert hypotheses[0].tokens == max(complete, key=lambda text: expected[text])
        assert hypotheses[0].score == pytest.approx(expected[hypotheses[0].tokens], abs=1e-4)


def test_the_end_waits_until_it_is_probable() -> None:
    table = Table(1, seed=2)
    table.logits[0] = torch.tensor([-9.0, -9.0, 0.0, 0.2, -9.0])  # 3 is a little more probable than the end
    assert find(table, AttentionSearch(beam=2, tokens_per_frame=1.0))[0][0].tokens == ()
    patient = AttentionSearch(beam=2, end_threshold=0.9, tokens_per_frame=1.0)
    assert find(table, patient)[0][0].tokens == (3,) * LIMIT
    hasty = AttentionSearch(beam=2, end_threshold=1.5, tokens_per_frame=1.0)
    assert find(table, hasty)[0][0].tokens == ()


def test_search_ends_when_the_rest_is_hopeless() -> None:
    table = Table(1)
    table.logits[0] = torch.tensor([-30.0, -30.0, 0.0, -30.0, -30.0])  # the end at once
    [hypotheses] = AttentionSearch(beam=8, tokens_per_frame=100.0)(
        table, (torch.arange(1),), torch.tensor([LIMIT]), Letters()
    )
    assert hypotheses[0].tokens == () and table.steps < 5


def test_poor_short_texts_do_not_end_the_search_for_a_good_long_one() -> None:
    table, good = Table(1), (3, 4, 3, 1)
    table.logits[0] = torch.tensor([-30.0, -30.0, 0.0, -30.0, -30.0])  # wherever else it is, it ends
    for (previous, last), token in zip(itertools.pairwise((END, END, *good)), good, strict=False):
        table.logits[0, previous, last, token] = 2.5  # and the end is always second
    [hypotheses] = AttentionSearch(beam=2)(table, (torch.arange(1),), torch.tensor([LIMIT]), Letters())
    assert hypotheses[0].tokens == good and hypotheses[0].score > -0.5
    assert hypotheses[1].tokens == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beam": 0}, "beam=0"),
        ({"ctc_weight": 1.1}, "ctc_weight=1.1"),
        ({"language_model_weight": 0.3}, "needs a language_model for language_model_weight=0.3"),
        ({"rescoring_weight": 0.3}, "needs a language_model for .*rescoring_weight=0.3"),
        ({"language_model_weight": -0.3}, "weights of at least 0, .*'language_model_weight': -0.3"),
        ({"rescoring_weight": math.nan}, "'rescoring_weight': nan"),
        ({"length_power": math.inf}, "length_power=inf"),
        ({"end_threshold": math.nan}, "end_threshold=nan"),
        ({"tokens_per_frame": math.nan}, "tokens_per_frame=nan"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AttentionSearch(**arguments)  # type: ignore[arg-type]


def test_a_share_of_ctc_needs_ctc() -> None:
    with pytest.raises(InputError, match="trained without CTC"):
        find(Table(1), AttentionSearch(ctc_weight=0.3))
