import math
from pathlib import Path

import pytest
import torch

from asr_lightning.decoding.ctc_search import CTCSearch, add_alignments
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.decoding.words import FrameTimes, word_tokens, words_of
from asr_lightning.text.hangul import JamoTokenizer, SyllableTokenizer
from asr_lightning.text.timed_words import Word
from asr_lightning.text.tokenizers import (
    CharacterTokenizer,
    LetterTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    train_sentencepiece,
)

TEXTS = ["THE CAT SAW ME", "A DOG DIDN'T SEE THEM", "THE DOG SAW IT", "A CAT", "THE CAT DIDN'T SEE ME"]
TIMES = FrameTimes(step=0.04, window=0.02)


def tokenizers(folder: Path) -> dict[str, Tokenizer]:
    pieces = train_sentencepiece(TEXTS, 23, folder / "model")
    return {
        "characters": CharacterTokenizer(),
        "letters": LetterTokenizer(),
        "pieces": SentencePieceTokenizer(str(pieces)),
        "jamo": JamoTokenizer(),
        "syllables": SyllableTokenizer(characters_in_order="비가온다눈이오늘은"),
    }


def test_each_word_is_written_by_its_own_tokens_whatever_the_tokenizer(tmp_path: Path) -> None:
    for name, tokenizer in tokenizers(tmp_path).items():
        for text in ["비가 온다", "눈이"] if name in ("jamo", "syllables") else TEXTS:
            tokens = tokenizer.encode(text)
            groups = word_tokens(tokens, tokenizer)
            assert [tokenizer.decode([tokens[n] for n in group]) for group in groups] == text.split()
            flat = [number for group in groups for number in group]
            assert flat == sorted(set(flat))
            hidden = [n for n in range(len(tokens)) if n not in flat]
            assert not "".join(tokenizer.decode([tokens[n]]) for n in hidden)


def test_words_begin_and_end_with_the_frames_of_their_visible_tokens() -> None:
    tokenizer = CharacterTokenizer()
    tokens = tuple(tokenizer.encode("AB C"))  # _ A B _ C
    log_probs = tuple(math.log(p) for p in (0.1, 0.5, 0.8, 0.1, 0.9))
    hypothesis = Hypothesis(tokens, 0.0, (0, 2, 4, 7, 9), log_probs=log_probs)
    first, second = words_of(hypothesis, tokenizer, TIMES, 0.37)
    assert first == Word("AB", pytest.approx(0.07), pytest.approx(0.19), pytest.approx(0.4))
    assert second == Word("C", pytest.approx(0.35), 0.37, pytest.approx(0.9)), "no word outlasts the audio"
    hypothesis.ends = (1, 3, 6, 8, 9)
    assert words_of(hypothesis, tokenizer, TIMES, 9.0)[0].end == pytest.approx(0.27)
    for pooling, expected in (("min", 0.5), ("mean", 0.65), ("product", 0.4)):
        assert words_of(hypothesis, tokenizer, TIMES, 9.0, pooling)[0].confidence == pytest.approx(expected)
    assert words_of(Hypothesis(tokens, 0.0), tokenizer, TIMES, 9.0) == ()
    assert words_of(Hypothesis(tokens, 0.0, (0, 2, 4, 7, 9)), tokenizer, TIMES, 9.0)[0].confidence is None


def test_frames_are_around_the_middle_of_their_windows() -> None:
    assert [TIMES.start(frame) for frame in range(3)] == pytest.approx([0.0, 0.03, 0.07])
    assert TIMES.end(0) == TIMES.start(1)


def test_ctc_says_when_tokens_begin_and_end_and_how_sure_it_is() -> None:
    path = [0, 5, 5, 0, 5, 6, 6, 0]
    logits = torch.full((1, 8, 31), -9.0)
    for frame, token in enumerate(path):
        logits[0, frame, token] = 2.0 + 0.1 * frame
    log_probs = logits.log_softmax(dim=2)
    expected = [float(log_probs[0, frame, token]) for frame, token in ((2, 5), (4, 5), (6, 6))]
    for beam in (1, 4):
        [hypotheses] = CTCSearch(beam=beam)(logits, torch.tensor([8]), CharacterTokenizer())
        assert (hypotheses[0].tokens, hypotheses[0].frames, hypotheses[0].ends) == ((5, 5, 6), (1, 4, 5), (2, 4, 6))
        assert hypotheses[0].log_probs == pytest.approx(expected, abs=1e-5)


def test_what_no_path_spells_stays_without_frames() -> None:
    logits = torch.zeros(1, 2, 31)
    hypothesis = Hypothesis((5, 5, 6), -math.inf, log_probs=(-1.0, -1.0, -1.0))
    add_alignments([[hypothesis]], logits, torch.tensor([2]), 0)
    assert hypothesis.frames == hypothesis.ends == () and hypothesis.log_probs == (-1.0, -1.0, -1.0)
