"""Wall time and peak memory of the commands of runs: noted when a command ends, tabulated beside the results."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from resource import struct_rusage

from asr_lightning.ablations.plan import PlannedRun, as_typed
from asr_lightning.files import write_atomically
from asr_lightning.report.tables import Section, number

COSTS = "costs.json"  # in the folder of a run
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of `ru_maxrss`


@dataclass(frozen=True)
class Cost:
    """Time and memory of one start of a command.

    Attributes:
        command: As a user would type it.
        seconds: Wall time.
        gigabytes: Most memory that was resident at once, of the largest of its processes; without that of a GPU. A
            process begins with the memory of the one that starts it, some 0.03 GB for `asr ablate`.
        status: Exit status; a command that was stopped or failed has others than 0.
        commit: Of the source when it was started; empty where it was not noted.
    """

    command: str
    seconds: float
    gigabytes: float
    status: int
    commit: str = ""


def note_cost(
    run: PlannedRun, command: Sequence[str], seconds: float, usage: struct_rusage, status: int, commit: str
) -> None:
    """Add the costs of a command that has ended to those in the folder of its run.

    Args:
        run: The run.
        command: What Python was called with.
        seconds: Wall time.
        usage: As `os.wait4` returns it, of the process and of those that it has waited for.
        status: Exit status.
        commit: Of the source when it was started.
    """
    cost = Cost(as_typed(command), round(seconds, 1), round(RSS_UNIT * usage.ru_maxrss / 1e9, 3), status, commit)
    costs = [asdict(entry) for entry in [*read_costs(run.folder), cost]]
    write_atomically(run.folder / COSTS, json.dumps(costs, indent=1) + "\n")


def read_costs(folder: Path) -> list[Cost]:
    """Return the costs in the folder of a run, in the order in which its commands have ended; none if unreadable."""
    try:
        return [Cost(**cost) for cost in json.loads((folder / COSTS).read_text("utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def total(costs: Sequence[Cost]) -> tuple[float, float] | None:
    """Return the hours of some commands together, and the gigabytes of the largest; None of no commands."""
    if not costs:
        return None
    return sum(cost.seconds for cost in costs) / 3600, max(cost.gigabytes for cost in costs)


def measured_costs_section(runs: Sequence[PlannedRun]) -> Section | None:
    """Return the costs of all commands of some runs, a line each; None where none are known."""
    table = [["run", "command", "starts", "minutes", "peak GB"]]
    for run in runs:
        by_command: dict[str, list[Cost]] = {}
        for cost in read_costs(run.folder):
            by_command.setdefault(cost.command, []).append(cost)
        for command, costs in by_command.items():
            hours, gigabytes = total(costs) or (0.0, 0.0)
            times = [number(60 * hours, ".1f"), number(gigabytes, ".2f")]
            table.append([run.label, command, str(len(costs)), *times])
    notes = [
        "Minutes: wall time of all starts of a command, also of those that were stopped or failed. Peak: resident "
        "memory of the largest process of a command; memory of a GPU is not in it."
    ]
    return Section("costs", table, notes) if len(table) > 1 else None


def commits(folder: Path) -> list[str]:
    """Return the commits that the commands of a run were started at, as far as they were noted, each once."""
    return list(dict.fromkeys(cost.commit for cost in read_costs(folder) if cost.commit))
