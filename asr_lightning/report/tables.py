"""Tables of results, for the terminal, for Markdown and as CSV; with notes, they are sections of a comparison."""

import csv
import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asr_lightning.errors import InputError, printable
from asr_lightning.files import write_atomically
from asr_lightning.scoring import RATES

MISSING = "–"
FORMULA = ("=", "+", "-", "@")  # the first character of a formula in a spreadsheet
NUMBER = re.compile(r"[+-](\d[\d,]*(\.\d*)?(e[+-]?\d+)?|inf|nan)( ± [\d.]+)?")

Table = list[list[str]]  # its first line is the head


@dataclass(frozen=True)
class Section:
    """A table with notes, and the files that are written of it.

    Attributes:
        stem: Of the names of its files.
        table: As it is printed, and written to `<stem>.md`.
        notes: Below the table; those that begin with a space belong to the one before.
        rows: Of `<stem>.csv`; those of the table if empty.
        files: More files by name: a text, or a function that writes to a path.
    """

    stem: str
    table: Table
    notes: Sequence[str]
    rows: Sequence[Sequence[object]] = ()
    files: Mapping[str, str | Callable[[Path], object]] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join([as_text(self.table), "", *map(printable, self.notes)])

    def write(self, folder: Path) -> list[str]:
        """Write the files, and return their names."""
        notes = [note if note.startswith(" ") else f"* {note}" for note in map(escape_markdown, self.notes)]
        markdown = "\n".join([as_markdown(self.table), "", *notes]) + "\n"
        files = {f"{self.stem}.csv": as_csv(self.rows or self.table), f"{self.stem}.md": markdown, **self.files}
        names = []
        for name, content in files.items():
            path = folder / name
            if isinstance(content, str):
                write_atomically(path, content)
            else:
                content(path)
            vector = path.with_suffix(".svg")  # figures for print are written beside those for the screen
            names += [name, vector.name] if path.suffix == ".png" and vector.exists() else [name]
        return names


def summarize(rates: Sequence[float]) -> str:
    """Write the mean of some seeds in per cent, with their sample standard deviation where there are several.

    A rate that is not a number, as where nothing was scored, makes the mean unknown.
    """
    if not rates or any(map(math.isnan, rates)):
        return MISSING
    percent = [100 * rate for rate in rates]
    if len(percent) == 1 or math.inf in percent:
        return f"{statistics.fmean(percent):.2f}"
    return f"{statistics.fmean(percent):.2f} ± {statistics.stdev(percent):.2f}"


def number(value: float | None, form: str) -> str:
    """Write a number, as `number(0.5, ".3f")`, or `–` if it is missing or not a number."""
    return MISSING if value is None or math.isnan(value) else format(value, form)


def p_value(p: float | None) -> str:
    """Write a p-value with three decimals; below 0.001 as `< 0.001`."""
    return MISSING if p is None or math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(values: Sequence[int | None]) -> str:
    """Write a count: one number if all seeds agree, else the smallest and the largest."""
    counts = sorted({value for value in values if value is not None})
    if not counts or None in values:
        return MISSING
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def metrics_by_subset(metrics: Mapping[str, float]) -> Table:
    """Return what was logged as `<subset>/<metric>`, a line per subset: error rates in per cent, counts as whole."""
    values: dict[str, dict[str, str]] = {}
    for key, value in metrics.items():
        subset, _, metric = key.rpartition("/")
        is_rate = metric in RATES
        form = ".2f" if is_rate else ",.0f" if float(value).is_integer() else ".4g" if abs(value) < 1 else ",.3f"
        values.setdefault(subset, {})[f"{metric.upper()} %" if is_rate else metric] = format(
            100 * value if is_rate else value, form
        )
    columns = list(dict.fromkeys(column for line in values.values() for column in line))
    lines = [[subset, *(line.get(column, MISSING) for column in columns)] for subset, line in values.items()]
    return [["subset", *(column.replace("_", " ") for column in columns)], *lines]


def as_text(table: Table) -> str:
    """Align a table for the terminal: texts on the left, numbers on the right."""
    table = [list(map(printable, line)) for line in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    sides = [str.rjust if numeric else str.ljust for numeric in _numeric(table)]
    return "\n".join(
        "  ".join(side(cell, width) for side, cell, width in zip(sides, line, widths, strict=True)).rstrip()
        for line in table
    )


def as_markdown(table: Table) -> str:
    """Write a table in Markdown: texts on the left, numbers on the right."""
    lines = [" | ".join(map(escape_markdown, line)) for line in table]
    sides = " | ".join("---:" if numeric else "---" for numeric in _numeric(table))
    return "\n".join(f"| {line} |" for line in [lines[0], sides, *lines[1:]])


def _numeric(table: Table) -> list[bool]:
    """Return for each column whether it holds only numbers, intervals and missing values."""
    return [
        all(re.match(r"(< )?[-+−]?\d|–|nan$|inf$|$", cell) for cell in cells) for cells in zip(*table[1:], strict=True)
    ] or [False] * len(table[0])


def escape_markdown(text: str) -> str:
    """Write a name or transcript so that it is text in Markdown: no end of a cell, no link, no element of HTML."""
    return re.sub(r"[|<`\[]", r"\\\g<0>", printable(text))


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    """Write rows as CSV, fractions with 6 decimals.

    Texts are written as they may be printed. One that a spreadsheet would take for a formula, as a name that begins
    with `=`, gets an apostrophe before it, which spreadsheets do not show.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows(map(_cell, row) for row in rows)
    return file.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6f}"
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if _is_formula(text) else text


def from_csv(cell: str) -> str:
    """Return a text that `as_csv` has written, without the apostrophe before a formula."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell[1:]) else cell


def read_rows(path: Path, columns: set[str]) -> list[dict[str, str]]:
    """Read a CSV file with a head that `as_csv` has written.

    Args:
        path: The file.
        columns: That it must have.

    Raises:
        InputError: It cannot be read, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if missing := columns - set(reader.fieldnames or []):
                raise InputError(f"{path}: expected the columns {', '.join(sorted(missing))} too")
            return [{name: from_csv(row[name] or "") for name in reader.fieldnames or []} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}; let the callbacks write it again") from error


def _is_formula(text: str) -> bool:
    return len(text) > 1 and text.startswith(FORMULA) and not NUMBER.fullmatch(text)
