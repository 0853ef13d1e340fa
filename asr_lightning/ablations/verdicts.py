"""Verdicts on the claims of papers: a table, and a page of one file with intervals and curves."""

import base64
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asr_lightning.ablations.claims import FEWEST, VERDICTS, Claim, Evidence, digest
from asr_lightning.ablations.costs import commits
from asr_lightning.ablations.execution import changed_values
from asr_lightning.files import source_commit
from asr_lightning.report.page import fill
from asr_lightning.report.tables import MISSING, Section, Table, number, summarize
from asr_lightning.scoring import RATES

HEAD = ["claim", "verdict", "source", "the paper", "measure", "lower", "higher", "difference", "95 % interval", "over",
        "over utterances", "visible from", "hours", "command"]  # fmt: skip
NOTES = [
    "Lower and higher: the variants that the claim expects to have the lower and the higher value of the measure, with "
    "the means over seeds and their sample standard deviation. Error rates and their differences in %. gradient "
    "change: mean |ln(next / norm)| of the norm of all gradients in the first tenth of the steps.",
    "Difference: lower minus higher, below 0 where the claim is right. Its 95 % interval is that of Welch's t over "
    "seeds, or of Student's paired t over speakers; for final word error rates there is one more over utterances or "
    "speakers, by bootstrap.",
    "confirmed: every interval is below 0. not confirmed: every one is above 0. undecided: else, or fewer than "
    f"{FEWEST} seeds or speakers. Verdicts are not corrected for the number of claims: about one in forty that are not "
    "true would be confirmed by chance.",
    "Visible from: the true difference that so many values of such a spread would show in four of five trials; smaller "
    "ones would mostly have been missed.",
    "Hours: wall time of all commands of the runs that are compared, without what they needed.",
]
THUMBNAIL = 300_000  # bytes of a picture that is put into the page


def verdicts_section(evidence: Sequence[Evidence]) -> Section:
    """Return the table of all claims, with its notes; its CSV has the values of every seed or speaker too."""
    head: list[object] = [*HEAD, "values, lower", "values, higher"]
    table = [_row(item) for item in evidence]
    values = [[_format_each(item.claim, side) for side in (item.lower, item.higher)] for item in evidence]
    rows = [[*row, *cells] for row, cells in zip(table, values, strict=True)]
    return Section("verdicts", [HEAD, *table], NOTES, [head, *rows])


def digests(evidence: Sequence[Evidence]) -> dict[Path, str]:
    """Return the digest of every run that verdicts rest on, by its folder."""
    return {
        folder: digest(folder) for folder in {run.folder for item in evidence for run in (*item.runs, *item.needed)}
    }


def runs_section(evidence: Sequence[Evidence], digest_by_folder: Mapping[Path, str]) -> Section:
    """Return the runs that verdicts rest on: folder, digest, commits, changed values; digests as of `digests`."""
    table: Table = [["run", "digest", "commits", "command", "changed values"]]
    rows: dict[Path, list[str]] = {}
    for item in evidence:
        for run in (*item.runs, *item.needed):
            if run.folder in rows:
                continue
            made_by = ", ".join(commits(run.folder)) or MISSING
            changed = "; ".join(changed_values(run)) or MISSING
            rows[run.folder] = [str(run.folder), digest_by_folder[run.folder], made_by, item.command, changed]
    notes = [
        "Digest: the first twelve digits of the SHA-256 of the run's experiment, error rates, transcripts and logs.",
        "Changed values: those that the run was made with, where the experiment now has others.",
    ]
    return Section("runs", table + list(rows.values()), notes)


def _row(evidence: Evidence) -> list[str]:
    claim, difference = evidence.claim, evidence.difference
    row = [claim.claim, evidence.verdict, claim.source, claim.paper, claim.measured]
    row += [
        f"{claim.lower} {_format_mean(claim, evidence.lower)}",
        f"{claim.higher} {_format_mean(claim, evidence.higher)}",
    ]
    if difference is None:
        return [*row, *[MISSING] * 6, evidence.command]
    row += [_format_value(claim, difference.difference, "+"), _interval(claim, difference.low, difference.high)]
    row.append(
        f"{len(evidence.lower)} + {len(evidence.higher)} {evidence.units}"
        if evidence.units == "seeds"
        else f"{len(evidence.lower)} speakers"
    )
    bootstrap = evidence.pair.bootstrap if evidence.pair else None
    row.append(_interval(claim, bootstrap.low, bootstrap.high) if bootstrap else MISSING)
    return [*row, _format_value(claim, difference.visible), number(evidence.hours, ".2f"), evidence.command]


def _format_value(claim: Claim, value: float | None, sign: str = "") -> str:
    if claim.measure in RATES:
        return number(None if value is None else 100 * value, f"{sign}.2f")
    return number(value, f"{sign}.3f")


def _interval(claim: Claim, low: float | None, high: float | None) -> str:
    return (
        MISSING
        if low is None or high is None
        else f"{_format_value(claim, low, '+')} to {_format_value(claim, high, '+')}"
    )


def _format_mean(claim: Claim, values: Sequence[float]) -> str:
    if claim.measure in RATES:
        return summarize(values)
    # as rates are written, without their per cent
    return " ± ".join(f"{float(part) / 100:.3f}" for part in summarize(values).split(" ± ")) if values else MISSING


def _format_each(claim: Claim, values: Sequence[float]) -> str:
    return " ".join(_format_value(claim, value) for value in values)


def verdicts_page(
    evidence: Sequence[Evidence], digest_by_folder: Mapping[Path, str], scale: str, folder: Path, made_by: str
) -> str:
    """Return the page.

    Args:
        evidence: Of all claims, in the order in which they are shown.
        digest_by_folder: As `digests` returns them.
        scale: `demo` or `full`.
        folder: Of the scale's runs, as `runs/demo`; curves are taken from the results there.
        made_by: The command that makes the page.
    """
    data = {
        "title": f"Verdicts on claims, at the scale {scale}",
        "counts": {verdict: sum(item.verdict == verdict for item in evidence) for verdict in VERDICTS},
        "claims": [_card(item, digest_by_folder) for item in evidence],
        "curves": {
            name: curve
            for name in {item.claim.ablation for item in evidence if item.difference and item.claim.measure in RATES}
            if (curve := _curve(folder / name))
        },
        "notes": NOTES,
        "made": f"Made on {time.strftime('%Y-%m-%d')} by {made_by}, commit {source_commit()}.",
    }
    return fill("verdicts", data)


def _card(evidence: Evidence, known: Mapping[Path, str]) -> dict[str, Any]:
    claim, difference = evidence.claim, evidence.difference
    intervals: list[tuple[str, list[float | None]]] = []
    if difference is not None:
        intervals.append((f"over {evidence.units}", [difference.difference, difference.low, difference.high]))
        if evidence.pair is not None:
            bootstrap = evidence.pair.bootstrap
            name = "over speakers" if bootstrap.by_speaker else "over utterances"
            intervals.append((name, [bootstrap.difference, bootstrap.low, bootstrap.high]))
    scale = 100 if claim.measure in RATES else 1
    return {
        "verdict": evidence.verdict,
        "reason": evidence.reason,
        "cells": dict(zip(HEAD, _row(evidence), strict=True)),
        "ablation": claim.ablation,
        "intervals": [[name, *(end and scale * end for end in ends)] for name, ends in intervals],
        "unit": "points" if claim.measure in RATES else "",
        "commits": evidence.commits,
        "values": [
            [claim.lower, _format_each(claim, evidence.lower)],
            [claim.higher, _format_each(claim, evidence.higher)],
        ],
        "curve": claim.measure in RATES and difference is not None,
        "runs": [[str(run.folder), known[run.folder]] for run in (*evidence.runs, *evidence.needed)],
    }


def _curve(folder: Path) -> str | None:
    """Return the picture of error rates by epoch as a data URL, if the comparison has one of a page's size."""
    pictures = [path for path in sorted(folder.glob("*_per_epoch.png")) if path.stat().st_size <= THUMBNAIL]
    return f"data:image/png;base64,{base64.b64encode(pictures[0].read_bytes()).decode()}" if pictures else None
