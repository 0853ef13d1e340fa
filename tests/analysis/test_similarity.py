import numpy as np
import pytest

from asr_lightning.analysis.similarity import layer_similarities, linear_cka, stretched


def layer(frames: int, units: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, units))


def by_gram_matrices(x: np.ndarray, y: np.ndarray) -> float:
    """The definition by the Hilbert-Schmidt independence criterion of N × N matrices."""
    center = np.eye(len(x)) - 1 / len(x)

    def criterion(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.trace(a @ a.T @ center @ b @ b.T @ center))

    return criterion(x, y) / np.sqrt(criterion(x, x) * criterion(y, y))


def test_it_is_the_one_by_gram_matrices() -> None:
    for seed in range(5):
        x = layer(40, 5, seed)
        y = x[:, :3] @ layer(3, 7, seed + 10) + 0.5 * layer(40, 7, seed + 20) + 4.0
        assert linear_cka(x, y) == pytest.approx(by_gram_matrices(x, y), rel=1e-9)
        assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), rel=1e-9)


def test_rotations_scales_shifts_and_copies_change_nothing() -> None:
    x = layer(60, 6, 0)
    rotation = np.linalg.qr(layer(6, 6, 1))[0]
    assert linear_cka(x, 3.0 * x @ rotation + 7.0) == pytest.approx(1.0)
    assert linear_cka(x, np.repeat(x, 2, axis=1)) == pytest.approx(1.0), "each unit twice, as in a planted teacher"
    assert linear_cka(x, x @ np.diag([9.0, 1, 1, 1, 1, 1])) < 0.9, "but not of other proportions"


def test_of_single_units_it_is_the_squared_correlation() -> None:
    x = layer(500, 1, 2)
    y = 0.6 * x + 0.8 * layer(500, 1, 3)
    assert linear_cka(x, y) == pytest.approx(np.corrcoef(x[:, 0], y[:, 0])[0, 1] ** 2)
    assert 0.25 < linear_cka(x, y) < 0.5


def test_layers_that_have_nothing_to_do_with_each_other_are_not_similar() -> None:
    assert linear_cka(layer(4000, 8, 4), layer(4000, 8, 5)) < 0.01
    assert linear_cka(layer(20, 8, 4), layer(20, 8, 5)) > 0.1, "of few frames this cannot be seen"


def test_a_constant_layer_has_no_similarity_and_frames_have_to_be_the_same() -> None:
    for constant in (np.ones((5, 3)), np.full((8, 2), 0.1)):  # the mean of eight 0.1 is rounded
        assert np.isnan(linear_cka(constant, layer(len(constant), 3, 0)))
    with pytest.raises(ValueError, match="got 5 and 4"):
        linear_cka(layer(5, 3, 0), layer(4, 3, 0))
    with pytest.raises(ValueError, match="two frames or more"):
        linear_cka(layer(1, 3, 0), layer(1, 3, 0))


def test_each_layer_is_compared_with_each() -> None:
    first, second = [layer(30, 4, 0), layer(30, 5, 1)], [layer(30, 6, 2), layer(30, 4, 0), layer(30, 3, 3)]
    values = layer_similarities(first, second)
    assert values.shape == (2, 3) and values[0, 1] == pytest.approx(1.0)
    assert values[1, 2] == linear_cka(first[1], second[2])


def test_frames_are_repeated_or_left_out_evenly() -> None:
    frames = np.arange(3)[:, None]
    assert stretched(frames, 6)[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert stretched(np.arange(6)[:, None], 3)[:, 0].tolist() == [0, 2, 4]
