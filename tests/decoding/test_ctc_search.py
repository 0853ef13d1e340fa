"""Search on tables small enough that all paths can be enumerated."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from asr_lightning.decoding.ctc_search import CTCSearch
from asr_lightning.decoding.language_model import LanguageModel, State
from asr_lightning.errors import InputError
from asr_lightning.text.tokenizers import CharacterTokenizer, Tokenizer

BLANK, END = 0, 2
WIDE = 200  # more than there are texts


class Letters(CharacterTokenizer):
    """Five tokens: blank, unknown, end, and two."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = self.tokens[:5]


class Pairs(LanguageModel):
    """The next token depends on the last two; counts its calls."""

    def __init__(self, seed: int = 9) -> None:
        self.logits = torch.randn(5, 5, 5, generator=torch.Generator().manual_seed(seed))
        self.asked = 0

    def prepare(self, tokenizer: Tokenizer, device: torch.device) -> None: ...

    def initial_state(self, batch_size: int) -> State:
        return (torch.full((batch_size,), END),)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        self.asked += len(tokens)
        return self.logits[state[0], tokens].log_softmax(dim=1), (tokens,)

    def score(self, texts: Sequence[str]) -> list[float]:
        return [self.log_prob(Letters().encode(text)) for text in texts]

    def log_prob(self, tokens: Sequence[int]) -> float:
        total, previous, last = 0.0, END, END
        for token in (*tokens, END):
            total += float(self.logits[previous, last].log_softmax(dim=0)[token])
            previous, last = last, token
        return total


def table(utterances: int, frames: int, seed: int = 0, scale: float = 1.5) -> Tensor:
    return scale * torch.randn(utterances, frames, 5, generator=torch.Generator().manual_seed(seed))


def spelled(path: Sequence[int]) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != BLANK)


def everything(logits: Tensor) -> dict[tuple[int, ...], float]:
    """Log probability of every text of one utterance (T, V), by all paths."""
    log_probs = logits.double().log_softmax(dim=1)
    texts: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(5), repeat=len(logits)):
        texts[spelled(path)] += math.exp(sum(float(log_probs[t, token]) for t, token in enumerate(path)))
    return {text: math.log(probability) for text, probability in texts.items()}


def find(logits: Tensor, lengths: Sequence[int] | None = None, **settings: Any) -> list[list[Any]]:
    sizes = torch.tensor(lengths or [logits.shape[1]] * len(logits))
    return CTCSearch(**settings)(logits, sizes, Letters())


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_gives_every_text_the_sum_of_its_paths(seed: int) -> None:
    logits = table(3, 4, seed)
    for row, hypotheses in enumerate(find(logits, [4, 3, 2], beam=1_000)):
        expected = everything(logits[row, : 4 - row])
        assert {hypothesis.tokens: hypothesis.score for hypothesis in hypotheses} == pytest.approx(expected, abs=1e-9)
        assert [hypothesis.score for hypothesis in hypotheses] == sorted(
            (hypothesis.score for hypothesis in hypotheses), reverse=True
        )
        assert all(hypothesis.parts == {"ctc": hypothesis.score} for hypothesis in hypotheses)


@pytest.mark.parametrize("seed", range(4))
def test_with_a_language_model_and_a_bonus_the_best_of_all_texts_is_found(seed: int) -> None:
    logits, model = table(2, 4, seed), Pairs()
    results = find(logits, beam=1_000, language_model=model, language_model_weight=0.7, length_bonus=0.4)
    for row, hypotheses in enumerate(results):
        ctc_scores = everything(logits[row])
        expected = {text: ctc_scores[text] + 0.7 * model.log_prob(text) + 0.4 * len(text) for text in ctc_scores}
        assert {hypothesis.tokens: hypothesis.score for hypothesis in hypotheses} == pytest.approx(expected, abs=1e-5)
        assert hypotheses[0].tokens == max(expected, key=lambda text: expected[text])
        assert hypotheses[0].parts == pytest.approx(
            {"ctc": ctc_scores[hypotheses[0].tokens], "language_model": model.log_prob(hypotheses[0].tokens)}, abs=1e-5
        )


@pytest.mark.parametrize("seed", range(6))
def test_a_narrow_beam_never_counts_a_path_twice(seed: int) -> None:
    logits = table(2, 12, seed)
    for beam in (1, 2, 5, 20):
        model = Pairs()
        for row, hypotheses in enumerate(find(logits, beam=beam, language_model=model, language_model_weight=0.01)):
            assert len({hypothesis.tokens for hypothesis in hypotheses}) == len(hypotheses) <= beam
            for hypothesis in hypotheses:
                total = -functional.ctc_loss(
                    logits[row].double().log_softmax(1).unsqueeze(1), torch.tensor([hypothesis.tokens]), [12],
                    [len(hypothesis.tokens)], reduction="sum",
                )  # fmt: skip
                assert hypothesis.parts["ctc"] <= float(total) + 1e-9


def test_a_beam_finds_nearly_all_of_the_probability_of_the_best_text() -> None:
    logits = table(8, 30, scale=5.0)
    for row, hypotheses in enumerate(find(logits, beam=50)):
        best = hypotheses[0]
        loss = functional.ctc_loss(
            logits[row].double().log_softmax(1).unsqueeze(1), torch.tensor([best.tokens]), [30], [len(best.tokens)],
            reduction="sum",
        )  # fmt: skip
        assert best.score == pytest.approx(-float(loss), abs=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_beam_one_takes_the_best_path(seed: int) -> None:
    logits = table(3, 9, seed)
    lengths = [9, 5, 1]
    for row, [best] in enumerate(find(logits, lengths)):
        path = logits[row, : lengths[row]].argmax(dim=1).tolist()
        assert best.tokens == spelled(path)
        score = logits[row, : lengths[row]].double().log_softmax(1).max(dim=1).values.sum()
        assert best.score == pytest.approx(float(score))
        assert [path[frame] for frame in best.frames] == list(best.tokens)
        assert all(frame == 0 or path[frame - 1] != path[frame] for frame in best.frames)


def test_a_beam_of_one_takes_the_bonus() -> None:
    plain, longer = (find(table(1, 8), beam=1, length_bonus=bonus)[0][0] for bonus in (0.0, 9.0))
    assert len(longer.tokens) > len(plain.tokens)


@pytest.mark.parametrize("beam", [1, 4])
def test_an_utterance_is_found_the_same_alone_and_in_company(beam: int) -> None:
    logits, lengths = table(4, 15, 3), [15, 7, 11, 2]
    settings: dict[str, Any] = {"beam": beam, "language_model": Pairs(), "language_model_weight": 0.5}
    together = find(logits, lengths, **settings)
    for row, length in enumerate(lengths):
        [alone] = find(logits[row : row + 1, :length], **settings)
        assert [(hypothesis.tokens, hypothesis.frames) for hypothesis in alone] == [
            (hypothesis.tokens, hypothesis.frames) for hypothesis in together[row]
        ]
        assert [hypothesis.score for hypothesis in alone] == pytest.approx(
            [hypothesis.score for hypothesis in together[row]]
        )


def test_frames_name_where_tokens_begin() -> None:
    logits = torch.full((1, 7, 5), -9.0)
    for frame, token in enumerate([BLANK, 3, 3, BLANK, 3, 4, 4]):
        logits[0, frame, token] = 9.0
    for beam in (1, 3):
        best = find(logits, beam=beam)[0][0]
        assert best.tokens == (3, 3, 4)
        assert best.frames == (1, 4, 5)


PEAKED = torch.tensor([[0.41, 0.24, 0.35], [0.17, 0.67, 0.16], [0.13, 0.40, 0.47], [0.23, 0.62, 0.15]])  # blank, 3, 4


def test_the_frames_of_a_beam_are_those_of_the_best_path_of_its_tokens() -> None:
    logits = torch.full((1, 4, 5), -float("inf"))
    logits[0][:, [BLANK, 3, 4]] = PEAKED.log()
    frames = {hypothesis.tokens: hypothesis.frames for hypothesis in find(logits, beam=5)[0]}
    assert frames[4, 3] == (0, 1)
    assert frames[3, 4] == (1, 2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_model", [False, True])
def test_frames_of_every_hypothesis_are_those_of_the_best_of_all_paths(seed: int, with_model: bool) -> None:
    logits = table(2, 5, seed, scale=4.0)
    settings: dict[str, Any] = {"language_model": Pairs(), "language_model_weight": 0.5} if with_model else {}
    for row, hypotheses in enumerate(find(logits, [5, 4], beam=40, **settings)):
        log_probs = logits[row, : 5 - row].double().log_softmax(dim=1).tolist()
        best: dict[tuple[int, ...], tuple[float, list[int]]] = {}
        for path in itertools.product(range(5), repeat=len(log_probs)):
            starts = [t for t, token in enumerate(path) if token != BLANK and (t == 0 or path[t - 1] != token)]
            score = sum(frame[token] for frame, token in zip(log_probs, path, strict=True))
            best[spelled(path)] = max(best.get(spelled(path), (-math.inf, [])), (score, starts))
        assert len(hypotheses) == 40
        for hypothesis in hypotheses:
            assert list(hypothesis.frames) == best[hypothesis.tokens][1]


@pytest.mark.parametrize("beam", [2, 30])
def test_a_vocabulary_of_one_token_and_a_single_frame(beam: int) -> None:
    logits = torch.full((1, 1, 5), -float("inf"))
    logits[0, 0, [BLANK, 3]] = torch.tensor([0.25, 0.75]).log()
    [hypotheses] = find(logits, beam=beam)
    assert [(hypothesis.tokens, hypothesis.frames) for hypothesis in hypotheses] == [((3,), (0,)), ((), ())]
    assert [hypothesis.score for hypothesis in hypotheses] == pytest.approx([math.log(0.75), math.log(0.25)])
    logits[0, 0, 3] = -float("inf")
    assert [hypothesis.tokens for hypothesis in find(logits, beam=beam)[0]] == [()]


@pytest.mark.parametrize("beam", [1, 4])
def test_a_language_model_of_weight_zero_changes_no_digit_and_is_not_asked(beam: int) -> None:
    logits, model = table(2, 12), Pairs()
    assert find(logits, beam=beam, language_model=model) == find(logits, beam=beam)
    assert not model.asked


def test_the_language_model_is_asked_for_new_prefixes_only() -> None:
    model, logits = Pairs(), torch.full((1, 400, 5), 0.0)
    logits[:, :, BLANK] = 30.0
    find(logits, beam=4, language_model=model, language_model_weight=0.5)
    assert model.asked < 400


def test_nothing_to_hear() -> None:
    assert find(torch.zeros(0, 3, 5)) == [] == find(torch.zeros(0, 3, 5), beam=2)
    for beam in (1, 2):
        [[best, *_]] = find(torch.zeros(1, 2, 5), [0], beam=beam)
        assert best.tokens == () and best.score == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam": 0}, "beam=0"),
        ({"language_model_weight": 0.3}, "language_model_weight=0.3"),
        ({"language_model": Pairs(), "language_model_weight": -0.3}, "at least 0 .*, got language_model_weight=-0.3"),
        ({"language_model": Pairs(), "language_model_weight": math.nan}, "language_model_weight=nan"),
        ({"length_bonus": math.inf}, "length_bonus=inf"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CTCSearch(**settings)
