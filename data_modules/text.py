"""Plain text for language models: a sentence per line, in batches of about equal size in characters."""

import functools
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset, Subset

from asr_lightning.batch import TextBatch
from asr_lightning.errors import InputError
from data_modules.lines import Lines, open_lines
from data_modules.sampler import (
    BATCHES_PER_BUCKET,
    DURATION_SPREAD,
    EvaluationBatches,
    TrainBatches,
    accumulation_of,
    cut_batches,
    progress_of,
    rank_of,
)
from data_modules.workers import begin_worker

PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
STAGES = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",)}


class TextDataModule(lightning.LightningDataModule):
    """Reads text files in batches of about equal size; every line is a sentence, UTF-8.

    Lines are read from disk when they are needed, by an index that is made once, in `$ASR_LIGHTNING_CACHE` or
    `~/.cache/asr_lightning`; of a corpus a few bytes per line are in memory. Lines without words are left out.

    Args:
        train_files: Paths or patterns of what is trained on; `**` stands for any folders, as in
            `data/LibriSpeech/train-clean-100/**/*.trans.txt`.
        validation_files: What is evaluated while training.
        test_files: What `lightning test` reads.
        skip_columns: Words at the beginning of every line that are no part of the sentence: 1 for lines that begin
            with an utterance's name, as in LibriSpeech's `*.trans.txt` and Kaldi's `text`.
        evaluation_skip_columns: The same for validation and test; default `skip_columns`.
        normalize: Write sentences in LibriSpeech's own alphabet of capitals and apostrophes, as
            `asr_lightning.text.english` says; those that are in it already stay as they are.
        batch_characters: Characters of an optimizer step, padding and the ends of sentences included, over all
            processes and all batches of `trainer.accumulate_grad_batches`. In evaluation those of a batch are as many
            as one process trains on at once.
        max_characters: Longer lines are left out of training.
        workers: Processes that read, for each training process; 0 reads in the training process.
        seed: Of the order of lines; that of the whole run (`seed_everything`) if None.
        made_by: The command that makes the files, said where they are missing.

    Raises:
        InputError: An argument is out of its range.
    """

    def __init__(
        self,
        train_files: list[str] | None = None,
        validation_files: list[str] | None = None,
        test_files: list[str] | None = None,
        skip_columns: int = 0,
        evaluation_skip_columns: int | None = None,
        normalize: bool = True,
        batch_characters: int = 20_000,
        max_characters: int = 1_000,
        workers: int = 1,
        seed: int | None = None,
        made_by: str = "",
    ) -> None:
        super().__init__()
        self.patterns = {
            "train": list(train_files or []),
            "validation": list(validation_files or []),
            "test": list(test_files or []),
        }
        evaluated = skip_columns if evaluation_skip_columns is None else evaluation_skip_columns
        self.skip_columns = {"train": skip_columns, "validation": evaluated, "test": evaluated}
        self.normalize = normalize
        self.batch_characters = batch_characters
        self.max_characters = max_characters
        self.workers = workers
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "1")) if seed is None else seed
        self.made_by = made_by
        self.lines: dict[str, Lines] = {}
        limits = {
            "batch_characters": (batch_characters, 1),
            "max_characters": (max_characters, 1),
            "workers": (workers, 0),
        }
        limits |= {"skip_columns": (skip_columns, 0), "evaluation_skip_columns": (evaluated, 0)}
        for name, (value, least) in limits.items():
            if value < least:
                raise InputError(f"{name} must be {least} or more, got {value}")

    def prepare_data(self) -> None:
        """Make the index of the files that this stage needs.

        Raises:
            InputError: Files are missing or cannot be used.
        """
        state = self.trainer.state.fn if self.trainer else None
        for role in self._roles(state.value) if state else self.patterns:
            if self.patterns[role]:
                self._open(role)

    def setup(self, stage: str) -> None:
        """Open the files.

        Raises:
            InputError: Files are missing or cannot be used.
        """
        for role in self._roles(stage):
            if not self.patterns[role] and (role, stage) != ("validation", "fit"):
                raise InputError(f"expected {role}_files, got none: name some with --data.init_args.{role}_files")
            if self.patterns[role]:
                lines = self.lines[role] = self._open(role)
                empty = f"; {lines.left_out} lines without words are left out" if lines.left_out else ""
                rank_zero_info(f"{role}: {len(lines)} lines of {len(lines.files)} files{empty}")

    def _roles(self, stage: str) -> tuple[str, ...]:
        if stage not in STAGES:
            raise InputError(
                f"expected to train or test a language model with text, got {stage}: use `lightning test`, or for "
                "the probability of each sentence `PretrainedLanguageModel.score`"
            )
        return STAGES[stage]

    def _open(self, role: str) -> Lines:
        return open_lines(find_texts(self.patterns[role], self.made_by), self.skip_columns[role], self.normalize)

    def train_dataloader(self) -> TrainBatches:
        """The training batches of this process.

        Raises:
            InputError: All lines are too long.
        """
        lines = self.lines["train"]
        long = int(np.count_nonzero(lines.characters > self.max_characters))  # they come first
        if long:
            rank_zero_info(f"Left out of training: {long} lines of more than {self.max_characters} characters.")
        if long == len(lines):
            raise InputError(
                f"expected lines of at most {self.max_characters} characters to train on, got {long} longer ones only: "
                "write one sentence per line, or raise --data.init_args.max_characters"
            )
        return TextTrainBatches(
            _tokens(lines)[long:],
            functools.partial(self._load, Subset(lines, range(long, len(lines)))),
            self.batch_characters,
            *rank_of(self.trainer),
            accumulation=accumulation_of(self.trainer),
            seed=self.seed,
            progress=lambda: progress_of(self.trainer),
            identity={"texts": lines.digest},
        )

    def val_dataloader(self) -> EvaluationBatches | list:
        """The validation batches of this process."""
        return self._evaluation("validation")

    def test_dataloader(self) -> EvaluationBatches | list:
        """The test batches of this process."""
        return self._evaluation("test")

    def _evaluation(self, role: str) -> EvaluationBatches | list:
        if role not in self.lines:
            return []
        lines = self.lines[role]
        rank, ranks = rank_of(self.trainer)
        batch_characters = self.batch_characters / (ranks * accumulation_of(self.trainer))
        return EvaluationBatches(_tokens(lines), functools.partial(self._load, lines), batch_characters, rank, ranks)

    def _load(self, lines: Dataset, batches: Sequence[list[int]], epoch: int) -> Iterator[Any]:
        yield from DataLoader(
            lines,
            batch_sampler=batches,
            collate_fn=_collate,
            num_workers=self.workers,
            worker_init_fn=begin_worker,
            generator=torch.Generator(),  # else every epoch and validation draws from the model's randomness
            prefetch_factor=4 if self.workers else None,
        )


def _tokens(lines: Lines) -> np.ndarray:
    """(N,) float32, as many as there may be: the characters and the end."""
    return lines.characters + np.float32(1)


def _collate(items: list[tuple[str, str]]) -> TextBatch:
    return TextBatch([name for name, _ in items], [text for _, text in items])


class TextTrainBatches(TrainBatches):
    """Training batches of lines, drawn as `plan_steps` does, by a plan of four bytes a line.

    A corpus of text has a hundred times as many lines as one of speech has utterances, too many for lists of numbers.
    The `durations` are characters, and must not rise.
    """

    units = ("characters", "lines")

    @functools.cached_property
    def _cuts(self) -> tuple[np.ndarray, np.ndarray]:
        """The starts of the parts of steps, and of all buckets but the first."""
        starts, buckets = cut_batches(self.durations, self.batch_seconds, DURATION_SPREAD, BATCHES_PER_BUCKET)
        sizes, parts = np.diff(starts, append=len(self.durations)), self.world_size * self.accumulation
        begins = starts[:, None] + sizes[:, None] * np.arange(parts) // parts  # (steps, parts)
        return begins, np.flatnonzero(np.diff(buckets)) + 1

    def plan(self, epoch: int = 0) -> list[Any]:
        """All ranks' batches of an epoch, `accumulation` for each step."""
        begins, buckets = self._cuts
        random = np.random.default_rng([self.seed, epoch])
        order = np.arange(len(self.durations), dtype=np.uint32)
        for bucket in np.split(order, buckets):
            random.shuffle(bucket)
        steps, parts = random.permutation(len(begins)), begins.shape[1]
        bounds = np.append(begins.ravel(), len(order))
        return [
            _Share(order, bounds, (steps[:, None] * parts + np.arange(rank, parts, self.world_size)).ravel())
            for rank in range(self.world_size)
        ]

    def state_dict(self) -> dict[str, Any]:
        """What the order of batches depends on."""
        return {
            "lines": len(self.durations),
            "characters": int(np.sum(self.durations, dtype=np.float64)),
            "batch_characters": self.batch_seconds,
            "seed": self.seed,
            **self._shares(),
            **self.identity,
        }


class _Share(Sequence):
    """The batches of one rank: of `order`, between neighbouring `bounds`, by their `numbers`."""

    def __init__(self, order: np.ndarray, bounds: np.ndarray, numbers: np.ndarray) -> None:
        self.order = order
        self.bounds = bounds
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - a number gives a batch, a slice some of them
        if isinstance(index, slice):
            return _Share(self.order, self.bounds, self.numbers[index])
        number = self.numbers[index]
        return self.order[self.bounds[number] : self.bounds[number + 1]].tolist()


def find_texts(patterns: list[str], made_by: str = "") -> list[Path]:
    """Find the files of paths and patterns, each once, those of a pattern in the order of their paths.

    Args:
        patterns: Paths, or patterns with `*`, `?`, `[…]` and `**`.
        made_by: The command that makes them, said where there are none.

    Raises:
        InputError: One of the patterns gives no file, or a file is packed.
    """
    paths: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser().absolute()
        if path.is_dir():
            raise InputError(f"{path} is a folder: expected a file or a pattern, as {path}/**/*.txt")
        names = [str(path)] if path.is_file() else sorted(glob.glob(str(path), recursive=True))
        files = [Path(name) for name in names if os.path.isfile(name)]
        if not files:
            advice = f"correct the path, or make them with `{made_by}`" if made_by else "correct the path"
            raise InputError(f"no text files at {pattern} (looked for {path}): {advice}")
        if packed := [file for file in files if file.suffix.lower() in PACKED]:
            raise InputError(
                f"{packed[0]} is compressed, but lines are read from any position in a file: decompress it first"
            )
        paths |= dict.fromkeys(files)
    return list(paths)
