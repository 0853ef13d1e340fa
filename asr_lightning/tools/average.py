"""Averages the weights of several checkpoints of a run, and puts error rates with and without it beside each other.

Example: python -m asr_lightning.tools.average runs/conformer_ctc/checkpoints/best-*.ckpt \
    --output runs/conformer_ctc/average --beside runs/conformer_ctc/checkpoints/last.ckpt

The experiments keep the ten best checkpoints by a development set, as `best-*.ckpt`, which is what public recipes
average: ESPnet's `keep_nbest_models: 10`, SpeechBrain's `avg_checkpoints: 10`.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from asr_lightning.analysis.interpolation import Quality, quality
from asr_lightning.errors import InputError, printable
from asr_lightning.files import write_atomically
from asr_lightning.models.averaging import mean_weights
from asr_lightning.models.checkpoints import CheckpointFiles, read_checkpoint
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.same_network import check_same_network
from asr_lightning.report.tables import as_csv, as_markdown, as_text, escape_markdown, summarise
from asr_lightning.tools.path import find_config
from asr_lightning.tools.subsets import development_subsets, every
from asr_lightning.tools.transcribe import prepare

RATES = ("wer", "cer")
OF_TRAINING = ("optimizer_states", "lr_schedulers", "callbacks", "averaging_state", "current_model_state")


Row = tuple[str, dict[str, Quality]]  # of the table: what is measured, and how good it is on each subset


@dataclass(frozen=True)
class Weights:
    """Weights of the network, and what they are called in the table."""

    name: str
    state: Mapping[str, Tensor]


def average(recognizer: Recognizer, paths: Sequence[Path]) -> dict[str, Any]:
    """Return a checkpoint with the mean weights of others; it can be tested and read, but not trained further.

    Args:
        recognizer: Of the network.
        paths: Checkpoints of it, in any order; all but the weights is that of the one with the most steps.

    Raises:
        InputError: One cannot be read or is of another network, or two are of the same step.
    """
    checkpoints = [read_checkpoint(path) for path in paths]
    for path, checkpoint in zip(paths, checkpoints, strict=True):
        check_same_network(recognizer, checkpoint, path)
    steps = [int(checkpoint.get("global_step", 0)) for checkpoint in checkpoints]
    if len(set(steps)) < len(steps):
        raise InputError(
            "expected checkpoints of different steps, found several of one: "
            + ", ".join(f"{path} (step {step})" for path, step in zip(paths, steps, strict=True))
        )
    ordered = [checkpoints[steps.index(step)] for step in sorted(steps)]
    kept = {key: value for key, value in ordered[-1].items() if key not in OF_TRAINING}
    return {**kept, "state_dict": mean_weights(recognizer, [checkpoint["state_dict"] for checkpoint in ordered])}


def weights_of(path: Path) -> Iterator[Weights]:
    """Give the weights of a checkpoint; both where a callback averages them from step to step."""
    checkpoint = read_checkpoint(path)
    current = checkpoint.get("current_model_state")
    if current is not None:
        yield Weights(path.stem, current)
        yield Weights(f"{path.stem}, averaged over its steps", checkpoint["state_dict"])
    else:
        yield Weights(path.stem, checkpoint["state_dict"])


def measure(recognizer: Recognizer, candidates: Sequence[Weights], config: Path, subsets: Sequence[str]) -> list[Row]:
    """Return how good the network is with each of some weights, on each subset."""
    found = []
    for weights in candidates:
        recognizer.load_state_dict(weights.state)
        by_subset = {
            subset: quality(recognizer, every(config, [subset], weights.name), recognize=True) for subset in subsets
        }
        found.append((weights.name, by_subset))
    return found


def write(found: Sequence[Row], output: Path, averaged: int) -> str:
    """Write `average.md` and `average.csv`, and return what to tell the user."""
    subsets = list(found[0][1])
    table = [["weights", *(f"{subset} {rate.upper()} %" for subset in subsets for rate in RATES)]]
    rows: list[list[object]] = [["weights", "subset", "utterances", "loss", *RATES]]
    for name, by_subset in found:
        table.append(
            [name, *(summarise([by_subset[subset].error_rates[rate]]) for subset in subsets for rate in RATES)]
        )
        for subset, one in by_subset.items():
            rows.append([name, subset, one.utterances, one.loss, *(one.error_rates[rate] for rate in RATES)])
    counts = ", ".join(f"{found[0][1][subset].utterances:,} of {subset}" for subset in subsets)
    note = f"Averaged: the weights of {averaged} checkpoints. Utterances with a finite loss: {counts}."
    write_atomically(output / "average.md", f"{as_markdown(table)}\n\n{escape_markdown(note)}\n")
    write_atomically(output / "average.csv", as_csv(rows))
    lies = f"Written to {output.absolute()}: average.ckpt, average.md, average.csv"
    return "\n".join([as_text(table), "", printable(note), "", lies])


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m asr_lightning.tools.average",
        description="Average the weights of several checkpoints of a run, and compare its error rates with those of "
        "single checkpoints.",
        epilog="average.ckpt is tested as any other: `lightning test --config … --ckpt_path …/average.ckpt`. Where a "
        "checkpoint holds an average over steps too, as of EMAWeightAveraging, both are in the table.",
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="two or more .ckpt files")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="gets average.ckpt, average.md and average.csv"
    )
    parser.add_argument(
        "--beside", nargs="+", type=Path, default=[], metavar="CHECKPOINT",
        help="measured too, but not averaged, as last.ckpt (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="YAML",
        help="experiment whose `data` is read, and whose `model`, if it has one (default: data of config.yaml in the "
        "logs of the run, model of the checkpoint)",
    )  # fmt: skip
    parser.add_argument(
        "--subsets", nargs="+", metavar="SUBSET",
        help="of the corpus (default: those that the experiment validates but does not test on)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU where there is one"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 where the input cannot be used."""
    options = make_parser().parse_args(arguments)
    try:
        if len(options.checkpoints) < 2:
            raise InputError(f"expected two or more checkpoints to average, got {options.checkpoints[0]} only")
        config = options.config or find_config(options.checkpoints[0])
        subsets = options.subsets or development_subsets(config, None)
        recognizer = prepare(options.checkpoints[0], options.device, None, options.config)
        averaged = average(recognizer, options.checkpoints)
        CheckpointFiles().save_checkpoint(averaged, options.output / "average.ckpt")
        beside = [weights for path in options.beside for weights in weights_of(path)]
        found = measure(recognizer, [*beside, Weights("averaged", averaged["state_dict"])], config, subsets)
        print(write(found, options.output, len(options.checkpoints)))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
