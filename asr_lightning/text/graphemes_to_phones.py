"""Grapheme-to-phoneme conversion by a joint-sequence model [Bisani and Ney 2008].

Words of a lexicon are cut into graphones, pieces of spelling with their pieces of pronunciation, in the most probable
way (`graphones`). An n-gram model of these sequences gives the joint probability of a word and a pronunciation, and a
beam search finds the most probable pronunciations of a spelling.

A model is a plain ARPA file. Its tokens are graphones as `write_graphone` writes them: `PH}F`, `X}K|S`.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from asr_lightning.errors import InputError
from asr_lightning.text.arpa import read_arpa, write_arpa
from asr_lightning.text.graphones import (
    Entry,
    Floats,
    Graphone,
    GraphoneModel,
    Integers,
    parse_graphone,
    write_graphone,
)
from asr_lightning.text.lexicon import NOT_SPEECH, Lexicon, Phones, capitals
from asr_lightning.text.ngram import ABSENT, SENTENCE_END, SENTENCE_START, UNKNOWN, NGram
from asr_lightning.text.smoothing import kneser_ney

SPECIAL = {SENTENCE_START, SENTENCE_END, UNKNOWN}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A pronunciation of a word.

    Attributes:
        phones: Of the word.
        share: Its probability, given that the word has one of the pronunciations that the search ended with.
        log_prob: Natural log probability of the word with this pronunciation, summed over the ways to cut them that the
            search found.
    """

    phones: Phones
    share: float
    log_prob: float


@dataclass
class _Beam:
    """H partial pronunciations of the same letters.

    Attributes:
        phones: (H,) so far.
        contexts: (H, order - 1) indices of the last 1, 2, … graphones in the levels of the n-gram model, `ABSENT` where
            the model has no such n-gram. Only these decide what may follow.
        scores: (H,) natural log probabilities.
    """

    phones: list[Phones]
    contexts: Integers
    scores: Floats


class JointSequenceModel:
    """Joint-sequence model; a call with a word returns its most probable pronunciations, as `complete_lexicon` needs.

    Between two graphones with letters there is at most one without.

    Args:
        ngram: Of graphones, written as tokens as above.
        beam: Beginnings of pronunciations that the search keeps for every letter of a word.
        variants: Pronunciations that a call returns.

    Raises:
        InputError: A token is no graphone, or there are none with letters.
    """

    def __init__(self, ngram: NGram, beam: int = 16, variants: int = 1) -> None:
        if beam < 1 or variants < 1:
            raise InputError(f"expected a beam and variants of 1 or more, got {beam} and {variants}")
        self.ngram, self.beam, self.variants = ngram, beam, variants
        self._phones: list[Phones] = []
        ids: dict[str, list[int]] = {}
        for number, token in enumerate(ngram.tokens):
            if token in SPECIAL:
                self._phones.append(())
                continue
            letters, phones = parse_graphone(token)
            self._phones.append(phones)
            ids.setdefault(letters, []).append(number)
        self._ids = {letters: np.array(numbers) for letters, numbers in ids.items()}
        self._longest = max(map(len, self._ids), default=0)
        if not self._longest:
            raise InputError("expected graphones with letters in the n-gram model, found none")

    @classmethod
    def train(
        cls,
        lexicon: Lexicon,
        order: int = 5,
        letters: int = 2,
        phones: int = 2,
        passes: int = 10,
        beam: int = 16,
        variants: int = 1,
    ) -> Self:
        """Estimate a model; the same lexicon always gives the same one.

        Args:
            lexicon: All its pronunciations count alike; those with silence or noise are left out.
            order: Graphones in the longest n-grams.
            letters: In a graphone at most.
            phones: In a graphone at most.
            passes: Of expectation maximization, before the lexicon is cut into graphones.
            beam: As of the class.
            variants: As of the class.

        Raises:
            InputError: The lexicon has no words with phones, a word is too long, or has a character that graphones
                cannot be written with.
        """
        unigram = GraphoneModel(_entries(lexicon), letters, phones)
        for number in range(1, passes + 1):
            _logger.info("pass %d: log likelihood %.3f per entry", number, unigram.improve() / len(unigram.entries))
        sentences = [
            [write_graphone(graphone) for graphone in segmentation] for segmentation in unigram.segmentations()
        ]
        vocabulary = dict.fromkeys(token for sentence in sentences for token in sentence)
        vocabulary.update(dict.fromkeys(map(write_graphone, _single_letters(unigram))))
        return cls(kneser_ney(sentences, order, vocabulary), beam, variants)

    @classmethod
    def read(cls, path: str | Path, beam: int = 16, variants: int = 1) -> Self:
        """Read a model that `write` wrote.

        Raises:
            InputError: The file cannot be read, or is no n-gram model of graphones; the message names it.
        """
        ngram = read_arpa(path)
        try:
            return cls(ngram, beam, variants)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def write(self, path: str | Path) -> None:
        """Write the model as an ARPA file, compressed if the path ends in `.gz`.

        Raises:
            InputError: The file cannot be written.
        """
        write_arpa(self.ngram, path)

    def __call__(self, word: str) -> tuple[Phones, ...]:
        """Return the most probable pronunciations of a word, the best first.

        Raises:
            InputError: As of `candidates`.
        """
        return tuple(candidate.phones for candidate in self.candidates(word)[: self.variants])

    def candidates(self, word: str) -> list[Candidate]:
        """Return the pronunciations that the beam search ends with, the most probable first.

        Args:
            word: In any case; it is read in capitals.

        Returns:
            None of them is empty, so there are none where all letters are silent.

        Raises:
            InputError: The word has a letter that the model does not know, or no letters.
        """
        spelling = capitals(word)
        self._check(word, spelling)
        extended: list[list[_Beam]] = [[] for _ in range(len(spelling) + 1)]
        extended[0] = [self._start()]
        for position, beams in enumerate(extended):
            if not beams:
                continue
            beam = self._prune(beams)
            beam = self._prune([beam, *self._extend(beam, "")])
            for size in range(1, self._longest + 1):
                if position + size <= len(spelling):
                    extended[position + size] += self._extend(beam, spelling[position : position + size])
        return self._end(beam)

    def _check(self, word: str, spelling: str) -> None:
        if not spelling:
            raise InputError("expected a word to find the pronunciation of, found an empty one")
        for letter in spelling:
            if letter not in self._ids:
                known = "".join(sorted(letters for letters in self._ids if len(letters) == 1))
                raise InputError(
                    f"no pronunciation of {word!r}: expected letters that the model was trained with ({known}), found "
                    f"{letter!r}; leave the word out, spell it otherwise, or put it into the lexicon"
                )

    def _start(self) -> _Beam:
        contexts = np.full((1, self.ngram.order - 1), ABSENT)
        contexts[:, :1] = self.ngram.start_id
        return _Beam([()], contexts, np.zeros(1))

    def _extend(self, beam: _Beam, letters: str) -> list[_Beam]:
        """Lengthen by all graphones with these letters; return the best, or nothing if there is no such graphone."""
        if letters not in self._ids:
            return []
        tokens = self._ids[letters]
        contexts, log_probs = self._predict(beam.contexts, tokens)
        scores = (beam.scores[:, None] + log_probs).ravel()
        # twice the beam: some may differ only in their segmentation
        best = (-scores).argsort(kind="stable")[: 2 * self.beam]
        rows, columns = np.divmod(best, len(tokens))
        phones = [
            beam.phones[row] + self._phones[token]
            for row, token in zip(rows.tolist(), tokens[columns].tolist(), strict=True)
        ]
        return [_Beam(phones, contexts[rows, columns], scores[best])]

    def _predict(self, contexts: Integers, tokens: Integers) -> tuple[Integers, Floats]:
        """Return the contexts after tokens, and their natural log probabilities: `NGram.log_probs`, a token at a time.

        Args:
            contexts: (H, order - 1) as of `_Beam`.
            tokens: (G,) ids.

        Returns:
            Contexts (H, G, order - 1), log probabilities (H, G).
        """
        levels = self.ngram.levels
        new_contexts = np.full((len(contexts), len(tokens), len(levels)), ABSENT)
        new_contexts[:, :, 0] = tokens
        log_probs = np.tile(levels[0].log_probs[tokens], (len(contexts), 1))
        for length, (below, level) in enumerate(zip(levels, levels[1:], strict=False)):
            rows = np.flatnonzero(contexts[:, length] != ABSENT)
            parents = contexts[rows, length]
            keys = parents[:, None] * len(self.ngram.tokens) + tokens
            children = np.minimum(level.keys.searchsorted(keys), len(level.keys) - 1)
            exists = level.keys[children] == keys
            backed_off = log_probs[rows] + below.backoffs[parents][:, None]
            log_probs[rows] = np.where(exists, level.log_probs[children], backed_off)
            new_contexts[rows, :, length + 1] = np.where(exists, children, ABSENT)
        return new_contexts[:, :, : len(levels) - 1], log_probs

    def _prune(self, beams: Sequence[_Beam]) -> _Beam:
        """Sum hypotheses that differ only in their segmentation, and keep the best."""
        contexts = np.concatenate([beam.contexts for beam in beams])
        scores = np.concatenate([beam.scores for beam in beams])
        phones = [partial for beam in beams for partial in beam.phones]
        first: dict[tuple[Phones, bytes], int] = {}
        for row, key in enumerate(zip(phones, map(np.ndarray.tobytes, contexts), strict=True)):
            first_row = first.setdefault(key, row)
            if first_row != row:
                scores[first_row] = np.logaddexp(scores[first_row], scores[row])
        rows = np.array(list(first.values()))
        rows = rows[(-scores[rows]).argsort(kind="stable")[: self.beam]]
        return _Beam([phones[row] for row in rows.tolist()], contexts[rows], scores[rows])

    def _end(self, beam: _Beam) -> list[Candidate]:
        _, log_probs = self._predict(beam.contexts, np.array([self.ngram.end_id]))
        totals: dict[Phones, float] = {}
        for phones, score in zip(beam.phones, (beam.scores + log_probs[:, 0]).tolist(), strict=True):
            if phones:
                totals[phones] = float(np.logaddexp(totals.get(phones, -math.inf), score))
        total = float(np.logaddexp.reduce(list(totals.values()))) if totals else 0.0
        candidates = [Candidate(phones, math.exp(score - total), score) for phones, score in totals.items()]
        return sorted(candidates, key=lambda candidate: (-candidate.log_prob, candidate.phones))


def _entries(lexicon: Lexicon) -> list[Entry]:
    return [
        (word, pronunciation)
        for word, pronunciations in sorted(lexicon.pronunciations.items())
        for pronunciation in pronunciations
        if not NOT_SPEECH.intersection(phone.upper() for phone in pronunciation)
    ]


def _single_letters(model: GraphoneModel) -> Iterator[Graphone]:
    """Yield every letter as silent and with its most probable phone, so that every word has a pronunciation."""
    best: dict[str, tuple[float, Graphone]] = {}
    counts = model.expected_counts()[0]
    for graphone, count in model.graphones(counts):
        letters, phones = graphone
        if len(letters) == 1 and len(phones) == 1 and count > best.get(letters, (0.0,))[0]:
            best[letters] = (count, graphone)
    for letter in dict.fromkeys(letter for word, _ in model.entries for letter in word):
        yield letter, ()
        if letter in best:
            yield best[letter][1]
