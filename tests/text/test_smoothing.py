"""Against the definitions, counted out in dictionaries; against values by hand; and against KenLM's lmplz."""

import logging
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from asr_lightning.errors import InputError
from asr_lightning.text.ngram import NGram
from asr_lightning.text.smoothing import DISCOUNTS, discounts, kneser_ney, witten_bell
from tests.support.small_texts import zipf_text

START, END = "<s>", "</s>"
TINY = [sentence.split() for sentence in ("A B A C", "B A", "A", "", "C C C A B")]
ESTIMATORS = [kneser_ney, witten_bell]


class BruteForce:
    """P(w | context) by the recursive definition over all lengths."""

    def __init__(self, text: Sequence[Sequence[str]], order: int) -> None:
        self.order = order
        self.sentences = [(START, *sentence, END) for sentence in text]
        self.vocabulary = {word for sentence in text for word in sentence} | {END, "<unk>"}
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.before: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for sentence in self.sentences:
            for first in range(len(sentence)):
                for last in range(first + 1, len(sentence) + 1):
                    self.counts[sentence[first:last]] += 1
                    if first:
                        self.before[sentence[first:last]].add(sentence[first - 1])

    def count(self, gram: tuple[str, ...]) -> int:
        return self.counts[gram]

    def followers(self, context: tuple[str, ...]) -> dict[str, int]:
        counts = {word: self.count((*context, word)) for word in self.vocabulary}
        return {word: count for word, count in counts.items() if count}

    def parts(self, count: int, followers: dict[str, int], length: int) -> tuple[float, float]:
        """A token's own probability after a seen context, and the weight of the shorter context."""
        total, different = sum(followers.values()), len(followers)
        return count / (total + different), different / (total + different)

    def prob(self, word: str, context: tuple[str, ...]) -> float:
        context = context[len(context) - min(len(context), self.order - 1) :]
        shorter = self.prob(word, context[1:]) if context else 1 / len(self.vocabulary)
        followers = self.followers(context)
        if not followers:
            return shorter
        probability, weight = self.parts(self.count((*context, word)), followers, len(context) + 1)
        return probability + weight * shorter


class BruteForceKneserNey(BruteForce):
    def __init__(self, text: Sequence[Sequence[str]], order: int) -> None:
        super().__init__(text, order)
        self.discounts = [self.estimate(length) for length in range(1, order + 1)]

    def count(self, gram: tuple[str, ...]) -> int:
        if len(gram) == self.order or gram[0] == START:
            return self.counts[gram]
        return len(self.before[gram])

    def estimate(self, length: int) -> tuple[float, float, float]:
        counts_of_counts = Counter(
            self.count(gram) for gram in set(self.counts) if len(gram) == length and gram != (START,)
        )
        if not all(counts_of_counts[count] for count in (1, 2, 3, 4)):
            return DISCOUNTS
        scale = counts_of_counts[1] / (counts_of_counts[1] + 2 * counts_of_counts[2])
        amounts = (
            1 - 2 * scale * counts_of_counts[2] / counts_of_counts[1],
            2 - 3 * scale * counts_of_counts[3] / counts_of_counts[2],
            3 - 4 * scale * counts_of_counts[4] / counts_of_counts[3],
        )
        return amounts if min(amounts) > 0 else DISCOUNTS

    def parts(self, count: int, followers: dict[str, int], length: int) -> tuple[float, float]:
        def discount(count: int) -> float:
            return self.discounts[length - 1][min(count, 3) - 1] if count else 0.0

        total = sum(followers.values())
        return (count - discount(count)) / total, sum(map(discount, followers.values())) / total


BRUTE_FORCE = {kneser_ney: BruteForceKneserNey, witten_bell: BruteForce}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_every_probability_is_that_of_the_definition(estimator: Callable[..., NGram], order: int) -> None:
    text = zipf_text(200, 150)
    model, brute = estimator(text, order), BRUTE_FORCE[estimator](text, order)
    generator = random.Random(1)
    words = sorted(brute.vocabulary)
    contexts = [(), (START,), ("<unk>",), (words[5], "<unk>", words[6])]
    contexts += [tuple(generator.choices(words, k=order)) for _ in range(5)]
    for sentence in generator.sample([sentence for sentence in brute.sentences if len(sentence) > order], 25):
        first = generator.randrange(len(sentence) - order)
        contexts.append(sentence[first : first + generator.randint(1, order)])
    for context in contexts:
        for word in generator.sample(words, 15) + list(brute.followers(context))[:5] + [END, "<unk>"]:
            assert model.log_prob(word, context) == pytest.approx(math.log(brute.prob(word, context)), abs=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_text_above_has_estimated_discounts(order: int, caplog: pytest.LogCaptureFixture) -> None:
    assert DISCOUNTS not in BruteForceKneserNey(zipf_text(200, 150), order).discounts
    kneser_ney(zipf_text(200, 150), order)
    assert not caplog.records


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("text", [TINY, zipf_text(40, 60), [[*"ABCABDABCAB"]] * 20], ids=["tiny", "words", "repeated"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_after_every_context_sum_to_one(
    estimator: Callable[..., NGram], text: list[list[str]], order: int
) -> None:
    model = estimator(text, order)
    contexts = [row.tolist() for length in range(1, order + 1) for row in model.rows(length)]
    assert len(contexts) > 5
    start = model.ids[START]
    for context in [[], *contexts, [model.ids["<unk>"]] * 2, [*contexts[-1], start]]:
        probs = np.exp(model.distribution(context))
        assert probs.sum() == pytest.approx(1.0, abs=1e-12)
        assert probs[start] == 0.0
        assert np.delete(probs, start).min() > 0.0


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # Before A: <s>; before B: A; before </s>: A and B. The discounts take 2 of these 4.
        (kneser_ney, {"A": 0.25, "B": 0.25, "</s>": 0.375, "<unk>": 0.125}),
        (witten_bell, {"A": 2.75 / 8, "B": 1.75 / 8, "</s>": 2.75 / 8, "<unk>": 0.75 / 8}),
    ],
)
def test_tokens_alone_by_hand(estimator: Callable[..., NGram], expected: dict[str, float]) -> None:
    model = estimator(["AB", "A"], 2)
    assert {token: math.exp(model.log_prob(token)) for token in expected} == pytest.approx(expected)
    assert model.log_prob(START) == -math.inf


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (kneser_ney, {"B": 0.25 + 0.5 * 0.25, "</s>": 0.25 + 0.5 * 0.375, "A": 0.5 * 0.25, "<unk>": 0.5 * 0.125}),
        (witten_bell, {"B": (1 + 1.75 / 4) / 4, "</s>": (1 + 2.75 / 4) / 4, "A": 2.75 / 16, "<unk>": 0.75 / 16}),
    ],
)
def test_what_follows_a_by_hand(estimator: Callable[..., NGram], expected: dict[str, float]) -> None:
    model = estimator(["AB", "A"], 2)  # after A once B, once the end
    assert {token: math.exp(model.log_prob(token, ["A"])) for token in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("gram", "log10_prob", "log10_backoff"),
    [
        ("<unk>", -1.0377885, 0),
        ("</s>", -0.5228787, 0),
        ("B", -0.75696194, -0.30103),
        ("<s> </s>", -0.60206, 0),
        ("<s> A", -0.51097953, -0.30103),
        ("C C", -0.44571277, -0.30103),
        ("A B </s>", -0.38898516, 0),
        ("A B A", -0.3271328, 0),
        ("C A B", -0.19128275, 0),
        ("<s> C C", -0.16802363, 0),
    ],
)
def test_the_tiny_text_by_lmplz(gram: str, log10_prob: float, log10_backoff: float) -> None:
    model = kneser_ney(TINY, 3)  # lmplz -o 3 --discount_fallback
    assert [len(level.keys) for level in model.levels] == [6, 12, 12]
    ids = [model.ids[token] for token in gram.split()]
    level = model.levels[len(ids) - 1]
    [index] = model.find(np.array([ids]))
    assert level.log_probs[index] / math.log(10) == pytest.approx(log10_prob, abs=1e-6)
    assert level.backoffs[index] / math.log(10) == pytest.approx(log10_backoff, abs=1e-6)


@pytest.mark.parametrize(
    ("counts_of_counts", "expected", "estimated"),
    [
        ([4, 2, 1, 1], (0.5, 1.25, 1.0), True),
        ([4, 2, 1, 1, 9], (0.5, 1.25, 1.0), True),
        ([1, 1, 5, 1], DISCOUNTS, False),  # the second would be -3
        ([2, 2, 2, 3], (1 / 3, 1.0, 1.0), True),
        ([4, 2, 1, 0], DISCOUNTS, False),
        ([0, 2, 1, 1], DISCOUNTS, False),
        ([], DISCOUNTS, False),
    ],
)
def test_discounts(counts_of_counts: list[int], expected: tuple[float, ...], estimated: bool) -> None:
    counts = np.repeat(np.arange(len(counts_of_counts)) + 1, np.array(counts_of_counts, np.int64))
    result, is_estimated = discounts(counts)
    assert result == pytest.approx(expected)
    assert is_estimated == estimated


def test_the_log_says_where_discounts_are_not_estimated(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        kneser_ney([[f"W{number}"] for number in range(9)], 1)
    assert [record.getMessage() for record in caplog.records] == [
        "1-grams: too few counts of 1 to 4 to estimate discounts from; they are 0.5, 1 and 1.5"
    ]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_given_vocabulary_is_all_that_the_model_knows(estimator: Callable[..., NGram]) -> None:
    text = [[*"ABXA"], [*"BY"]]
    model = estimator(text, 2, [*"ABZ"])
    assert set(model.tokens) == {*"ABZ", "<unk>", START, END}
    renamed = estimator([["A", "B", "<unk>", "A"], ["B", "<unk>"]], 2, [*"ABZ"])
    assert model.score([*"ABXA"]) == renamed.score([*"ABXA"])
    assert model.log_prob("X") == model.log_prob("<unk>") > model.log_prob("Z")
    # Left are 3 discounts of 1 and 2 of 0.5 from 8 counts; or 5 different tokens beside 8; for 7 tokens.
    left = {kneser_ney: 4 / 8, witten_bell: 5 / 13}[estimator]
    whole = estimator(text, 2, [*"ABXYZ"])
    assert whole.log_prob("Z") == whole.log_prob("<unk>") == pytest.approx(math.log(left / 7))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("text", "order", "message"),
    [
        ([], 2, "expected sentences to estimate a language model from, found none"),
        (["AB"], 0, "expected an order of 1 or more, got 0"),
        (["AB", "A"], 5, "expected a sentence of 4 or more tokens for an order of 5, the longest has 2"),
        (["AB", ["A", "<s>"]], 2, "sentence 2: expected tokens .* found '<s>'"),
        ([["</s>"]], 2, "sentence 1: .* found '</s>'"),
        ([["A B"]], 2, "sentence 1: .* found 'A B'"),
        ([["A", ""]], 2, "sentence 1: .* found ''"),
    ],
)
def test_what_cannot_be_estimated_is_told(
    estimator: Callable[..., NGram], text: list[Sequence[str]], order: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        estimator(text, order)


def test_the_longest_order_that_a_text_has_can_be_estimated() -> None:
    model = kneser_ney(["AB", "A"], 4)
    assert [len(level.keys) for level in model.levels] == [5, 4, 3, 1]
