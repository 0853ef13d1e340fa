import numpy as np
import pytest

from asr_lightning.analysis.projection import aligned, counterparts, normalized, principal_components, project


def clusters(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), 30)
    return 10.0 * random.normal(size=(5, 40))[labels] + random.normal(size=(150, 40)), labels


def test_clusters_are_recovered() -> None:
    points, labels = clusters()
    positions = project(points, perplexity=10, iterations=300)
    assert positions.shape == (150, 2)
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=2) + 1e9 * np.eye(150)
    assert (labels[distances.argsort(axis=1)[:, :10]] == labels[:, None]).mean() > 0.98
    np.testing.assert_allclose(positions.mean(axis=0), 0.0, atol=1e-6)
    assert np.square(positions).sum(axis=1).mean() == pytest.approx(1.0)


def test_a_path_through_time_stays_one() -> None:
    time = np.linspace(0, 1, 120)
    points = np.stack([np.cos(3 * time), np.sin(3 * time), time, *[0 * time] * 7], axis=1)
    positions = project(points, perplexity=15, iterations=400)
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    assert np.median(steps) < 0.1 * np.ptp(positions, axis=0).max()
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=2) + 1e9 * np.eye(120)
    assert (np.abs(distances.argmin(axis=1) - np.arange(120)) <= 2).all()


def test_the_seed_decides() -> None:
    points, _ = clusters()
    first, again = (project(points, perplexity=10, iterations=100) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("count", [4, 7])
def test_few_points_and_equal_ones(count: int) -> None:
    positions = project(np.ones((count, 3)), iterations=50)
    np.testing.assert_array_equal(positions, np.zeros((count, 2)))
    some = project(np.repeat(np.eye(count), 2, axis=0), iterations=50)
    np.testing.assert_array_equal(some[::2], some[1::2])
    assert np.isfinite(some).all() and np.square(some).sum(axis=1).mean() == pytest.approx(1.0)


@pytest.mark.parametrize("points", [np.zeros((3, 2)), np.full((9, 2), np.nan)])
def test_what_cannot_be_projected_is_told(points: np.ndarray) -> None:
    with pytest.raises(ValueError, match="at least 4 finite points"):
        project(points)


def test_principal_components_are_those_of_the_singular_values() -> None:
    points, _ = clusters()
    components = principal_components(points, 3)
    left, values, _ = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    expected = left[:, :3] * values[:3]
    np.testing.assert_allclose(np.abs(components), np.abs(expected), atol=1e-8)


def test_a_turned_mirrored_picture_is_turned_back() -> None:
    positions = normalized(np.random.default_rng(1).normal(size=(30, 2)))
    turned = positions @ np.array([[0.6, 0.8], [0.8, -0.6]]) + 3.0
    np.testing.assert_allclose(aligned(turned, positions), positions, atol=1e-12)


def test_equal_points_are_normalized_to_the_center() -> None:
    np.testing.assert_array_equal(normalized(np.full((8, 2), 0.1)), 0.0)  # the mean of eight 0.1 is rounded


def test_rows_of_layers_meet_by_time() -> None:
    names, times = np.array(["a", "a", "a", "b", "c"]), np.array([0.0, 0.09, 0.2, 0.0, 0.0])
    other_names, other_times = np.array(["b", "a", "a"]), np.array([0.5, 0.02, 0.18])
    assert counterparts(names, times, other_names, other_times).tolist() == [1, 1, 2, 0, -1]
