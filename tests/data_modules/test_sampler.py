"""The plan: every utterance once, within the limit, little padding, other batches each epoch, as many on every rank."""

import time

import numpy as np
import pytest

from asr_lightning.errors import InputError
from data_modules.sampler import TrainBatches, digest_of, plan_batches, plan_steps


def like_librispeech(count: int) -> np.ndarray:
    """Seconds: most near 14, as in train-clean-100, with a tail of short ones."""
    random = np.random.default_rng(0)
    long = random.normal(14.3, 1.6, count)
    durations = np.where(random.random(count) < 0.75, long, random.uniform(1.2, 13.0, count))
    return np.clip(durations, 1.2, 24.5).astype(np.float32)


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 7, 100, 1001])
def test_every_utterance_once_on_any_number_of_ranks(count: int, world_size: int, seed: int | None) -> None:
    durations = like_librispeech(count)
    for epoch in range(3):
        plan = plan_batches(durations, 100.0, world_size, seed, epoch)
        assert len(plan) == world_size
        assert len({len(batches) for batches in plan}) == 1
        batches = [batch for rank in plan for batch in rank]
        assert sorted(number for batch in batches for number in batch) == list(range(count))
        assert all(durations[batch].max() * len(batch) <= 100.0 for batch in batches if batch)
        if count >= world_size:
            assert all(batches)  # nothing is empty without need


PARTS = [(1, 1), (2, 1), (8, 1), (1, 8), (2, 4), (3, 5)]  # ranks, and batches of each in a step


def steps_of(plan: list[list[list[int]]], accumulation: int) -> list[list[int]]:
    """The utterances of each optimizer step, of all ranks and parts."""
    starts = range(0, len(plan[0]), accumulation)
    return [
        sorted(number for rank in plan for part in rank[start : start + accumulation] for number in part)
        for start in starts
    ]


@pytest.mark.parametrize("count", [7, 300, 5000])
def test_steps_are_the_same_on_any_number_of_processes(count: int) -> None:
    durations = like_librispeech(count)
    for epoch in range(3):
        expected = steps_of(plan_steps(durations, 400.0, epoch=epoch, sorted_epochs=1), 1)
        assert sorted(number for step in expected for number in step) == list(range(count))
        for ranks, accumulation in PARTS:
            plan = plan_steps(durations, 400.0, ranks, accumulation, epoch=epoch, sorted_epochs=1)
            assert len(plan) == ranks and {len(rank) for rank in plan} == {len(expected) * accumulation}
            assert steps_of(plan, accumulation) == expected
    assert expected == steps_of(plan_batches(durations, 400.0, 1, seed=1, epoch=2), 1)


@pytest.mark.parametrize(("ranks", "accumulation"), PARTS[1:])
def test_parts_of_a_step_are_equally_large_and_little_padded(ranks: int, accumulation: int) -> None:
    durations, parts = like_librispeech(20_000), ranks * accumulation
    plan = plan_steps(durations, 1800.0, ranks, accumulation)
    padded = 0.0
    for start in range(0, len(plan[0]), accumulation):
        step = [part for rank in plan for part in rank[start : start + accumulation]]
        assert max(map(len, step)) - min(map(len, step)) <= 1
        for part in step:
            longest = float(durations[part].max(initial=0.0))
            padded += longest * len(part)
            assert longest * len(part) <= 1800.0 / parts + longest
    assert 1 - durations.sum() / padded < 0.05
    ends = np.array([[durations[part].max() for part in rank] for rank in plan])
    assert np.median(ends.max(axis=0) / ends.min(axis=0)) < 1.05  # of the parts of all ranks at a time


@pytest.mark.parametrize("parts", [(1, 1), (2, 1), (2, 4)])
def test_steps_have_at_most_so_many_utterances_and_all_but_the_last_have_as_many(parts: tuple[int, int]) -> None:
    durations = like_librispeech(1000)
    plan = plan_steps(durations, 1120.0, *parts, batch_utterances=32)
    ranks, accumulation = parts
    steps = [
        [number for rank in plan for part in rank[start : start + accumulation] for number in part]
        for start in range(0, len(plan[0]), accumulation)
    ]
    assert sorted(number for step in steps for number in step) == list(range(1000))
    assert sorted(map(len, steps)) == [1000 % 32] + [32] * (1000 // 32)
    spread = [durations[step].max() / durations[step].min() for step in steps]
    assert np.median(spread) < 1.2  # still of about one duration
    assert plan_steps(durations, 100.0, *parts, batch_utterances=10**6) == plan_steps(durations, 100.0, *parts)
    shorter = plan_steps(durations, 100.0, batch_utterances=32)[0]
    assert all(durations[step].max() * len(step) <= 100.0 for step in shorter) and len(shorter) > len(steps)


def test_a_run_is_not_resumed_with_another_limit_of_utterances() -> None:
    def batches(limit: int | None) -> TrainBatches:
        return TrainBatches(like_librispeech(50), lambda *_: [], 100.0, batch_utterances=limit)

    older = {name: value for name, value in batches(None).state_dict().items() if name != "batch_utterances"}
    batches(None).load_state_dict(older)
    batches(3).load_state_dict(batches(3).state_dict())
    for state in (older, batches(4).state_dict()):
        with pytest.raises(InputError, match=r"batch_utterances: (None|4) in the checkpoint, 3 now"):
            batches(3).load_state_dict(state)


def test_an_utterance_beyond_the_limit_is_alone() -> None:
    durations = np.array([30.0, 1.0, 1.2, 25.0, 1.1])
    batches = plan_batches(durations, 10.0, seed=1)[0]
    assert sorted(map(sorted, batches)) == [[0], [1, 2, 4], [3]]


@pytest.mark.parametrize(("count", "batch_seconds"), [(600, 100.0), (600, 200.0), (30_000, 200.0), (30_000, 1000.0)])
def test_padding_is_small(count: int, batch_seconds: float) -> None:
    durations = like_librispeech(count)
    batches = plan_batches(durations, batch_seconds, seed=1)[0]
    padded = sum(float(durations[batch].max()) * len(batch) for batch in batches)
    assert 1 - durations.sum() / padded < 0.05
    assert padded / len(batches) > 0.9 * batch_seconds  # and the batches are full


def test_epochs_differ_in_order_and_in_company_but_not_in_length() -> None:
    durations = like_librispeech(2000)
    plans = [plan_batches(durations, 200.0, 2, seed=1, epoch=epoch) for epoch in range(4)]
    assert len({len(plan[0]) for plan in plans}) == 1
    companies = [{frozenset(batch) for rank in plan for batch in rank} for plan in plans]
    assert len(companies[0] & companies[1]) < 0.05 * len(companies[0])
    first_batches = [float(durations[plan[0][0]].mean()) for plan in plans]
    assert len(set(first_batches)) == 4
    assert plans[1] == plan_batches(durations, 200.0, 2, seed=1, epoch=1)
    assert plans[1] != plan_batches(durations, 200.0, 2, seed=2, epoch=1)


def test_the_first_epochs_may_go_from_short_to_long() -> None:
    durations = like_librispeech(500)
    for epoch in range(3):
        plan = plan_batches(durations, 100.0, 2, seed=1, epoch=epoch, sorted_epochs=2)
        longest = [
            max(float(durations[number]) for rank in plan for number in rank[step]) for step in range(len(plan[0]))
        ]
        bucketed = all(later >= earlier / 1.05 for earlier, later in zip(longest, longest[1:], strict=False))
        assert bucketed == (epoch < 2)
    assert plan == plan_batches(durations, 100.0, 2, seed=1, epoch=2)


def test_ranks_have_alike_batches_at_a_step() -> None:
    durations = like_librispeech(5000)
    plan = plan_batches(durations, 200.0, 2, seed=1)
    longest = np.array([[durations[batch].max() for batch in rank] for rank in plan])
    assert np.median(longest.max(axis=0) / longest.min(axis=0)) < 1.05


def test_evaluation_is_longest_first_and_always_the_same() -> None:
    durations = like_librispeech(500)
    batches = plan_batches(durations, 100.0)[0]
    assert batches == plan_batches(durations, 100.0, epoch=5)[0]
    assert (np.diff([durations[batch].max() for batch in batches]) <= 0).all()


def test_many_utterances_are_planned_fast() -> None:
    durations, seconds = like_librispeech(300_000), []
    for _ in range(3):
        begin = time.process_time()
        plan_steps(durations, 1600.0, 8, epoch=3)
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 1.0, "of processor time; other programs make it longer, never shorter"


def batches_of(**change: object) -> TrainBatches:
    arguments = {
        "durations": np.ones(10),
        "batch_seconds": 3.0,
        "world_size": 1,
        "seed": 1,
        "identity": {"subsets": "a"},
    }
    return TrainBatches(load=lambda batches, epoch: iter(()), **{**arguments, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"durations": np.ones(9)}, "utterances: 10 in the checkpoint, 9 now"),
        ({"durations": np.full(10, 1.1)}, "audio seconds: 10.0 in the checkpoint, 11.0 now"),
        ({"batch_seconds": 4.0}, "batch_seconds: 3.0 in the checkpoint, 4.0 now"),
        ({"seed": 2}, "seed: 1 in the checkpoint, 2 now"),
        ({"sorted_epochs": 1}, "sorted_epochs: 0 in the checkpoint, 1 now"),
        ({"identity": {"subsets": "b"}}, "subsets: a in the checkpoint, b now"),
    ],
)
def test_a_checkpoint_of_other_batches_is_refused(change: dict[str, object], name: str) -> None:
    state = batches_of().state_dict()
    batches_of().load_state_dict(state)
    with pytest.raises(InputError, match=name):
        batches_of(**change).load_state_dict(state)


@pytest.mark.parametrize("change", [{"world_size": 2}, {"accumulation": 4}, {"world_size": 3, "accumulation": 2}])
def test_the_rest_of_an_epoch_is_shared_by_any_number_of_processes(change: dict[str, int]) -> None:
    durations = like_librispeech(200)
    original, done = batches_of(durations=durations, batch_seconds=200.0), 7
    resumed = batches_of(durations=durations, batch_seconds=200.0, **change)
    resumed.load_state_dict(original.state_dict())
    parts = change.get("accumulation", 1)
    rest = [number for rank in resumed.plan() for part in rank[done * parts :] for number in part]
    assert sorted(rest) == sorted(number for step in original.plan()[0][done:] for number in step)
    assert 0 < len(rest) < 200


def test_a_checkpoint_of_an_older_version_is_compared_in_what_it_has() -> None:
    state = batches_of().state_dict()
    del state["accumulate_grad_batches"]
    now = batches_of(identity={"subsets": "a", "order of utterances": "1234", "speed_factors": [0.9]})
    now.load_state_dict(state)
    with pytest.raises(InputError, match="order of utterances: 1234 in the checkpoint, 5678 now"):
        batches_of(identity={"subsets": "a", "order of utterances": "5678"}).load_state_dict(now.state_dict())


def test_a_checkpoint_whose_batches_were_not_parts_of_steps_is_refused() -> None:
    state = batches_of(world_size=2).state_dict()
    del state["accumulate_grad_batches"]
    with pytest.raises(InputError, match="of an older version, which planned the batches of each of 2 processes"):
        batches_of(world_size=2).load_state_dict(state)
    state["processes"] = 1
    with pytest.raises(InputError, match="of an older version"):
        batches_of(accumulation=2).load_state_dict(state)
    batches_of().load_state_dict(state)


def test_the_digest_of_an_order_tells_it_from_others_and_is_cheap() -> None:
    ids, durations = np.arange(281_241, dtype=np.uint32), like_librispeech(281_241)
    begin = time.process_time()
    digest = digest_of(ids, durations)
    assert time.process_time() - begin < 0.5
    swapped = ids.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    other = durations.copy()
    other[[3, 4]] = other[[4, 3]]
    assert len({digest, digest_of(swapped, durations), digest_of(ids, other)}) == 3
    assert digest_of(np.arange(3, dtype=np.uint32), np.ones(3)) == "d222eb309a1f3457"


def test_the_progress_is_asked_at_the_first_batch_only() -> None:
    calls = []

    def progress() -> tuple[int, int]:
        calls.append(True)
        return 2, 3

    batches = batches_of(progress=progress)
    batches.load = lambda planned, epoch: [(planned, epoch)]  # type: ignore[assignment, list-item, return-value]
    iterator = iter(batches)
    assert not calls
    assert next(iterator) == (batches.plan(2)[0][3:], 2)
    assert calls == [True]
