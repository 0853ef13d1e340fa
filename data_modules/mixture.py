"""Several corpora in a run, each with a weight; the subsets of each keep their own error rates."""

import functools
import inspect
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Dataset

from asr_lightning.batch import Batch, Utterance
from asr_lightning.errors import InputError
from data_modules.corpus import STAGES, CorpusDataModule, report_shared
from data_modules.dataset import SpeechDataset, UnreadableUtterance
from data_modules.manifest import BadFile, Listing, is_usable
from data_modules.sampler import EvaluationBatches, TrainBatches, accumulation_of, digest_of, progress_of, rank_of

FINEST = 20  # largest denominator of a weight
MIXTURE_ARGUMENTS = ("batch_seconds", "batch_utterances", "evaluation_batch_seconds", "sorted_epochs", "workers")


class MixtureDataModule(CorpusDataModule):
    """Trains on several corpora at once, and evaluates on the subsets of each by itself.

    A subset `dev` of a corpus that is called `digits` is `digits-dev` here. Batches are made of all corpora together.
    Arguments of the corpora hold for each of them: subsets, `min_seconds`, `max_seconds`, `train_utterances`,
    `speed_factors`, `noise`, `on_bad`; those of batches are given to the mixture alone.

    Args:
        corpora: Data modules by name.
        weights: How often every training utterance of a corpus comes in an epoch: 2 twice, 0.5 in every other epoch;
            1 where nothing is given. To a twentieth. A fraction takes neighbours in duration in turn, so that every
            epoch has as many batches, and nothing is left out for long.
        batch_seconds: Seconds of audio, padding included, of an optimizer step over all processes and accumulation.
        batch_utterances: Most utterances of an optimizer step; None for as many as its seconds allow.
        evaluation_batch_seconds: Seconds of a batch of one process in validation, test and prediction; by default as
            many as it trains on at once, but at least 100: evaluation keeps nothing for a backward pass.
        sorted_epochs: First epochs that go from short to long utterances (SortaGrad), before they are shuffled.
        workers: Processes that read audio, for each training process; 0 reads in the training process. By default one
            per processor core but one, at most 8.
        seed: Of the order of utterances; that of the whole run (`seed_everything`) if None.
        sample_rate: Samples per second that all corpora give.

    Raises:
        InputError: Corpora and weights do not fit each other, or an argument of batches is given to a corpus.
    """

    def __init__(
        self,
        corpora: dict[str, CorpusDataModule],
        weights: dict[str, float] | None = None,
        batch_seconds: float = 200.0,
        batch_utterances: int | None = None,
        evaluation_batch_seconds: float | None = None,
        sorted_epochs: int = 0,
        workers: int | None = None,
        seed: int | None = None,
        sample_rate: int = 16_000,
    ) -> None:
        super().__init__(
            batch_seconds=batch_seconds,
            batch_utterances=batch_utterances,
            evaluation_batch_seconds=evaluation_batch_seconds,
            sorted_epochs=sorted_epochs,
            workers=workers,
            seed=seed,
            sample_rate=sample_rate,
        )
        self.corpora = corpora
        if not corpora:
            raise InputError("MixtureDataModule needs corpora, as {digits: {class_path: …, init_args: {…}}}, got none")
        if unknown := sorted(set(weights or {}) - set(corpora)):
            raise InputError(f"weights must be of the corpora {', '.join(corpora)}, got {', '.join(unknown)}")
        for name, weight in (weights or {}).items():
            if not 1 / (2 * FINEST) < weight < math.inf:
                raise InputError(f"weights must be above 0, to a twentieth, got {name}: {weight}")
        self.weights = {name: Fraction((weights or {}).get(name, 1)).limit_denominator(FINEST) for name in corpora}
        defaults = inspect.signature(CorpusDataModule).parameters
        for name, corpus in corpora.items():
            if not name or not is_usable(name):  # results are written to files that are called as subsets are
                raise InputError(f"expected names of corpora that can be names of files, got {name!r}: name it anew")
            if isinstance(corpus, MixtureDataModule):
                raise InputError(
                    f"{name} is a mixture itself: expected single corpora. Put those of {name} beside the others"
                )
            ignored = [
                argument for argument in MIXTURE_ARGUMENTS if getattr(corpus, argument) != defaults[argument].default
            ]
            if ignored:
                raise InputError(f"{', '.join(ignored)} of {name} would have no effect: give it to the mixture instead")
            if corpus.sample_rate != sample_rate:
                raise InputError(
                    f"expected {sample_rate} samples per second of all corpora, got {corpus.sample_rate} of {name}: "
                    "set sample_rate of the mixture and of each corpus"
                )
        self.subsets = {
            role: [f"{name}-{subset}" for name, corpus in corpora.items() for subset in corpus.subsets[role]]
            for role in self.subsets
        }

    @property
    def source(self) -> str:
        """The roots of all corpora, for messages."""
        return ", ".join(corpus.source for corpus in self.corpora.values())

    @property
    def manifest_folder(self) -> Path:
        """None: manifests are those of the corpora.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "A mixture has no manifests of its own. To use shards, write those of each corpus, and mix their "
            "ShardsDataModules"
        )

    def fingerprint(self, subset: str) -> str:
        """A text that changes when the subset's files do."""
        corpus, name = self._corpus_of(subset)
        return corpus.fingerprint(name)

    def find_utterances(self, subset: str) -> tuple[list[Listing], list[BadFile]]:
        """The utterances of a corpus' subset, and the files that cannot be used."""
        corpus, name = self._corpus_of(subset)
        return corpus.find_utterances(name)

    def _corpus_of(self, subset: str) -> tuple[CorpusDataModule, str]:
        """The corpus of a subset of the mixture, and the name of the subset there."""
        for name in sorted(self.corpora, key=len, reverse=True):  # a name may begin with another one
            if subset.startswith(f"{name}-"):
                return self.corpora[name], subset.removeprefix(f"{name}-")
        raise InputError(
            f"expected a subset of {', '.join(self.corpora)}, as {next(iter(self.corpora))}-test; got {subset}"
        )

    def _assign_subsets(self, role: str) -> None:
        """Give the corpora the subsets of a role that the mixture has: tools may have changed them."""
        for corpus in self.corpora.values():
            corpus.subsets[role] = []
            corpus.trainer = self.trainer
        for subset in self.subsets[role]:
            corpus, name = self._corpus_of(subset)
            corpus.subsets[role].append(name)

    def prepare_data(self) -> None:
        """Make the manifests of the subsets that this stage needs.

        Raises:
            InputError: Subsets are missing, or have files that cannot be used.
        """
        for role in self.subsets:
            self._assign_subsets(role)
        for name, corpus in self.corpora.items():
            try:
                corpus.prepare_data()
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        state = self.trainer.state.fn if self.trainer else None
        roles = STAGES[state.value] if state else tuple(self.subsets)
        for name, corpus in self.corpora.items():
            evaluated = dict.fromkeys(subset for role in roles if role != "train" for subset in corpus.subsets[role])
            parts = {f"{name}-{subset}": corpus.made_manifest(subset) for subset in evaluated}
            trained = {
                f"{other}-{subset}": learned.made_manifest(subset)
                for other, learned in self.corpora.items()
                if other != name
                for subset in learned.subsets["train"]
            }
            report_shared(trained, {subset: part for subset, part in parts.items() if part is not None})

    def setup(self, stage: str) -> None:
        """Open the manifests that `prepare_data` made."""
        for role in self.subsets:
            self._assign_subsets(role)
        for corpus in self.corpora.values():
            corpus.setup(stage)
        for role in STAGES[stage]:
            for subset in self.subsets[role]:
                corpus, name = self._corpus_of(subset)
                self.manifests[subset] = corpus.manifests[name]

    def train_dataloader(self) -> TrainBatches:
        """The training batches of this process.

        Raises:
            InputError: No utterance is left of a corpus, or fewer than its `train_utterances`.
        """
        parts = []
        for name, corpus in self.corpora.items():
            if corpus.subsets["train"]:
                speech, chosen = corpus.training_speech()
                speech.prefix = f"{name}-"
                slots = EpochSlots(speech.durations[chosen], self.weights[name])
                parts.append((name, speech, chosen, slots))
        if not parts:
            raise InputError(f"Expected subsets to train on in {', '.join(self.corpora)}, got none.")
        hours = {name: float(slots.durations.sum(dtype=np.float64)) / 3600 for name, _, _, slots in parts}
        shares = ", ".join(f"{name} {part:.2f} h ({part / sum(hours.values()):.0%})" for name, part in hours.items())
        rank_zero_info(f"An epoch of the mixture: {shares}.")
        slowest = min([1.0, *(factor for _, speech, _, _ in parts for factor in speech.speed_factors)])
        mixed = MixedSpeech([(speech, chosen, slots) for _, speech, chosen, slots in parts])
        return TrainBatches(
            mixed.durations / slowest,
            functools.partial(self._load_mixed, mixed),
            self.batch_seconds,
            *rank_of(self.trainer),
            accumulation=accumulation_of(self.trainer),
            seed=self.seed,
            progress=lambda: progress_of(self.trainer),
            sorted_epochs=self.sorted_epochs,
            batch_utterances=self.batch_utterances,
            identity={
                "subsets": ", ".join(self.subsets["train"]),
                "weights": ", ".join(f"{name} {weight}" for name, weight in self.weights.items()),
                "speed_factors": [list(speech.speed_factors) for _, speech, _, _ in parts],
                "order of utterances": digest_of(
                    np.concatenate([speech.ids[chosen] for _, speech, chosen, _ in parts]),
                    np.concatenate([speech.durations[chosen] for _, speech, chosen, _ in parts]),
                ),
            },
        )

    def _load_mixed(self, mixed: "MixedSpeech", batches: list[list[int]], epoch: int) -> Iterator[Batch]:
        return self._load(mixed, np.arange(len(mixed)), batches, epoch)

    def _evaluation(self, role: str) -> dict[str, EvaluationBatches]:
        rank, ranks = rank_of(self.trainer)
        batch_seconds = self.evaluation_batch_seconds or self.batch_seconds / (ranks * accumulation_of(self.trainer))
        loaders = {}
        for subset in self.subsets[role]:
            corpus, name = self._corpus_of(subset)
            speech = corpus.evaluation_speech(name)
            speech.prefix = subset.removesuffix(name)
            load = functools.partial(self._load, speech, np.arange(len(speech)))
            loaders[subset] = EvaluationBatches(speech.durations, load, batch_seconds, rank, ranks)
        return loaders


class EpochSlots:
    """The utterance of a corpus at each place of an epoch, whose duration hardly depends on the epoch.

    Utterances that are neighbours in duration make groups of as many as the weight's denominator; a group has as many
    places as the numerator, and its utterances take them in turn, from one epoch to the next.

    Args:
        durations: (N,) seconds of each utterance.
        weight: Places for each utterance.

    Attributes:
        durations: (M,) seconds of the longest utterance that may stand at each place.
    """

    def __init__(self, durations: np.ndarray, weight: Fraction) -> None:
        self.order = np.argsort(durations, kind="stable")
        size = weight.denominator
        firsts, sizes, slots = [], [], []
        for first in range(0, len(durations), size):
            members = min(size, len(durations) - first)
            firsts.append(first)
            sizes.append(members)
            slots.append(weight.numerator if members == size else max(1, round(float(weight) * members)))
        self.first = np.repeat(firsts, slots)  # (M,) the first utterance of each place's group, in `order`
        self.size = np.repeat(sizes, slots)  # (M,) utterances of the group
        self.places = np.repeat(slots, slots)  # (M,) places of the group
        self.number = np.concatenate([np.arange(count) for count in slots])  # (M,) of the place in its group
        self.durations = durations[self.order[self.first + self.size - 1]]

    def __len__(self) -> int:
        return len(self.durations)

    def utterance(self, place: int, epoch: int) -> tuple[int, int]:
        """The number of the utterance at a place, and how often it came before."""
        turn = epoch * int(self.places[place]) + int(self.number[place])
        times, member = divmod(turn, int(self.size[place]))
        return int(self.order[self.first[place] + member]), times


class MixedSpeech(Dataset):
    """The training utterances of several corpora; an item is asked for as (epoch, place).

    Each coming of an utterance is augmented anew: what is drawn depends on its id, and on how often it came before.

    Args:
        parts: Of each corpus its speech, the numbers of the utterances that are trained on, and their places.
    """

    def __init__(self, parts: Sequence[tuple[SpeechDataset, np.ndarray, EpochSlots]]) -> None:
        self.parts = list(parts)
        self._ends = np.cumsum([len(slots) for _, _, slots in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def durations(self) -> np.ndarray:
        """(M,) seconds of each place, before speed perturbation."""
        return np.concatenate([slots.durations for _, _, slots in self.parts])

    def __getitem__(self, key: tuple[int, int]) -> Utterance | UnreadableUtterance:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Utterance | UnreadableUtterance]:
        """Read a batch; this is what torch's `DataLoader` asks for."""
        items: dict[int, Utterance | UnreadableUtterance] = {}
        owners = np.searchsorted(self._ends, [slot for _, slot in keys], side="right")
        for owner, (speech, chosen, slots) in enumerate(self.parts):
            positions = np.flatnonzero(owners == owner).tolist()
            begin = int(self._ends[owner]) - len(slots)
            requests = []
            for position in positions:
                epoch, slot = keys[position]
                utterance, times = slots.utterance(slot - begin, epoch)
                requests.append((times, int(chosen[utterance])))
            items |= dict(zip(positions, speech.__getitems__(requests) if requests else [], strict=True))
        return [items[position] for position in range(len(keys))]
