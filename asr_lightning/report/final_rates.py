"""Final error rates of runs, whether their differences are significant, and the sentences that changed most."""

import re
from collections.abc import Mapping, Sequence

from asr_lightning.errors import printable_lines
from asr_lightning.report.run_folders import Experiment, scored_on
from asr_lightning.report.run_pairs import ExampleSentence, PairComparison, Skipped, compare_pairs
from asr_lightning.report.tables import (
    MISSING,
    Section,
    Table,
    as_csv,
    count,
    escape_markdown,
    number,
    p_value,
    summarize,
)
from asr_lightning.scoring import COUNTS, Metric
from asr_lightning.scoring.significance import RESAMPLES
from asr_lightning.scoring.word_edits import find_word_edits, format_word_edits

NOTES = (
    "Final rates are those of lightning test where a run was tested, else of its last epoch; in %, mean ± sample"
    " standard deviation over seeds.",
    "Training s: wall time, mean over seeds. Speeds of training (over all epochs) and search: seconds of audio per"
    " second.",
)
SIGNIFICANCE_NOTES = (
    "ΔWER: word error rate minus that of the baseline, in points of per cent; negative is better. Errors of an"
    " utterance are means over the seeds of a run: tests are about these networks on other utterances, not"
    " about other seeds.",
    f"Interval: 95 %, and P(better): the share of {RESAMPLES:,} bootstrap resamples of the speakers or"
    " utterances where the run has the lower rate; of a single one there is neither.",
    "p: two-tailed, of MAPSSWE, NIST's matched-pairs test of segments; not corrected for the number of comparisons.",
)
SIGNIFICANCE_HEAD = [
    "subset",
    "run",
    "baseline",
    "ΔWER",
    "95 % interval",
    "P(better)",
    "drawn",
    "p",
    "z",
    "segments",
    *COUNTS,
]
SIGNIFICANCE_COLUMNS = [
    *("subset", "run", "baseline", "wer_difference", "low", "high", "probability_of_improvement", "units", "unit"),
    *("segments", "mean_difference", "deviation", "z", "p", *COUNTS),
]


def final_table(experiments: Sequence[Experiment], metrics: Sequence[Metric]) -> Table:
    """Make the table of final rates: a line per subset and run."""
    titles = [metric.upper().replace("_", " ") for metric in metrics]
    head = ["subset", "run", "seeds", *titles, *COUNTS, "parameters", "training s", "training s/s", "search s/s"]
    subsets = sorted({subset for experiment in experiments for run in experiment.runs for subset in run.rates})
    return [
        head,
        *(
            [
                subset,
                experiment.name,
                str(len(rates)),
                *(summarize([getattr(rate, metric) for rate in rates]) for metric in metrics),
                *(count([getattr(rate, name) for rate in rates]) for name in COUNTS),
                number(experiment.parameters, ","),
                number(experiment.training_seconds, ".0f"),
                number(experiment.audio_seconds_per_second, ".1f"),
                number(_speed(experiment.real_time_factors.get(subset)), ".1f"),
            ]
            for subset in subsets
            for experiment in experiments
            if (rates := experiment.rates(subset))
        ),
    ]


def _speed(real_time_factor: float | None) -> float | None:
    """Return seconds of audio per second, the unit of the speed of training."""
    return 1 / real_time_factor if real_time_factor else None


def significance_line(pair: PairComparison) -> list[str]:
    """Write a comparison as a line of the table."""
    bootstrap, test = pair.bootstrap, pair.matched_pairs
    return [
        pair.subset,
        pair.run,
        pair.baseline,
        f"{100 * bootstrap.difference:+.2f}",
        MISSING
        if bootstrap.low is None or bootstrap.high is None
        else f"{100 * bootstrap.low:+.2f} … {100 * bootstrap.high:+.2f}",
        number(bootstrap.improvement, ".3f"),
        f"{bootstrap.units} {'speakers' if bootstrap.by_speaker else 'utterances'}",
        p_value(test.p),
        number(test.z, "+.2f"),
        str(test.segments),
        *(f"{value:,}" for value in _counts(pair)),
    ]


def significance_row(pair: PairComparison) -> list[object]:
    """Write a comparison as a row of the file: rates are fractions."""
    bootstrap, test = pair.bootstrap, pair.matched_pairs
    unit = "speaker" if bootstrap.by_speaker else "utterance"
    sampled = [bootstrap.difference, bootstrap.low, bootstrap.high, bootstrap.improvement, bootstrap.units, unit]
    tested = [test.segments, test.mean, test.deviation, test.z, "" if test.p is None else f"{test.p:.6g}"]
    return [pair.subset, pair.run, pair.baseline, *sampled, *tested, *_counts(pair)]


def _counts(pair: PairComparison) -> tuple[int, int]:
    return len(pair.utterances), sum(errors.words for errors in pair.utterances)


def utterance_table(pair: PairComparison) -> list[list[object]]:
    """Make the rows of the file of utterances."""
    return [
        ["id", "speaker", "words", f"errors {pair.run}", f"errors {pair.baseline}", "difference"],
        *(
            [errors.id, errors.speaker, errors.words, errors.errors, errors.baseline_errors, errors.difference]
            for errors in pair.utterances
        ),
    ]


def changed_sentences(pair: PairComparison) -> str:
    """Write the most improved and the most harmed sentences in Markdown."""
    lines = [
        escape_markdown(f"# {pair.run} against {pair.baseline} on {pair.subset}"),
        "",
        f"Word errors of {escape_markdown(f'{pair.baseline} → {pair.run}')}, means over seeds; the texts are of"
        " the seeds that differ most there. A wrong or inserted word stands between asterisks, asterisks alone are a"
        " missing word.",
    ]
    for title, examples in (("Most improved", pair.improved), ("Most harmed", pair.harmed)):
        lines += ["", f"## {title}", *([] if examples else ["", "None."])]
        for example in examples:
            lines += ["", *_sentence(pair, example)]
    return "\n".join(lines) + "\n"


def _sentence(pair: PairComparison, example: ExampleSentence) -> list[str]:
    errors = example.errors
    speaker = f", speaker {errors.speaker}" if errors.speaker else ""
    hypotheses = [
        (_label(pair.baseline, pair.baseline_seeds, example.baseline_seed), example.baseline_hypothesis),
        (_label(pair.run, pair.seeds, example.seed), example.hypothesis),
    ]
    rows = [(label, find_word_edits(example.reference, hypothesis)) for label, hypothesis in hypotheses]
    counts = f"{errors.baseline_errors:.3g} → {errors.errors:.3g} errors in {errors.words} words"
    alignments = printable_lines(format_word_edits(rows)).replace("```", r"\`\`\`")  # which would end the block
    return [f"{escape_markdown(errors.id + speaker)}: {counts}", "", "```text", alignments, "```"]


def _label(run: str, seeds: Sequence[str], seed: str) -> str:
    return run if len(seeds) == 1 else f"{run} (seed {seed})"


def final_section(experiments: Sequence[Experiment], metrics: Sequence[Metric]) -> Section:
    """Return the final rates of experiments, their parameters and speeds."""
    return Section("final_rates", final_table(experiments, metrics), [*NOTES, *differently_scored(experiments)])


def differently_scored(experiments: Sequence[Experiment]) -> list[str]:
    """Return a note for each subset on which not all runs were scored on the same utterances."""
    rates = (rate for experiment in experiments for run in experiment.runs for rate in run.rates.values())
    return scored_on(rates, differing_only=True)


def comparisons(experiments: Sequence[Experiment], baseline: str, problems: list[str]) -> list[PairComparison]:
    """Compare experiments with a baseline, utterance by utterance.

    Args:
        experiments: With the baseline.
        baseline: Name of the experiment that the others are compared with.
        problems: Receives the reasons why pairs cannot be compared.
    """
    pairs = []
    for pair in compare_pairs({experiment.name: experiment.runs for experiment in experiments}, baseline):
        if isinstance(pair, Skipped):
            problems.append(str(pair))
        else:
            pairs.append(pair)
    return pairs


def significance_section(pairs: Sequence[PairComparison]) -> Section:
    """Return tests of some comparisons, and files of utterances and sentences for each of them."""
    return Section(
        "significance",
        [SIGNIFICANCE_HEAD, *map(significance_line, pairs)],
        SIGNIFICANCE_NOTES,
        [SIGNIFICANCE_COLUMNS, *map(significance_row, pairs)],
        {name: text for pair in pairs for name, text in pair_files(pair).items()},
    )


def pair_files(pair: PairComparison) -> Mapping[str, str]:
    """Return the files of a pair on a subset, by name."""
    stem = "_".join(re.sub(r"[^\w.+-]+", "-", name) for name in (pair.run, pair.baseline, pair.subset))
    return {f"utterances_{stem}.csv": as_csv(utterance_table(pair)), f"sentences_{stem}.md": changed_sentences(pair)}
