"""A checkpoint with the mean weights of others, and error rates of networks beside each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from asr_lightning.analysis.interpolation import Quality, quality
from asr_lightning.errors import InputError, printable
from asr_lightning.files import write_atomically
from asr_lightning.models.averaging import mean_weights
from asr_lightning.models.checkpoints import read_checkpoint
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.same_network import check_same_network
from asr_lightning.report.tables import as_csv, as_markdown, as_text, escape_markdown, summarize
from asr_lightning.tools.subsets import every

METRICS = ("wer", "cer")
TRAINING_STATE_KEYS = ("optimizer_states", "lr_schedulers", "callbacks", "averaging_state", "current_model_state")


Row = tuple[str, dict[str, Quality]]  # of the table: what is measured, and how good it is on each subset


@dataclass(frozen=True)
class Weights:
    """Weights of the network, and their name in the table."""

    name: str
    state: Mapping[str, Tensor]


def average(recognizer: Recognizer, paths: Sequence[Path]) -> dict[str, Any]:
    """Return a checkpoint with the mean weights of others; it can be tested and read, but not trained further.

    Args:
        recognizer: Of the network.
        paths: Checkpoints of it, in any order; all but the weights is taken from the one with the most steps.

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
    entries = {key: value for key, value in ordered[-1].items() if key not in TRAINING_STATE_KEYS}
    return {**entries, "state_dict": mean_weights(recognizer, [checkpoint["state_dict"] for checkpoint in ordered])}


def weights_of(path: Path) -> Iterator[Weights]:
    """Yield the weights of a checkpoint; current and averaged ones where a callback averages over steps."""
    checkpoint = read_checkpoint(path)
    current = checkpoint.get("current_model_state")
    if current is not None:
        yield Weights(path.stem, current)
        yield Weights(f"{path.stem}, averaged over its steps", checkpoint["state_dict"])
    else:
        yield Weights(path.stem, checkpoint["state_dict"])


def measure_averages(
    recognizer: Recognizer, candidates: Sequence[Weights], config: Path, subsets: Sequence[str]
) -> list[Row]:
    """Return the quality of the network with the weights of each candidate, on each subset."""
    rows = []
    for weights in candidates:
        recognizer.load_state_dict(weights.state)
        by_subset = {
            subset: quality(recognizer, every(config, [subset], weights.name), recognize=True) for subset in subsets
        }
        rows.append((weights.name, by_subset))
    return rows


def write_average(measured: Sequence[Row], output: Path, averaged: int) -> str:
    """Write `average.md` and `average.csv`, and return what to tell the user."""
    subsets = list(measured[0][1])
    table = [["weights", *(f"{subset} {rate.upper()} %" for subset in subsets for rate in METRICS)]]
    rows: list[list[object]] = [["weights", "subset", "utterances", "loss", *METRICS]]
    for name, by_subset in measured:
        table.append(
            [name, *(summarize([by_subset[subset].error_rates[rate]]) for subset in subsets for rate in METRICS)]
        )
        for subset, result in by_subset.items():
            rows.append([name, subset, result.utterances, result.loss, *(result.error_rates[rate] for rate in METRICS)])
    counts = ", ".join(f"{measured[0][1][subset].utterances:,} of {subset}" for subset in subsets)
    note = f"Averaged: the weights of {averaged} checkpoints. Utterances with a finite loss: {counts}."
    write_atomically(output / "average.md", f"{as_markdown(table)}\n\n{escape_markdown(note)}\n")
    write_atomically(output / "average.csv", as_csv(rows))
    summary = f"Written to {output.absolute()}: average.ckpt, average.md, average.csv"
    return "\n".join([as_text(table), "", printable(note), "", summary])
