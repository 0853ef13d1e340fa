"""Estimated cost of a training from the measured speed of other runs: table and page."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr_lightning.errors import InputError
from asr_lightning.files import name_of_run, read_yaml, write_atomically
from asr_lightning.report.page import fill
from asr_lightning.report.run_folders import GPUS, PROCESSES, SPEED, numbers, read_metrics, versions
from asr_lightning.report.tables import Section, Table

ASSUMED_EFFICIENCY = 0.9  # of more devices than were measured; an assumption


@dataclass(frozen=True)
class MeasuredRun:
    """Training speed of one run.

    Attributes:
        name: Of the run, with its seed.
        folder: Run folder.
        kind: `GPU`, `CPU`, or `unknown device` if neither log nor configuration tells.
        processes: That trained together, one per device.
        speeds: Seconds of audio per second of training, of each epoch and of all processes together.
        batch_seconds: Seconds of audio in an optimizer step, as configured; empty if not configured.
        precision: As configured.
        model: Its configuration.
    """

    name: str
    folder: Path
    kind: str
    processes: int
    speeds: list[float]
    batch_seconds: str
    precision: str
    model: Any

    @property
    def speed(self) -> float:
        """The median of the epochs."""
        return statistics.median(self.speeds)


def find_measured_runs(folders: Sequence[Path]) -> list[MeasuredRun]:
    """Read the runs in some folders, at any depth.

    Raises:
        InputError: There is no run, one has no speeds, or they are not of one model on one kind of device.
    """
    folders_of_runs: dict[Path, None] = {}
    for folder in folders:
        runs = sorted({file.parents[2].resolve() for file in folder.rglob("logs/version_*/metrics.csv")})
        if not runs:
            raise InputError(f"expected logs/version_<n>/metrics.csv in {folder.absolute()} or under it, got none")
        folders_of_runs |= dict.fromkeys(runs)
    measured_runs = [read_measured_run(folder) for folder in folders_of_runs]
    first = measured_runs[0]
    for run in measured_runs[1:]:
        if run.kind != first.kind:
            raise InputError(
                f"{first.folder} was trained on a {first.kind}, {run.folder} on a {run.kind}: their speeds "
                "cannot be compared; give one kind at a time"
            )
        if run.model != first.model:
            raise InputError(f"{first.folder} and {run.folder} train different models: give one model at a time")
    return measured_runs


def read_measured_run(folder: Path) -> MeasuredRun:
    """Read the speed of one run.

    Raises:
        InputError: It has no speeds, or cannot be read, or was started with different numbers of processes.
    """
    starts = [(path, read_metrics(path)) for path in versions(folder)]
    trained = [(path, log) for path, log in starts if any(speed > 0 for speed in numbers(log, SPEED))]
    if not trained:
        raise InputError(
            f"{folder}: expected {SPEED} in logs/version_<n>/metrics.csv, which the callback Throughput logs at the "
            "end of an epoch, got none; train an epoch with it"
        )
    configs = [_read_config(path.with_name("config.yaml")) for path, _ in trained]
    counts = {_processes(log, config) for (_, log), config in zip(trained, configs, strict=True)}
    kinds = {_kind(log, config) for (_, log), config in zip(trained, configs, strict=True)}
    if len(counts) > 1 or len(kinds) > 1:
        raise InputError(
            f"{folder}: expected one kind of device and one number of processes in all starts of the run, found "
            f"{sorted(kinds)} and {sorted(counts)}"
        )
    name, seed = name_of_run(folder)
    data, trainer = configs[-1].get("data") or {}, configs[-1].get("trainer") or {}
    return MeasuredRun(
        name=f"{name}, seed {seed}" if seed else name,
        folder=folder,
        kind=kinds.pop(),
        processes=counts.pop(),
        speeds=[speed for _, log in trained for speed in numbers(log, SPEED) if speed > 0],
        batch_seconds=str((data.get("init_args") or {}).get("batch_seconds", "")),
        precision=str(trainer.get("precision") or "32-true"),
        model=configs[-1].get("model"),
    )


def _read_config(path: Path) -> dict[str, Any]:
    return read_yaml(path, "the configuration of a run") if path.exists() else {}


def _processes(log: list[dict[str, str]], config: dict[str, Any]) -> int:
    if logged := numbers(log, PROCESSES):
        return int(logged[-1])
    trainer = config.get("trainer") or {}
    devices, nodes = str(trainer.get("devices")), int(trainer.get("num_nodes") or 1)
    return int(devices) * nodes if devices.isdecimal() and int(devices) else nodes


def _kind(log: list[dict[str, str]], config: dict[str, Any]) -> str:
    if numbers(log, PROCESSES):
        return "GPU" if any(numbers(log, GPUS)) else "CPU"
    kinds = {"cpu": "CPU", "gpu": "GPU", "cuda": "GPU"}
    return kinds.get(str((config.get("trainer") or {}).get("accelerator")), "unknown device")


@dataclass(frozen=True)
class Costs:
    """Measured speeds, and their extrapolation to other numbers of devices.

    Attributes:
        speeds: Seconds of audio per second by the number of devices: the median of all epochs of its runs.
        efficiency: The share of the linear speed-up that is left with a number of devices that was not measured.
        measured: Whether that share was measured.
    """

    speeds: dict[int, float]
    efficiency: float
    measured: bool

    @classmethod
    def from_runs(cls, runs: Sequence[MeasuredRun], efficiency: float | None = None) -> "Costs":
        """Return speeds and efficiency: given, measured with several numbers of devices, or assumed."""
        by_count: dict[int, list[float]] = {}
        for run in runs:
            by_count.setdefault(run.processes, []).extend(run.speeds)
        speeds = {count: statistics.median(by_count[count]) for count in sorted(by_count)}
        min_devices, max_devices = min(speeds), max(speeds)
        if efficiency is None and len(speeds) > 1:
            return cls(speeds, speeds[max_devices] / max_devices / (speeds[min_devices] / min_devices), True)
        return cls(speeds, ASSUMED_EFFICIENCY if efficiency is None else efficiency, False)

    def speed(self, devices: int) -> float:
        """Return seconds of audio per second of a number of devices: measured, or extrapolated from the fewest."""
        fewest = min(self.speeds)
        share = self.efficiency if devices > fewest else 1.0
        return self.speeds.get(devices, devices * self.speeds[fewest] / fewest * share)


def cost_table(costs: Costs, hours: float, epochs: float, devices: Sequence[int], price: float | None) -> Table:
    """Make the table of the terminal: a line for each number of devices."""
    head = ["devices", "from", "audio s/s", "hours", "days", "device-hours"]
    table = [[*head, "money"] if price is not None else head]
    for count in devices:
        wall_hours = hours * epochs / costs.speed(count)
        line = [str(count), "measured" if count in costs.speeds else "estimate", f"{costs.speed(count):,.1f}"]
        line += [f"{value:,.1f}" for value in (wall_hours, wall_hours / 24, wall_hours * count)]
        table.append([*line, f"{wall_hours * count * price:,.2f}"] if price is not None else line)
    return table


def write_costs(path: Path, runs: Sequence[MeasuredRun], costs: Costs, inputs: dict[str, Any]) -> None:
    """Write the page: one file, whose inputs can be changed in it.

    Args:
        path: The HTML file.
        runs: Measured runs.
        costs: Their speeds.
        inputs: Initial `hours`, `epochs`, `devices` and `price`.
    """
    rows = [
        {
            "run": run.name, "folder": str(run.folder), "device": run.kind, "processes": run.processes,
            "batch": run.batch_seconds, "precision": run.precision, "epochs": len(run.speeds), "speed": run.speed,
            "least": min(run.speeds), "most": max(run.speeds),
        }
        for run in runs
    ]  # fmt: skip
    data = {
        "runs": rows, "kind": runs[0].kind, "speeds": list(costs.speeds.items()), "measured": costs.measured,
        "inputs": {**inputs, "efficiency": costs.efficiency},
    }  # fmt: skip
    write_atomically(path, fill("costs", data))


def costs_section(
    folders: Sequence[Path], hours: float, epochs: float, devices: Sequence[int], price: float | None,
    efficiency: float | None,
) -> Section:  # fmt: skip
    """Return what a training costs by the speed of some runs, and a page whose inputs can be changed in it.

    Args:
        folders: Of runs of one model, or with run folders at any depth.
        hours: Of speech in an epoch.
        epochs: Of the training.
        devices: Numbers of processes, one per device.
        price: Of an hour of one device; None for no column of money.
        efficiency: See `Costs`; that of the runs, or else an assumption, if None.

    Raises:
        InputError: The runs tell no speed, or are not comparable.
    """
    runs = find_measured_runs(folders)
    costs = Costs.from_runs(runs, efficiency)
    inputs = {"hours": hours, "epochs": epochs, "devices": list(devices), "price": price}
    return Section(
        "costs",
        cost_table(costs, hours, epochs, devices, price),
        describe_costs(runs, costs),
        files={"costs.html": lambda path: write_costs(path, runs, costs, inputs)},
    )


def describe_costs(runs: Sequence[MeasuredRun], costs: Costs) -> list[str]:
    """Return notes on the measured speeds, the devices, and the origin of the efficiency."""
    lines = [
        f"{run.name}: {run.processes} × {run.kind}, {run.precision}, steps of {run.batch_seconds or '?'} s: "
        f"{run.speed:,.1f} audio seconds per second, median of {len(run.speeds)} epochs "
        f"({min(run.speeds):,.1f} to {max(run.speeds):,.1f})"
        for run in runs
    ]
    if runs[0].kind != "GPU":
        lines.append(f"Each device is one like that of these runs ({runs[0].kind}): this says nothing about GPUs.")
    origin = "measured" if costs.measured else "not measured"
    return [*lines, f"Efficiency of numbers of devices that no run had: {costs.efficiency:.3f}, {origin}."]
