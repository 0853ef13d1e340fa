"""Error rates, logs and parameters in the folders of runs."""

import csv
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from asr_lightning.errors import InputError, shown
from asr_lightning.files import regular
from asr_lightning.report.figures import ErrorRate

COLUMNS = [field.name for field in fields(ErrorRate)]
COUNTED = 2  # of the columns, the last ones: old files are without them
RATE_FILES = {"test": "test_error_rates.csv", "validation": "error_rates.csv"}  # by stage; the first that is there

SECONDS, SPEED = "train/seconds", "train/audio_seconds_per_second_epoch"  # what is read of metrics.csv
PROCESSES, GPUS = "train/processes", "train/gpus"
NUMBERS = (SECONDS, SPEED, PROCESSES, GPUS)
FACTOR = "/real_time_factor"  # behind the name of a subset

Log = list[dict[str, str]]  # the lines of metrics.csv, of all starts of a run


@dataclass(frozen=True)
class Run:
    """The final rates of one run, an experiment with one seed.

    Attributes:
        folder: Run folder.
        stage: `test` where it was tested, else `validation`.
        rates: Of its last epoch in that stage, by subset; at least one.
    """

    folder: Path
    stage: str
    rates: dict[str, ErrorRate]

    @property
    def name(self) -> str:
        """Name of the experiment, the same for all its seeds."""
        return next(iter(self.rates.values())).run

    @property
    def seed(self) -> str:
        """As the run gave it; empty where unknown."""
        return next(iter(self.rates.values())).seed

    def transcripts(self, subset: str) -> Path:
        """Path of the transcripts of the final rates, if they were kept."""
        epoch = self.rates[subset].epoch
        return self.folder / "transcripts" / f"{self.stage}-epoch{epoch}-{subset}.jsonl"


@dataclass(frozen=True)
class Experiment:
    """An experiment over its seeds.

    Attributes:
        name: Of the experiment.
        runs: One for each seed.
        parameters: Trainable ones.
        training_seconds: Wall time of training, mean over seeds; None if the runs only tested another run's network.
        audio_seconds_per_second: Speed of training over all epochs, mean over seeds; None as above.
        real_time_factors: Seconds of search per second of audio, by subset; those of the rates, mean over seeds.
    """

    name: str
    runs: list[Run]
    parameters: int | None
    training_seconds: float | None
    audio_seconds_per_second: float | None
    real_time_factors: dict[str, float]

    def rates(self, subset: str) -> list[ErrorRate]:
        """Return the rates of each seed that has the subset."""
        return [run.rates[subset] for run in self.runs if subset in run.rates]


def read_rates(path: Path) -> list[ErrorRate]:
    """Read one `error_rates.csv`.

    Raises:
        InputError: A line is malformed; the message names it.
    """
    with _reraise_read_errors(path), regular(path).open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        head = next(reader, [])
        if head not in (COLUMNS, COLUMNS[:-COUNTED]):
            raise InputError(f"{path}, line 1: expected the columns {','.join(COLUMNS)}, got {shown(','.join(head))!r}")
        rows = []
        for line in reader:
            try:
                if len(line) not in (len(COLUMNS), len(COLUMNS) - COUNTED):
                    raise ValueError("another number of columns")
                run, seed, epoch, subset, *rates = line[: len(COLUMNS) - COUNTED]
                counts = [int(count) if count else None for count in line[len(COLUMNS) - COUNTED :]] or [None] * COUNTED
                wer, cer, ser, swer, unspaced_cer = values = [float(rate) for rate in rates]
                if min(count or 0 for count in counts) < 0:
                    raise ValueError("negative")
                if not min(values) >= 0 or math.isnan(sum(values)) or int(epoch) < 0:
                    raise ValueError("negative, or not a number")
            except ValueError as error:
                raise InputError(
                    f"{path}, line {reader.line_num}: expected {','.join(COLUMNS)} with a whole epoch and rates as"
                    f" fractions of 0 or more, got {shown(','.join(line))!r}"
                ) from error
            rows.append(ErrorRate(run, seed, int(epoch), subset, wer, cer, ser, swer, unspaced_cer, *counts))
    return rows


def scored_on(rates: Iterable[ErrorRate], differing_only: bool = False) -> list[str]:
    """Return a line per subset with its numbers of utterances and words, and the runs that were scored on others."""
    by_subset: dict[str, dict[tuple[int | None, int | None], dict[str, None]]] = {}
    for rate in sorted(rates, key=lambda rate: (rate.subset, rate.run, len(rate.seed), rate.seed)):
        runs = by_subset.setdefault(rate.subset, {}).setdefault((rate.utterances, rate.words), {})
        runs[f"{rate.run}, seed {rate.seed}" if rate.seed else rate.run] = None
    lines = []
    for subset, by_counts in by_subset.items():
        if len(by_counts) == 1:
            lines += [] if differing_only else [f"{subset}: {_describe_counts(*next(iter(by_counts)))}."]
            continue
        groups = "; ".join(
            f"{_describe_counts(*counts)} in {_join_names(list(runs))}" for counts, runs in by_counts.items()
        )
        lines.append(f"{subset}: NOT all on the same utterances, so that rates cannot be compared: {groups}.")
    return lines


def _describe_counts(utterances: int | None, words: int | None) -> str:
    if utterances is None or words is None:
        return "a number of utterances that was not written down"
    return f"{utterances:,} utterances, {words:,} words"


def _join_names(names: Sequence[str], limit: int = 5) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def _reraise_read_errors(path: Path) -> Iterator[None]:
    """Name the file in the error if it cannot be read."""
    try:
        yield
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path} ({error}); expected CSV in UTF-8, as the run wrote it") from error


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Return the folders that hold error rates, each once.

    Raises:
        InputError: There is none under one of them.
    """
    names = list(RATE_FILES.values())
    run_folders: dict[Path, None] = {}
    for folder in folders:
        runs = sorted({file.parent.resolve() for name in names for file in folder.rglob(name)})
        if not runs:
            raise InputError(f"expected {' or '.join(names)} in {folder.absolute()}, or in a folder under it, got none")
        run_folders |= dict.fromkeys(runs)
    return list(run_folders)


def read_run(folder: Path) -> Run:
    """Read the final rates of a run.

    Raises:
        InputError: It has no file of them, or one that is malformed or without rates.
    """
    stage = next((stage for stage, name in RATE_FILES.items() if (folder / name).exists()), None)
    if stage is None:
        raise InputError(f"{folder}: expected {' or '.join(RATE_FILES.values())}, found neither")
    rows = read_rates(folder / RATE_FILES[stage])
    last_epoch = max((row.epoch for row in rows), default=None)
    if last_epoch is None:
        raise InputError(f"{folder / RATE_FILES[stage]}: expected a line for each subset, got an empty file")
    return Run(folder, stage, {row.subset: row for row in rows if row.epoch == last_epoch})


def read_runs(folders: Iterable[Path], problems: list[str]) -> list[Run]:
    """Read the final rates of runs; `problems` gets the reason for each that cannot be read."""
    runs = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except InputError as error:
            problems.append(str(error))
    return runs


def read_experiments(runs: Iterable[Run], problems: list[str] | None = None) -> list[Experiment]:
    """Group runs by experiment, and read their logs.

    Args:
        runs: Their experiments come in the order of their first ones.
        problems: Receives the errors of logs, whose values are then None. Without it, they are raised.

    Raises:
        InputError: A log is missing or malformed, and there are no `problems` to put that into.
    """
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    return [_read_experiment(name, seeds, problems) for name, seeds in by_name.items()]


def _read_experiment(name: str, runs: list[Run], problems: list[str] | None) -> Experiment:
    parameters: int | None = None
    logs: list[tuple[Run, Log]] = []
    for run in runs:
        try:
            starts = versions(run.folder)
            logs.append((run, [row for start in starts for row in read_metrics(start)]))
            if parameters is None:
                parameters = _count_parameters(starts[-1].with_name("config.yaml"))
        except ValueError as error:
            if problems is None:
                raise
            problems.append(f"{run.folder}: {error}")
    epochs = [numbers(log, SPEED) for _, log in logs]
    speeds = [statistics.harmonic_mean(values) for values in epochs if values]  # all epochs have the same audio
    factors = {
        subset: _mean_of_last([log for run, log in logs if subset in run.rates], f"{subset}{FACTOR}")
        for subset in dict.fromkeys(subset for run in runs for subset in run.rates)
    }
    return Experiment(
        name=name,
        runs=runs,
        parameters=parameters,
        training_seconds=_mean_of_last([log for _, log in logs], SECONDS),
        audio_seconds_per_second=statistics.fmean(speeds) if speeds else None,
        real_time_factors={subset: factor for subset, factor in factors.items() if factor is not None},
    )


def _count_parameters(config: Path) -> int:
    # here, since it imports torch and Lightning, which nothing else of a comparison needs
    from asr_lightning.models.experiment import count_parameters, read_part

    return sum(count_parameters(read_part(config)).values())


def versions(folder: Path) -> list[Path]:
    """Return the `metrics.csv` of each start of a run, in their order.

    Raises:
        InputError: There is none.
    """
    logs = [file for file in folder.glob("logs/version_*/metrics.csv") if re.fullmatch(r"\w+_\d+", file.parent.name)]
    starts = sorted(logs, key=lambda file: int(file.parent.name.split("_")[1]))
    if not starts:
        raise InputError(f"expected logs/version_<n>/metrics.csv in {folder}, as Lightning's CSVLogger writes it")
    return starts


def read_metrics(path: Path) -> Log:
    """Read one `metrics.csv`; a last line without its end, as a full disk or a killed run leaves it, is left out.

    Raises:
        InputError: It cannot be read, or a value in it is not a number.
    """
    with _reraise_read_errors(path), regular(path).open(newline="", encoding="utf-8") as file:
        lines = file.readlines()
        rows = list(csv.DictReader(lines if not lines or lines[-1].endswith("\n") else lines[:-1]))
        for row in rows:
            for name, value in row.items():
                if name in NUMBERS or (name or "").endswith(FACTOR):
                    _number(value, f"{path}, {name}")
        return rows


def _number(value: str | None, source: str) -> float | None:
    """Return the number in a cell; None if it is empty.

    Raises:
        InputError: The cell holds something else.
    """
    try:
        number = float(value) if value else None
    except ValueError:
        number = math.nan
    if number is not None and not 0 <= number < math.inf:
        raise InputError(f"{source}: expected a number of 0 or more, or nothing, got {shown(str(value))!r}")
    return number


def numbers(log: Log, name: str) -> list[float]:
    """Return what was logged under a name, in its order."""
    return [float(row[name]) for row in log if row.get(name)]


def _mean_of_last(logs: Sequence[Log], name: str) -> float | None:
    last_values = [values[-1] for log in logs if (values := numbers(log, name))]
    return statistics.fmean(last_values) if last_values else None
