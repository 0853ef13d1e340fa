"""The message of an error for the user, and the file with its stack trace."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from asr_lightning.batch import is_memory_error
from asr_lightning.errors import REASON, shown
from asr_lightning.files import DISK_FULL, write_atomically
from asr_lightning.models.instantiation import brief, input_error

TRACE = "ASR_LIGHTNING_TRACE"  # if this variable is set, errors are printed with their stack trace


def explain(error: Exception) -> str:
    """Return the message of an error: what to do, or the message of a library and the place of the stack trace."""
    if (wrong_input := input_error(error)) is not None:
        return str(wrong_input)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"{error}. Free space on the disk, and resume with --ckpt_path last: checkpoints are complete."
    message = shown(brief(str(error).strip()), REASON) or "no message"
    if isinstance(error, MisconfigurationException):  # Lightning's own message on its options
        return message
    message = f"{type(error).__name__}: {message}"
    if is_memory_error(error):
        message += (
            "\nExpected batches that fit into the memory: increase --trainer.accumulate_grad_batches, which cuts each "
            "step into as many parts, or in evaluation lower --data.init_args.evaluation_batch_seconds"
        )
    trace = "\n".join(getattr(error, "__notes__", [])) or f"{TRACE}=1 before the command shows the stack trace."
    return f"{message}\n{trace} If the options are right, this is an error of asr_lightning: please report it."


@contextmanager
def trace_kept(root: Path, rank: int) -> Iterator[None]:
    """Write the stack trace of an error into the run's folder, unless its message says what to do."""
    try:
        yield
    except Exception as error:
        disk_full = isinstance(error, OSError) and error.errno in DISK_FULL
        if input_error(error) is None and not disk_full:
            path = root / (f"trace-rank{rank}.txt" if rank else "trace.txt")
            with suppress(OSError):
                write_atomically(path, traceback.format_exc())
                error.add_note(f"The stack trace is in {path}.")
        raise
