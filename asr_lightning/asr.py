"""The command `asr`: everything around training, which is `lightning`.

    asr transcribe --checkpoint runs/rnnt/checkpoints/last.ckpt speech.wav

Each command is a file of `asr_lightning.tools` with two functions, `add_arguments(parser)` and `run(options)`. What is
slow to import, as torch and matplotlib, is imported by `run` only, so that `--help` and wrong options answer at once.

Exit statuses: 0; 1 where something failed, and the rest was done; 2 where the input cannot be used; 130 after Ctrl-C
143 after SIGTERM, and 129 after SIGHUP, which a terminal sends when it is closed.
"""

import argparse
import difflib
import importlib
import os
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import FrameType

from asr_lightning.ablations import end_with_ablation
from asr_lightning.errors import InputError, discard_where_hung_up, nearest, print_any_character, printable

COMMANDS = {
    "Use a trained network": {
        "transcribe": "transcribe audio files",
        "listen": "transcribe live audio, from a microphone or a pipe, or for a web page",
        "confidence": "calibrate the confidence of words on a development set",
        "align": "write when the words and phones of a corpus are spoken",
        "export": "write ONNX files, which sherpa-onnx executes, or programs of torch.export",
    },
    "Prepare a training": {
        "import": "make a checkpoint from weights that others have published",
        "units": "make the tokens of a recognizer from transcripts",
        "ngram": "estimate n-gram language models, and measure their perplexity",
        "hybrid": "make the states, alignments and graphs of a BLSTM-HMM hybrid; tune its language model",
        "shards": "write a corpus as tar files",
        "teacher": "show what a student would get from a teacher by weight selection",
        "parameters": "count the parameters of experiments",
    },
    "Run many trainings": {
        "ablate": "run an ablation: its variants over seeds, and the table beside the paper's numbers",
        "tune": "tune values of an experiment by a development set",
    },
    "Look at finished runs": {
        "compare": "compare runs: error rates, significance, convergence, costs",
        "report": "write one HTML page of runs",
        "verdicts": "check the claims of the papers with the ablations that have been run",
        "dashboard": "make a W&B workspace and report of runs",
        "average": "average checkpoints, and compare the error rates",
        "latency": "measure the delay of words and the cost of recognition",
        "path": "measure the loss on straight lines between networks",
        "boundaries": "measure how far borders of phones and words are from the true ones",
    },
}
NAMES = [name for commands in COMMANDS.values() for name in commands]
# Old names of commands, and the arguments that replace them.
RENAMED = {
    "search": ["tune"],
    "summarize": ["compare", "--rates"],
    "convergence": ["compare", "--convergence"],
    "costs": ["compare", "--costs"],
}
AGAIN_SECONDS = 0.01  # until a signal is sent again whose exception was dropped


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which end a command as Ctrl-C does.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The name of the command and its arguments; `sys.argv` if None.

    Returns:
        The exit status.
    """
    print_any_character()
    if arguments is None:
        add_current_folder()
        arguments = sys.argv[1:]
    end_with_ablation()
    name, *typed = list(arguments) or ["--help"]
    name, *options = RENAMED.get(name, [name])
    try:
        with terminable():
            try:
                return _run(name, [*options, *typed])
            finally:
                sys.stdout.flush()  # so that a closed pipe is noticed here
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, or a folder that cannot be written
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        command = sys.modules.get(f"asr_lightning.tools.{name}")
        print(getattr(command, "STOPPED", "stopped"), file=sys.stderr)
        return interrupted_status(error)


def _run(name: str, arguments: Sequence[str]) -> int:
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name == "--version":
        print(f"asr_lightning {metadata.version('asr_lightning')}")
        return 0
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
        raise InputError(f"no command {name!r}; the nearest is {near!r}; `asr --help` lists them")
    parser = make_parser(name)
    command = sys.modules[f"asr_lightning.tools.{name}"]
    options, remaining = parser.parse_known_args(arguments, argparse.Namespace(typed=arguments))
    prefix = getattr(command, "CHANGES", None)  # of arguments that the command passes on
    if remaining and (prefix is None or not remaining[0].startswith(prefix)):
        known = [option for action in parser._actions for option in action.option_strings]
        near = nearest(remaining[0].partition("=")[0], known)
        parser.error(f"unrecognized arguments: {' '.join(remaining)}" + (f"; the nearest is {near}" if near else ""))
    options.remaining = remaining
    _refuse_missing(options)
    return int(command.run(options))


def _refuse_missing(options: argparse.Namespace) -> None:
    """Refuse checkpoints and experiments that are not there at once, before a command imports torch."""
    for name in ("checkpoint", "checkpoints", "beside", "teacher"):
        paths = getattr(options, name, None)
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, Path) and not path.is_file():
                raise InputError(f"no checkpoint at {path} (looked for {path.absolute()})")
    config = getattr(options, "config", None)
    if isinstance(config, Path) and not config.exists():
        raise InputError(f"{config}: No such file or directory")


def add_current_folder() -> None:
    """Add the current folder to the modules that experiments can name, as `python -m` does."""
    if not sys.flags.safe_path and os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())


def make_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of a command, whose help is the docstring of the command's file."""
    command = importlib.import_module(f"asr_lightning.tools.{name}")
    summary, _, details = str(command.__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        prog=f"asr {name}",
        description=_wrap(summary),
        epilog=_wrap(details),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    return parser


def overview() -> str:
    """Return the list of commands, by purpose."""
    lines = ["usage: asr COMMAND ...; `asr COMMAND --help` has its options. `lightning` trains and tests."]
    for purpose, commands in COMMANDS.items():
        lines += ["", f"{purpose}:", *(f"  {name:<12}{summary}" for name, summary in commands.items())]
    return "\n".join(lines)


def _wrap(text: str) -> str:
    """Wrap paragraphs to the width of the terminal; those with indented lines, as examples, stay as they are."""
    width = shutil.get_terminal_size().columns - 2
    paragraphs = text.strip("\n").split("\n\n")
    return "\n\n".join(
        paragraph if "    " in paragraph else textwrap.fill(paragraph, width) for paragraph in paragraphs
    )


def interrupted_status(error: KeyboardInterrupt) -> int:
    """Return the exit status after Ctrl-C, SIGTERM or SIGHUP, as a shell has it."""
    return 128 + (error.number if isinstance(error, Terminated) else signal.SIGINT)


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` at SIGTERM and SIGHUP, so that half-written files are removed and child processes are ended.

    A signal that is ignored stays so: `nohup` lets a command outlive its terminal.

    Where a signal comes while a C library calls Python, as libsndfile does for each block that it reads, or in a
    destructor, Python drops the exception: the signal is sent again then.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        discard_where_hung_up()
        raise Terminated(number)

    def send_again(dropped: "sys.UnraisableHookArgs") -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            hook(dropped)
            return
        number = interrupted_status(dropped.exc_value) - 128
        while True:
            try:
                threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()
                return
            except KeyboardInterrupt:  # the signal came before the thread was known to run, and would be dropped again
                continue

    hook = sys.unraisablehook
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in previous.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, terminate)
    sys.unraisablehook = send_again
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


if __name__ == "__main__":
    sys.exit(main())
