"""The corpus of an experiment as commands read it: batches of subsets, and transcripts."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import ArgumentError, ArgumentParser
from tqdm import tqdm

from asr_lightning.batch import Batch
from asr_lightning.errors import InputError
from asr_lightning.models.experiment import read_part
from asr_lightning.models.instantiation import brief, instantiate
from data_modules.corpus import CorpusDataModule
from data_modules.sampler import EvaluationBatches, plan_batches


def open_corpus(config: Path, subsets: Sequence[str] | None) -> dict[str, EvaluationBatches]:
    """Return the batches of subsets of an experiment's data; of those that it tests on, without `subsets`.

    Raises:
        InputError: There is no such experiment, data or subset.
    """
    module = read_corpus(config)
    chosen = list(dict.fromkeys(module.subsets["test"] if subsets is None else subsets))
    if not chosen:
        raise InputError(f"{config}: expected data with test_subsets, found none: give --subsets")
    set_up(module, "predict", chosen)
    return module.predict_dataloader()


def subsets_of(config: Path) -> tuple[list[str], list[str]]:
    """Return the names of the subsets that an experiment trains on, and of the others that it validates or tests on.

    Subsets that it only tests on are left out where they cannot be used: a corpus may be there for training only.

    Raises:
        InputError: There is no such experiment, or it trains on nothing.
    """
    module = read_corpus(config)
    if not module.subsets["train"]:
        raise InputError(f"{config}: expected data with train_subsets, found none")
    return module.subsets["train"], [
        subset
        for subset in dict.fromkeys([*module.subsets["validation"], *module.subsets["test"]])
        if subset not in module.subsets["train"] and (subset in module.subsets["validation"] or usable(config, subset))
    ]


def usable(config: Path, subset: str) -> bool:
    """Say whether a subset of an experiment's data can be read."""
    try:
        set_up(read_corpus(config), "predict", [subset])
    except InputError:
        return False
    return True


def development_subsets(config: Path, subsets: Sequence[str] | None) -> list[str]:
    """Return the subsets by which something may be chosen: the wanted ones, or those that an experiment validates on.

    Raises:
        InputError: The experiment tests on one that is wanted, or validates on none that it neither trains nor tests
            on.
    """
    module = read_corpus(config)
    tested = module.subsets["test"]
    if refused := [subset for subset in subsets or () if subset in tested]:
        raise InputError(
            f"{config}: expected subsets that the experiment does not test on, found {', '.join(refused)} among its "
            "test_subsets: what is chosen by them cannot be tested on them; give others, as dev-clean dev-other"
        )
    chosen = subsets or [
        subset for subset in module.subsets["validation"] if subset not in (*module.subsets["train"], *tested)
    ]
    if not chosen:
        raise InputError(
            f"{config}: expected validation_subsets that the experiment neither trains nor tests on, found "
            f"{', '.join(module.subsets['validation']) or 'none'}: give --subsets, as dev-clean dev-other"
        )
    return list(chosen)


def every(config: Path, subsets: Sequence[str], title: str) -> Iterator[Batch]:
    """Give the batches of subsets, with a progress bar."""
    for subset, batches in open_corpus(config, subsets).items():
        with tqdm(
            total=len(batches.durations), desc=f"{title}: {subset}", unit="utterance", disable=not sys.stderr.isatty()
        ) as bar:
            for batch in batches:
                yield batch
                bar.update(len(batch))


def portion(config: Path, subsets: Sequence[str], seconds: float, title: str, seed: int | None) -> Iterator[Batch]:
    """Give batches of utterances that last for so many seconds together, one utterance at least.

    Args:
        config: The experiment.
        subsets: Of its data.
        seconds: Of audio, as the manifests say; all utterances where there is less.
        title: Of the progress bar.
        seed: Of the random choice of utterances; None for the shortest ones.
    """
    corpus = open_corpus(config, subsets)
    durations = np.concatenate([part.durations for part in corpus.values()])
    order = np.argsort(durations, kind="stable") if seed is None else np.random.default_rng(seed).permutation(
        len(durations)
    )  # fmt: skip
    count = max(1, int(np.searchsorted(np.cumsum(durations[order], dtype=np.float64), seconds, side="right")))
    chosen = np.zeros(len(durations), dtype=bool)
    chosen[order[:count]] = True
    with tqdm(total=count, desc=title, unit="utterance", disable=not sys.stderr.isatty()) as bar:
        begin = 0
        for part in corpus.values():
            indices = np.flatnonzero(chosen[begin : begin + len(part.durations)])
            begin += len(part.durations)
            [plan] = plan_batches(part.durations[indices], part.batch_seconds)
            for batch in part.load([indices[batch].tolist() for batch in plan], 0) if len(indices) else ():
                yield batch
                bar.update(len(batch))


def training_texts(config: Path, changes: Sequence[str] = ()) -> Iterator[str]:
    """Give the transcripts that an experiment trains on, as it trains on them; no audio is read.

    Args:
        config: The experiment.
        changes: Arguments of a command line that change its data, as of `lightning fit`.

    Raises:
        InputError: The experiment cannot be read, or its data cannot be used.
    """
    module = read_corpus(config, changes)
    set_up(module, "train", module.subsets["train"])
    yield from _texts(module)


def evaluation_texts(config: Path) -> Iterator[str]:
    """Give the transcripts of the subsets that an experiment validates or tests on; no audio is read.

    Subsets that cannot be used have none: a corpus may be there for training only.

    Raises:
        InputError: The experiment cannot be read.
    """
    module = read_corpus(config)
    for subset in dict.fromkeys([*module.subsets["validation"], *module.subsets["test"]]):
        module = read_corpus(config)
        try:
            set_up(module, "predict", [subset])
        except InputError:
            continue
        yield from _texts(module)


def _texts(module: CorpusDataModule) -> Iterator[str]:
    for manifest in module.manifests.values():
        for number in range(len(manifest)):
            yield manifest[number].supervisions[0].text or ""


def set_up(module: CorpusDataModule, role: Literal["train", "predict"], subsets: Sequence[str]) -> None:
    """Make a corpus ready to give these subsets in one role, and nothing else of it.

    Raises:
        InputError: A subset cannot be used.
    """
    module.subsets = {**{role: [] for role in module.subsets}, role: list(subsets)}
    module.prepare_data()
    module.setup("fit" if role == "train" else role)


def read_corpus(config: Path, changes: Sequence[str] = ()) -> CorpusDataModule:
    """Return the data of an experiment.

    Args:
        config: The experiment.
        changes: Arguments of a command line that change its data, as of `lightning fit`.

    Raises:
        InputError: There is no such experiment, or no corpus in it.
    """
    try:
        part = change(read_part(config, "data"), changes)
        module, _ = instantiate(part, CorpusDataModule, "a corpus")  # type: ignore[type-abstract]
    except InputError as error:
        raise InputError(f"{config}: {error}") from error
    return module


def change(part: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Return the data of an experiment as changed by a command line: `--data.init_args.root`, `--data CLASS`, ….

    Raises:
        InputError: There is no such argument, or its value does not fit.
    """
    if not changes:
        return part
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(CorpusDataModule, "data", required=True)
    try:
        parsed = parser.parse_args(["--config", json.dumps({"data": part}), *changes])
        changed: dict[str, Any] = json.loads(parser.dump(parsed, format="json", skip_unset=False))["data"]
    except (ArgumentError, TypeError, ValueError, ImportError, AttributeError) as error:
        raise InputError(f"{' '.join(changes)}: {brief(str(error))}") from error
    return changed
