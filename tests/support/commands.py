"""The command line in this process."""

import pytest

from asr_lightning import cli


def exit_message(*arguments: str) -> str:
    """Return the message or the status with which a command ends."""
    with pytest.raises(SystemExit) as ending:
        cli.main(list(arguments))
    return str(ending.value.code)
