import copy
import itertools
import math
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asr_lightning.decoding import ngram
from asr_lightning.decoding.attention import AttentionSearch, State
from asr_lightning.decoding.ngram import NGramLanguageModel
from asr_lightning.decoding.word_ngram import WordNGramLanguageModel
from asr_lightning.errors import InputError
from asr_lightning.text.arpa import read_arpa, write_arpa
from asr_lightning.text.ngram import NGram
from asr_lightning.text.smoothing import kneser_ney, witten_bell
from asr_lightning.text.tokenizers import CharacterTokenizer, SentencePieceTokenizer, Tokenizer, train_sentencepiece

CPU = torch.device("cpu")
TEXTS = ["THE CAT SAW ME", "A DOG DIDN'T SEE THEM", "THE DOG SAW IT", "A CAT", "THE CAT DIDN'T SEE ME IN 1999", "I"]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(str(train_sentencepiece(TEXTS[:4], 22, tmp_path_factory.mktemp("pieces") / "model")))


def spelled(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.tokens[number] for number in tokenizer.encode(text)]


def write_model(path: Path, tokenizer: Tokenizer, order: int = 3) -> Path:
    """A model that knows the tokens of the texts only."""
    write_arpa(witten_bell([spelled(tokenizer, text) for text in TEXTS], order), path)
    return path


def close(path: Path) -> None:
    """Take `<unk>` out of a model."""
    model = read_arpa(path)
    lines = [line for line in path.read_text().splitlines() if "<unk>" not in line]
    for length in range(1, model.order + 1):
        count = sum("<unk>" in [model.tokens[number] for number in row] for row in model.rows(length).tolist())
        index = lines.index(f"ngram {length}={len(model.levels[length - 1].keys)}")
        lines[index] = f"ngram {length}={len(model.levels[length - 1].keys) - count}"
    path.write_text("\n".join(lines))


def prepared(path: Path, tokenizer: Tokenizer, **arguments: Any) -> NGramLanguageModel:
    model = NGramLanguageModel(str(path), **arguments)
    model.prepare(tokenizer, CPU)
    return model


def expected_row(model: NGram, tokenizer: Tokenizer, history: list[int]) -> list[float]:
    """Log probabilities of all tokens after token ids, by the names that the model has for them."""
    names = list(tokenizer.tokens)
    names[tokenizer.unk_id] = "<unk>"
    context = ["<s>", *(names[number] for number in history)]
    names[tokenizer.eos_id] = "</s>"
    row = [model.log_prob(name, context) for name in names]
    row[tokenizer.blank_id] = -math.inf
    return row


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("kind", ["characters", "pieces"])
def test_steps_are_what_the_model_says(
    tmp_path: Path, pieces: SentencePieceTokenizer, kind: str, order: int, closed: bool
) -> None:
    tokenizer = CharacterTokenizer() if kind == "characters" else pieces
    path = write_model(tmp_path / "lm.arpa", tokenizer, order)
    if closed:
        close(path)
    plain = read_arpa(path)
    assert ("<unk>" in plain.ids) != closed
    model = prepared(path, tokenizer)
    generator = random.Random(0)
    tokens = [number for number in range(len(tokenizer)) if number not in (tokenizer.blank_id, tokenizer.eos_id)]
    likely = [(tokenizer.encode(text) * 6)[:6] for text in TEXTS]
    sequences = likely + [generator.choices(tokens, k=6) for _ in range(4)]
    last, state = torch.full((len(sequences),), tokenizer.eos_id), model.initial_state(len(sequences))
    for position in range(6):
        log_probs, state = model.step(last, state)
        expected = [expected_row(plain, tokenizer, sequence[:position]) for sequence in sequences]
        assert log_probs.dtype == torch.float32
        torch.testing.assert_close(log_probs, torch.tensor(expected), atol=1e-5, rtol=1e-5)
        last = torch.tensor([sequence[position] for sequence in sequences])


@pytest.mark.parametrize("kind", ["characters", "pieces"])
def test_steps_add_up_to_the_score(tmp_path: Path, pieces: SentencePieceTokenizer, kind: str) -> None:
    tokenizer = CharacterTokenizer() if kind == "characters" else pieces
    model = prepared(write_model(tmp_path / "lm.arpa", tokenizer), tokenizer)
    texts = ["THE DOG SAW ME", "", "ME ME ME 7", "Q"]
    for text, score in zip(texts, model.score(texts), strict=True):
        state, total, last = model.initial_state(1), 0.0, tokenizer.eos_id
        for token in (*tokenizer.encode(text), tokenizer.eos_id):
            log_probs, state = model.step(torch.tensor([last]), state)
            total, last = total + float(log_probs[0, token]), token
        assert score == pytest.approx(total, rel=1e-5)


def test_a_model_of_all_tokens_is_a_distribution_over_them(tmp_path: Path) -> None:
    tokenizer = CharacterTokenizer()
    vocabulary = [token for token in tokenizer.tokens if token not in ("<blank>", "<eos>")]
    write_arpa(kneser_ney([spelled(tokenizer, text) for text in TEXTS], 3, vocabulary), tmp_path / "lm.arpa")
    model = prepared(tmp_path / "lm.arpa", tokenizer)
    state = model.initial_state(8)
    for _ in range(4):
        log_probs, state = model.step(torch.randint(3, 31, (8,)), state)
        assert (log_probs[:, tokenizer.blank_id] == -math.inf).all()
        assert log_probs[:, 1:].isfinite().all()
        torch.testing.assert_close(log_probs.exp().sum(dim=1), torch.ones(8))


def test_states_follow_the_beam(tmp_path: Path) -> None:
    tokenizer = CharacterTokenizer()
    model = prepared(write_model(tmp_path / "lm.arpa", tokenizer, 4), tokenizer)
    state = model.initial_state(5)
    for tokens in torch.randint(3, 31, (4, 5)):
        _, state = model.step(tokens, state)
    rows, last = torch.tensor([3, 3, 0, 4]), torch.tensor([5, 6, 5, 7])
    together, _ = model.step(last, tuple(part.index_select(0, rows) for part in state))
    for number, row in enumerate(rows):
        alone, _ = model.step(last[number : number + 1], tuple(part[row : row + 1] for part in state))
        assert torch.equal(together[number], alone[0])
    assert not torch.equal(together[0], together[2])  # the same token, after another context


def test_the_search_finds_what_the_model_finds_most_probable(tmp_path: Path) -> None:
    """With a decoder that finds all alike; the winner and its score are those among all texts of up to 3 tokens."""

    class Letters(CharacterTokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = self.tokens[:7]  # _ ' A B

    class Alike:
        def initial_state(self, memory: State) -> State:
            return (memory[0],)

        def step(self, tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
            return torch.zeros(len(tokens), 7), state

    tokenizer = Letters()
    write_arpa(witten_bell([[*"_BB'"], [*"_BA"], [*"_BB"], [*"A"]], 3), tmp_path / "lm.arpa")
    model = NGramLanguageModel(str(tmp_path / "lm.arpa"))
    search = AttentionSearch(300, language_model=model, language_model_weight=1.0, tokens_per_frame=1.0)
    [[best, *others]] = search(Alike(), (torch.zeros(1, 1),), torch.tensor([3]), tokenizer)
    plain = read_arpa(tmp_path / "lm.arpa")
    ids = [1, 3, 4, 5, 6]
    scores = {
        tokens: plain.score([tokenizer.tokens[number] for number in tokens]) - math.log(7) * (length + 1)
        for length in range(4)
        for tokens in itertools.product(ids, repeat=length)
    }
    assert scores[best.tokens] == max(scores.values()) == pytest.approx(best.score, rel=1e-5)
    assert len(others) > 10
    for hypothesis in (best, *others):
        names = [tokenizer.tokens[number] for number in hypothesis.tokens]
        assert hypothesis.parts["language_model"] == pytest.approx(plain.score(names), rel=1e-5)


def test_the_cache_is_bounded_and_forgets_the_least_recently_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = CharacterTokenizer()
    path = write_model(tmp_path / "lm.arpa", tokenizer)
    free = prepared(path, tokenizer)
    monkeypatch.setattr(ngram, "CACHED_VALUES", 31 * 3 + 5)  # three contexts
    bounded = prepared(path, tokenizer)
    computed = []
    distribution = NGram.distribution
    monkeypatch.setattr(
        NGram, "distribution", lambda self, context: (computed.append(context), distribution(self, context))[1]
    )
    state = free.initial_state(6)
    for tokens in torch.randint(3, 31, (5, 6)):
        expected, following = free.step(tokens, state)
        assert torch.equal(bounded.step(tokens, state)[0], expected)
        assert len(bounded._rows) <= 3
        state = following
    computed.clear()
    for letter in "ACDAEAC":  # E drives out C, not A, which was used in between; C has to come again
        bounded.step(torch.tensor([tokenizer.tokens.index(letter)]), bounded.initial_state(1))
    plain = read_arpa(path)
    assert [plain.tokens[context[-1]] for context in computed] == [*"ACDEC"]


def test_units_that_are_not_those_of_the_file_are_told(tmp_path: Path) -> None:
    words, characters = tmp_path / "words.arpa", tmp_path / "characters.arpa"
    write_arpa(kneser_ney([text.split() for text in TEXTS], 2), words)
    write_model(characters, CharacterTokenizer())
    model = NGramLanguageModel(str(words))
    for _ in range(2):  # a second batch does not get through either
        with pytest.raises(
            InputError, match="words.arpa: expected a language model of the recognizer's 31 tokens, found 'THE'"
        ):
            model.prepare(CharacterTokenizer(), CPU)
    with pytest.raises(InputError, match="characters.arpa: expected a language model of words, found '_' in it"):
        WordNGramLanguageModel(str(characters)).prepare(CharacterTokenizer(), CPU)


def test_the_file_is_read_at_first_use_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    model = NGramLanguageModel(str(path))
    with pytest.raises(InputError, match="cannot read the language model .*lm.arpa"):
        model.prepare(CharacterTokenizer(), CPU)
    write_model(path, CharacterTokenizer())
    model.prepare(CharacterTokenizer(), CPU)
    path.unlink()
    model.prepare(CharacterTokenizer(), CPU)
    assert model.score(["A"])[0] > -math.inf


def test_another_recognizer_gets_its_own_tokens(tmp_path: Path) -> None:
    class Turned(CharacterTokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = self.tokens[:3] + self.tokens[:2:-1]
            self._ids = {token: number for number, token in enumerate(self.tokens)}

    model = prepared(write_model(tmp_path / "lm.arpa", CharacterTokenizer()), CharacterTokenizer())
    log_probs, _ = model.step(torch.tensor([2]), model.initial_state(1))
    model.prepare(Turned(), CPU)
    turned, _ = model.step(torch.tensor([2]), model.initial_state(1))
    assert torch.equal(turned[:, 3:].flip(1), log_probs[:, 3:])
    assert not torch.equal(turned, log_probs)


def test_models_can_be_copied_and_sent_to_other_processes(tmp_path: Path) -> None:
    model = prepared(write_model(tmp_path / "lm.arpa", CharacterTokenizer()), CharacterTokenizer())
    expected, _ = model.step(torch.tensor([2]), model.initial_state(1))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.step(torch.tensor([2]), other.initial_state(1))[0], expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_are_on_the_device_of_the_recognizer(tmp_path: Path) -> None:
    model = NGramLanguageModel(str(write_model(tmp_path / "lm.arpa", CharacterTokenizer())))
    model.prepare(CharacterTokenizer(), CPU)
    expected, _ = model.step(torch.tensor([2]), model.initial_state(1))
    model.prepare(CharacterTokenizer(), torch.device("cuda"))
    log_probs, [context] = model.step(torch.tensor([2], device="cuda"), model.initial_state(1))
    assert log_probs.is_cuda
    assert context.is_cuda
    np.testing.assert_array_equal(log_probs.cpu(), expected)
