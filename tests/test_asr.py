"""The command `asr`: names, help, errors, exit statuses."""

import argparse
import ctypes
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asr_lightning import ablations, asr
from asr_lightning.ablations.definition import SCALES, read_ablation
from asr_lightning.ablations.plan import plan_ablation
from asr_lightning.asr import COMMANDS, NAMES, RENAMED, main
from asr_lightning.errors import InputError

PROJECT = Path(__file__).parents[1]
PAGE = PROJECT / "docs" / "commands.md"
SLOW = ("torch", "lightning", "matplotlib", "scipy", "numpy", "wandb", "optuna", "lhotse", "jsonargparse", "kaldifst")
BEFORE = ["ablate", "align", "average", "boundaries", "compare", "convergence", "costs", "dashboard", "hybrid", "ngram",
          "parameters", "path", "report", "search", "shards", "summarize", "transcribe", "units"]  # fmt: skip


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=200)


def test_every_command_is_a_file_and_every_file_with_arguments_a_command() -> None:
    files = (PROJECT / "asr_lightning" / "tools").glob("*.py")
    assert sorted(NAMES) == sorted(path.stem for path in files if "def add_arguments(" in path.read_text())


def test_help_of_all_commands_imports_nothing_slow() -> None:
    code = (
        "import contextlib, io, sys\n"
        "from asr_lightning.asr import NAMES, main\n"
        "for name in NAMES:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):\n"
        "        main([name, '--help'])\n"
        "    assert f'usage: asr {name}' in text.getvalue() and 'Example:' in text.getvalue(), name\n"
        f"    assert not set({SLOW}) & set(sys.modules), (name, set({SLOW}) & set(sys.modules))\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_check_of_imports_sees_them() -> None:
    done = python("-c", f"import sys, asr_lightning.report.figures; sys.exit(len(set({SLOW}) & set(sys.modules)))")
    assert done.returncode >= 2, "matplotlib and numpy"


@pytest.mark.parametrize("name", BEFORE)
def test_modules_go_on_being_commands_by_all_names_that_they_had(name: str) -> None:
    done = python("-m", f"asr_lightning.tools.{name}", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: asr {RENAMED.get(name, [name])[0]} ")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("transcribe --checkpoint no.ckpt a.wav", "no checkpoint at no.ckpt (looked for {folder}/no.ckpt)"),
        ("align --config no.yaml --states x --output y", "no.yaml: No such file or directory"),
        ("transcribe --checkpoint README.md", "expected audio files, folders or a --list of them, got none"),
        ("transcribe --checkpoint README.md --list no.txt", "--list: cannot read no.txt: No such file or directory"),
        (
            "transcribe --checkpoint README.md a.wav --formats srt",
            "--formats srt: expected an --output folder for them, since each is a file",
        ),
        (
            "transcribe --checkpoint README.md a.wav --output README.md",
            "--output: cannot make the folder {folder}/README.md: File exists",
        ),
        ("average no.ckpt b.ckpt --output y", "no checkpoint at no.ckpt (looked for {folder}/no.ckpt)"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_told_before_torch_is_imported(arguments: str, message: str) -> None:
    code = (
        "import sys; from asr_lightning.asr import main\n"
        f"assert main({arguments.split()}) == 2\n"
        f"assert not set({SLOW}) & set(sys.modules)"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, f"error: {message.format(folder=PROJECT)}\n")


def test_no_other_module_is_made_up() -> None:
    done = python("-m", "asr_lightning.tools.serch", "--help")
    assert done.returncode == 1 and "No module named asr_lightning.tools.serch" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_all_are_listed_by_purpose(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for purpose, commands in COMMANDS.items():
        first = lines.index(f"{purpose}:") + 1
        assert [line.split(None, 1) for line in lines[first : first + len(commands)]] == [
            [*item] for item in commands.items()
        ]


@pytest.mark.parametrize(("typed", "meant"), [("transcrib", "transcribe"), ("repotr", "report"), ("tuen", "tune")])
def test_a_misspelt_command_names_the_nearest(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([typed, "--checkpoint", "x"]) == 2
    assert capsys.readouterr().err == (
        f"error: no command {typed!r}; the nearest is {meant!r}; `asr --help` lists them\n"
    )


def test_a_misspelt_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "runs", "--costss"])
    assert "unrecognized arguments: --costss; the nearest is --costs" in capsys.readouterr().err


def test_the_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"asr_lightning \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[argparse.Namespace], int]], None]:
    """Makes `asr parameters` do something else."""

    def put(run: Callable[[argparse.Namespace], int]) -> None:
        module = types.ModuleType("asr_lightning.tools.parameters", "Do something.")
        module.add_arguments, module.run = lambda parser: None, run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "asr_lightning.tools.parameters", module)

    return put


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("expected this,\nfound \x1b[2J"), 2, "error: expected this,\nfound \\x1b[2J\n"),
        (FileNotFoundError(2, "No such file or directory", "a\nb"), 2, "error: [Errno 2] No such file"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_errors_are_said_in_one_way(
    error: BaseException, status: int, message: str, command: Callable, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(options: argparse.Namespace) -> int:
        raise error

    command(fail)
    assert main(["parameters"]) == status
    printed = capfd.readouterr().err
    assert printed.startswith(message) and "Traceback" not in printed and bool(message) == bool(printed)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_cleans_up_and_is_told_by_the_status(
    command: Callable, capsys: pytest.CaptureFixture[str], number: signal.Signals, status: int
) -> None:
    ended = []

    def wait(options: argparse.Namespace) -> int:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            ended.append(True)
        return 0

    handler = signal.getsignal(number)
    command(wait)
    assert main(["parameters"]) == status and ended
    assert capsys.readouterr().err == "stopped\n"
    assert signal.getsignal(number) is handler


def test_nohup_lets_a_command_outlive_its_terminal(command: Callable) -> None:
    def go_on(options: argparse.Namespace) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return 0

    command(go_on)
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["parameters"]) == 0
    finally:
        signal.signal(signal.SIGHUP, handler)


def test_a_closed_terminal_leaves_no_half_written_file(tmp_path: Path) -> None:
    code = f"""
import signal, sys
from pathlib import Path
from asr_lightning import asr
from asr_lightning.files import replacing
from asr_lightning.tools import parameters

def write(options):
    with replacing(Path({str(tmp_path / "result")!r})):
        try:
            print("writing", flush=True)
            signal.pause()
        finally:
            print("ended")
            print("ended", file=sys.stderr)

parameters.run = write
sys.exit(asr.main(["parameters", "x.yaml"]))
"""
    experiment = tmp_path / "x.yaml"
    experiment.touch()
    process, terminal = pty.fork()
    if not process:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(PROJECT)})
    printed = b""
    while b"writing" not in printed:
        printed += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 129
    assert list(tmp_path.iterdir()) == [experiment]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_a_callback_of_a_c_library_is_not_lost(
    command: Callable, capsys: pytest.CaptureFixture[str], number: int, status: int
) -> None:
    signalled = []

    @ctypes.CFUNCTYPE(None)
    def callback() -> None:
        if not signalled:
            signalled.append(number)
            os.kill(os.getpid(), number)

    def call(options: argparse.Namespace) -> int:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            callback()
        return 0

    hook = sys.unraisablehook
    command(call)
    assert main(["parameters"]) == status
    assert capsys.readouterr().err == "stopped\n" and sys.unraisablehook is hook


def test_a_signal_that_is_sent_again_too_early_is_not_lost(command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    class LateTimer(threading.Timer):
        started = 0

        def start(self) -> None:
            super().start()
            LateTimer.started += 1
            if LateTimer.started == 1:
                time.sleep(5)  # as on a machine with much to do; the signal ends it

    class Dropping:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def call(options: argparse.Namespace) -> int:
        dropping = Dropping()
        del dropping
        time.sleep(20)
        return 0

    monkeypatch.setattr("threading.Timer", LateTimer)
    command(call)
    assert main(["parameters"]) == 143 and LateTimer.started == 2


@pytest.mark.parametrize("ours", [True, False])
def test_a_command_of_an_ablation_ends_with_it(command: Callable, monkeypatch: pytest.MonkeyPatch, ours: bool) -> None:
    threads: list[Any] = []

    def record(**options: Any) -> types.SimpleNamespace:
        return types.SimpleNamespace(start=lambda: threads.append(options))

    monkeypatch.setattr(ablations.threading, "Thread", record)
    monkeypatch.setenv(ablations.PARENT, str(os.getppid() if ours else 1))
    command(lambda options: int(ablations.PARENT in os.environ))  # not inherited by commands of the command
    assert main(["parameters"]) == 0
    expected = {"target": ablations.end_with, "args": (os.getppid(),), "daemon": True}
    assert threads == ([expected] if ours else [])


def test_errors_that_are_ours_have_a_trace(command: Callable) -> None:
    command(lambda options: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["parameters"])


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [("", ["1\n"]), ("compare --help", ["0\n", "1\n"])],  # argparse ignores it where it has not buffered the help
)
def test_a_closed_pipe_ends_a_command_quietly(arguments: str, printed: list[str]) -> None:
    command = f"{shlex.quote(sys.executable)} -m asr_lightning.asr {arguments}"
    done = subprocess.run(
        ["bash", "-c", f"{{ sleep 0.1; {command}; echo $? >&2; }} | true"],
        cwd=PROJECT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.stderr in printed


def examples(text: str) -> list[list[str]]:
    """The words of all lines that begin with `asr`, lines that end with a backslash joined to the next."""
    lines = (line.strip().removeprefix(".venv/bin/") for line in text.replace("\\\n", " ").splitlines())
    return [shlex.split(line.partition(" > ")[0], comments=True) for line in lines if line.startswith("asr ")]


def page() -> str:
    """The page of all commands, made from the docstrings of their files."""
    parts = [
        "# Commands",
        "`lightning` trains and tests; `asr` does everything around it. `asr COMMAND --help` has all options, and"
        " `asr --help` the list of commands.",
    ]
    for purpose, commands in COMMANDS.items():
        parts.append(f"## {purpose}")
        for name in commands:
            asr.make_parser(name)
            summary, example, *paragraphs = (
                str(sys.modules[f"asr_lightning.tools.{name}"].__doc__).strip().split("\n\n")
            )
            lines = [line.removeprefix("    ") for line in example.splitlines()[1:]]
            parts += [f"### asr {name}", summary, "\n".join(["```bash", *lines, "```"])]
            parts += ["\n".join(["```yaml", *(line.strip() for line in paragraph.splitlines()), "```"])
                      if paragraph.startswith("    ") else paragraph for paragraph in paragraphs]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def test_the_page_of_commands_is_what_their_files_say() -> None:
    assert PAGE.read_text("utf-8") == page(), "write it anew: python tests/test_asr.py"


@pytest.mark.parametrize(
    "path", [PROJECT / "README.md", *sorted(PROJECT.glob("docs/*.md"))], ids=lambda path: path.name
)
def test_examples_are_understood(path: Path) -> None:
    for _, name, *arguments in examples(path.read_text("utf-8")):
        asr.make_parser(name).parse_args(arguments)


@pytest.mark.parametrize("path", sorted(PROJECT.glob("experiments/ablations/*.yaml")), ids=lambda path: path.stem)
def test_commands_of_comparisons_are_understood(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    ablation = read_ablation(path)
    for scale in (scale for scale in SCALES if ablation.names(scale)):
        plan = plan_ablation(path, scale)
        for command in [*(command for run in plan.runs for command in run.commands), *plan.outputs]:
            if command[1] != "asr_lightning":
                name, *first = RENAMED.get(tool := command[1].rpartition(".")[2], [tool])
                asr.make_parser(name).parse_args([*first, *command[2:]])


def test_every_command_has_an_example_on_the_page() -> None:
    assert [name for name in NAMES if name not in {words[1] for words in examples(page())}] == []


def test_the_check_of_examples_sees_wrong_ones(capsys: pytest.CaptureFixture[str]) -> None:
    [words] = examples("text\n    asr report runs/a \\\n        --outptu x.html > y\n")
    assert words == ["asr", "report", "runs/a", "--outptu", "x.html"]
    with pytest.raises(SystemExit):
        asr.make_parser(words[1]).parse_args(words[2:])


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
