"""Planted confidences: drawn so that it is known how often words of each are right."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asr_lightning.analysis.calibration import (
    Calibration,
    Isotonic,
    Temperature,
    fit_isotonic,
    fit_temperature,
    normalized_cross_entropy,
    read_calibration,
    reliability,
)
from asr_lightning.errors import InputError
from asr_lightning.report.calibration_figure import plot_reliability


def planted(count: int, seed: int, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences whose log odds are so many times too large, and whether the words are right."""
    draw = np.random.default_rng(seed)
    truth = draw.beta(3, 1, count)
    correct = draw.random(count) < truth
    odds = temperature * (np.log(truth) - np.log1p(-truth))
    return 1 / (1 + np.exp(-odds)), correct


def test_figures_of_a_few_words_by_hand() -> None:
    confidences, correct = np.array([0.9, 0.8, 0.6, 0.15]), np.array([True, True, False, False])
    entropy = np.log(2)
    loss = -(np.log(0.9) + np.log(0.8) + np.log(0.4) + np.log(0.85)) / 4
    assert normalized_cross_entropy(confidences, correct) == pytest.approx(1 - loss / entropy)
    line = reliability(confidences, correct, bins=2)
    assert line.counts.tolist() == [1, 3]
    assert line.confidence == pytest.approx([0.15, 2.3 / 3])
    assert line.accuracy == pytest.approx([0.0, 2 / 3])
    assert line.expected_error == pytest.approx((1 * 0.15 + 3 * 0.1) / 4)
    assert reliability(np.array([1.0, 0.0]), np.array([True, False])).expected_error == 0.0
    assert normalized_cross_entropy(np.full(4, 0.5), correct) == pytest.approx(0.0)
    assert normalized_cross_entropy(correct.astype(float), correct) == pytest.approx(1.0, abs=1e-5)


def test_well_calibrated_words_have_no_error() -> None:
    assert reliability(*planted(50_000, 1)).expected_error < 0.01


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_planted_temperature_is_found(temperature: float) -> None:
    confidences, correct = planted(50_000, 2, temperature)
    assert fit_temperature(confidences, correct).temperature == pytest.approx(temperature, rel=0.05)


@pytest.mark.filterwarnings("error")
def test_perfect_confidences_overflow_nowhere() -> None:
    confidences, correct = np.array([0.0, 0.2, 0.8, 1.0]), np.array([False, False, True, True])
    calibrated = fit_temperature(confidences, correct)(confidences)
    np.testing.assert_allclose(calibrated, [0.0, 0.0, 1.0, 1.0], atol=1e-6)


@pytest.mark.parametrize("fit", [fit_temperature, fit_isotonic])
def test_other_words_are_better_calibrated_than_before(
    fit: Callable[[np.ndarray, np.ndarray], Calibration],
) -> None:
    calibration = fit(*planted(20_000, 3, 3.0))
    confidences, correct = planted(20_000, 4, 3.0)
    calibrated = calibration(confidences)
    assert reliability(confidences, correct).expected_error > 0.08
    assert reliability(calibrated, correct).expected_error < 0.02
    assert normalized_cross_entropy(calibrated, correct) > normalized_cross_entropy(confidences, correct) + 0.1
    order = np.argsort(confidences)
    assert (np.diff(calibrated[order]) >= 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_isotonic_steps_are_those_of_all_cuts(seed: int) -> None:
    """The least squares map that never falls, by min-max over all stretches."""
    draw = np.random.default_rng(seed)
    confidences, correct = draw.permutation(np.arange(1, 13) / 13), draw.random(12) < 0.6
    marks = correct[np.argsort(confidences)].astype(float)
    expected = [
        max(min(marks[begin : end + 1].mean() for end in range(index, 12)) for begin in range(index + 1))
        for index in range(12)
    ]
    fitted = fit_isotonic(confidences, correct)
    sizes = np.unique(expected, return_counts=True)[1]
    limits = np.clip(np.unique(expected), 1 / (2 * sizes), 1 - 1 / (2 * sizes))
    assert fitted.accuracy == pytest.approx(np.maximum.accumulate(limits).tolist())


def test_maps_come_back_from_their_files(tmp_path: Path) -> None:
    for calibration in (Temperature(1.5), Isotonic((0.1, 0.7), (0.2, 0.9))):
        (tmp_path / "c.json").write_text(json.dumps(calibration.as_json()))
        assert read_calibration(tmp_path / "c.json") == calibration
    for content in (
        "{}",
        "no",
        "[1]",
        '{"temperature": 0}',
        '{"isotonic": {"confidence": [1, 0], "accuracy": [0, 1]}}',
    ):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(InputError, match=r"c.json: expected a calibration"):
            read_calibration(tmp_path / "c.json")
    with pytest.raises(InputError, match="cannot read the calibration"):
        read_calibration(tmp_path / "none.json")


def test_what_has_no_words_is_refused(tmp_path: Path) -> None:
    none = np.zeros(0)
    for function in (reliability, normalized_cross_entropy, fit_isotonic, fit_temperature):
        with pytest.raises(ValueError, match="at least one"):
            function(none, none.astype(bool))  # type: ignore[operator]
    with pytest.raises(ValueError, match="right and wrong words"):
        normalized_cross_entropy(np.array([0.5]), np.array([True]))
    with pytest.raises(ValueError, match="at least one reliability"):
        plot_reliability({}, tmp_path / "x.png")


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    lines = {name: reliability(*planted(1_000, 5, t)) for name, t in (("before", 3.0), ("after", 1.0))}
    plot_reliability(lines, tmp_path / "reliability.png")
    assert Image.open(tmp_path / "reliability.png").size == (1500, 1620)
