"""Tables of results: for the terminal, for Markdown and as CSV."""

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from asr_lightning.scoring.error_rates import RATES

MISSING = "–"

Table = list[list[str]]  # its first line is the head


def summarise(rates: Sequence[float]) -> str:
    """Write the mean of some seeds in per cent, with their sample standard deviation where there are several."""
    if not rates:
        return MISSING
    percent = [100 * rate for rate in rates]
    if len(percent) == 1 or math.inf in percent:
        return f"{statistics.fmean(percent):.2f}"
    return f"{statistics.fmean(percent):.2f} ± {statistics.stdev(percent):.2f}"


def number(value: float | None, form: str) -> str:
    """Write a number, as `number(0.5, ".3f")`, or that it is missing."""
    return MISSING if value is None else format(value, form)


def metrics_by_subset(metrics: Mapping[str, float]) -> Table:
    """Return what was logged as `<subset>/<metric>`, a line per subset: error rates in per cent, counts as whole."""
    values: dict[str, dict[str, str]] = {}
    for key, value in metrics.items():
        subset, _, metric = key.rpartition("/")
        rate = metric in RATES
        form = ".2f" if rate else ",.0f" if float(value).is_integer() else ".4g" if abs(value) < 1 else ",.3f"
        values.setdefault(subset, {})[f"{metric.upper()} %" if rate else metric] = format(
            100 * value if rate else value, form
        )
    columns = list(dict.fromkeys(column for line in values.values() for column in line))
    lines = [[subset, *(line.get(column, MISSING) for column in columns)] for subset, line in values.items()]
    return [["subset", *(column.replace("_", " ") for column in columns)], *lines]


def as_text(table: Table) -> str:
    """Align a table for the terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table)


def as_markdown(table: Table) -> str:
    """Write a table in Markdown."""
    lines = [" | ".join(cell.replace("|", r"\|") for cell in line) for line in table]
    return "\n".join(f"| {line} |" for line in [lines[0], " | ".join(["---:"] * len(table[0])), *lines[1:]])


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    """Write rows as CSV, fractions with 6 decimals."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([f"{value:.6f}" if isinstance(value, float) else value for value in row] for row in rows)
    return file.getvalue()
