"""Run planned runs: several at a time, each resumed where it was stopped; finished ones are skipped."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from asr_lightning.ablations import environment_of_runs
from asr_lightning.ablations.costs import note_cost
from asr_lightning.ablations.overrides import differences
from asr_lightning.ablations.plan import INSIDE, PlannedRun, as_typed, write_experiments
from asr_lightning.errors import InputError, printable
from asr_lightning.files import exclusive_lock, read_experiment, source_commit, write_atomically

FINISHED = "finished.json"  # the commands of a run that have ended well
POLL_SECONDS = 0.2
GRACE_SECONDS = 120.0  # for a run to save a checkpoint and end
LOCK_SECONDS = 15.0  # for a run to notice that its parent was killed
CURSOR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # what progress bars tell a terminal
SHOWN = re.compile(r"\S+ seed \d+, epoch ")  # lines of runs that are shown while they run


def finished_commands(run: PlannedRun) -> list[list[str]]:
    """Return the commands of a run that have ended well."""
    try:
        commands = json.loads((run.folder / FINISHED).read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return commands if isinstance(commands, list) else []


def state(run: PlannedRun) -> str:
    """Return `finished`, `begun` or `new`."""
    finished = finished_commands(run)
    if all(list(command) in finished for command in run.commands):
        return "finished"
    return "begun" if finished or any(run.folder.glob("checkpoints/*.ckpt")) else "new"


def changed_values(run: PlannedRun) -> list[str]:
    """Return the values in which a run that was begun differs from its plan, a line each."""
    if state(run) == "new":
        return []
    lines = []
    for name, experiment in run.experiments.items():
        if name != INSIDE and (run.folder / name).exists():
            lines += differences(read_experiment(run.folder / name), experiment)
    return lines


def check_unchanged(runs: Sequence[PlannedRun], overwrite: bool) -> None:
    """Refuse runs that were begun with other values; with `overwrite`, remove them.

    Raises:
        InputError: A run was begun with other values.
    """
    changed = {run.folder: lines for run in runs if (lines := changed_values(run))}
    if not overwrite and changed:
        descriptions = [f"{folder}:\n  " + "\n  ".join(lines) for folder, lines in changed.items()]
        raise InputError(
            "\n".join(["these runs were begun with other values than the ablation has now:", *descriptions])
            + "\nGive --overwrite to remove them and begin anew, or another --output"
        )
    for folder in changed:
        shutil.rmtree(folder)


@dataclass
class _RunningCommand:
    """A command that is running."""

    run: PlannedRun
    command: tuple[str, ...]
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    read: int = 0
    rest: bytes = field(default=b"")
    started: float = field(default_factory=time.monotonic)
    commit: str = field(default_factory=source_commit)

    def ended(self) -> bool:
        """Return whether it has ended; if so, its costs are in the run's folder."""
        if self.process.returncode is None:
            # `Popen.poll` does not report memory
            process, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if process:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                seconds = time.monotonic() - self.started
                with suppress(OSError):  # a full disk: the other runs are to be told to save and end
                    note_cost(self.run, self.command, seconds, usage, self.process.returncode, self.commit)
        return self.process.returncode is not None


class Execution:
    """Runs commands of planned runs.

    Args:
        runs: In an order in which each comes after what it needs.
        jobs: How many run at a time.
        verbose: Show all lines of runs, not only those of epochs.
    """

    def __init__(self, runs: Sequence[PlannedRun], jobs: int = 1, verbose: bool = False) -> None:
        needed = [folder for run in runs for folder in run.needs]
        self.waiting = [run for run in runs if state(run) != "finished"]
        self.waiting.sort(key=lambda run: -needed.count(run.folder))  # what most runs wait for comes first
        self.unfinished = {run.folder for run in self.waiting}
        self.jobs, self.verbose = jobs, verbose
        self.running: list[_RunningCommand] = []
        self.locks: dict[Path, ExitStack] = {}  # of runs that were begun and have not ended
        self.failed: dict[Path, str] = {}

    def run(self) -> dict[Path, str]:
        """Run everything that can be run; return why runs failed, by folder.

        After an exception, as of Ctrl-C, runs have saved and ended.
        """
        try:
            while self.waiting or self.running:
                self._skip()
                self._start()
                self._check_running()
                if self.running:
                    time.sleep(POLL_SECONDS)
        finally:
            self._terminate_running()
        return self.failed

    def _skip(self) -> None:
        """Leave out runs that need a run that failed."""
        for run in list(self.waiting):
            failed_folders = [folder for folder in run.needs if folder in self.failed]
            if failed_folders:
                self.waiting.remove(run)
                self.failed[run.folder] = f"it needs {failed_folders[0]}"

    def _start(self) -> None:
        for run in list(self.waiting):
            if len(self.running) >= self.jobs:
                return
            if not self.unfinished.intersection(run.needs):
                self.waiting.remove(run)
                self.locks[run.folder] = lock = ExitStack()
                try:
                    lock.enter_context(exclusive_lock(run.folder / ".run.lock", f"{run.folder} is in use", "--output"))
                except InputError as error:
                    self._fail(run, str(error))
                else:
                    self._next(run)

    def _next(self, run: PlannedRun) -> None:
        """Start the next command of a run, or note that it is finished."""
        finished = finished_commands(run)
        remaining = [command for command in run.commands if list(command) not in finished]
        if not remaining:
            self.unfinished.discard(run.folder)
            self.locks.pop(run.folder).close()
            self._report(run, "finished")
            return
        run.folder.mkdir(parents=True, exist_ok=True)
        try:
            _wait_for_lock(run.folder)
        except InputError as error:
            self._fail(run, str(error))
            return
        write_experiments(run)
        log = (run.folder / "output.log").open("ab")
        self._report(run, as_typed(remaining[0]))
        process = subprocess.Popen(
            [sys.executable, *remaining[0]],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment_of_runs(),
        )
        self.running.append(_RunningCommand(run, remaining[0], process, log, read=log.tell()))

    def _fail(self, run: PlannedRun, reason: str) -> None:
        self.failed[run.folder] = reason
        self.locks.pop(run.folder).close()

    def _check_running(self) -> None:
        """Show what runs have written, and note which have ended."""
        for running in list(self.running):
            ended = running.ended()
            self._show(running)
            if not ended:
                continue
            self.running.remove(running)
            running.log.close()
            if running.process.returncode == 0:
                commands = [*finished_commands(running.run), list(running.command)]
                write_atomically(running.run.folder / FINISHED, json.dumps(commands, indent=1) + "\n")
                self._next(running.run)
            else:
                path = running.run.folder / "output.log"
                status = running.process.returncode
                self._fail(running.run, f"status {status}; the end of {path}:\n{tail(path)}")
                self._report(running.run, f"failed with status {status}, see {path}")

    def _show(self, running: _RunningCommand) -> None:
        with (running.run.folder / "output.log").open("rb") as file:
            file.seek(running.read)
            content = file.read()
        running.read += len(content)
        *lines, running.rest = (running.rest + content).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            text = CURSOR.sub("", line.decode("utf-8", errors="replace"))
            if self.verbose or SHOWN.match(text):
                print(printable(text) if SHOWN.match(text) else f"{running.run.label}: {printable(text)}", flush=True)

    def _report(self, run: PlannedRun, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {run.folder}: {text}", flush=True)

    def _terminate_running(self) -> None:
        """End what still runs; training saves a checkpoint first."""
        for running in self.running:
            if not running.ended():
                running.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + GRACE_SECONDS
        for running in self.running:
            with suppress(KeyboardInterrupt):
                while not running.ended() and time.monotonic() < end:
                    time.sleep(POLL_SECONDS)
            if not running.ended():
                running.process.kill()
                running.process.wait()
            running.log.close()
        for lock in self.locks.values():
            lock.close()


def run_outputs(commands: Sequence[Sequence[str]]) -> list[str]:
    """Run the commands at the end of an ablation; return what failed, a message each."""
    failed = []
    for command in commands:
        result = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, errors="replace", check=False,
            env=environment_of_runs(),
        )  # fmt: skip
        if result.returncode:
            failed.append(f"{as_typed(command)}\n{(result.stderr or result.stdout).strip()}")
        elif result.stdout.strip():
            print(result.stdout.strip().splitlines()[-1], flush=True)
    return failed


def _wait_for_lock(folder: Path) -> None:
    """Wait for a run that goes on for a moment after its parent was killed.

    Raises:
        InputError: It still runs.
    """
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            with exclusive_lock(folder / ".fit.lock", f"{folder} is in use", "--output"):
                return
        except InputError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def tail(path: Path, lines: int = 8) -> str:
    """Return the last lines of a log, without what progress bars tell a terminal."""
    text = CURSOR.sub("", path.read_text("utf-8", errors="replace").replace("\r", "\n"))
    return "\n".join(text.splitlines()[-lines:])
