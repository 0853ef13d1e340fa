"""What the user is told when a command fails, and where the whole trace is."""

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from asr_lightning.batch import is_memory_error
from asr_lightning.errors import SAID, shown
from asr_lightning.files import write_atomically
from asr_lightning.models.instantiation import brief, input_error

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TRACE = "ASR_LIGHTNING_TRACE"  # set, errors are shown with their whole trace


def explain(error: Exception) -> str:
    """Return what the user is told of an error: what to do, or what a library says and where the whole trace is."""
    if (ours := input_error(error)) is not None:
        return str(ours)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"{error}. Make room on the disk, and go on with --ckpt_path last: checkpoints are whole."
    said = shown(brief(str(error).strip()), SAID) or "no message"
    if isinstance(error, MisconfigurationException):  # what Lightning says of options
        return said
    said = f"{type(error).__name__}: {said}"
    if is_memory_error(error):
        said += (
            "\nExpected batches that fit into the memory: raise --trainer.accumulate_grad_batches, which cuts each "
            "step into as many parts, or in evaluation lower --data.init_args.evaluation_batch_seconds"
        )
    trace = "\n".join(getattr(error, "__notes__", [])) or f"{TRACE}=1 before the command shows the whole trace."
    return f"{said}\n{trace} If the options are right, this is a fault of asr_lightning: please report it."


@contextmanager
def trace_kept(root: Path, rank: int) -> Iterator[None]:
    """Write the trace of an error into the run's folder, unless its message says all that there is to do."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in DISK_FULL
        if input_error(error) is None and not full:
            path = root / (f"trace-rank{rank}.txt" if rank else "trace.txt")
            with suppress(OSError):
                write_atomically(path, traceback.format_exc())
                error.add_note(f"The whole trace is in {path}.")
        raise
