import itertools
from collections.abc import Sequence

import jiwer
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asr_lightning.scoring import RATES
from asr_lightning.scoring.error_rates import ErrorRates, space_free_errors

REFERENCES = ["THE CAT SAT ON THE MAT", "HELLO", "A B", "I HAVE A PEN"]
HYPOTHESES = ["THE CAT SIT ON MAT", "HELLO", "A X B Y Z", "HAVE A PENCIL"]
TEXTS = st.lists(st.sampled_from(["A", "B", "AB", "BA", "C"]), max_size=7).map(" ".join)


def edits(first, second) -> int:
    """Levenshtein distance of two sequences, by the plain recurrence."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def rates(metric: ErrorRates, names: Sequence[str] = ("wer", "cer", "ser")) -> dict[str, float]:
    computed = metric.compute()
    return {name: float(computed[name]) for name in names}


def test_rates_are_those_of_the_whole_corpus() -> None:
    metric = ErrorRates()
    for reference, hypothesis in zip(REFERENCES, HYPOTHESES, strict=True):
        metric.update([reference], [hypothesis])
    words = jiwer.wer(REFERENCES, HYPOTHESES)
    mean = sum(jiwer.wer(*pair) for pair in zip(REFERENCES, HYPOTHESES, strict=True)) / 4
    assert abs(words - mean) > 0.04  # the example tells the two apart
    assert rates(metric) == pytest.approx({"wer": words, "cer": jiwer.cer(REFERENCES, HYPOTHESES), "ser": 3 / 4})


def test_the_kinds_of_errors_are_kept_apart() -> None:
    metric = ErrorRates()
    metric.update(["A B C D"], ["A X C D E F"])
    metric.update(["A B C"], ["A"])
    assert (metric.word_substitutions, metric.word_deletions, metric.word_insertions) == (1, 2, 2)
    assert metric.word_total == 7
    assert metric.character_total == len("A B C D") + len("A B C")
    assert metric.word_total.dtype == torch.int64


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_counts_equal_plain_edit_distances(pairs: list[tuple[str, str]]) -> None:
    metric = ErrorRates()
    metric.update([reference for reference, _ in pairs], [hypothesis for _, hypothesis in pairs])
    for unit, split in (("word", str.split), ("character", list)):
        errors = [getattr(metric, f"{unit}_{name}") for name in ("substitutions", "deletions", "insertions")]
        assert sum(errors) == sum(edits(split(reference), split(hypothesis)) for reference, hypothesis in pairs)
        assert getattr(metric, f"{unit}_total") == sum(len(split(reference)) for reference, _ in pairs)
        hypothesis_size = sum(len(split(hypothesis)) for _, hypothesis in pairs)
        assert getattr(metric, f"{unit}_total") - errors[1] + errors[2] == hypothesis_size
    assert metric.wrong_sentences == sum(reference != hypothesis for reference, hypothesis in pairs)
    assert not any(value.isnan() for value in metric.compute().values())


def test_empty_texts_count() -> None:
    metric = ErrorRates()
    metric.update(["", "A B", "C"], ["X Y", "", "C"])
    assert (metric.word_insertions, metric.word_deletions, metric.word_total) == (2, 2, 3)
    assert rates(metric) == pytest.approx({"wer": 4 / 3, "cer": 6 / 4, "ser": 2 / 3})


def test_an_empty_reference_is_scored_as_nists_sclite_does() -> None:
    metric = ErrorRates()
    metric.update(["", "the cat sat"], ["hello there", "the cat sat"])
    assert rates(metric) == pytest.approx({"wer": 2 / 3, "cer": 1.0, "ser": 1 / 2})  # sclite: Ins 66.7, Err 66.7


def test_no_reference_words_at_all() -> None:
    metric = ErrorRates()
    metric.update([""], [""])
    assert rates(metric) == {"wer": 0.0, "cer": 0.0, "ser": 0.0}
    metric.update(["  "], ["X"])
    assert rates(metric) == {"wer": float("inf"), "cer": float("inf"), "ser": 0.5}


def test_nothing_scored_is_no_rate_and_counts_tell() -> None:
    metric = ErrorRates()
    metric.update([], [])
    computed = metric.compute()
    assert all(computed[name].isnan() for name in RATES)
    assert (int(computed["utterances"]), int(computed["words"])) == (0, 0)
    metric.update(["A B", "", "C"], ["A B", "X", "C"])
    computed = metric.compute()
    assert (int(computed["utterances"]), int(computed["words"])) == (3, 3)
    assert float(computed["wer"]) == pytest.approx(1 / 3)


def test_white_space_is_squeezed() -> None:
    metric = ErrorRates()
    metric.update([" A  B\t"], ["A B"])
    assert rates(metric) == {"wer": 0.0, "cer": 0.0, "ser": 0.0}


def test_reset_forgets_and_nothing_is_no_error() -> None:
    metric = ErrorRates()
    metric.update(["A"], ["B"])
    assert rates(metric)["wer"] == 1.0
    metric.reset()
    metric.update([], [])
    assert metric.sentence_total == 0
    metric.update(["A B"], ["A B"])
    assert rates(metric) == {"wer": 0.0, "cer": 0.0, "ser": 0.0}


def test_states_are_summed_over_ranks() -> None:
    first, second = ErrorRates(), ErrorRates()
    first.update(REFERENCES[:1], HYPOTHESES[:1])
    second.update(REFERENCES[1:], HYPOTHESES[1:])
    assert {int(reduction(torch.tensor([2, 3]))) for reduction in first._reductions.values()} == {5}
    first._reduce_states(second.metric_state)
    assert rates(first)["wer"] == pytest.approx(jiwer.wer(REFERENCES, HYPOTHESES))


def test_a_forward_call_leaves_the_sums_right() -> None:
    metric = ErrorRates()
    for reference, hypothesis in zip(REFERENCES, HYPOTHESES, strict=True):
        step = metric([reference], [hypothesis])
        assert float(step["wer"]) == pytest.approx(jiwer.wer(reference, hypothesis))
    assert rates(metric)["wer"] == pytest.approx(jiwer.wer(REFERENCES, HYPOTHESES))


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2 references, but 1 hypotheses"):
        ErrorRates().update(["A", "B"], ["A"])


def errors_with_spaces_anywhere(reference: str, hypothesis: str) -> int:
    """The fewest word errors over all ways to set spaces."""
    letters = hypothesis.replace(" ", "")
    if not letters:
        return len(reference.split())
    ways = itertools.product(["", " "], repeat=len(letters) - 1)
    spaced = ("".join(map("".join, itertools.zip_longest(letters, way, fillvalue=""))) for way in ways)
    return min(edits(reference.split(), text.split()) for text in spaced)


@given(TEXTS, TEXTS.filter(lambda text: len(text.replace(" ", "")) <= 8))
def test_spaces_are_set_where_they_help_most(reference: str, hypothesis: str) -> None:
    assert space_free_errors(reference, hypothesis) == errors_with_spaces_anywhere(reference, hypothesis)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [
        ("학교에 갔다 왔어", "학교 에 갔다왔어", 0),
        ("학교에 갔다 왔어", "학교 에서 갔다왔어", 1),
        ("학교에 갔다", "학교에", 1),
        ("", "학교 에", 1),
        ("학교에", "", 1),
        ("", "", 0),
    ],
)
def test_korean_with_other_spaces(reference: str, hypothesis: str, errors: int) -> None:
    assert space_free_errors(reference, hypothesis) == errors
    metric = ErrorRates()
    metric.update([reference], [hypothesis])
    words = len(reference.split())
    assert rates(metric, ["swer"])["swer"] == pytest.approx(
        errors / words if words else float("inf") if errors else 0.0
    )
    letters = edits(reference.replace(" ", ""), hypothesis.replace(" ", ""))
    total = len(reference.replace(" ", ""))
    assert rates(metric, ["unspaced_cer"])["unspaced_cer"] == pytest.approx(
        letters / total if total else float("inf") if letters else 0.0
    )
