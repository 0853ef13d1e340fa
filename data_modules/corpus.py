"""The LightningDataModule that all corpora share: manifests, batches, and the report of bad files."""

import functools
import hashlib
import itertools
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import lightning
import numpy as np
import torch
from lhotse import MonoCut
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from asr_lightning.audio import reading
from asr_lightning.audio.bandwidth import is_narrow_band
from asr_lightning.audio.reading import Header
from asr_lightning.batch import Batch
from asr_lightning.errors import InputError, printable, shown
from asr_lightning.files import cache_folder
from data_modules import dataset, manifest
from data_modules.dataset import Noise, SpeechDataset
from data_modules.manifest import BadFile, Listing, Manifest, is_usable, summary
from data_modules.sampler import EvaluationBatches, TrainBatches, accumulation_of, digest_of, progress_of, rank_of
from data_modules.workers import begin_worker, default_workers

EVALUATION_SECONDS = 100.0  # of a batch, at least
LONGEST_NAME = 200  # bytes, of a subset: names of files with it are longer, and have at most 255
LOST_IN_A_ROW = 100  # unreadable utterances one after the other: the disk is gone, not a file
STAGES = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("predict",)}


class CorpusDataModule(lightning.LightningDataModule, ABC):
    """Reads a corpus in batches of about equal size in seconds.

    A subclass says where the corpus is and what its files are: `source`, `require`, `fingerprint`,
    `find_utterances`, and where its audio is not of a common format also `read_header` and `read_audio`.

    Args:
        train_subsets: Names of the subsets that are trained on.
        validation_subsets: Subsets that are evaluated while training, each by itself.
        test_subsets: Subsets of `lightning test`.
        predict_subsets: Subsets of `lightning predict`; by default those of the test.
        batch_seconds: Seconds of audio, padding included, of an optimizer step. Its utterances are shared among all
            processes and all batches of `trainer.accumulate_grad_batches`, so that an experiment has the same steps
            whatever it runs on. Where the share of a process does not fit into its memory, accumulate.
        batch_utterances: Most utterances of an optimizer step; None for as many as its seconds allow.
        evaluation_batch_seconds: Seconds of a batch of one process in validation, test and prediction; by default as
            many as it trains on at once, but at least 100: evaluation keeps nothing for a backward pass.
        min_seconds: Shorter utterances are left out of training.
        max_seconds: Longer utterances are left out of training.
        train_utterances: Train on so many utterances only, drawn with `seed`; default all.
        speed_factors: Training audio is played so much faster: one of them is drawn per utterance and epoch, as from
            `[0.9, 1.0, 1.1]`. Empty leaves it.
        noise: Changes the training waveforms: called with the audio (S,) and a generator, returns audio (S,).
        sorted_epochs: First epochs that go from short to long utterances (SortaGrad), before they are shuffled.
        workers: Processes that read audio, for each training process; 0 reads in the training process. By default one
            per processor core but one, at most 8. No result depends on their number.
        seed: Of the order of utterances and of the augmentation; that of the whole run (`seed_everything`) if None.
        sample_rate: Samples per second of the audio that is given; files of other rates are resampled on reading.
        on_bad: What files that cannot be used do: `error` stops with a list of them, `skip` leaves them out.

    Raises:
        InputError: An argument is out of its range.
    """

    read_audio = staticmethod(dataset.read_audio)
    reads_at_once = 1  # of a process
    probes = True  # whether some audio is read before a run, to see what it is

    def __init__(
        self,
        train_subsets: list[str | int] | None = None,
        validation_subsets: list[str | int] | None = None,
        test_subsets: list[str | int] | None = None,
        predict_subsets: list[str | int] | None = None,
        batch_seconds: float = 200.0,
        batch_utterances: int | None = None,
        evaluation_batch_seconds: float | None = None,
        min_seconds: float = 0.1,
        max_seconds: float = 35.0,
        train_utterances: int | None = None,
        speed_factors: list[float] | None = None,
        noise: Noise | None = None,
        sorted_epochs: int = 0,
        workers: int | None = None,
        seed: int | None = None,
        sample_rate: int = 16_000,
        on_bad: Literal["error", "skip"] = "error",
    ) -> None:
        super().__init__()
        self.subsets = {
            "train": [str(name) for name in train_subsets or []],  # YAML reads 0 as a number
            "validation": [str(name) for name in validation_subsets or []],
            "test": [str(name) for name in test_subsets or []],
            "predict": [str(name) for name in (predict_subsets if predict_subsets is not None else test_subsets or [])],
        }
        self.batch_seconds = batch_seconds
        self.batch_utterances = batch_utterances
        self.evaluation_batch_seconds = evaluation_batch_seconds
        self.min_seconds = min_seconds
        self.max_seconds = max_seconds
        self.train_utterances = train_utterances
        self.speed_factors = [round(factor, 2) for factor in speed_factors or []]
        self.noise = noise
        self.sorted_epochs = sorted_epochs
        self.workers = workers
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "1")) if seed is None else seed
        self.sample_rate = sample_rate
        self.on_bad = on_bad
        self.manifests: dict[str, Manifest] = {}
        self.lost_utterances: Counter[str] = Counter()
        self._lost_in_a_row = 0
        self._check_arguments()

    def read_header(self, path: str) -> Header:
        """Read the header of an audio file, as `asr_lightning.audio.reading.read_header` does."""
        return reading.read_header(path)

    @property
    @abstractmethod
    def source(self) -> str:
        """Identifies this corpus in the cache: its absolute path and what else decides on its manifests."""

    def require(self, subsets: list[str]) -> None:  # noqa: B027 - a corpus may have nothing to look for
        """Check that the subsets are there; raise an `InputError` with advice where they are not."""

    @abstractmethod
    def fingerprint(self, subset: str) -> str:
        """A text that changes when the subset's files do."""

    @abstractmethod
    def find_utterances(self, subset: str) -> tuple[list[Listing], list[BadFile]]:
        """The subset's utterances, and the files that cannot be used, without opening audio."""

    @property
    def manifest_folder(self) -> Path:
        """Where this corpus' manifests are cached."""
        options = f"{type(self).__module__}.{type(self).__qualname__} {self.source} {self.sample_rate}"
        name = f"{Path(self.source).name}-{hashlib.sha256(options.encode()).hexdigest()[:12]}"
        return cache_folder() / name

    def build_manifest(self, subset: str) -> Manifest:
        """Make a subset's manifest, or take the cached one where the files are the same."""
        path = self.manifest_folder / f"{subset}.cuts.jsonl"
        fingerprint = f"{manifest.FORMAT} {self.fingerprint(subset)}"
        try:
            cached = Manifest(path)
            if cached.fingerprint == fingerprint:
                return cached
        except OSError:
            pass  # not there
        except ValueError as error:  # damaged, or of an older version
            rank_zero_info(f"The manifest is made anew: {error}.")
        listings, bad = self.find_utterances(subset)
        probe = self.is_narrow_band if self.probes else None
        measured = manifest.read_headers(listings, self.sample_rate, subset, self.read_header, probe)
        return manifest.write_manifest(path, itertools.chain(bad, measured), fingerprint)

    def is_narrow_band(self, cut: MonoCut) -> bool | None:
        """Whether an utterance has nothing in the upper half of its band; None where its file cannot have it.

        Raises:
            Exception: It cannot be read.
        """
        audio = dataset.read_at(self.sample_rate, self.read_audio, cut)
        return is_narrow_band(audio) if cut.recording.sampling_rate >= self.sample_rate else None

    def prepare_data(self) -> None:
        """Make the manifests of the subsets that this stage needs.

        Raises:
            InputError: Subsets are missing, or have files that cannot be used.
        """
        state = self.trainer.state.fn if self.trainer else None
        roles = STAGES[state.value] if state else tuple(self.subsets)
        subsets = list(dict.fromkeys(subset for role in roles for subset in self.subsets[role]))
        for subset in subsets:  # results of a subset are written to files that are called as it is
            if not all(map(is_usable, subset.split("/"))) or len(subset.encode()) > LONGEST_NAME:
                raise InputError(
                    f"expected subsets with names that files can have, found {ascii(shown(subset))}. Name it anew in "
                    "the corpus, or leave it out"
                )
        self.require(subsets)
        manifests = {subset: self.build_manifest(subset) for subset in subsets}
        self._report_bad(manifests, self.subsets["train"] if "train" in roles else [])
        for subset, part in manifests.items():
            self._report_audio(subset, part)
        empty = [subset for subset, part in manifests.items() if len(part) == 0]
        if empty:
            raise InputError(
                f"No utterance can be used in {', '.join(empty)} of {self.source}: expected audio with transcripts. "
                "Name other subsets, or none"
            )
        trained = {subset: manifests.get(subset) or self.made_manifest(subset) for subset in self.subsets["train"]}
        report_shared(trained, {name: part for name, part in manifests.items() if name not in trained})

    def _report_bad(self, manifests: dict[str, Manifest], trained: list[str]) -> None:
        """Report what cannot be used. A transcript may be empty where it is scored, but not where it is learned."""
        unusable = {subset: part.bad_files() for subset, part in manifests.items()}
        for subset in trained:
            unusable[subset] += manifests[subset].empty_transcripts()
        bad = [file for files in unusable.values() for file in files]
        if not bad:
            return
        spoiled = [(subset, manifests[subset]) for subset, files in unusable.items() if files]
        lists = [str(part.bad_path) for _, part in spoiled if part.bad]
        lines = [
            f"{len(bad)} files of {', '.join(subset for subset, _ in spoiled)} cannot be used:",
            *summary(bad),
            *([f"The complete list: {', '.join(lists)}"] if lists else []),
        ]
        if self.on_bad == "error":
            advice = "Mend or remove them, or leave them out with --data.init_args.on_bad skip"
            raise InputError("\n".join([*lines, advice]))
        rank_zero_warn("\n".join([*lines, "They are left out."]))

    def made_manifest(self, subset: str) -> Manifest | None:
        """The manifest of a subset that this run or an earlier one made; None where there is none."""
        try:
            return Manifest(self.manifest_folder / f"{subset}.cuts.jsonl")
        except (OSError, ValueError):
            return None

    def _report_audio(self, subset: str, part: Manifest) -> None:
        """Report audio of other sample rates, of several channels, and of a narrower band than the rest."""
        resampled = {rate: count for rate, count in sorted(part.rates.items()) if rate != self.sample_rate}
        if resampled:
            rates = ", ".join(f"{count:,} of {rate:,} Hz" for rate, count in resampled.items())
            rank_zero_info(f"{subset}: resampled to {self.sample_rate:,} Hz: {rates}, of {len(part):,} utterances.")
        if part.mixed:
            rank_zero_info(f"{subset}: channels are mixed in {part.mixed:,} of {len(part):,} utterances.")
        lower = sum(count for rate, count in resampled.items() if rate < self.sample_rate)
        if lower:
            rank_zero_warn(
                f"{subset}: {lower:,} of {len(part):,} utterances are upsampled: their files have fewer than "
                f"{self.sample_rate:,} samples per second, and so nothing in the upper part of the band."
            )
        if part.narrow:
            rank_zero_warn(
                f"{subset}: {part.narrow} of {part.probed} utterances that were checked are narrow-band audio that "
                f"was upsampled before: their files have {self.sample_rate:,} samples per second or more, but nothing "
                f"above {self.sample_rate // 4:,} Hz. A recognizer of telephone speech is trained with sample_rate "
                f"{self.sample_rate // 2} of the features and of the data."
            )

    def characters(self, stage: str) -> dict[str, Counter[str]]:
        """How often each character comes in the transcripts of the subsets of a stage that has any."""
        roles = [role for role in STAGES[stage] if role != "predict"]
        subsets = dict.fromkeys(subset for role in roles for subset in self.subsets[role])
        return {subset: self.manifests[subset].characters for subset in subsets}

    def setup(self, stage: str) -> None:
        """Open the manifests that `prepare_data` made."""
        for role in STAGES[stage]:
            for subset in self.subsets[role]:
                self.manifests[subset] = Manifest(self.manifest_folder / f"{subset}.cuts.jsonl")

    def train_dataloader(self) -> TrainBatches:
        """The training batches of this process.

        Raises:
            InputError: No utterance is left, or fewer than `train_utterances`.
        """
        speech, chosen = self.training_speech()
        slowest = min([1.0, *self.speed_factors])  # the plan must hold for whatever is drawn
        return TrainBatches(
            speech.durations[chosen] / slowest,
            functools.partial(self._load, speech, chosen),
            self.batch_seconds,
            *rank_of(self.trainer),
            accumulation=accumulation_of(self.trainer),
            seed=self.seed,
            progress=lambda: progress_of(self.trainer),
            sorted_epochs=self.sorted_epochs,
            batch_utterances=self.batch_utterances,
            identity={
                "subsets": ", ".join(speech.subsets),
                "speed_factors": list(self.speed_factors),
                "order of utterances": digest_of(speech.ids[chosen], speech.durations[chosen]),
            },
        )

    def training_speech(self) -> tuple[SpeechDataset, np.ndarray]:
        """All utterances of the training subsets, and the numbers of those that are trained on."""
        speech = self._dataset(self.subsets["train"], self.speed_factors, self.noise)
        return speech, self._choose(speech.durations)

    def evaluation_speech(self, subset: str) -> SpeechDataset:
        """The utterances of a subset, as they are."""
        return self._dataset([subset])

    def val_dataloader(self) -> dict[str, EvaluationBatches]:
        """The validation batches of this process by subset."""
        return self._evaluation("validation")

    def test_dataloader(self) -> dict[str, EvaluationBatches]:
        """The test batches of this process by subset."""
        return self._evaluation("test")

    def predict_dataloader(self) -> dict[str, EvaluationBatches]:
        """The batches of this process to predict, by subset."""
        return self._evaluation("predict")

    def _evaluation(self, role: str) -> dict[str, EvaluationBatches]:
        rank, ranks = rank_of(self.trainer)
        at_once = self.batch_seconds / (ranks * accumulation_of(self.trainer))  # in training
        batch_seconds = self.evaluation_batch_seconds or max(EVALUATION_SECONDS, at_once)
        loaders = {}
        for subset in self.subsets[role]:
            speech = self.evaluation_speech(subset)
            load = functools.partial(self._load, speech, np.arange(len(speech)))
            loaders[subset] = EvaluationBatches(speech.durations, load, batch_seconds, rank, ranks)
        return loaders

    def _dataset(
        self, subsets: list[str], speed_factors: list[float] | None = None, noise: Noise | None = None
    ) -> SpeechDataset:
        manifests = {subset: self.manifests[subset] for subset in subsets}
        return SpeechDataset(
            manifests, self.sample_rate, self.read_audio, self.seed, speed_factors or [], noise, self.reads_at_once
        )

    def _choose(self, durations: np.ndarray) -> np.ndarray:
        """The numbers of the utterances that are trained on."""
        short, long = durations < self.min_seconds, durations > self.max_seconds
        if short.any() or long.any():
            rank_zero_info(
                f"Left out of training: {short.sum()} utterances shorter than {self.min_seconds} s and {long.sum()} "
                f"longer than {self.max_seconds} s ({durations[long].sum() / 3600:.2f} h), of {len(durations)}."
            )
        parts = [self.manifests[subset].empty for subset in self.subsets["train"]]
        empty = np.concatenate([np.zeros(0, dtype=bool), *parts])  # which `prepare_data` has reported
        chosen = np.flatnonzero(~short & ~long & ~empty)
        if not self.subsets["train"]:
            raise InputError("Expected subsets to train on, found none: set --data.init_args.train_subsets '[NAME]'")
        if len(chosen) < (self.train_utterances or 1):
            raise InputError(
                f"Expected {self.train_utterances or 'some'} utterances to train on, got {len(chosen)} of "
                f"{self.min_seconds} to {self.max_seconds} s with a transcript in "
                f"{', '.join(self.subsets['train'])}. Set --data.init_args.min_seconds, max_seconds or train_utterances"
            )
        if self.train_utterances is not None:
            chosen = np.sort(np.random.default_rng(self.seed).permutation(chosen)[: self.train_utterances])
        return chosen

    def _load(self, speech: Dataset, chosen: np.ndarray, batches: list[list[int]], epoch: int) -> Iterator[Batch]:
        workers = default_workers() if self.workers is None else self.workers
        loader = DataLoader(
            speech,
            batch_sampler=[[(epoch, int(chosen[number])) for number in batch] for batch in batches],
            collate_fn=functools.partial(dataset.collate, sample_rate=self.sample_rate),
            num_workers=workers,
            worker_init_fn=begin_worker,
            generator=torch.Generator(),  # else every epoch and validation draws from the model's randomness
            prefetch_factor=4 if workers else None,
            pin_memory=torch.cuda.is_available(),
        )
        for batch, lost in loader:
            self._count_lost(lost, len(batch))
            yield batch

    def _count_lost(self, lost: list[tuple[str, str]], readable: int) -> None:
        """Report the utterances that could not be read; stop when nothing can be read any more."""
        self._lost_in_a_row = 0 if readable else self._lost_in_a_row + len(lost)
        for id, reason in lost:
            self.lost_utterances[id] += 1
            if self.lost_utterances[id] == 1:
                warnings.warn(printable(f"Left out, because it cannot be read: {reason}"), stacklevel=2)
        if self._lost_in_a_row >= LOST_IN_A_ROW:
            raise InputError(
                f"The last {self._lost_in_a_row} utterances could not be read. Is {self.source} still there? "
                "The run can be resumed from its last checkpoint."
            )

    def _check_arguments(self) -> None:
        limit, evaluated = self.train_utterances, self.evaluation_batch_seconds
        checks = {
            "batch_seconds": (0 < self.batch_seconds < math.inf, "more than 0, and a number"),
            "evaluation_batch_seconds": (evaluated is None or 0 < evaluated < math.inf, "more than 0, and a number"),
            "batch_utterances": (self.batch_utterances is None or self.batch_utterances > 0, "more than 0"),
            "max_seconds": (self.max_seconds > self.min_seconds, f"more than min_seconds, which is {self.min_seconds}"),
            "train_utterances": (limit is None or limit > 0, "more than 0"),
            "speed_factors": (all(0.1 <= factor <= 10 for factor in self.speed_factors), "each from 0.1 to 10"),
            "sorted_epochs": (self.sorted_epochs >= 0, "0 or more"),
            "workers": (self.workers is None or self.workers >= 0, "0 or more"),
            "on_bad": (self.on_bad in ("error", "skip"), "error or skip"),
        }
        for name, (valid, expected) in checks.items():
            if not valid:
                raise InputError(f"{name} must be {expected}, got {getattr(self, name)}")


def report_shared(trained: dict[str, Manifest | None], evaluated: dict[str, Manifest]) -> None:
    """Warn of utterances that are both trained on and evaluated.

    Args:
        trained: The manifests of subsets to train on, by name; None for one that was not made.
        evaluated: Those of other subsets.
    """
    for subset, part in evaluated.items():
        for name, learned in trained.items():
            shared = part.shared_with(learned) if learned is not None else []
            if shared:
                rank_zero_warn(
                    f"{len(shared):,} of {len(part):,} utterances of {subset} are also in {name}, as {shared[0]}: "
                    f"error rates of what was learned are too low. Take them out of {name}, or name other subsets."
                )
