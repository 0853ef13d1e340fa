"""Table and figure of the errors of borders in alignments."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from asr_lightning.analysis.boundaries import BoundaryErrors, corpus_boundary_errors
from asr_lightning.errors import InputError, printable
from asr_lightning.files import replacing, write_atomically
from asr_lightning.hmm.frame_alignment import word_runs
from asr_lightning.report.figures import COLORS
from asr_lightning.report.fonts import set_fonts
from asr_lightning.report.tables import as_csv, as_markdown, as_text, number
from asr_lightning.text.lexicon import Lexicon, read_lexicon
from asr_lightning.text.phones import SILENCE, Segment
from data_modules.phone_labels import CTMLabels, TIMITLabels, has_timit

HEAD = ["alignment", "borders", "matched %", "median ms", "90 % ms", "≤ 20 ms %", "≤ 50 ms %"]
FARTHEST = 0.1  # seconds in the picture


def table(errors: Mapping[str, BoundaryErrors]) -> list[list[str]]:
    """Return the table: a head, and a row for every alignment."""
    rows = [HEAD]
    for name, error in errors.items():
        times = [number(1000 * error.percentile(percent), ".1f") for percent in (50, 90)]
        shares = [number(100 * error.within(seconds), ".1f") for seconds in (0.020, 0.050)]
        rows.append([name, str(error.expected), f"{100 * error.matched:.1f}", *times, *shares])
    return rows


def plot(errors: Mapping[str, BoundaryErrors], path: Path) -> None:
    """Draw the cumulative distribution of the errors of borders."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, error), color in zip(errors.items(), COLORS * len(errors), strict=False):
        ms = np.sort(error.seconds) * 1000
        axes.step(ms, 100 * np.arange(1, len(ms) + 1) / max(1, len(ms)), where="post", label=name, color=color)
    axes.axvline(20, color="0.7", linewidth=1, zorder=0)
    axes.set(xlim=(0, 1000 * FARTHEST), ylim=(0, 100), xlabel="off by at most, ms", ylabel="borders, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    set_fonts(figure)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)


def exact_words(phones: Sequence[Segment], words: Sequence[Segment], lexicon: Lexicon) -> list[Segment]:
    """Return the times of words from those of their phones.

    Raises:
        ValueError: The phones are not those of the words.
    """
    spoken = [word.label for word in words if word.label != SILENCE]
    return [Segment(*run) for run in word_runs(lexicon, [astuple(phone) for phone in phones], spoken)]


def without_stress(segment: Segment) -> Segment:
    """Return a phone without the stress that CMUdict marks at vowels: `EH` for `EH1`."""
    return replace(segment, label=segment.label.rstrip("012"))


def compare_boundaries(
    truth: Path,
    alignments: Sequence[Path],
    names: Sequence[str],
    lexicon: Path | None,
    output: Path,
    tier: str = "phones",
) -> str:
    """Write `boundaries.csv`, `.md` and `.png`, and return what to tell the user.

    Args:
        truth: Exact phones: CTM files, or a folder in the form of TIMIT.
        alignments: Of phones; of words if there is a lexicon.
        names: Of the alignments.
        lexicon: Pronunciations, by which exact words are put together; utterances with other words are left out.
        output: Folder.
        tier: `phones` or `words` of a truth in the form of TIMIT.

    Raises:
        InputError: A file cannot be read, or there is no border to compare.
    """
    exact = TIMITLabels(str(truth), tier) if has_timit(truth) else CTMLabels(str(truth))
    words = None if lexicon is None else read_lexicon(lexicon)
    errors, left_out = {}, dict[str, str]()
    for name, path in zip(names, alignments, strict=True):
        labels = CTMLabels(str(path))
        segments = {id: labels.segments(id) for id in labels.utterances()}
        if isinstance(exact, TIMITLabels) and tier == "phones":
            segments = {id: [without_stress(segment) for segment in labeled] for id, labeled in segments.items()}
        expected = {}
        for id, labeled in segments.items():
            phones = exact.segments(id)
            try:
                expected[id] = exact_words(phones, labeled, words) if phones and words is not None else phones
            except ValueError as error:  # a word is not in the lexicon
                left_out[id] = str(error)
        errors[name] = corpus_boundary_errors(expected, segments)
        if not errors[name].expected:
            examples = ", ".join(f"{id} ({left_out[id]})" if id in left_out else id for id in list(segments)[:3])
            raise InputError(f"{path}: expected utterances that {truth} has, found {examples}")
        if not len(errors[name].seconds):
            of_truth, of_file = (
                ", ".join(sorted({segment.label for labeled in alignment.values() for segment in labeled})[:10])
                for alignment in (expected, segments)
            )
            raise InputError(
                f"{path}: expected two segments in a row with the labels of {truth}, {of_truth}; found no such pair "
                f"among the labels {of_file}"
            )
    rows = table(errors)
    write_atomically(output / "boundaries.csv", as_csv(rows))
    write_atomically(output / "boundaries.md", as_markdown(rows) + "\n")
    plot(errors, output / "boundaries.png")
    for id, problem in left_out.items():
        print(printable(f"left out: {id}: {problem}"), file=sys.stderr)
    return f"{as_text(rows)}\n\nWritten to {output.absolute()}: boundaries.csv, boundaries.md, boundaries.png"
