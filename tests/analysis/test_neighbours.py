import numpy as np
import pytest
import torch

from asr_lightning.analysis import neighbours
from asr_lightning.analysis.neighbours import (
    in_context,
    matching_before,
    nearest,
    ngram_baseline,
    shuffled_baseline,
    summarize_matches,
)


def sentences(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Characters and sentence numbers of random texts over a small alphabet, of unequal lengths."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 30, count)
    return random.choice(list("ABC_"), lengths.sum()), np.repeat(np.arange(count), lengths)


@pytest.mark.parametrize("offset", [0.0, 1000.0])  # far from the origin, single precision alone would be wrong
@pytest.mark.parametrize("count, block", [(300, 61), (1500, 640)])  # without stripes, and with them
@pytest.mark.parametrize("in_order", [False, True])  # of groups, which then meet in few blocks
def test_neighbours_are_those_of_brute_force(
    monkeypatch: pytest.MonkeyPatch, offset: float, count: int, block: int, in_order: bool
) -> None:
    monkeypatch.setattr(neighbours, "QUERIES", 37)
    monkeypatch.setattr(neighbours, "CANDIDATES", block)
    random = np.random.default_rng(1)
    states = (random.normal(size=(count, 12)) + offset).astype(np.float32)
    groups = random.integers(0, 20, count)
    groups = np.sort(groups) if in_order else groups
    indices, distances = nearest(states, groups, 5)
    matrix = np.linalg.norm(states.astype(np.float64)[:, None] - states.astype(np.float64)[None], axis=2)
    matrix[groups[:, None] == groups[None]] = np.inf
    expected = np.argsort(matrix, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, np.take_along_axis(matrix, expected, axis=1))


@pytest.mark.parametrize("count", [1, 7, 13])
def test_the_smallest_are_those_of_a_sorted_row(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    for high in (5, 10**6):  # many equal values, and hardly any
        values = torch.randint(high, (40, 32 * 20), generator=generator).float()
        values[0] = torch.inf
        smallest, columns = neighbours._smallest(values, count)
        assert torch.equal(smallest, values.sort(dim=1).values[:, :count])
        assert torch.equal(values.gather(1, columns), smallest)
        assert all(len(set(row)) == count for row in columns.tolist())


def test_equal_states_are_taken_in_the_order_of_their_places() -> None:
    states = np.zeros((6, 3), np.float32)
    indices, distances = nearest(states, np.array([0, 0, 1, 1, 2, 2]), 3)
    assert indices.tolist() == [[2, 3, 4], [2, 3, 4], [0, 1, 4], [0, 1, 4], [0, 1, 2], [0, 1, 2]]
    assert not distances.any()


def by_force(states: np.ndarray, groups: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    precise = states.astype(np.float64)
    matrix = np.stack([np.sqrt(np.square(precise - state).sum(axis=1)) for state in precise])
    matrix[groups[:, None] == groups[None]] = np.inf
    order = np.argsort(matrix, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(matrix, order, axis=1)


@pytest.mark.parametrize("k", [1, 5])
def test_states_that_are_nearly_the_same_are_told_apart(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    monkeypatch.setattr(neighbours, "CANDIDATES", 171)
    random = np.random.default_rng(7)
    base = 3 * random.normal(size=(2, 256))
    states = base[random.integers(0, 2, 400)] + 0.02 / 16 * random.normal(size=(400, 256))
    states = states.astype(np.float32)
    states[-1] *= 30  # far from all others: the rounding of single precision is large
    groups = np.arange(400) // 10
    indices, distances = nearest(states, groups, k)
    expected, exact = by_force(states, groups, k)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, exact, rtol=1e-12)


def test_many_equal_states_far_from_the_centre_come_in_the_order_of_their_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(neighbours, "CANDIDATES", 17)
    random = np.random.default_rng(8)
    states = random.normal(size=(3, 40))[np.arange(90) % 3].astype(np.float32)
    groups = np.arange(90) // 6
    indices, distances = nearest(states, groups, 4)
    expected, exact = by_force(states, groups, 4)
    np.testing.assert_array_equal(indices, expected)
    assert (indices[0] == [6, 9, 12, 15]).all() and not distances.any() and not exact.any()


def test_there_may_be_fewer_neighbours_than_wanted() -> None:
    indices, distances = nearest(np.arange(3, dtype=np.float32)[:, None], np.array([0, 0, 1]), 2)
    assert indices.tolist() == [[2, -1], [2, -1], [1, 0]]
    assert distances[0].tolist() == [2.0, np.inf]


def test_some_queries_of_many() -> None:
    random = np.random.default_rng(2)
    states, groups = random.normal(size=(50, 4)).astype(np.float32), np.arange(50) // 5
    indices, _ = nearest(states, groups, 3)
    subset, _ = nearest(states, groups, 3, np.array([7, 31]))
    np.testing.assert_array_equal(subset, indices[[7, 31]])


def test_matching_characters_are_counted_backwards_within_sentences() -> None:
    characters = np.array(list("ABCD" + "XBCD" + "CD"))
    groups = np.array([0] * 4 + [1] * 4 + [2] * 2)
    indices = np.array([[7, 9, -1, 3]])
    assert matching_before(characters, groups, indices, np.array([3])).tolist() == [[2, 1, 0, 3]]
    assert matching_before(characters, groups, np.array([[4]]), np.array([0])).tolist() == [[0]]


def test_matching_is_that_of_a_loop() -> None:
    characters, groups = sentences(12)
    random = np.random.default_rng(3)
    indices = random.integers(0, len(characters), (len(characters), 4))

    def count(first: int, second: int) -> int:
        matching = 0
        while True:
            a, b = first - matching - 1, second - matching - 1
            if a < 0 or b < 0 or groups[a] != groups[first] or groups[b] != groups[second]:
                return matching
            if characters[a] != characters[b]:
                return matching
            matching += 1

    expected = [[count(query, index) for index in row] for query, row in enumerate(indices)]
    assert matching_before(characters, groups, indices, np.arange(len(characters))).tolist() == expected


def test_states_that_know_their_history_beat_the_baselines_and_shuffled_ones_do_not() -> None:
    characters, groups = sentences(120)
    names = {character: number for number, character in enumerate("ABC_")}
    states = np.zeros((len(characters), 4 * 4), np.float32)
    for row in range(len(characters)):  # the last four characters, the newest the strongest
        for back in range(4):
            if row >= back and groups[row - back] == groups[row]:
                states[row, 4 * back + names[characters[row - back]]] = 2.0**-back
    queries = np.arange(len(characters))
    indices, _ = nearest(states, groups, 5)
    matches = summarize_matches(matching_before(characters, groups, indices, queries))
    assert matches.total == pytest.approx(matches.mean * 5 * len(queries))
    shuffled = shuffled_baseline(states, characters, groups, queries, 5, draws=3)
    by_order = [ngram_baseline(characters, groups, queries, 5, order) for order in (1, 2, 3, 4)]
    # chance: each character before matches with 1/4, so 1/3 on the whole, a little less as sentences begin
    assert 0.2 < shuffled.mean < 0.36
    assert shuffled.deviation < 0.05
    assert abs(by_order[0].mean - shuffled.mean) < 0.1
    means = [baseline.mean for baseline in by_order]
    assert means == sorted(means)
    assert means[1] > 1.0
    assert means[2] < matches.mean < means[3] + 0.3


def test_a_baseline_draws_from_other_sentences_and_falls_back() -> None:
    characters, groups = np.array(list("AB" + "AB" + "BB")), np.array([0, 0, 1, 1, 2, 2])
    result = ngram_baseline(characters, groups, np.array([1]), 3, order=2, draws=20)
    # `AB` elsewhere is at 3 (one character matches); the two other Bs, at 4 and 5, have no A before them
    assert result.total == 1.0
    assert result.deviation == pytest.approx(0.0, abs=1e-12)


def test_a_character_is_shown_where_it_stands() -> None:
    sentence = list("_SO_THEY_SAID")
    assert in_context(sentence, 9) == "SO THEY <<S>>AID"
    assert in_context(sentence, 9, before=3, after=2) == "…EY <<S>>AI…"
    assert in_context(sentence, 0, after=2) == "<<_>>SO…"
