"""Loss and error rates of the networks on straight lines between checkpoints."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from asr_lightning.analysis.interpolation import Quality, along_line, barrier, quality
from asr_lightning.batch import Batch
from asr_lightning.errors import InputError
from asr_lightning.files import name_of_run, write_atomically
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.same_network import unequal_networks
from asr_lightning.report.path_figures import plot_lines
from asr_lightning.report.tables import as_csv, as_text
from asr_lightning.tools.prepared_recognizer import prepare_recognizer
from asr_lightning.tools.subsets import open_corpus, read_corpus
from data_modules.sampler import plan_batches

COLUMNS = ("first", "second", "subset", "alpha", "loss", "utterances", "wer", "cer")


@dataclass(frozen=True)
class LineMeasurements:
    """The measurements between two checkpoints: the quality of the network for each α."""

    first: str
    second: str
    subset: str
    points: list[tuple[float, Quality]]

    @property
    def barrier(self) -> float:
        """How far the loss rises above the chord between its ends, in nats."""
        return barrier([(alpha, result.loss) for alpha, result in self.points])


def find_config(checkpoint: Path) -> Path:
    """Return the newest `config.yaml` in the logs of a checkpoint's run.

    Raises:
        InputError: There is none.
    """
    logs = checkpoint.absolute().parent.parent / "logs"
    configs = sorted(logs.glob("version_*/config.yaml"), key=lambda file: int(file.parent.name.split("_")[1]))
    if not configs:
        raise InputError(f"expected the run's {logs}/version_<n>/config.yaml, got none: give --config experiment.yaml")
    return configs[-1]


def read_batches(config: Path, subset: str | None, utterances: int, seed: int) -> tuple[str, list[Batch]]:
    """Read speech of an experiment as it is evaluated, without augmentation.

    Args:
        config: The experiment, whose `data` is read.
        subset: Any subset of its corpus; the first one of validation if None.
        utterances: At most so many, drawn at random; 0 for all.
        seed: Of the draw.

    Returns:
        The name of the subset, and its batches.

    Raises:
        InputError: The experiment cannot be read, or its data cannot be used.
    """
    chosen = subset or next(iter(read_corpus(config).subsets["validation"]), None)
    if chosen is None:
        raise InputError(f"{config}: expected data with validation_subsets, got none: give --subset")
    loader = open_corpus(config, [chosen])[chosen]
    numbers = np.arange(len(loader.durations))
    if utterances:
        numbers = np.sort(np.random.default_rng(seed).permutation(numbers)[:utterances])
    [plan] = plan_batches(loader.durations[numbers], loader.batch_seconds)
    batches = list(loader.load([[int(numbers[index]) for index in batch] for batch in plan], 0))
    if not any(map(len, batches)):
        raise InputError(f"{chosen}: expected utterances to measure with, but none could be read")
    return chosen, batches


def load_pair(first: Path, second: Path, device: str, config: Path | None = None) -> tuple[Recognizer, Recognizer]:
    """Return the recognizers of two checkpoints.

    Args:
        first: The first one.
        second: The second one.
        device: Of the first; the second stays on the CPU.
        config: An experiment that decides everything but the weights, see `prepare`.

    Raises:
        InputError: One cannot be used, or they do not compute the same from the same weights.
    """
    left, right = prepare_recognizer(first, device, None, config), prepare_recognizer(second, "cpu", None, config)
    if left.tokenizer.tokens != right.tokenizer.tokens:
        raise InputError(f"{first} and {second}: expected the same tokens in the same order")
    differences = [
        f"  {key}: {first_value} and {second_value}"
        for key, first_value, second_value in unequal_networks(left.hparams, right.hparams)
    ]
    if differences:
        raise InputError("\n".join([f"{first} and {second}: expected the same architecture, got", *differences]))
    return left, right


def measure_line(
    pair: tuple[Path, Path],
    subset: str,
    batches: Sequence[Batch],
    where: Sequence[float],
    recognize: bool,
    device: str,
    config: Path | None = None,
) -> LineMeasurements:
    """Measure the networks on the line between two checkpoints.

    Raises:
        InputError: They cannot be used, or are not of the same architecture.
    """
    recognizer, other = load_pair(*pair, device, config)
    line = along_line(recognizer, other.state_dict(), where, lambda: quality(recognizer, batches, recognize))
    first, second = map(name_of, pair)
    progress = tqdm(line, f"{first} to {second}", total=len(where), unit="network", disable=not sys.stderr.isatty())
    return LineMeasurements(first, second, subset, list(progress))


def name_of(checkpoint: Path) -> str:
    """Return a short name: `runs/demo/rnnt_ws/seed1/checkpoints/last.ckpt` → `rnnt_ws seed 1`."""
    if checkpoint.parent.name != "checkpoints":
        return checkpoint.stem
    run, seed = name_of_run(checkpoint.absolute().parent.parent)
    words = [run, f"seed {seed}" if seed else "", "" if checkpoint.stem == "last" else checkpoint.stem]
    return " ".join(filter(None, words))


def rows(lines: Sequence[LineMeasurements]) -> Iterator[list[str]]:
    """Give the lines of a CSV with `COLUMNS`: loss in nats for each utterance, rates as fractions."""
    for line in lines:
        for alpha, result in line.points:
            rates = [f"{result.error_rates[rate]:.6f}" if result.error_rates else "" for rate in ("wer", "cer")]
            loss = f"{result.loss:.6f}"
            yield [line.first, line.second, line.subset, f"{alpha:.6g}", loss, str(result.utterances), *rates]


def write_line(lines: Sequence[LineMeasurements], output: Path) -> str:
    """Write `path.csv` and `path.png`, and return what to tell the user."""
    write_atomically(output / "path.csv", as_csv([list(COLUMNS), *rows(lines)]))
    subset = lines[0].subset
    names = {f"{line.first} to {line.second}": line for line in lines}
    panels = {f"loss on {subset} (nats)": {
        name: [(alpha, result.loss) for alpha, result in line.points] for name, line in names.items()}}  # fmt: skip
    if lines[0].points[0][1].error_rates:
        panels[f"WER on {subset} (%)"] = {
            name: [(alpha, 100 * result.error_rates["wer"]) for alpha, result in line.points]
            for name, line in names.items()
        }
    plot_lines(panels, output / "path.png")
    losses_head = ("loss of the first", "highest loss between", "loss of the second")
    table = [["first", "second", "subset", *losses_head, "barrier"]]
    for line in lines:
        losses = {alpha: result.loss for alpha, result in line.points}
        highest = max(losses[alpha] for alpha in losses if 0 <= alpha <= 1)
        numbers = [losses[0.0], highest, losses[1.0], line.barrier]
        table.append([line.first, line.second, line.subset, *(f"{number:.3f}" for number in numbers)])
    note = (
        "Mean loss of an utterance in nats. Barrier: how far the loss rises above the chord between its ends. Running "
        "statistics of BatchNorm and of features are interpolated as the weights are, not measured anew, and beyond "
        "the ends they stay those of the nearer end."
    )
    summary = f"Written to {output.absolute()}: path.csv, path.png"
    return "\n".join([as_text(table), "", note, "", summary])
