import itertools
import math
from pathlib import Path

import pytest
import torch

from asr_lightning.decoding import word_ngram
from asr_lightning.decoding.ctc_search import CTCSearch
from asr_lightning.decoding.word_ngram import WordNGramLanguageModel, beginnings
from asr_lightning.errors import InputError
from asr_lightning.text.arpa import read_arpa, write_arpa
from asr_lightning.text.hangul import JamoTokenizer, SyllableTokenizer
from asr_lightning.text.smoothing import kneser_ney
from asr_lightning.text.tokenizers import CharacterTokenizer, SentencePieceTokenizer, Tokenizer, train_sentencepiece

TEXTS = ["THE CAT SAW ME", "A DOG DIDN'T SEE THEM", "THE DOG SAW IT", "A CAT", "THE CAT DIDN'T SEE ME"]
KOREAN = ["비가 온다", "눈이 온다", "오늘은 비가 온다", "눈이"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    pieces = train_sentencepiece(TEXTS, 23, tmp_path_factory.mktemp("pieces") / "model")
    return {
        "characters": CharacterTokenizer(),
        "pieces": SentencePieceTokenizer(str(pieces)),
        "jamo": JamoTokenizer(),
        "syllables": SyllableTokenizer(characters_in_order="비가온다눈이오늘은"),
    }


@pytest.mark.parametrize("kept", [0, 1 << 16])
@pytest.mark.parametrize("kind", ["characters", "pieces", "jamo", "syllables"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_steps_add_up_to_what_the_model_says_of_the_words(
    tokenizers: dict[str, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, order: int, kept: int
) -> None:
    monkeypatch.setattr(word_ngram, "KEPT_CONTEXTS", kept)
    tokenizer = tokenizers[kind]
    texts = KOREAN if kind in ("jamo", "syllables") else TEXTS
    write_arpa(kneser_ney([text.split() for text in texts], order), tmp_path / "words.arpa")
    plain = read_arpa(tmp_path / "words.arpa")
    model = WordNGramLanguageModel(str(tmp_path / "words.arpa"))
    model.prepare(tokenizer, CPU)
    sentences = [*texts, "", texts[0].split()[1], f"{texts[1].split()[0]} {texts[0]}", "".join(texts[0].split())]
    assert model.score(sentences) == [plain.score(text.split()) for text in sentences]
    ids = [[tokenizer.eos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in sentences]
    assert [tokenizer.decode(row) for row in ids] == sentences
    for _ in range(2):  # two batches, the second of known contexts
        state = model.initial_state(len(sentences))
        totals = torch.zeros(len(sentences))
        active = list(range(len(sentences)))
        for position in range(max(map(len, ids)) - 1):
            rows = [number for number, row in enumerate(active) if position + 1 < len(ids[row])]
            active, state = [active[number] for number in rows], (state[0][rows],)
            log_probs, state = model.step(torch.tensor([ids[row][position] for row in active]), state)
            assert log_probs[:, tokenizer.blank_id].eq(-torch.inf).all()
            for number, row in enumerate(active):
                totals[row] += log_probs[number, ids[row][position + 1]]
        torch.testing.assert_close(totals, torch.tensor([plain.score(text.split()) for text in sentences]))


def test_which_tokens_begin_words(tokenizers: dict[str, Tokenizer]) -> None:
    for tokenizer in tokenizers.values():
        expected = [token[0] in "_\N{LOWER ONE EIGHTH BLOCK}" for token in tokenizer.tokens]
        assert beginnings(tokenizer).tolist() == expected


def test_a_search_prefers_what_the_words_prefer(tmp_path: Path) -> None:
    class Letters(CharacterTokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = self.tokens[:7]  # blank, unk, eos, _ ' A B

    write_arpa(kneser_ney([["AB", "A"], ["AB"], ["B", "A"], ["AB", "B"]], 2), tmp_path / "words.arpa")
    model = WordNGramLanguageModel(str(tmp_path / "words.arpa"))
    logits = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(0))
    logits[:, :, 1:3] = -30.0
    settings = {"language_model": model, "language_model_weight": 1.5}
    [hypotheses] = CTCSearch(beam=3_000, **settings)(logits, torch.tensor([4]), Letters())  # type: ignore[arg-type]
    log_probs, plain, tokenizer = logits[0].double().log_softmax(1), read_arpa(tmp_path / "words.arpa"), Letters()
    paths: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(7), repeat=4):
        spelled = tuple(token for token, _ in itertools.groupby(path) if token)
        paths[spelled] = paths.get(spelled, 0.0) + float(log_probs[range(4), path].sum().exp())
    scores = {
        tokens: math.log(probability) + 1.5 * plain.score(tokenizer.decode(tokens).split())
        for tokens, probability in paths.items()
        if not {1, 2} & set(tokens)
    }  # fmt: skip
    assert hypotheses[0].tokens == max(scores, key=lambda tokens: scores[tokens])
    for hypothesis in hypotheses[:50]:
        assert hypothesis.score == pytest.approx(scores[hypothesis.tokens], abs=1e-4)


def test_words_of_another_case_are_refused(tmp_path: Path) -> None:
    write_arpa(kneser_ney([text.lower().split() for text in TEXTS], 2), tmp_path / "words.arpa")
    model = WordNGramLanguageModel(str(tmp_path / "words.arpa"))
    with pytest.raises(InputError, match=r"words.arpa: expected words that the recognizer's tokens can write, found"):
        model.prepare(CharacterTokenizer(), CPU)
