import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from asr_lightning.errors import InputError
from asr_lightning.report.run_folders import Run, find_runs, read_run
from asr_lightning.report.run_pairs import (
    ExampleSentence,
    PairComparison,
    Skipped,
    UtteranceErrors,
    compare_pair,
    compare_pairs,
    find_difference,
    read_transcripts,
)
from asr_lightning.scoring.significance import bootstrap, matched_pairs, segment_errors
from asr_lightning.scoring.word_edits import find_word_edits

Write = Callable[..., Path]
REFERENCE = "a b c d e f g h"
HEARD = {  # by run and seed: of four utterances
    ("base", 1): [REFERENCE, "a x c d e f g h", "a x c d e f x h", REFERENCE],
    ("base", 2): [REFERENCE, "a b c d e f g h", "a x c d x f x h", REFERENCE],
    ("wide", 1): [REFERENCE, REFERENCE, REFERENCE, "a y b c d e f g h"],
    ("wide", 2): [REFERENCE, REFERENCE, "a x c d e f g h", "a y b c d x f g h"],
    ("wide", 3): [REFERENCE, REFERENCE, "a b c d e f g h", REFERENCE],
}


def transcript_rows(hypotheses: list[str]) -> list[tuple[str, str, str, str]]:
    return [(f"u{number}", f"s{number % 2}", REFERENCE, text) for number, text in enumerate(hypotheses)]


@pytest.fixture
def runs(transcribed_run: Write) -> dict[str, list[Run]]:
    for (name, seed), hypotheses in HEARD.items():
        folder = transcribed_run(
            name, seed, {"clean": transcript_rows(hypotheses), "other": transcript_rows(hypotheses)[:2]}
        )
    return by_name(folder)


def by_name(folder: Path) -> dict[str, list[Run]]:
    runs_by_name: dict[str, list[Run]] = {}
    for run in map(read_run, find_runs([folder])):
        runs_by_name.setdefault(run.name, []).append(run)
    return runs_by_name


def results(runs: dict[str, list[Run]], baseline: str = "base") -> tuple[list[PairComparison], list[Skipped]]:
    comparisons = list(compare_pairs(runs, baseline))
    return [comparison for comparison in comparisons if isinstance(comparison, PairComparison)], [
        comparison for comparison in comparisons if isinstance(comparison, Skipped)
    ]


def test_errors_are_means_over_seeds_and_the_tests_are_of_them(runs: dict[str, list[Run]]) -> None:
    pairs, skipped = results(runs)
    assert [(pair.run, pair.baseline, pair.subset, pair.seeds, pair.baseline_seeds) for pair in pairs] == [
        ("wide", "base", subset, ("1", "2", "3"), ("1", "2")) for subset in ("clean", "other")
    ]
    assert not skipped
    pair = pairs[0]
    assert pair.utterances == [
        UtteranceErrors("u0", "s0", 8, 0, 0),
        UtteranceErrors("u1", "s1", 8, 0, 0.5),
        UtteranceErrors("u2", "s0", 8, pytest.approx(1 / 3), 2.5),
        UtteranceErrors("u3", "s1", 8, 1, 0),
    ]
    segments = []
    for index in range(4):
        wide, base = (
            [find_word_edits(REFERENCE, texts[index]) for (run, _), texts in HEARD.items() if run == name]
            for name in ("wide", "base")
        )
        segments += [wide_errors - base_errors for wide_errors, base_errors in segment_errors(wide, base)]
    assert segments == pytest.approx([-0.5, 1 / 3 - 1, -1.5, 2 / 3, 1 / 3])
    assert pair.matched_pairs == matched_pairs(segments)
    expected = bootstrap([0, -0.5, round(1 / 3 - 2.5, 9), 1], [8] * 4)
    assert pair.bootstrap == expected
    assert expected.difference == pytest.approx((4 / 3 - 3) / 32)


def test_examples_show_the_seeds_that_differ_most(runs: dict[str, list[Run]]) -> None:
    pair = results(runs)[0][0]
    better, harmed = pair.utterances[2], pair.utterances[3]
    assert pair.improved == [
        ExampleSentence(better, REFERENCE, REFERENCE, "1", "a x c d x f x h", "2"),
        ExampleSentence(pair.utterances[1], REFERENCE, REFERENCE, "1", "a x c d e f g h", "1"),
    ]
    assert pair.harmed == [ExampleSentence(harmed, REFERENCE, "a y b c d x f g h", "2", REFERENCE, "1")]


def test_the_mirrored_comparison_has_the_other_signs(runs: dict[str, list[Run]]) -> None:
    pair, mirrored = results(runs)[0][0], results(runs, "wide")[0][0]
    assert (mirrored.matched_pairs.z, mirrored.matched_pairs.p) == pytest.approx(
        (-pair.matched_pairs.z, pair.matched_pairs.p)
    )
    assert mirrored.bootstrap.improvement == pytest.approx(1 - pair.bootstrap.improvement)
    assert [example.errors.id for example in mirrored.harmed] == [example.errors.id for example in pair.improved]


def test_examples_are_the_ten_greatest_differences_first_by_id(transcribed_run: Write) -> None:
    words = "a b c d e f g h i j k l".split()
    references = [(f"u{number:02}", "s", " ".join(words)) for number in range(len(words))]
    wrong = [[*["x"] * (number % 3), *words[number % 3 :]] for number in range(len(words))]  # 0 1 2 0 1 2 …
    transcribed_run("base", 1, {"clean": [(*reference, reference[2]) for reference in references]})
    transcripts = [(*reference, " ".join(text)) for reference, text in zip(references, wrong, strict=True)]
    folder = transcribed_run("wide", 1, {"clean": transcripts})
    [pair], _ = results(by_name(folder))
    assert [example.errors.id for example in pair.harmed] == [f"u{n:02}" for n in (2, 5, 8, 11, 1, 4, 7, 10)]
    assert pair.improved == []
    [pair], _ = results(by_name(folder), "wide")
    assert len(pair.improved) == 8


def spoil(run: Run, subset: str, line: int, **changes: str | None) -> None:
    """Change the fields of a line."""
    path = run.transcripts(subset)
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    lines[line] |= changes
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda run: run.transcripts("clean").unlink(), "expected transcripts, as the callback Transcripts writes"),
        (lambda run: spoil(run, "clean", 1, id="v1"), "line 2: expected, as in .*, u1 'a b .*', got v1 'a b"),
        (lambda run: spoil(run, "clean", 2, reference="a b"), "line 3: .*got u2 'a b'"),
        (lambda run: spoil(run, "clean", 2, hypothesis=None), "line 3: expected JSON with the texts id, speaker"),
        (lambda run: run.transcripts("clean").write_text("nonsense\n"), "line 1: expected JSON .* got 'nonsense"),
        (lambda run: run.transcripts("clean").write_text("[]\n"), "line 1: expected JSON"),
        (lambda run: run.transcripts("clean").write_text(""), "line 1: expected, .*, got the end"),
        (lambda run: run.transcripts("clean").write_bytes(b"\xff\n"), "expected transcripts"),
    ],
)
def test_transcripts_that_do_not_match_are_left_out_and_the_rest_goes_on(
    runs: dict[str, list[Run]], break_it: Callable[[Run], None], reason: str
) -> None:
    break_it(runs["wide"][1])
    pairs, [skipped] = results(runs)
    assert (skipped.run, skipped.subset) == ("wide", "clean")
    assert str(runs["wide"][1].transcripts("clean")) in skipped.reason
    assert re.search(reason, skipped.reason)
    assert [(pair.subset, pair.seeds) for pair in pairs] == [("clean", ("1", "3")), ("other", ("1", "2", "3"))]


def test_white_space_in_references_does_not_matter(runs: dict[str, list[Run]]) -> None:
    spoil(runs["wide"][1], "clean", 2, reference=f"  {REFERENCE}  ")
    assert results(runs)[1] == []


def test_a_baseline_without_transcripts_is_named_for_each_run(runs: dict[str, list[Run]]) -> None:
    for run in runs["base"]:
        run.transcripts("clean").unlink()
    pairs, skipped = results(runs)
    assert [pair.subset for pair in pairs] == ["other"]
    assert [comparison.run for comparison in skipped] == ["base", "base", "wide"]
    assert "the baseline base has no transcripts" in skipped[-1].reason


def test_references_without_words_are_told(transcribed_run: Write) -> None:
    for name in ("base", "wide"):
        folder = transcribed_run(name, 1, {"clean": [("u0", "", "", name)]})
    pairs, [skipped] = results(by_name(folder))
    assert not pairs and "expected references with words" in skipped.reason


def test_files_are_compared_line_by_line(runs: dict[str, list[Run]]) -> None:
    first, second = (runs["base"][index].transcripts("clean") for index in (0, 1))
    assert find_difference(first, second) is None
    second.write_text(second.read_text() + json.dumps(dict.fromkeys(("id", "speaker", "reference", "hypothesis"), "z")))
    difference = find_difference(first, second)
    assert difference and "line 5: expected, as in" in difference and difference.endswith("z 'z', got the end")
    assert [line.id for line in read_transcripts(second)] == ["u0", "u1", "u2", "u3", "z"]
    with pytest.raises(InputError, match="expected transcripts"):
        find_difference(first, second.with_name("none.jsonl"))
    with pytest.raises(ValueError):
        compare_pair(runs["base"][:1], runs["base"][1:], "clean")
