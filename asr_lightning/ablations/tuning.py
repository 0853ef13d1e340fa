"""Values of an experiment's YAML that lower an error rate of a development set, searched with Optuna."""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from optuna.trial import FrozenTrial, Trial, TrialState

from asr_lightning.ablations import PARENT, environment_of_runs
from asr_lightning.ablations.execution import tail
from asr_lightning.errors import InputError, shown
from asr_lightning.files import read_yaml, write_atomically
from asr_lightning.report.run_folders import read_rates
from asr_lightning.report.search_figure import plot_search, short_name
from asr_lightning.report.tables import MISSING, Table, as_csv, as_markdown, as_text

POLL_SECONDS = 1.0
GRACE_SECONDS = 60.0  # for a pruned run to save and end
HEARTBEAT_SECONDS = 60  # a worker that is silent for thrice as long is dead, and its trial begins again
LARGEST = 1e15  # of the numbers of a range

Space = Mapping[str, Any]


def read_space(path: Path) -> dict[str, Any]:
    """Read and check a space.

    Raises:
        InputError: It cannot be read, or an entry is neither a list of values nor a range.
    """
    space = read_yaml(path, "a space")
    for key, values in space.items():
        is_range = isinstance(values, dict) and {"low", "high"} <= set(values) <= {"low", "high", "log", "step"}
        if not is_range and not (isinstance(values, list) and values):
            raise InputError(
                f"{path}: {key}: expected a list of values, or a range {{low: …, high: …}} with log or step, got "
                f"{shown(repr(values))}"
            )
        if is_range and not _is_range(values):
            raise InputError(
                f"{path}: {key}: expected low < high (0 < low with log; YAML's numbers are 1.0e-4, not 1e-4), "
                f"got {shown(repr(values))}"
            )
    return space


def _is_range(values: Mapping[str, Any]) -> bool:
    """Whether Optuna can draw from a range."""
    numbers = [values[key] for key in ("low", "high", "step") if key in values]
    if not all(type(number) in (int, float) and abs(number) <= LARGEST for number in numbers):
        return False
    log = values.get("log", False)
    valid_low = 0 < values["low"] and "step" not in values if log else values.get("step", 1) > 0
    return type(log) is bool and bool(valid_low) and bool(values["low"] < values["high"])


def check_subsets(config: Path, metric: str, subsets: Sequence[str]) -> None:
    """Check that the metric is of a subset that is evaluated, and that the experiment does not test on.

    Args:
        config: The experiment.
        metric: As `dev/cer`.
        subsets: Those that the trials are evaluated on in place of the experiment's own, if any.

    Raises:
        InputError: The experiment cannot be read, or the metric's subset is one of its test sets or of no trial.
    """
    data = read_yaml(config, "the experiment").get("data")
    arguments = data.get("init_args", data) if isinstance(data, dict) else {}
    tested, validated = ((arguments or {}).get(name) or [] for name in ("test_subsets", "validation_subsets"))
    evaluated = list(subsets) or validated
    subset = metric.rpartition("/")[0]
    if subset in tested:
        raise InputError(
            f"{config}: expected a metric of a subset that the experiment does not test on, found {subset} among its "
            "test_subsets: what is chosen by it cannot be tested on it; give a development set of the corpus, as "
            "--subsets dev --metric dev/cer"
        )
    if subset not in evaluated:
        raise InputError(
            f"{config}: expected a metric of a subset that is evaluated while training, one of "
            f"{', '.join(map(str, evaluated)) or 'none'}, found {shown(subset)}: give --subsets {shown(subset)} too"
        )


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """Draw a value of every key; lists and mappings among the values are written as YAML."""
    chosen: dict[str, Any] = {}
    for key, values in space.items():
        if isinstance(values, list):
            chosen[key] = trial.suggest_categorical(key, _storable_values(values))
        else:
            integral = all(isinstance(values[end], int) for end in ("low", "high"))
            suggest_value: Any = trial.suggest_int if integral else trial.suggest_float
            chosen[key] = suggest_value(key, **values)
    return chosen


def _storable_values(values: Sequence[object]) -> list[Any]:
    """Return values that Optuna can keep."""
    return [value if isinstance(value, bool | int | float | str) else _as_flow_yaml(value) for value in values]


def _as_flow_yaml(value: object) -> str:
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


class Tuning:
    """Trials of an experiment, kept in a SQLite file.

    Args:
        config: The experiment.
        space: As `read_space` returns it.
        folder: Receives `trials.db`, a run folder for every trial, and the results.
        metric: Subset and rate to minimize, as `dev/cer`.
        sampler: `tpe`, `random` or `grid`.
        seed: Of the sampler; a search that goes on draws other values than it began with.
        prune: Stop trainings that are worse than the median of the others after as many epochs.
        more: Arguments for every run, as `--trainer.max_epochs 3`.
        checkpoint: Decode with it in place of training.

    Raises:
        InputError: A grid of a range, an unknown rate, or a folder of other trials.
    """

    def __init__(
        self,
        config: Path,
        space: Space,
        folder: Path,
        metric: str,
        sampler: str = "tpe",
        seed: int = 1,
        prune: bool = True,
        more: Sequence[str] = (),
        checkpoint: Path | None = None,
    ) -> None:
        self.config, self.space, self.folder, self.more = config, space, folder, list(more)
        self.checkpoint = checkpoint
        self.subset, _, self.rate = metric.rpartition("/")
        ranges = [key for key, values in space.items() if not isinstance(values, list)]
        if sampler == "grid" and ranges:
            raise InputError(f"a grid needs a list of values for each key, got a range for {', '.join(ranges)}")
        folder.mkdir(parents=True, exist_ok=True)
        prunes = prune and checkpoint is None  # the only rate of a decoding is that at its end
        self.study = optuna.create_study(
            study_name="search",
            storage=_storage(folder / "trials.db"),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4) if prunes else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self.study.sampler = _sampler(sampler, space, seed, len(self.study.trials))
        identity = {
            "config": str(config),
            "metric": metric,
            "space": _as_flow_yaml(dict(space)),
            "more": " ".join(more),
        }
        if checkpoint is not None:
            identity["checkpoint"] = str(checkpoint)
        stored = self.study.user_attrs.get("identity", identity)
        changed = [
            f"  {key}: {stored.get(key, 'none')} before, {identity.get(key, 'none')} now"
            for key in {**stored, **identity}
            if stored.get(key) != identity.get(key)
        ]
        if changed:
            raise InputError("\n".join([f"{folder} holds other trials; give another --output:", *changed]))
        self.study.set_user_attr("identity", identity)
        zeros = {key: 0 for key in ranges if space[key]["low"] <= 0 <= space[key]["high"]}
        if checkpoint is not None and len(zeros) == len(space) and not self.study.trials:
            self.study.enqueue_trial(zeros)

    def run(self, trials: int, workers: int) -> None:
        """Make trials until there are `trials` of them, several at a time; those of an earlier call count.

        Raises:
            InputError: A trial failed for another reason than its values.
        """
        counted = (TrialState.COMPLETE, TrialState.PRUNED)
        if len(self.study.get_trials(deepcopy=False, states=counted)) < trials:
            stop = optuna.study.MaxTrialsCallback(trials, states=counted)
            self.study.optimize(self._run_trial, n_jobs=workers, callbacks=[stop])

    def _run_trial(self, trial: Trial) -> float:
        """Run one trial to its end, or until it is hopeless; return its last rate."""
        values = suggest(trial, self.space)
        folder = self.folder / f"trial{trial.number}"
        folder.mkdir(exist_ok=True)
        arguments = [text for key, value in values.items() for text in (f"--{key}", _as_flow_yaml(value))]
        # A class given in `more` would take the place of one with the trial's values in it.
        command = [*self._trial_command(), *self.more, *arguments, "--trainer.default_root_dir", str(folder)]
        process = self._start(command, folder / "output.log")
        try:
            pruned = self._watch(trial, process, folder)
        finally:
            _terminate_process(process)  # also after Ctrl-C
        rates = self._rates(folder)
        if pruned:
            print(f"trial {trial.number}: pruned after {max(rates)} epochs with {values}", flush=True)
            raise optuna.TrialPruned
        if process.returncode or not rates:
            raise InputError(
                f"trial {trial.number} failed with status {process.returncode}; its values: {values}. The end of "
                f"{folder / 'output.log'}:\n{tail(folder / 'output.log')}"
            )
        last_rate = rates[max(rates)]
        print(f"trial {trial.number}: {self.subset}/{self.rate} {last_rate:.2%} with {values}", flush=True)
        return last_rate

    def _trial_command(self) -> list[str]:
        """Return the command of a trial: training, or decoding with the checkpoint."""
        if self.checkpoint is None:
            return ["fit", "--config", str(self.config)]
        subset_arguments = ["--data.init_args.test_subsets", f"[{self.subset}]"]
        return ["test", "--config", str(self.config), "--ckpt_path", str(self.checkpoint), *subset_arguments]

    def _start(self, command: Sequence[str], log: Path) -> "subprocess.Popen[bytes] | _Decoding":
        """Start a trial, which writes what it prints to a file."""
        if self.checkpoint is not None:
            return _Decoding(command, log)
        with log.open("w", encoding="utf-8") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "asr_lightning", *command],
                stdout=file, stderr=subprocess.STDOUT, env=environment_of_runs(),
            )  # fmt: skip

    def _watch(self, trial: Trial, process: "subprocess.Popen[bytes] | _Decoding", folder: Path) -> bool:
        """Report every epoch; end the run and return True if it is hopeless."""
        reported = 0
        while True:
            running = process.poll() is None
            for epoch, rate in sorted(self._rates(folder).items()):
                if epoch > reported:
                    trial.report(rate, epoch)
                    reported = epoch
            if not running:
                return False
            if reported and trial.should_prune():
                return True
            time.sleep(POLL_SECONDS)

    def _rates(self, folder: Path) -> dict[int, float]:
        """Return the rate by epoch, as far as the run has come."""
        path = folder / ("error_rates.csv" if self.checkpoint is None else "test_error_rates.csv")
        if not path.exists():
            return {}
        rows = [row for row in read_rates(path) if row.subset == self.subset]
        if not rows or not hasattr(rows[0], self.rate):
            raise InputError(f"expected the rate {self.rate} of {self.subset} in {path}; choose another --metric")
        return {row.epoch: float(getattr(row, self.rate)) for row in rows}

    def report(self) -> str:
        """Write `trials.csv`, `trials.md` and `trials.png`, and return what to tell the user."""
        trials = self.study.get_trials(deepcopy=False)
        finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        table = trials_table(trials, list(self.space), f"{self.subset}/{self.rate}")
        write_atomically(self.folder / "trials.md", as_markdown(table) + "\n")
        write_atomically(self.folder / "trials.csv", as_csv(table))
        lines = [as_text(table), "", f"{len(finished)} of {len(trials)} trials were finished."]
        if finished:
            plot_search(
                finished, list(self.space), f"{self.subset} {self.rate.upper()} (%)", self.folder / "trials.png"
            )
            best = self.study.best_trial
            values = " ".join(f"--{key} {_as_flow_yaml(value)}" for key, value in best.params.items())
            lines.append(f"The best, trial {best.number}: {best.value:.2%} with {values}")
        lines.append(f"Written to {self.folder.absolute()}: trials.md, trials.csv{', trials.png' if finished else ''}")
        return "\n".join(lines)


def trials_table(trials: Sequence[FrozenTrial], keys: Sequence[str], metric: str) -> Table:
    """Make the table: one line a trial, the best first."""
    ordered = sorted(trials, key=lambda trial: (trial.state != TrialState.COMPLETE, trial.value or 0.0, trial.number))
    rows = [["trial", metric, "epochs", "state", *map(short_name, keys)]]
    for trial in ordered:
        rate = f"{100 * trial.value:.2f}" if trial.state == TrialState.COMPLETE and trial.value is not None else MISSING
        values = [str(trial.params.get(key, MISSING)) for key in keys]
        rows.append([str(trial.number), rate, str(len(trial.intermediate_values)), trial.state.name.lower(), *values])
    return rows


def _storage(path: Path) -> optuna.storages.RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.RDBStorage(
            f"sqlite:///{path.absolute()}",
            engine_kwargs={"connect_args": {"timeout": 60}},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=3 * HEARTBEAT_SECONDS,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        )


def _sampler(name: str, space: Space, seed: int, begun: int) -> optuna.samplers.BaseSampler:
    """Return a sampler; after trials of an earlier search it draws other values than that one did."""
    if name == "grid":
        return optuna.samplers.GridSampler({key: _storable_values(values) for key, values in space.items()}, seed=seed)
    seed = int(np.random.SeedSequence((seed, begun)).generate_state(1)[0]) if begun else seed
    return optuna.samplers.RandomSampler(seed) if name == "random" else optuna.samplers.TPESampler(seed=seed)


class _Decoding:
    """A process of `lightning`, used as one of `subprocess`, that begins with all imports done.

    They take longer than to decode a small development set. One server imports them once, and each trial is a fork of
    it, so nothing of a trial is left for the next.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["asr_lightning.cli"])
        self._process = context.Process(target=_run_lightning, args=(list(command), str(log)))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit status; None before the end."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit status; None before the end."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end.

        Raises:
            TimeoutExpired: It goes on after so many seconds.
        """
        self._process.join(timeout)
        if self._process.is_alive():
            raise subprocess.TimeoutExpired("lightning", timeout or 0.0)

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()


def _run_lightning(command: list[str], log: str) -> None:
    """Do what `python -m asr_lightning` does, with all that it prints in a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["lightning", *command]
    os.environ[PARENT] = str(os.getppid())  # the server, which ends with the process that tunes
    multiprocessing.set_start_method(None, force=True)  # the platform's, for workers that read audio
    try:
        runpy.run_module("asr_lightning", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing does not do before Python 3.14


def _terminate_process(process: "subprocess.Popen[bytes] | _Decoding") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
