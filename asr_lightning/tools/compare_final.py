"""The second half of `asr_lightning.tools.compare`: final rates, their significance, and the sentences behind them."""

import re
from collections.abc import Sequence
from pathlib import Path

from asr_lightning.errors import printable_lines
from asr_lightning.files import write_atomically
from asr_lightning.report.run_folders import Experiment, find_runs, read_experiments, read_runs, scored_on
from asr_lightning.report.run_pairs import ExampleSentence, PairComparison, Skipped, compare_pairs
from asr_lightning.report.tables import (
    MISSING,
    Table,
    as_csv,
    as_markdown,
    as_text,
    count,
    escape_markdown,
    number,
    p_value,
    summarise,
)
from asr_lightning.scoring import COUNTS, Metric
from asr_lightning.scoring.significance import RESAMPLES
from asr_lightning.scoring.word_edits import find_word_edits, format_word_edits

NOTES = (
    "Final rates are those of `lightning test` where a run was tested, else of its last epoch; in %, mean ± sample"
    " standard deviation over seeds.",
    "Speeds of training (over all epochs) and search: seconds of audio per second.",
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


def final_table(experiments: Sequence[Experiment], metric: Metric) -> Table:
    """Make the table of final rates: a line per subset and run."""
    rate = metric.upper().replace("_", " ")
    head = ["subset", "run", "seeds", rate, *COUNTS, "parameters", "training s/s", "search s/s"]
    subsets = sorted({subset for experiment in experiments for run in experiment.runs for subset in run.rates})
    return [
        head,
        *(
            [
                subset,
                experiment.name,
                str(len(rates)),
                summarise([getattr(rate, metric) for rate in rates]),
                *(count([getattr(rate, name) for rate in rates]) for name in COUNTS),
                number(experiment.parameters, ","),
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
    drawn, test = pair.bootstrap, pair.matched_pairs
    return [
        pair.subset,
        pair.run,
        pair.baseline,
        f"{100 * drawn.difference:+.2f}",
        MISSING if drawn.low is None or drawn.high is None else f"{100 * drawn.low:+.2f} … {100 * drawn.high:+.2f}",
        number(drawn.improvement, ".3f"),
        f"{drawn.units} {'speakers' if drawn.by_speaker else 'utterances'}",
        p_value(test.p),
        number(test.z, "+.2f"),
        str(test.segments),
        *(f"{counted:,}" for counted in _counts(pair)),
    ]


def significance_row(pair: PairComparison) -> list[object]:
    """Write a comparison as a row of the file: rates are fractions."""
    drawn, test = pair.bootstrap, pair.matched_pairs
    unit = "speaker" if drawn.by_speaker else "utterance"
    sampled = [drawn.difference, drawn.low, drawn.high, drawn.improvement, drawn.units, unit]
    tested = [test.segments, test.mean, test.deviation, test.z, "" if test.p is None else f"{test.p:.6g}"]
    return [pair.subset, pair.run, pair.baseline, *sampled, *tested, *_counts(pair)]


def _counts(pair: PairComparison) -> tuple[int, int]:
    return len(pair.utterances), sum(one.words for one in pair.utterances)


def utterance_table(pair: PairComparison) -> list[list[object]]:
    """Make the rows of the file of utterances."""
    return [
        ["id", "speaker", "words", f"errors {pair.run}", f"errors {pair.baseline}", "difference"],
        *([one.id, one.speaker, one.words, one.errors, one.baseline_errors, one.difference] for one in pair.utterances),
    ]


def sentences(pair: PairComparison) -> str:
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
    shown = [
        (_label(pair.baseline, pair.baseline_seeds, example.baseline_seed), example.baseline_hypothesis),
        (_label(pair.run, pair.seeds, example.seed), example.hypothesis),
    ]
    rows = [(label, find_word_edits(example.reference, hypothesis)) for label, hypothesis in shown]
    counts = f"{errors.baseline_errors:.3g} → {errors.errors:.3g} errors in {errors.words} words"
    alignments = printable_lines(format_word_edits(rows)).replace("```", r"\`\`\`")  # which would end the block
    return [f"{escape_markdown(errors.id + speaker)}: {counts}", "", "```text", alignments, "```"]


def _label(run: str, seeds: Sequence[str], seed: str) -> str:
    return run if len(seeds) == 1 else f"{run} (seed {seed})"


def compare_final(
    folders: Sequence[Path], output: Path, metric: Metric, reference: str | None, baseline: str | None
) -> tuple[list[str], list[str]]:
    """Write the final rates of some runs, and compare them with the baseline utterance by utterance.

    Args:
        folders: Of the runs, or with run folders at any depth.
        output: The folder to write `final.md`, `final_rates.csv`, `significance.csv` and, for each run and subset,
            `utterances_<run>_<baseline>_<subset>.csv` and `sentences_<run>_<baseline>_<subset>.md` into.
        metric: Which rate the table of final rates shows.
        reference: Name of a run that is not the baseline unless it is named as such.
        baseline: Name of the run that the others are compared with; the first one by default.

    Returns:
        What to tell the user, and the names of the files.
    """
    problems: list[str] = []
    runs = read_runs(find_runs(folders), problems)
    if not any(run.transcripts(subset).exists() for run in runs for subset in run.rates):
        return ["No final rates and significance: the runs have no transcripts of their last epoch.", *problems], []
    if baseline is not None and baseline not in {run.name for run in runs}:
        return [f"No final rates and significance: none of the final ones are of {baseline}.", *problems], []
    experiments = read_experiments(runs, problems)
    names = [experiment.name for experiment in experiments]
    first = baseline or next((name for name in names if name != reference), names[0])
    tables, files = _write_final(experiments, first, metric, output, problems)
    ours = [*NOTES, *(SIGNIFICANCE_NOTES if len(tables) > 1 else ())]  # with code between backticks
    theirs = scored_on((rate for run in runs for rate in run.rates.values()), differing_only=True)
    theirs += [f"Left out: {one}" for one in problems]
    remarks = [*ours, *map(printable_lines, theirs)]
    markdown = [*map(as_markdown, tables), "\n".join(f"* {line}" for line in [*ours, *map(escape_markdown, theirs)])]
    write_atomically(output / "final.md", "\n\n".join(markdown) + "\n")
    return [*(line for one in tables for line in (as_text(one), "")), *remarks], [
        "final.md",
        *files,
    ]


def _write_final(
    experiments: Sequence[Experiment], baseline: str, metric: Metric, output: Path, problems: list[str]
) -> tuple[list[Table], list[str]]:
    """Write the CSV files and those of pairs; return the tables and the files' names, and add to the problems."""
    rates = final_table(experiments, metric)
    write_atomically(output / "final_rates.csv", as_csv(rates))
    table, files = [SIGNIFICANCE_HEAD], ["final_rates.csv"]
    rows: list[list[object]] = [[*SIGNIFICANCE_COLUMNS]]
    for pair in compare_pairs({one.name: one.runs for one in experiments}, baseline):
        if isinstance(pair, Skipped):
            problems.append(str(pair))
            continue
        table.append(significance_line(pair))
        rows.append(significance_row(pair))
        files += _write_pair(pair, output)
    if len(table) == 1:
        return [rates], files
    write_atomically(output / "significance.csv", as_csv(rows))
    return [rates, table], ["significance.csv", *files]


def _write_pair(pair: PairComparison, output: Path) -> list[str]:
    """Write the files of a pair, and return their names."""
    stem = "_".join(re.sub(r"[^\w.+-]+", "-", name) for name in (pair.run, pair.baseline, pair.subset))
    files = {f"utterances_{stem}.csv": as_csv(utterance_table(pair)), f"sentences_{stem}.md": sentences(pair)}
    for name, text in files.items():
        write_atomically(output / name, text)
    return list(files)
