"""Ablations: variants of an experiment, as one YAML, planned, run and compared in a table."""

import os
import threading
import time

PARENT = "ASR_LIGHTNING_PARENT"  # holds the process id of the one that started a run; the run ends with it
PARENT_SECONDS = 5.0  # between looks at whether it is alive


def environment_of_runs() -> dict[str, str]:
    """Return the environment of commands that are to end with this process."""
    return {**os.environ, PARENT: str(os.getpid())}


def end_with(parent: int) -> None:
    """End this process when the one that started it is gone; to be run in a thread."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


def end_with_ablation() -> None:
    """Let a command that an ablation or a tuning has started end with it, if that is killed.

    It would go on beside the one that takes its place.
    """
    if os.environ.pop(PARENT, "") == str(os.getppid()):
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
