"""The command `lightning` before it imports anything slow, and modules of the current folder."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from asr_lightning import cli
from asr_lightning.__main__ import HELP, STOPPED, main

PROJECT = Path(__file__).parents[1]
SLOW = ("torch", "lightning", "numpy", "jsonargparse")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_list_of_commands_needs_nothing_slow(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv[1:] = {arguments}\nfrom asr_lightning.__main__ import main; main()\n"
        f"assert not set({SLOW}) & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, cwd=PROJECT)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{HELP}\n", "")


def test_the_list_has_all_commands() -> None:
    from lightning.pytorch.cli import LightningCLI

    commands = re.findall(r"^  (\w+) {2,}", HELP, flags=re.MULTILINE)
    assert sorted(commands) == sorted(LightningCLI.subcommands())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("handled", [True, False], ids=["in a loop of Lightning", "elsewhere"])
def test_signals_are_told_by_one_line_and_the_status(
    number: int, status: int, handled: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        except KeyboardInterrupt:
            if handled:
                sys.exit(1)
            raise

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "main", interrupted)
    monkeypatch.setattr("sys.argv", ["lightning", "test"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == status and capsys.readouterr().err == f"{STOPPED}\n"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    monkeypatch.setattr(cli, "main", lambda: sys.exit(3))
    with pytest.raises(SystemExit) as failed:
        main()
    assert failed.value.code == 3


@pytest.mark.parametrize(("flags", "importable"), [([], True), (["-P"], False)])
@pytest.mark.parametrize("command", ["asr_lightning.__main__", "asr_lightning.asr"])
def test_modules_of_the_current_folder_are_found_as_with_python_m(
    tmp_path: Path, command: str, flags: list[str], importable: bool
) -> None:
    """A script, as pip installs it, has its own folder in front of the path."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.py").write_text("ANSWER = 42\n")
    script = tmp_path / "bin" / "command"
    script.write_text(
        f"import sys; sys.path.insert(1, {str(PROJECT)!r}); sys.argv[1:] = ['--help']\n"
        f"from {command} import main; main()\nimport mine; assert mine.ANSWER == 42\n"
    )
    done = subprocess.run(
        [sys.executable, *flags, str(script)], cwd=tmp_path / "here", capture_output=True, text=True, timeout=200
    )
    assert (done.returncode == 0) == importable, done.stderr
    assert importable or "No module named 'mine'" in done.stderr
