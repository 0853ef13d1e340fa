import math

import numpy as np
import pytest

from asr_lightning.analysis.convergence import Backcast, PowerLaw, backcast, fit

EPOCHS = [5, 10, 20, 30, 40, 50]
PUBLISHED = {  # WER in %, LibriSpeech [Han et al. 2024]: a student from random weights, and from selected ones
    "clean random": [8.15, 5.56, 4.15, 3.73, 3.58, 3.52],
    "clean WS": [4.86, 4.30, 3.96, 3.72, 3.60, 3.53],
    "other random": [17.68, 12.84, 10.19, 9.42, 8.83, 8.70],
    "other WS": [12.07, 10.60, 9.82, 9.22, 8.92, 8.89],
}
PLANTED = [(0.3, 0.8, 0.1), (0.5, 1.0, 0.05), (0.8, 1.5, 0.02), (0.3, 0.3, 0.0), (0.05, 2.0, 0.2)]


def measured(
    law: tuple[float, float, float], epochs: np.ndarray, noise: float, draw: np.random.Generator
) -> np.ndarray:
    a, b, c = law
    return (c + a * epochs**-b) * np.exp(noise * draw.standard_normal(len(epochs)))


@pytest.mark.parametrize("law", PLANTED)
@pytest.mark.parametrize("first", [1, 5])
def test_a_curve_without_noise_is_found_again(law: tuple[float, float, float], first: int) -> None:
    epochs = np.arange(first, first + 12.0)
    curve = fit(epochs, measured(law, epochs, 0.0, np.random.default_rng(0)))
    assert (curve.a, curve.b, curve.c) == pytest.approx(law, rel=1e-3, abs=1e-4)
    assert curve([40.0]) == pytest.approx(law[2] + law[0] * 40.0 ** -law[1], rel=1e-4)
    assert curve.spread < 1e-5
    prediction = curve.predict([40.0])
    assert prediction.lower[0] == pytest.approx(prediction.upper[0], rel=1e-3), "nothing is uncertain"


def test_a_curve_in_noise_is_found_on_average() -> None:
    draw = np.random.default_rng(1)
    epochs = np.arange(1.0, 21.0)
    curves = [fit(epochs, measured((0.5, 1.0, 0.05), epochs, 0.03, draw)) for _ in range(60)]
    means = np.mean([(curve.a, curve.b, curve.c, curve.spread) for curve in curves], axis=0)
    assert means == pytest.approx([0.5, 1.0, 0.05, 0.03], rel=0.05)


@pytest.mark.parametrize(
    ("law", "count", "noise"), [((0.3, 0.8, 0.1), 10, 0.03), ((0.8, 1.5, 0.02), 5, 0.05), ((0.3, 0.3, 0.0), 12, 0.08)]
)
def test_intervals_hold_as_often_as_they_say(law: tuple[float, float, float], count: int, noise: float) -> None:
    """Of 300 planted curves: the interval of a measurement at twice the last epoch, and those of the parameters."""
    draw = np.random.default_rng(2)
    epochs, later = np.arange(1.0, count + 1), np.array([2.0 * count])
    covered, within = [], []
    for _ in range(300):
        curve = fit(epochs, measured(law, epochs, noise, draw))
        prediction = curve.predict(later, level=0.8)
        [rate] = measured(law, later, noise, draw)
        covered.append(prediction.lower[0] <= rate <= prediction.upper[0])
        bounds = curve.bounds(level=0.8)
        within.append([low <= true <= high for true, (low, high) in zip(law, bounds.values(), strict=True)])
    assert np.mean(covered) == pytest.approx(0.8, abs=0.06)  # 2.6 standard errors of 300 trials
    assert (np.mean(within, axis=0) > 0.74).all(), "at a border of what may be, as c = 0, they hold more often"


def test_interval_of_a_known_shape_is_that_of_student() -> None:
    """A second implementation: where nothing bends (b = 0.01, no offset fits better), the level is a mean."""
    draw = np.random.default_rng(3)
    epochs = np.repeat([1.0, 2.0, 3.0], 200)
    curve = fit(epochs, 0.2 * np.exp(0.1 * draw.standard_normal(600)))
    prediction = curve.predict([2.0], level=0.9)
    width = math.log(prediction.upper[0] / prediction.lower[0]) / 2
    assert width == pytest.approx(1.645 * 0.1, rel=0.1)


def test_seeds_join_in_one_fit() -> None:
    draw = np.random.default_rng(4)
    epochs = np.tile(np.arange(1.0, 4.0), 3)
    curve = fit(epochs, measured((0.3, 0.8, 0.1), epochs, 0.02, draw))
    assert curve.points == 9
    assert curve.predict([4.0]).upper[0] < 0.4, "three epochs of one seed say nothing of the spread"
    alone = fit(epochs[:3], measured((0.3, 0.8, 0.1), epochs[:3], 0.02, draw))
    prediction = alone.predict([4.0])
    assert (prediction.lower[0], prediction.upper[0]) == (0.0, math.inf)
    assert math.isnan(alone.spread)
    assert alone.bounds()["b"] == (0.0, math.inf)


def test_the_scale_of_rates_and_of_epochs_does_not_matter() -> None:
    rates = np.array(PUBLISHED["clean random"])
    curve, hundredth, later = fit(EPOCHS, rates), fit(EPOCHS, rates / 100), fit(np.array(EPOCHS) * 3, rates)
    assert hundredth.predict([80.0]).upper == pytest.approx(curve.predict([80.0]).upper / 100, rel=1e-6)
    assert later.predict([240.0]).lower == pytest.approx(curve.predict([80.0]).lower, rel=1e-6)
    assert (hundredth.b, later.b) == pytest.approx((curve.b, curve.b), rel=1e-4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_fit_of_the_published_curves_is_the_best_there_is(name: str) -> None:
    """Against a brute force over a, b and c."""
    logs = np.log(PUBLISHED[name])
    curve = fit(EPOCHS, PUBLISHED[name])
    a, b, c = np.meshgrid(
        curve.a * np.geomspace(0.5, 2.0, 61), np.linspace(0.02, 1.5, 75), curve.c * np.linspace(0.0, 1.4, 57)
    )
    curves = np.log(c[..., None] + a[..., None] * np.array(EPOCHS, dtype=float) ** -b[..., None])
    least = np.square(curves - logs).sum(axis=-1).min()
    residual = curve.spread**2 * (len(EPOCHS) - 3)
    assert residual <= least + 1e-12
    assert residual == pytest.approx(least, rel=0.6), "or the brute force did not come near"


def test_back_casting_the_published_curves() -> None:
    """From the first 30 epochs to 40 and 50: nearer than the last value carried forward, in all four curves."""
    casts = {name: backcast([dict(zip(EPOCHS, rates, strict=True))], 30) for name, rates in PUBLISHED.items()}
    errors = {name: (cast.error, cast.naive_error) for name, cast in casts.items()}
    expected = {"clean random": (0.142, 0.18), "clean WS": (0.014, 0.155),
                "other random": (0.069, 0.655), "other WS": (0.073, 0.315)}  # fmt: skip
    for name, pair in expected.items():
        assert errors[name] == pytest.approx(pair, abs=2e-3)
        assert casts[name].error < casts[name].naive_error
        assert casts[name].coverage == 1.0
    random, selected = casts["other random"].curve, casts["other WS"].curve
    assert selected.b < random.b, "what begins lower falls more slowly"
    assert selected([5.0]) < random([5.0])
    assert selected([50.0]) > random([50.0]), "the crossing is seen from epoch 30, before it came"


def test_back_casting_compares_with_the_last_rate_of_the_same_seed() -> None:
    curves = [
        {0: 1.0, 1: 0.4, 2: 0.3, 3: 0.25, 4: 0.2, 5: 0.19},
        {0: 1.0, 1: 0.5, 2: 0.35, 3: 0.3, 4: 0.27},
        {6: 0.2},  # began after what is fitted
    ]
    cast = backcast(curves, 3)
    assert cast.curve.points == 6
    assert cast.epochs.tolist() == [4, 5, 4]
    assert cast.carried.tolist() == [0.25, 0.25, 0.3]
    assert cast.measured.tolist() == [0.2, 0.19, 0.27]
    assert cast.naive_error == pytest.approx((0.05 + 0.06 + 0.03) / 3)
    assert cast.error == pytest.approx(np.abs(cast.curve([4, 5, 4]) - cast.measured).mean())
    assert math.isnan(backcast(curves[:1], 3).coverage), "one seed of three epochs has no interval"


def test_coverage_counts_what_is_between_the_bounds() -> None:
    rates = np.array([0.1, 0.2, 0.3, 0.4])
    law: PowerLaw = fit([1, 2, 3], [0.3, 0.2, 0.1])
    cast = Backcast(3, rates, rates, rates, rates - 0.05, np.array([0.15, 0.1, 0.35, 0.3]), rates, law)
    assert cast.coverage == 0.5


@pytest.mark.parametrize(
    ("epochs", "rates", "message"),
    [
        ([1, 2, 2], [0.3, 0.2, 0.2], "at least 3 epochs from 1"),
        ([0, 1, 2], [0.3, 0.2, 0.2], "at least 3 epochs from 1"),
        ([1, 2, 3], [0.3, 0.2, 0.0], "rates above 0"),
        ([1, 2, 3], [0.3, math.inf, 0.1], "rates above 0"),
        ([1, 2, 3], [0.3, 0.2], "as many rates as epochs"),
    ],
)
def test_what_has_no_curve_is_refused(epochs: list[int], rates: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(epochs, rates)


def test_back_casting_needs_something_to_predict() -> None:
    with pytest.raises(ValueError, match="epochs after 3"):
        backcast([{1: 0.3, 2: 0.2, 3: 0.1}], 3)
