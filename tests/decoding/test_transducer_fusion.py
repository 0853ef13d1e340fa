"""Language models in the search of a transducer, beside all token sequences of tiny lattices."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.decoding.language_model import LanguageModel, State
from asr_lightning.decoding.ngram import NGramLanguageModel
from asr_lightning.decoding.transducer import TransducerSearch
from asr_lightning.decoding.word_ngram import WordNGramLanguageModel
from asr_lightning.errors import InputError
from asr_lightning.models.language_model import PretrainedLanguageModel
from asr_lightning.text.arpa import write_arpa
from asr_lightning.text.smoothing import witten_bell
from asr_lightning.text.tokenizers import CharacterTokenizer, LetterTokenizer, Tokenizer
from tests.support.sentences import make, save
from tests.support.small_transducers import SmallJoint, SmallPredictor, exhaustive, small_transducer

CHARACTERS = CharacterTokenizer()
BLANK, END = CHARACTERS.blank_id, CHARACTERS.eos_id
SPELLING = (3, 5, 6)  # `_`, A and B: all that the transducers here emit
TEXTS = ["A B", "AB BA", "BA", "A A B", "AB AB"]
WIDE = 300  # more than there are texts
CPU = torch.device("cpu")


class Pairs(LanguageModel):
    """The next token depends on the last one; `excluded` tokens never come."""

    def __init__(self, seed: int = 9, excluded: Sequence[int] = ()) -> None:
        self.log_probs = torch.randn(31, 31, generator=torch.Generator().manual_seed(seed)).log_softmax(dim=1)
        self.log_probs[:, list(excluded)] = -math.inf

    def prepare(self, tokenizer: Tokenizer, device: torch.device) -> None: ...

    def initial_state(self, batch_size: int) -> State:
        return ()

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        return self.log_probs[tokens], state

    def score(self, texts: Sequence[str]) -> list[float]:
        raise NotImplementedError


class Unread(Pairs):
    """A model that must not be used."""

    def prepare(self, tokenizer: Tokenizer, device: torch.device) -> None:
        raise AssertionError("a model of weight 0 is read")


def token_ngram(folder: Path, order: int = 2) -> NGramLanguageModel:
    path = folder / f"tokens{order}.arpa"
    write_arpa(witten_bell([[CHARACTERS.tokens[n] for n in CHARACTERS.encode(text)] for text in TEXTS], order), path)
    return NGramLanguageModel(str(path))


def word_ngram(folder: Path) -> WordNGramLanguageModel:
    write_arpa(witten_bell([text.split() for text in TEXTS], 2), folder / "words.arpa")
    return WordNGramLanguageModel(str(folder / "words.arpa"))


MODELS: dict[str, Callable[[Path], LanguageModel]] = {
    "token n-gram": token_ngram,
    "word n-gram": word_ngram,
    "LSTM": lambda folder: PretrainedLanguageModel(save(make().eval(), folder / "lm.ckpt")),
    "pairs": lambda folder: Pairs(),
}


def letters_only(seed: int, blank_bias: float = 0.0) -> tuple[SmallPredictor, SmallJoint]:
    predictor, joint = small_transducer(seed, len(CHARACTERS), BLANK, blank_bias)
    others = [token for token in range(len(CHARACTERS)) if token not in (BLANK, *SPELLING)]
    with torch.no_grad():
        joint.output.bias[others] = -1e5
    return predictor, joint


def steps_of(model: LanguageModel, tokens: Sequence[int]) -> float:
    """The sum of a model's steps for tokens and end, one after another."""
    model.prepare(CHARACTERS, CPU)
    state, total = model.initial_state(1), 0.0
    for previous, token in zip((END, *tokens), (*tokens, END), strict=True):
        log_probs, state = model.step(torch.tensor([previous]), state)
        total += float(log_probs[0, token])
    return total


@torch.no_grad()
def internal(predictor: SmallPredictor, joint: SmallJoint, tokens: Sequence[int]) -> float:
    """Log probability by the joint network without a frame, renormalized without the blank."""
    predicted, _ = predictor(torch.tensor([[BLANK, *tokens]]), predictor.initial_state(1, CPU))
    rows = joint(torch.zeros(8), predicted[0]).double().softmax(dim=1).tolist()
    return sum(math.log(row[token] / (1.0 - row[BLANK])) for row, token in zip(rows, tokens, strict=False))


def spelled(hypotheses: Sequence[Hypothesis]) -> dict[tuple[int, ...], Hypothesis]:
    return {hypothesis.tokens: hypothesis for hypothesis in hypotheses if set(hypothesis.tokens) <= set(SPELLING)}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seed", range(2))
def test_every_text_scores_what_all_models_say_of_it(kind: str, seed: int, tmp_path: Path) -> None:
    predictor, joint = letters_only(seed)
    encoded = 2 * torch.randn(2, 2, 8)
    model, low = MODELS[kind](tmp_path), token_ngram(tmp_path, order=1)
    search = TransducerSearch(WIDE, 2, model, 0.7, 0.3, low, 0.2, length_bonus=0.4)
    results = search(encoded, torch.tensor([2, 1]), predictor, joint, CHARACTERS)
    for row, frames in enumerate((2, 1)):
        expected = exhaustive(encoded[row, :frames], predictor, joint, BLANK, 2, SPELLING)
        added = {
            tokens: 0.7 * steps_of(model, tokens)
            - 0.3 * internal(predictor, joint, tokens)
            - 0.2 * steps_of(low, tokens)
            + 0.4 * len(tokens)
            for tokens in expected
        }
        totals = {tokens: score + added[tokens] for tokens, (score, _) in expected.items()}
        assert len(totals) == (121 if frames == 2 else 13)
        hypotheses = spelled(results[row])
        assert {tokens: hypothesis.score for tokens, hypothesis in hypotheses.items()} == pytest.approx(
            totals, abs=1e-4
        )
        assert {t: hypothesis.parts["transducer"] for t, hypothesis in hypotheses.items()} == pytest.approx(
            {tokens: score for tokens, (score, _) in expected.items()}, abs=1e-4
        )
        assert {t: hypothesis.parts["fusion"] for t, hypothesis in hypotheses.items()} == pytest.approx(added, abs=1e-4)
        assert {t: hypothesis.frames for t, hypothesis in hypotheses.items()} == {
            t: frames for t, (_, frames) in expected.items()
        }
        assert results[row][0].tokens == max(totals, key=lambda tokens: totals[tokens])
        assert [hypothesis.score for hypothesis in results[row]] == sorted(
            (hypothesis.score for hypothesis in results[row]), reverse=True
        )


def test_whole_texts_score_as_the_models_score_them(tmp_path: Path) -> None:
    predictor, joint = letters_only(0)
    encoded = 2 * torch.randn(1, 2, 8)
    for kind in ("token n-gram", "word n-gram", "LSTM"):
        model = MODELS[kind](tmp_path)
        [results] = TransducerSearch(WIDE, 2, model, 1.0)(encoded, torch.tensor([2]), predictor, joint, CHARACTERS)
        hypotheses = spelled(results)
        for text in ("", "A", "AB", "BA", "A B"):
            [score] = model.score([text])
            assert hypotheses[tuple(CHARACTERS.encode(text))].parts["fusion"] == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("beam", [1, 4])
def test_models_of_weight_zero_change_no_digit_and_are_not_asked(beam: int) -> None:
    predictor, joint = small_transducer(1, len(CHARACTERS), BLANK, 3.0)
    encoded, lengths = 2 * torch.randn(3, 20, 8), torch.tensor([20, 0, 13])
    arguments = (encoded, lengths, predictor, joint, CHARACTERS)
    unread = Unread()
    expected = TransducerSearch(beam)(*arguments)
    assert any(hypotheses[0].tokens for hypotheses in expected)
    assert TransducerSearch(beam, language_model=unread, density_ratio_model=unread)(*arguments) == expected


def test_a_beam_of_one_hears_the_language_model() -> None:
    predictor, joint = letters_only(2)
    encoded, lengths = 2 * torch.randn(1, 6, 8), torch.tensor([6])
    plain = TransducerSearch(1, 2)
    fused = TransducerSearch(1, 2, Pairs(excluded=[5]), 0.5, length_bonus=2.0)
    [[plain_hypothesis]], [[fused_hypothesis]] = (
        search(encoded, lengths, predictor, joint, CHARACTERS) for search in (plain, fused)
    )
    assert 5 in plain_hypothesis.tokens and fused_hypothesis.tokens and 5 not in fused_hypothesis.tokens


@pytest.mark.parametrize("seed", range(3))
def test_fused_beams_do_not_see_neighbours_and_padding(seed: int, tmp_path: Path) -> None:
    predictor, joint = letters_only(seed, 2.0)
    lengths = torch.tensor([9, 0, 12, 1])
    encoded = 2 * torch.randn(4, 15, 8)
    garbage = encoded.clone()
    for row, length in enumerate(lengths.tolist()):
        garbage[row, length:] = math.nan
    search = TransducerSearch(4, 3, word_ngram(tmp_path), 0.6, 0.2, token_ngram(tmp_path, 1), 0.1)
    together = search(garbage, lengths, predictor, joint, CHARACTERS)
    for row, length in enumerate(lengths.tolist()):
        [alone] = search(encoded[row : row + 1, :length], lengths[row : row + 1], predictor, joint, CHARACTERS)
        for hypothesis, expected in zip(together[row], alone, strict=True):
            assert (hypothesis.tokens, hypothesis.frames) == (expected.tokens, expected.frames)
            assert hypothesis.score == pytest.approx(expected.score, abs=1e-4)


@pytest.mark.parametrize("arguments", [{"language_model_weight": 0.5}, {"density_ratio_weight": 0.5}])
def test_what_a_model_excludes_is_never_emitted_also_where_it_is_subtracted(arguments: dict[str, float]) -> None:
    predictor, joint = letters_only(3)
    model = Pairs(excluded=[6])
    search = TransducerSearch(WIDE, 2, language_model=model, density_ratio_model=model, **arguments)
    [hypotheses] = search(2 * torch.randn(1, 2, 8), torch.tensor([2]), predictor, joint, CHARACTERS)
    texts = spelled(hypotheses)
    assert len(texts) == 1 + 2 + 4 + 8 + 16 and not any(6 in tokens for tokens in texts)
    assert all(math.isfinite(hypothesis.score) for hypothesis in texts.values())


def test_texts_whose_end_a_model_excludes_are_left_out() -> None:
    predictor, joint = letters_only(3)
    encoded, model = 2 * torch.randn(1, 2, 8), Pairs()
    [everything] = TransducerSearch(WIDE, 2, model, 0.5)(encoded, torch.tensor([2]), predictor, joint, CHARACTERS)
    last = everything[0].tokens[-1:] or everything[1].tokens[-1:]
    model.log_probs[last, END] = -math.inf
    [hypotheses] = TransducerSearch(WIDE, 2, model, 0.5)(encoded, torch.tensor([2]), predictor, joint, CHARACTERS)
    assert all(math.isfinite(h.score) and h.tokens[-1:] != last for h in hypotheses)
    assert 0 < len(hypotheses) < len(everything)


def test_where_no_text_can_end_the_best_is_returned_without_a_probability() -> None:
    predictor, joint = letters_only(3)
    search = TransducerSearch(3, 2, Pairs(excluded=[END]), 0.5)
    [hypotheses] = search(2 * torch.randn(1, 5, 8), torch.tensor([5]), predictor, joint, CHARACTERS)
    assert hypotheses and all(hypothesis.score == -math.inf for hypothesis in hypotheses)


def test_the_letters_of_deep_speech_whose_end_is_the_blank(tmp_path: Path) -> None:
    letters = LetterTokenizer()
    write_arpa(witten_bell([text.split() for text in TEXTS], 2), tmp_path / "words.arpa")
    write_arpa(witten_bell([[letters.tokens[n] for n in letters.encode(t)] for t in TEXTS], 2), tmp_path / "t.arpa")
    predictor, joint = small_transducer(0, len(letters), 0, 0.0)
    with torch.no_grad():
        joint.output.bias[[token for token in range(len(letters)) if token not in (0, 1, 3, 4)]] = -1e5
    for model in (WordNGramLanguageModel(str(tmp_path / "words.arpa")), NGramLanguageModel(str(tmp_path / "t.arpa"))):
        search = TransducerSearch(WIDE, 2, model, 1.0)
        [hypotheses] = search(2 * torch.randn(1, 2, 8), torch.tensor([2]), predictor, joint, letters)
        by_tokens = {hypothesis.tokens: hypothesis for hypothesis in hypotheses}
        for text in ("", "A", "BA", "A B"):
            [score] = model.score([text])
            assert by_tokens[tuple(letters.encode(text))].parts["fusion"] == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"language_model_weight": 0.3}, "needs a language_model for language_model_weight=0.3, got none"),
        ({"density_ratio_weight": 0.3}, "needs a density_ratio_model for density_ratio_weight=0.3, got none"),
        ({"language_model": Pairs(), "language_model_weight": -0.3}, "weights of at least 0 .*: -0.3"),
        ({"internal_language_model_weight": math.inf}, "weights of at least 0 and a finite length_bonus"),
        ({"length_bonus": math.nan}, "length_bonus=nan"),
        ({"beam": 0}, "got beam=0"),
    ],
)
def test_numbers_out_of_their_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TransducerSearch(**arguments)
