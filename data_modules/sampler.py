"""Plans of batches and of their order, and the iterables that follow them."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lightning
import numpy as np

from asr_lightning.batch import Batch
from asr_lightning.errors import InputError

DURATION_SPREAD = 1.05  # longest over shortest utterance of a bucket: padding is at most 5 %, about 2.5 % in the mean
BATCHES_PER_BUCKET = 2  # at least: with more, batches of small corpora vary more, and have more padding

SHARES, LIMIT = "accumulate_grad_batches", "batch_utterances"  # in checkpoints

Load = Callable[[list[list[int]], int], Iterable[Batch]]
"""Reads batches, given as the utterances' numbers, in an epoch."""


def plan_batches(
    durations: np.ndarray,
    batch_seconds: float,
    world_size: int = 1,
    seed: int | None = None,
    epoch: int = 0,
    sorted_epochs: int = 0,
    batch_utterances: int | None = None,
) -> list[list[list[int]]]:
    """Put every utterance into one batch, together with others of about its duration.

    Utterances, sorted by duration, are cut into buckets of whole batches. Epochs shuffle the utterances inside the
    buckets and then the batches, so that every epoch has other batches but the same number of them. The batches of
    one step are alike in duration on all ranks.

    Args:
        durations: (N,) seconds of each utterance.
        batch_seconds: The longest duration times the number of utterances is at most this in every batch; an
            utterance longer than this makes a batch alone.
        world_size: Number of processes that share the batches.
        seed: Of the shuffling, together with `epoch`; without it the longest batches come first, always the same.
        epoch: Counts from 0.
        sorted_epochs: In so many first epochs the batches come from short to long [SortaGrad; Amodei et al. 2016].
        batch_utterances: Utterances of a batch; None for as many as its seconds allow.

    Returns:
        For every rank a list of batches, which are lists of positions in `durations`. All ranks have the same number
        of batches. Where there are too few utterances for that, some batches are empty.
    """
    durations = np.asarray(durations, dtype=np.float64)
    longest_first = np.argsort(-durations, kind="stable")
    spread, batches_per_bucket = (1.0, 1) if seed is None else (DURATION_SPREAD, BATCHES_PER_BUCKET)
    cuts, buckets = cut_batches(durations[longest_first], batch_seconds, spread, batches_per_bucket, batch_utterances)
    cuts = split_evenly(cuts, len(durations), world_size)
    batches = len(cuts) // world_size
    order, steps = longest_first, np.arange(batches)
    if seed is not None:
        random = np.random.default_rng([seed, epoch])
        order = longest_first[np.lexsort((random.random(len(durations)), buckets))]
        steps = steps[::-1] if epoch < sorted_epochs else random.permutation(batches)
    positions, ends = order.tolist(), [*cuts[1:].tolist(), len(durations)]
    starts = cuts.tolist()
    return [
        [positions[starts[i] : ends[i]] for i in (steps * world_size + rank).tolist()]  # neighbours in one step
        for rank in range(world_size)
    ]


def plan_steps(
    durations: np.ndarray,
    batch_seconds: float,
    ranks: int = 1,
    accumulation: int = 1,
    seed: int = 1,
    epoch: int = 0,
    sorted_epochs: int = 0,
    batch_utterances: int | None = None,
) -> list[list[list[int]]]:
    """Put every utterance into one optimizer step, and cut the steps into parts that are trained on at once.

    The steps are those of `plan_batches` for one process, so they are the same on any number of processes.

    Args:
        durations: (N,) seconds of each utterance.
        batch_seconds: Most seconds of a step, padding included, of all its parts.
        ranks: Number of processes that share each step.
        accumulation: Parts of a step that every process trains on, one after the other.
        seed: Of the shuffling.
        epoch: Counts from 0.
        sorted_epochs: In so many first epochs the steps come from short to long.
        batch_utterances: Utterances of a step; None for as many as its seconds allow.

    Returns:
        For every rank a list of parts, `accumulation` for each step: lists of positions in `durations`. Where a step
        has too few utterances, some of its parts are empty. The parts of all ranks at one time are alike in duration.
    """
    [steps] = plan_batches(durations, batch_seconds, 1, seed, epoch, sorted_epochs, batch_utterances)
    if ranks * accumulation == 1:
        return [steps]
    parts = [cut_evenly(step, durations, ranks * accumulation) for step in steps]
    return [[step[number * ranks + rank] for step in parts for number in range(accumulation)] for rank in range(ranks)]


def cut_evenly(step: list[int], durations: np.ndarray, parts: int) -> list[list[int]]:
    """Cut the utterances of a step, the longest first, into parts that differ in number by at most one."""
    ordered = sorted(step, key=lambda position: -durations[position])
    ends = [len(ordered) * part // parts for part in range(parts + 1)]
    return [ordered[start:end] for start, end in itertools.pairwise(ends)]


def cut_batches(
    durations: np.ndarray,
    batch_seconds: float,
    spread: float,
    batches_per_bucket: int,
    batch_utterances: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut falling durations (N,) into batches; return the start of each, and the bucket (N,) of every utterance."""
    rising = -durations
    starts = [np.zeros(0, dtype=np.int64)]
    buckets = np.zeros(len(durations), dtype=np.int64)
    first = bucket = 0
    limit = min(batch_utterances or len(durations), len(durations))
    while first < len(durations):
        size = max(1, int(min(batch_seconds / durations[first] + 1e-9, limit)))
        alike = int(np.searchsorted(rising, rising[first] / spread, side="right")) - first
        last = min(first + size * max(alike // size, batches_per_bucket), len(durations))
        starts.append(np.arange(first, last, size))
        buckets[first:last] = bucket
        first, bucket = last, bucket + 1
    return np.concatenate(starts), buckets


def split_evenly(starts: np.ndarray, total: int, world_size: int) -> np.ndarray:
    """Halve the largest batches until their number divides by `world_size`; add empty ones where none can be halved."""
    for _ in range(-len(starts) % world_size):
        sizes = np.diff(starts, append=total)
        largest = int(sizes.argmax())
        if sizes[largest] >= 2:
            starts = np.insert(starts, largest + 1, starts[largest] + sizes[largest] // 2)
        else:
            starts = np.append(starts, total)
    return starts


def digest_of(ids: np.ndarray, durations: np.ndarray) -> str:
    """Hash what a plan is made from: which utterance, (N,) uint32, of how many seconds, (N,), stands at each place."""
    content = ids.astype("<u4").tobytes() + durations.astype("<f4").tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def rank_of(trainer: lightning.Trainer | None) -> tuple[int, int]:
    """Return this process's number among all, and how many there are; 0 of 1 without a trainer."""
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)


def accumulation_of(trainer: lightning.Trainer | None) -> int:
    """Return how many batches a process trains on for an optimizer step; 1 without a trainer."""
    return trainer.accumulate_grad_batches if trainer else 1


def progress_of(trainer: lightning.Trainer | None) -> tuple[int, int]:
    """Return the epoch, and how many of its batches are done; not 0 after a resume in mid-epoch."""
    if trainer is None:
        return 0, 0
    epoch = 0 if trainer.overfit_batches else trainer.current_epoch  # type: ignore[attr-defined]
    return epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready


class EvaluationBatches:
    """This rank's batches of a subset, always the same, the longest first so that memory runs out at once or never.

    Args:
        durations: (N,) seconds of each utterance.
        load: Reads the planned batches.
        batch_seconds: Most seconds of a padded batch.
        rank: Of this process.
        world_size: Number of processes.
    """

    def __init__(
        self, durations: np.ndarray, load: Load, batch_seconds: float, rank: int = 0, world_size: int = 1
    ) -> None:
        self.durations = durations
        self.load = load
        self.batch_seconds = batch_seconds
        self.rank = rank
        self.world_size = world_size
        self._length = len(self.plan()[rank])

    def plan(self, epoch: int = 0) -> list[list[list[int]]]:
        """All ranks' batches of an epoch."""
        return plan_batches(self.durations, self.batch_seconds, self.world_size)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        yield from self.load(self.plan()[self.rank], 0)


class TrainBatches(EvaluationBatches):
    """This rank's share of each optimizer step, in other steps each epoch; continues in mid-epoch after a resume.

    Lightning does not fast-forward a loader, and it calls `iter` before it has restored its counters. But it fetches
    lazily from an iterable that has a length; so the generator below asks for the progress at its first `next`.

    Args:
        durations: (N,) seconds of each utterance.
        load: Reads the planned batches.
        batch_seconds: Most seconds of an optimizer step, padding included, over all processes and all batches that are
            accumulated.
        rank: Of this process.
        world_size: Number of processes.
        accumulation: Batches of each process in a step.
        seed: Of the shuffling.
        progress: Gives the epoch and how many of its batches are done.
        sorted_epochs: First epochs that go from short to long utterances.
        batch_utterances: Utterances of a step; None for as many as its seconds allow.
        identity: What else the plan depends on, by name; a checkpoint may only be resumed with the same.
    """

    units = ("s of audio", "utterances")  # of `durations`, and what they are of

    def __init__(
        self,
        durations: np.ndarray,
        load: Load,
        batch_seconds: float,
        rank: int = 0,
        world_size: int = 1,
        *,
        accumulation: int = 1,
        seed: int = 1,
        progress: Callable[[], tuple[int, int]] = lambda: (0, 0),
        sorted_epochs: int = 0,
        batch_utterances: int | None = None,
        identity: dict[str, Any] | None = None,
    ) -> None:
        self.accumulation = accumulation
        self.seed = seed
        self.sorted_epochs = sorted_epochs
        self.batch_utterances = batch_utterances
        self.progress = progress
        self.identity = identity or {}
        super().__init__(durations, load, batch_seconds, rank, world_size)

    def plan(self, epoch: int = 0) -> list[list[list[int]]]:
        """All ranks' batches of an epoch, `accumulation` for each step."""
        return plan_steps(
            self.durations, self.batch_seconds, self.world_size, self.accumulation, self.seed, epoch,
            self.sorted_epochs, self.batch_utterances,
        )  # fmt: skip

    def __iter__(self) -> Iterator[Batch]:
        epoch, done = self.progress()
        yield from self.load(self.plan(epoch)[self.rank][done:], epoch)

    def state_dict(self) -> dict[str, Any]:
        """What the order of batches depends on. Its presence tells Lightning that this iterable can be resumed."""
        return {
            "utterances": len(self.durations),
            "audio seconds": round(float(np.sum(self.durations, dtype=np.float64)), 2),
            "batch_seconds": self.batch_seconds,
            "seed": self.seed,
            **self._shares(),
            "sorted_epochs": self.sorted_epochs,
            LIMIT: self.batch_utterances,
            **self.identity,
        }

    def _shares(self) -> dict[str, int]:
        """The numbers of parts that a step is cut into."""
        return {"processes": self.world_size, SHARES: self.accumulation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that the checkpoint's order of batches is the one that is planned now.

        The number of processes, and that of the batches of each in a step, may be others than before: the steps are the
        same, see `asr_lightning.callbacks.stopping.OtherParts`. A checkpoint of an older version is compared in what it
        has. Its batches were those of one process, and not cut from steps, which is the same only without accumulation
        on one process.

        Raises:
            InputError: It is another one, so that some utterances would be missed and others repeated.
        """
        if SHARES not in state and (state.get("processes", 1) > 1 or self.accumulation > 1):
            raise InputError(
                f"This checkpoint cannot be resumed: it is of an older version, which planned the batches of each of "
                f"{state.get('processes', 1)} processes separately, while this version cuts them from optimizer steps. "
                "Begin a new run (without --ckpt_path) from the checkpoint's weights."
            )
        current, state = self.state_dict(), {LIMIT: None, **state}  # older versions had no limit
        changed = [
            f"  {name}: {state.get(name)} in the checkpoint, {current.get(name)} now"
            for name in state
            if state[name] != current.get(name) and (name not in self._shares() or SHARES not in state)
        ]
        if changed:
            raise InputError(
                "This checkpoint cannot be resumed, because the training batches would differ from those before:\n"
                + "\n".join(changed)
                + "\nSet them back, or begin a new run (without --ckpt_path) from the checkpoint's weights."
            )
