"""Comparison of finished runs, utterance by utterance: significance, most improved and most harmed sentences."""

import heapq
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from asr_lightning.errors import InputError
from asr_lightning.report.run_folders import Run
from asr_lightning.scoring.significance import Bootstrap, MatchedPairs, bootstrap, matched_pairs, segment_errors
from asr_lightning.scoring.word_edits import find_word_edits

EXAMPLES = 10  # sentences that improved most, and that were harmed most


@dataclass(frozen=True)
class TranscriptLine:
    """A line of a transcript file."""

    id: str
    speaker: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class UtteranceErrors:
    """Word errors of an utterance, of a run and of the baseline, each a mean over seeds.

    Attributes:
        id: Of the utterance.
        speaker: Empty where unknown.
        words: Of the reference.
        errors: Of the run.
        baseline_errors: Of the baseline.
    """

    id: str
    speaker: str
    words: int
    errors: float
    baseline_errors: float

    @property
    def difference(self) -> float:
        """Negative where the run is better than the baseline."""
        return round(self.errors - self.baseline_errors, 9)  # thirds: equal differences shall be equal


@dataclass(frozen=True)
class ExampleSentence:
    """An utterance with the hypotheses of a run and of the baseline.

    With several seeds, the hypotheses are of the two that differ most in the direction of the mean difference: the best
    of the run and the worst of the baseline where the run is better, else the other way round; the first of equal ones.
    """

    errors: UtteranceErrors
    reference: str
    hypothesis: str
    seed: str
    baseline_hypothesis: str
    baseline_seed: str


@dataclass(frozen=True)
class PairComparison:
    """A run against the baseline on a subset. Differences are run minus baseline: negative is better.

    Attributes:
        run: Name of the experiment.
        baseline: Name of the baseline.
        subset: Part of the corpus.
        seeds: Of the run.
        baseline_seeds: Of the baseline.
        utterances: In the order of the transcripts, by id.
        matched_pairs: MAPSSWE over all segments.
        bootstrap: Of the word error rate.
        improved: The most improved utterances, the greatest difference first; then by id.
        harmed: The most harmed ones, likewise.
    """

    run: str
    baseline: str
    subset: str
    seeds: tuple[str, ...]
    baseline_seeds: tuple[str, ...]
    utterances: list[UtteranceErrors]
    matched_pairs: MatchedPairs
    bootstrap: Bootstrap
    improved: list[ExampleSentence]
    harmed: list[ExampleSentence]


@dataclass(frozen=True)
class Skipped:
    """A comparison that was not possible, with its reason."""

    run: str
    subset: str
    reason: str

    def __str__(self) -> str:
        return f"{self.run} on {self.subset}: {self.reason}"


def compare_pairs(runs: Mapping[str, Sequence[Run]], baseline: str) -> Iterator[PairComparison | Skipped]:
    """Compare the final transcripts of each run with those of the baseline, on each subset that both were scored on.

    Transcripts that are missing, malformed, or of other utterances or references than the first of the baseline are
    skipped with a reason. Texts are compared as they are, apart from white space.

    Args:
        runs: The seeds of each experiment, by its name.
        baseline: Name of one of them.

    Yields:
        Results one at a time; all that is kept between them are counts of utterances of one subset.
    """
    for subset in sorted({subset for run in runs[baseline] for subset in run.rates}):
        scored = {name: seeds for name, seeds in runs.items() if name != baseline and _runs_on_subset(seeds, subset)}
        if not scored:
            continue
        baseline_seeds, problems = _comparable_runs(runs[baseline], subset)
        yield from problems
        for name, seeds in scored.items():
            if not baseline_seeds:
                yield Skipped(name, subset, f"the baseline {baseline} has no transcripts to compare with")
                continue
            usable, problems = _comparable_runs(
                _runs_on_subset(seeds, subset), subset, baseline_seeds[0].transcripts(subset)
            )
            yield from problems
            if usable:
                try:
                    yield compare_pair(usable, baseline_seeds, subset)
                except ValueError as error:
                    yield Skipped(name, subset, str(error))


def compare_pair(run: Sequence[Run], baseline: Sequence[Run], subset: str) -> PairComparison:
    """Compare a run with another one on a subset.

    Args:
        run: Its seeds, at least one.
        baseline: The seeds of the other.
        subset: Of which all have transcripts, of the same utterances in the same order.

    Raises:
        ValueError: A transcript is malformed, a reference differs, or no reference has words.
    """
    utterances, differences = [], []
    for transcripts in _aligned_transcripts([*run, *baseline], subset):
        errors, segments = _score(transcripts, len(run))
        utterances.append(errors)
        differences += segments
    rows = range(len(utterances))
    improved = heapq.nsmallest(EXAMPLES, rows, lambda row: utterances[row].difference)
    harmed = heapq.nsmallest(EXAMPLES, rows, lambda row: -utterances[row].difference)
    examples = _read_examples(run, baseline, subset, {row: utterances[row] for row in improved + harmed})
    return PairComparison(
        run=run[0].name,
        baseline=baseline[0].name,
        subset=subset,
        seeds=tuple(seed.seed for seed in run),
        baseline_seeds=tuple(seed.seed for seed in baseline),
        utterances=utterances,
        matched_pairs=matched_pairs(differences),
        bootstrap=bootstrap(
            [utterance.difference for utterance in utterances],
            [utterance.words for utterance in utterances],
            [utterance.speaker for utterance in utterances],
        ),
        improved=[examples[row] for row in improved if utterances[row].difference < 0],
        harmed=[examples[row] for row in harmed if utterances[row].difference > 0],
    )


def read_transcripts(path: Path) -> Iterator[TranscriptLine]:
    """Read the lines of a transcript file.

    Raises:
        InputError: It cannot be read, or a line is not what the callback `Transcripts` writes.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for count, line in enumerate(file, 1):
                try:
                    content = json.loads(line)
                    fields = [content[name] for name in ("id", "speaker", "reference", "hypothesis")]
                    if not all(isinstance(field, str) for field in fields):
                        raise TypeError("not a text")
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise InputError(
                        f"{path}, line {count}: expected JSON with the texts id, speaker, reference and hypothesis,"
                        f" got {line[:80]!r}"
                    ) from error
                yield TranscriptLine(*fields)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected transcripts, as the callback Transcripts writes them: {error}") from error


def find_difference(path: Path, other: Path) -> str | None:
    """Return the first line in which two transcript files have other utterances or references; None if all agree.

    Raises:
        InputError: One of them cannot be read, or is malformed.
    """
    pairs = itertools.zip_longest(read_transcripts(path), read_transcripts(other))
    for line, (actual, expected) in enumerate(pairs, 1):
        actual_content, expected_content = (
            None if transcript is None else (transcript.id, transcript.reference.split())
            for transcript in (actual, expected)
        )
        if actual_content == expected_content:
            continue
        descriptions = [
            "the end" if transcript is None else f"{transcript.id} {transcript.reference!r}"
            for transcript in (expected, actual)
        ]
        return f"{path}, line {line}: expected, as in {other}, {descriptions[0]}, got {descriptions[1]}"
    return None


def _runs_on_subset(runs: Sequence[Run], subset: str) -> list[Run]:
    return [run for run in runs if subset in run.rates]


def _comparable_runs(runs: Sequence[Run], subset: str, first: Path | None = None) -> tuple[list[Run], list[Skipped]]:
    """Return the runs with transcripts of the same utterances as the first, and the problems of the others."""
    usable, problems = [], []
    for run in _runs_on_subset(runs, subset):
        path = run.transcripts(subset)
        try:
            reason = find_difference(path, first or path)
        except InputError as error:
            reason = str(error)
        if reason is None:
            usable.append(run)
            first = first or path
        else:
            problems.append(Skipped(run.name, subset, reason))
    return usable, problems


def _aligned_transcripts(runs: Sequence[Run], subset: str) -> Iterator[tuple[TranscriptLine, ...]]:
    """Yield the transcripts of all runs, utterance by utterance."""
    return zip(*(read_transcripts(run.transcripts(subset)) for run in runs), strict=True)


def _score(transcripts: Sequence[TranscriptLine], seeds: int) -> tuple[UtteranceErrors, list[float]]:
    """Return the errors in an utterance, and differences by segment; the first `seeds` transcripts are the run's."""
    alignments = [find_word_edits(transcript.reference, transcript.hypothesis) for transcript in transcripts]
    run_edits, baseline_edits = alignments[:seeds], alignments[seeds:]
    errors = UtteranceErrors(
        id=transcripts[-1].id,
        speaker=transcripts[-1].speaker,
        words=len(run_edits[0].reference),
        errors=sum(edits.errors for edits in run_edits) / len(run_edits),
        baseline_errors=sum(edits.errors for edits in baseline_edits) / len(baseline_edits),
    )
    return errors, [
        run_errors - baseline_errors for run_errors, baseline_errors in segment_errors(run_edits, baseline_edits)
    ]


def _read_examples(
    run: Sequence[Run], baseline: Sequence[Run], subset: str, chosen: Mapping[int, UtteranceErrors]
) -> dict[int, ExampleSentence]:
    """Read the transcripts of the chosen utterances again, by row, so that not all texts are held in memory."""
    examples = {}
    for row, transcripts in enumerate(_aligned_transcripts([*run, *baseline], subset)):
        if row in chosen:
            errors = [find_word_edits(transcript.reference, transcript.hypothesis).errors for transcript in transcripts]
            better, worse = (min, max) if chosen[row].difference < 0 else (max, min)
            index = errors.index(better(errors[: len(run)]))
            baseline_index = errors.index(worse(errors[len(run) :]), len(run))
            examples[row] = ExampleSentence(
                errors=chosen[row],
                reference=transcripts[0].reference,
                hypothesis=transcripts[index].hypothesis,
                seed=run[index].seed,
                baseline_hypothesis=transcripts[baseline_index].hypothesis,
                baseline_seed=baseline[baseline_index - len(run)].seed,
            )
    return examples
