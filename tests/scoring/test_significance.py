import itertools
import os
import re
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest, ttest_ind, ttest_rel

from asr_lightning.scoring import significance
from asr_lightning.scoring.significance import (
    bootstrap,
    matched_pairs,
    mean_difference,
    paired_difference,
    segment_errors,
)
from asr_lightning.scoring.word_edits import WordEdits, find_word_edits

# where Debian's package sctk puts it
SC_STATS = shutil.which("sc_stats", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/lib/sctk/bin"]))
REFERENCE = "a b c d e f g h"


def segments(*hypotheses: str, reference: str = REFERENCE) -> list[tuple[float, float]]:
    """Errors per segment of two systems with the same number of seeds."""
    alignments = [find_word_edits(reference, hypothesis) for hypothesis in hypotheses]
    half = len(hypotheses) // 2
    return segment_errors(alignments[:half], alignments[half:])


def simulated(
    generator: np.random.Generator, utterances: int, words: int, wrong: float, inserted: float = 0.0
) -> list[WordEdits]:
    """Alignments with errors that are independent of each other: as many substitutions as deletions, and insertions."""
    reference = tuple(f"w{number}" for number in range(words))
    alignments = []
    for draws, extra in zip(
        generator.random((utterances, words)), generator.random((utterances, words + 1)) < inserted, strict=True
    ):
        recognized = [
            word if draw >= wrong else "x" if draw < wrong / 2 else None
            for word, draw in zip(reference, draws, strict=True)
        ]
        alignments.append(
            WordEdits(reference, tuple(recognized), tuple(("y",) if insertion else () for insertion in extra))
        )
    return alignments


def all_differences(first: Sequence[WordEdits], second: Sequence[WordEdits]) -> list[float]:
    pairs = zip(first, second, strict=True)
    return [
        first_errors - second_errors
        for pair in pairs
        for first_errors, second_errors in segment_errors(pair[:1], pair[1:])
    ]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (REFERENCE, REFERENCE, []),
        ("a x c d e f g h", REFERENCE, [(1, 0)]),
        ("a x c d e f g h", "a b c d e f x h", [(1, 0), (0, 1)]),  # c d e f between them
        ("a x c d e f g h", "a b c d x f g h", [(1, 0), (0, 1)]),  # c d: two are enough
        ("a x c d e f g h", "a b c x e f g h", [(1, 1)]),  # c alone is not
        ("a x c d e f g h", "a b c y d e f g h", [(1, 1)]),  # an insertion parts c from d
        ("a x c d e f g h", "a b c d y e f g h", [(1, 0), (0, 1)]),
        ("x x c d e f x h", "a b c d e f g h", [(2, 0), (1, 0)]),  # the ends of the utterance are boundaries
        ("b c d e f g h", "y a b c d e f g h", [(1, 1)]),
        ("a b c d e f g h x", "a b c d e f g h y z", [(1, 2)]),
        ("a b c d e f g h", "a b c d e f g h y", [(0, 1)]),
        ("a c e f g", "a b c d e f g h", [(2, 0), (1, 0)]),
        ("", "a", [(8, 7)]),
    ],
)
def test_segments_by_hand(first: str, second: str, expected: list[tuple[float, float]]) -> None:
    assert segments(first, second) == expected
    assert segments(second, first) == [(second_errors, first_errors) for first_errors, second_errors in expected]


def test_empty_references_are_segments_of_insertions() -> None:
    assert segments("", "", reference="") == []
    assert segments("a b", "", reference="") == [(2, 0)]


def test_seeds_of_a_system_are_averaged_in_common_segments() -> None:
    assert segments("a x c d e f g h", REFERENCE, REFERENCE, "a b c d e f x h") == [(0.5, 0), (0, 0.5)]
    # the second seed of the first system joins what is two segments without it
    assert segments("a x c d e f g h", "a b c x e f g h", REFERENCE, "a b c d e x g h") == [(1, 0.5)]
    three = [find_word_edits(REFERENCE, text) for text in ("a x c d e f g h", "x x c d e f g h", REFERENCE)]
    assert segment_errors(three, three[:1]) == [(1, 1)]
    same = segments("a x c d e f x h", "a b x d e f g h")
    assert segments(*["a x c d e f x h"] * 3, *["a b x d e f g h"] * 3) == same


def test_each_error_is_in_one_segment() -> None:
    generator = np.random.default_rng(1)
    first, second = (simulated(generator, 200, 12, 0.2, 0.05) for _ in range(2))
    pair_lists = [
        segment_errors([first_edits], [second_edits]) for first_edits, second_edits in zip(first, second, strict=True)
    ]
    assert max(map(len, pair_lists)) >= 3
    for first_edits, second_edits, pairs in zip(first, second, pair_lists, strict=True):
        assert (sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)) == (
            first_edits.errors,
            second_edits.errors,
        )


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="1 and 1 transcripts with 2 references"):
        segment_errors([find_word_edits("a", "a")], [find_word_edits("b", "a")])
    with pytest.raises(ValueError, match="got 0 and 1 transcripts"):
        segment_errors([], [find_word_edits("b", "a")])


def test_matched_pairs_by_hand() -> None:
    result = matched_pairs([1, 1, 0, -1, 2, 1])  # mean 4/6, squares 8 - 16/6 over 5
    assert (result.segments, result.mean) == (6, pytest.approx(2 / 3))
    assert result.deviation == pytest.approx((16 / 3 / 5) ** 0.5)
    assert result.z == pytest.approx(2 / 3 / (16 / 3 / 5 / 6) ** 0.5)
    assert result.p == pytest.approx(2 * (1 - statistics.NormalDist().cdf(result.z)))
    mirrored = matched_pairs([-1, -1, 0, 1, -2, -1])
    assert (mirrored.z, mirrored.p) == (-result.z, result.p)


def test_matched_pairs_without_spread() -> None:
    for nothing in ([], [0.0], [0, 0, 0]):
        assert (matched_pairs(nothing).z, matched_pairs(nothing).p) == (0, 1)
    for same in ([2], [1, 1, 1], [1 / 3 - 0, 2 / 3 - 1 / 3, 1 - 2 / 3]):  # thirds differ by rounding
        assert (matched_pairs(same).z, matched_pairs(same).p) == (None, None)
        assert matched_pairs(same).mean == pytest.approx(same[0])


def test_matched_pairs_is_near_the_test_of_all_signs() -> None:
    """Under the null hypothesis both signs of each difference are equally likely: all 2^16 choices are counted."""
    signs = np.array(list(itertools.product([1, -1], repeat=16)))
    generator = np.random.default_rng(0)
    exact_values = []
    for shift in (0.0, 0.3, 0.6, 0.9):
        differences = generator.choice([-2, -1, 1, 2, 3], size=16, p=[0.1, 0.4, 0.3, 0.1, 0.1]) + shift
        sums = np.abs(signs @ differences)
        observed = abs(differences.sum())
        exact = np.mean(sums > observed + 1e-9) + np.mean(np.abs(sums - observed) <= 1e-9) / 2
        assert matched_pairs(differences.tolist()).p == pytest.approx(exact, abs=0.03)
        exact_values.append(exact)
    assert min(exact_values) < 0.05 and max(exact_values) > 0.2  # some of each kind


def test_p_is_uniform_where_systems_do_not_differ_and_small_where_they_do() -> None:
    generator = np.random.default_rng(0)

    def p_values(rates: tuple[float, float], times: int) -> list[float]:
        trials = [all_differences(*(simulated(generator, 60, 8, rate) for rate in rates)) for _ in range(times)]
        return [p for trial in trials if (p := matched_pairs(trial).p) is not None]

    same = p_values((0.2, 0.2), 600)
    assert len(same) == 600
    assert kstest(same, "uniform").pvalue > 0.05
    assert abs(np.mean(np.array(same) < 0.05) - 0.05) < 0.027  # three standard errors
    assert np.mean(np.array(p_values((0.2, 0.35), 50)) < 0.05) > 0.9


def marked_up(title: str, alignments: Sequence[WordEdits]) -> str:
    """Alignments as sclite writes them for sc_stats."""
    lines = [
        f'<SYSTEM title="{title}" ref_fname="r" hyp_fname="{title}" creation_date="" format="2.4" frag_corr="FALSE"'
        ' opt_del="FALSE" weight_ali="FALSE" weight_filename="">',
        '<SPEAKER id="s">',
    ]
    for number, alignment in enumerate(alignments):
        words = [f'I,,"{word}"' for word in alignment.insertions[0]]
        for word, recognized, inserted in zip(
            alignment.reference, alignment.recognized, alignment.insertions[1:], strict=True
        ):
            kind = "D" if recognized is None else "C" if recognized == word else "S"
            words += [
                f'{kind},"{word}",' + (f'"{recognized}"' if recognized else ""),
                *(f'I,,"{more}"' for more in inserted),
            ]
        lines += [
            f'<PATH id="(s-{number:04})" word_cnt="{len(words)}" sequence="{number}">',
            ":".join(words),
            "</PATH>",
        ]
    return "\n".join([*lines, "</SPEAKER>", "</SYSTEM>"]) + "\n"


@pytest.mark.skipif(SC_STATS is None, reason="needs sc_stats of NIST's SCTK, as in Debian's package sctk")
@pytest.mark.parametrize("rates", [(0.1, 0.1), (0.2, 0.3), (0.5, 0.4)])
def test_matched_pairs_is_that_of_nist(tmp_path: Path, rates: tuple[float, float]) -> None:
    generator = np.random.default_rng(3)
    systems = [simulated(generator, 300, 12, rate, 0.05) for rate in rates]
    text = "".join(marked_up(f"system{number}", system) for number, system in enumerate(systems))
    assert SC_STATS is not None
    for option in ("-v", "-u"):  # the report of the test, and that of p
        command = [SC_STATS, "-p", "-t", "mapsswe", option, "-n", f"out{option}"]
        subprocess.run(command, input=text, cwd=tmp_path, text=True, check=True, capture_output=True, timeout=60)
    report = (tmp_path / "out-v.stats.mapsswe").read_text()
    result = matched_pairs(all_differences(*systems))
    number = r"\s*(-?[\d.]+)"
    match = re.search(rf"# segs:{number}.*\(mean:{number}\) \(std dev:{number}\) \(Z Stat:{number}\)", report)
    assert match, report
    assert result.segments == int(match[1]) > 300
    assert [result.mean, result.deviation, result.z] == pytest.approx([float(match[n]) for n in (2, 3, 4)], abs=6e-4)
    totals = re.search(rf"Totals\s+\d+\s+{number}\s+{number}", report)
    assert totals and [sum(alignment.errors for alignment in system) for system in systems] == [
        int(totals[1]),
        int(totals[2]),
    ]
    unified = (tmp_path / "out-u.stats.unified").read_text()
    p = re.search(r"\|\s+MP\s+\|\| system0 .* (<?)(\d\.\d+) ", unified)
    assert p and result.p is not None, unified
    assert result.p < float(p[2]) if p[1] else result.p == pytest.approx(float(p[2]), abs=6e-4)


def test_the_bootstrap_is_near_that_of_all_resamples() -> None:
    differences, words = [2, -1, 0, -3, 1], [4, 3, 2, 6, 5]
    every = np.array(list(itertools.product(range(5), repeat=5)))  # 3125, all as likely
    rates = np.array(differences)[every].sum(axis=1) / np.array(words)[every].sum(axis=1)
    result = bootstrap(differences, words, resamples=40_000)
    assert result.difference == -1 / 20
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(rates, [0.025, 0.975])), abs=0.02)
    assert result.improvement == pytest.approx(np.mean(rates < 0) + np.mean(rates == 0) / 2, abs=0.01)
    assert (result.units, result.by_speaker) == (5, False)


def test_the_bootstrap_is_the_same_each_time_and_antisymmetric(monkeypatch: pytest.MonkeyPatch) -> None:
    differences, words = [1 / 3, -2 / 3, 0, 1 / 3, 1], [4, 3, 2, 6, 5]
    result = bootstrap(differences, words)
    assert bootstrap(differences, words) == result
    assert bootstrap(differences, words, seed=1) != result
    other = bootstrap([-difference for difference in differences], words)
    assert (other.low, other.high) == pytest.approx((-result.high, -result.low))
    assert other.improvement == pytest.approx(1 - result.improvement)
    monkeypatch.setattr(significance, "CHUNK", 50)  # 10 resamples at a time
    assert bootstrap(differences, words).low == pytest.approx(result.low, abs=0.02)


def test_speakers_are_drawn_with_all_their_utterances() -> None:
    """Utterances of a speaker are alike: the interval is that of one joined utterance per speaker, not narrower."""
    speakers = [name for name in "abcdef" for _ in range(10)]
    by_speaker = [1, -1, 2, 0, -1, 1]
    differences = [by_speaker["abcdef".index(name)] for name in speakers]
    result = bootstrap(differences, [5] * 60, speakers)
    assert (result.units, result.by_speaker) == (6, True)
    joined = bootstrap([10 * difference for difference in by_speaker], [50] * 6)
    assert (result.low, result.high, result.improvement) == (joined.low, joined.high, joined.improvement)
    by_utterance = bootstrap(differences, [5] * 60)
    assert by_utterance.high - by_utterance.low < 0.6 * (result.high - result.low)
    few = bootstrap(differences, [5] * 60, ["a", "b", "c", "d"] * 15)
    unknown = bootstrap(differences, [5] * 60, ["", *speakers[1:]])
    assert few == unknown == by_utterance


def test_intervals_hold_what_was_planted() -> None:
    """The first system has 10 % of 10 words wrong, the second 12 %: the truth is -2 points."""
    generator = np.random.default_rng(0)
    results = []
    for _ in range(300):
        errors = generator.binomial(10, [[0.10], [0.12]], size=(2, 200))
        results.append(bootstrap((errors[0] - errors[1]).tolist(), [10] * 200, resamples=400))
    coverage = np.mean([result.low <= -0.02 <= result.high for result in results])
    assert 0.91 < coverage < 0.98
    assert np.mean([result.improvement for result in results]) > 0.85


def test_systems_that_do_not_differ_are_a_draw() -> None:
    assert bootstrap([0] * 7, [3] * 7).improvement == 0.5
    single = bootstrap([-2], [10])
    assert (single.difference, single.units) == (-0.2, 1)
    assert (single.low, single.high, single.improvement) == (None, None, None)
    assert bootstrap([1, 0, 0], [0, 1, 0]).difference == 1  # with empty references


def test_lengths_and_empty_references_are_checked() -> None:
    with pytest.raises(ValueError, match="2 differences, 1 numbers of words, 0 speakers"):
        bootstrap([1, 2], [1])
    with pytest.raises(ValueError, match="2 differences, 2 numbers of words, 1 speakers"):
        bootstrap([1, 2], [1, 2], ["a"])
    with pytest.raises(ValueError, match="got 2 without any"):
        bootstrap([1, 2], [0, 0])


@pytest.mark.parametrize("sizes", [(3, 3), (2, 5), (3, 8)])
def test_intervals_over_seeds_are_those_of_scipy(sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(sum(sizes))
    first, second = generator.normal(0.1, 0.02, sizes[0]), generator.normal(0.2, 0.1, sizes[1])
    interval = mean_difference(first.tolist(), second.tolist())
    expected = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.difference == pytest.approx(first.mean() - second.mean())


def test_intervals_over_pairs_are_those_of_scipy() -> None:
    generator = np.random.default_rng(4)
    first, second = generator.normal(0.5, 0.1, (2, 4))
    interval = paired_difference(first.tolist(), second.tolist())
    expected = ttest_rel(first, second).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_a_true_difference_of_the_visible_size_is_seen_in_four_of_five_trials() -> None:
    generator = np.random.default_rng(0)
    seeds, spread, trials = 5, 1.0, 4000
    freedom = 2 * seeds - 2
    visible = mean_difference([-1.0, 1.0] * 4, [-1.0, 1.0] * 4).visible
    assert visible is not None
    # the same with the spread that is drawn from
    exact = visible / np.sqrt(2 * (8 / 7) / 8) * np.sqrt(2 * spread**2 / seeds)
    quantiles = {
        count: significance.stdtrit(count, 0.975) + significance.stdtrit(count, 0.8) for count in (14, freedom)
    }
    exact *= quantiles[freedom] / quantiles[14]
    detections = 0
    for _ in range(trials):
        interval = mean_difference(
            generator.normal(exact, spread, seeds).tolist(), generator.normal(0.0, spread, seeds).tolist()
        )
        detections += interval.low is not None and interval.low > 0
    assert 0.76 < detections / trials < 0.84


@pytest.mark.parametrize(("first", "second"), [([0.1], [0.2, 0.3]), ([0.1, 0.2], [0.3]), ([0.1], [0.2])])
def test_a_single_seed_has_no_interval(first: list[float], second: list[float]) -> None:
    interval = mean_difference(first, second)
    assert (interval.low, interval.high, interval.visible) == (None, None, None)
    assert interval.difference == pytest.approx(statistics.fmean(first) - statistics.fmean(second))


def test_equal_values_have_an_interval_of_no_length() -> None:
    assert mean_difference([0.5, 0.5], [0.25, 0.25]) == significance.MeanDifference(0.25, 0.25, 0.25, 0.0)
    assert paired_difference([0.5], [0.25]).low is None


@pytest.mark.parametrize("wrong", [[], [float("nan"), 1.0], [float("inf")]])
def test_values_that_are_none_are_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="finite|pairs"):
        mean_difference([1.0, 2.0], wrong)
    with pytest.raises(ValueError, match="finite|pairs"):
        paired_difference(wrong, wrong)
