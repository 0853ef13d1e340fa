import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from asr_lightning.errors import InputError
from asr_lightning.text.arpa import read_arpa
from asr_lightning.text.ngram import NGram
from asr_lightning.text.smoothing import kneser_ney

LN10 = math.log(10)
START, END = "<s>", "</s>"

# As pruning leaves them: "B A" is missing within "B A B", and "C C" and "C A" within "C C A".
PRUNED = """\\data\\
ngram 1=6
ngram 2=4
ngram 3=4
ngram 4=1

\\1-grams:
-1.0 <unk>
-99 <s> -0.4
-0.9 </s>
-0.5 A -0.3
-0.6 B -0.2
-1.2 C

\\2-grams:
-0.2 <s> A -0.1
-0.8 A B
-0.7 A <unk> -0.05
-0.3 B </s>

\\3-grams:
-0.15 <s> A B
-0.25 B A B
-0.35 A <unk> A
-0.45 C C A -0.25

\\4-grams:
-0.55 C C A B

\\end\\
"""


def entries(arpa: str) -> dict[tuple[str, ...], tuple[float, float]]:
    """The log10 probability and weight of every n-gram, read by splitting its lines."""
    table: dict[tuple[str, ...], tuple[float, float]] = {}
    length = 0
    for line in arpa.splitlines():
        fields = line.split()
        if line.endswith("-grams:"):
            length = int(line[1])
        elif length and fields and not line.startswith("\\"):
            backoff = float(fields[length + 1]) if len(fields) > length + 1 else 0.0
            table[tuple(fields[1 : length + 1])] = (float(fields[0]), backoff)
    return table


def by_definition(
    table: dict[tuple[str, ...], tuple[float, float]], order: int, word: str, context: Sequence[str]
) -> float:
    """The natural log probability, by Katz's recursion."""
    words = tuple(token if (token,) in table else "<unk>" for token in (*context, word))
    words = words[-order:]
    if words in table:
        return -math.inf if table[words][0] <= -99 else table[words][0] * LN10
    return table.get(words[:-1], (0.0, 0.0))[1] * LN10 + by_definition(table, order, words[-1], words[1:-1])


@pytest.fixture
def pruned(tmp_path: Path) -> NGram:
    (tmp_path / "pruned.arpa").write_text(PRUNED)
    return read_arpa(tmp_path / "pruned.arpa")


@pytest.fixture
def closed(tmp_path: Path) -> NGram:
    """The same model without `<unk>`."""
    lines = [line for line in PRUNED.splitlines() if "<unk>" not in line]
    text = "\n".join(lines).replace("1=6", "1=5").replace("2=4", "2=3").replace("3=4", "3=3")
    (tmp_path / "closed.arpa").write_text(text)
    return read_arpa(tmp_path / "closed.arpa")


@pytest.mark.parametrize(
    ("context", "token", "log10_prob"),
    [
        ((), "A", -0.5),
        (("<s>",), "A", -0.2),
        (("<s>", "A"), "B", -0.15),
        (("<s>", "A"), "A", -0.1 - 0.3 - 0.5),
        (("<s>", "A"), "</s>", -0.1 - 0.3 - 0.9),
        (("<s>",), "B", -0.4 - 0.6),
        (("A", "B"), "</s>", -0.3),
        (("A", "B"), "A", -0.2 - 0.5),
        (("B", "A"), "B", -0.25),  # its beginning "B A" is not in the file, which makes its weight 1
        (("B", "A"), "A", -0.3 - 0.5),
        (("B",), "A", -0.2 - 0.5),
        (("C", "C"), "C", -1.2),
        (("C", "B", "A"), "B", -0.25),
        (("C", "C", "A"), "B", -0.55),
        (("C", "C", "A"), "A", -0.25 - 0.3 - 0.5),
        (("B", "C", "C", "A"), "B", -0.55),  # more context than order - 1
        (("A",), "new", -0.7),
        (("A", "new"), "A", -0.35),
        (("A", "new"), "B", -0.05 - 0.6),
        ((), "<s>", -math.inf),
    ],
)
def test_back_off_by_hand(pruned: NGram, context: Sequence[str], token: str, log10_prob: float) -> None:
    assert pruned.log_prob(token, context) == pytest.approx(log10_prob * LN10)


def test_every_probability_is_that_of_the_definition(pruned: NGram) -> None:
    table = entries(PRUNED)
    words = [word for (word,) in itertools.islice(table, 6)]
    assert len(words) == len(pruned.tokens)
    for length in range(4):
        for context in itertools.product([*words, "new"], repeat=length):
            row = pruned.distribution([pruned.id_of(word) for word in context])
            for word in words:
                expected = by_definition(table, 4, word, context)
                assert pruned.log_prob(word, context) == pytest.approx(expected)
                assert row[pruned.ids[word]] == pytest.approx(expected)


def test_a_distribution_holds_what_log_probs_says_of_each_token() -> None:
    generator = random.Random(0)
    text = [generator.choices("ABCDEFGH", weights=range(1, 9), k=generator.randint(1, 9)) for _ in range(200)]
    model = kneser_ney(text, 4)
    tokens = np.arange(len(model.tokens))
    for _ in range(200):
        context = [generator.randrange(-1, len(tokens)) for _ in range(generator.randint(0, 5))]
        rows = np.concatenate([np.tile(np.array(context, np.int64), (len(tokens), 1)), tokens[:, None]], axis=1)
        np.testing.assert_allclose(model.distribution(context), model.log_probs(rows), rtol=1e-12)


def test_a_closed_model_finds_other_tokens_impossible_and_sees_nothing_before_them(closed: NGram) -> None:
    assert "<unk>" not in closed.ids
    assert closed.log_prob("new") == closed.log_prob("<unk>", ["A"]) == -math.inf
    assert closed.log_prob("B", ["<s>", "A"]) == pytest.approx(-0.15 * LN10)
    assert closed.log_prob("B", ["new", "A"]) == closed.log_prob("B", ["A"]) == pytest.approx(-0.8 * LN10)
    assert closed.log_prob("B", ["<s>", "new"]) == closed.log_prob("B") == pytest.approx(-0.6 * LN10)
    assert closed.score(["A", "new"]) == -math.inf
    token_id = closed.ids["A"]
    np.testing.assert_array_equal(closed.distribution([closed.start_id, -1]), closed.levels[0].log_probs)
    np.testing.assert_array_equal(closed.distribution([-1, token_id]), closed.distribution([token_id]))


def test_a_score_is_the_sum_over_tokens_and_the_end(pruned: NGram) -> None:
    for sentence in (["A", "B", "A", "B", "C"], ["new", "A"], ["A"], []):
        padded = [START, *sentence, END]
        log_probs = [pruned.log_prob(padded[position], padded[:position]) for position in range(1, len(padded))]
        assert pruned.score(sentence) == pytest.approx(sum(log_probs))
    assert pruned.score([]) == pytest.approx((-0.4 - 0.9) * LN10)
    assert pruned.score(["A", "B"]) == pytest.approx((-0.2 - 0.15 - 0.3) * LN10)


def test_sentences_are_not_each_others_context(tmp_path: Path) -> None:
    text = PRUNED.replace("2=4", "2=5").replace("-0.3 B </s>\n", "-0.3 B </s>\n-0.1 </s> <s> -5\n")
    (tmp_path / "lm.arpa").write_text(text.replace("3=4", "3=5").replace("-0.15 <s>", "-0.01 </s> <s> A\n-0.15 <s>"))
    model = read_arpa(tmp_path / "lm.arpa")
    assert model.log_prob("A", ["</s>", "<s>"]) == pytest.approx(-0.01 * LN10)
    result = model.perplexity([["A", "B"], ["A", "B"]])
    assert (
        result.log_prob == pytest.approx(2 * model.score(["A", "B"])) == pytest.approx(2 * (-0.2 - 0.15 - 0.3) * LN10)
    )


def test_perplexity_by_hand(pruned: NGram) -> None:
    # <s> A B </s> is -0.2 -0.15 -0.3; <s> A new </s> is -0.2, then <s> A backs off to A <unk>, then A <unk> to </s>.
    result = pruned.perplexity([["A", "B"], ["A", "new"]])
    known, unknown = -0.2 - 0.15 - 0.3 - 0.2 - 0.05 - 0.9, -0.1 - 0.7
    assert (result.sentences, result.tokens, result.unknown) == (2, 4, 1)
    assert result.log_prob == pytest.approx(known * LN10)
    assert result.unknown_log_prob == pytest.approx(unknown * LN10)
    assert result.with_unknown == pytest.approx(10 ** (-(known + unknown) / 6))
    assert result.without_unknown == pytest.approx(10 ** (-known / 5))


def test_perplexity_of_a_closed_model_is_infinite_with_unknown_tokens_only(closed: NGram) -> None:
    result = closed.perplexity([["A", "B"], ["A", "new"]])
    assert result.unknown == 1
    assert result.with_unknown == math.inf
    assert result.without_unknown == pytest.approx(10 ** ((0.2 + 0.15 + 0.3 + 0.2 + 0.9) / 5))
    assert closed.perplexity([["A", "B"]]).with_unknown == pytest.approx(10 ** ((0.2 + 0.15 + 0.3) / 3))


def test_perplexity_reads_any_number_of_sentences_once(pruned: NGram, monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = [["A"] * (number % 4) + ["B", "new"][: number % 3] for number in range(50)]
    monkeypatch.setattr("asr_lightning.text.ngram.CHUNK", 7)
    result = pruned.perplexity(iter(sentences))
    assert (result.sentences, result.tokens) == (50, sum(map(len, sentences)))
    assert result.unknown == sum(sentence.count("new") for sentence in sentences)
    assert result.log_prob + result.unknown_log_prob == pytest.approx(sum(map(pruned.score, sentences)))
    with pytest.raises(InputError, match="needs sentences, got none"):
        pruned.perplexity([])


def test_the_unknown_token_written_out_counts_as_unknown(pruned: NGram) -> None:
    assert pruned.perplexity([["A", "<unk>"]]) == pruned.perplexity([["A", "new"]])
    assert pruned.perplexity([["A", "<unk>"]]).unknown == 1
