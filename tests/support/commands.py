"""The command line in this process."""

import pytest

from asr_lightning import cli


def said(*arguments: str) -> str:
    """Return what a command says when it ends with an error."""
    with pytest.raises(SystemExit) as ending:
        cli.main(list(arguments))
    return str(ending.value.code)
