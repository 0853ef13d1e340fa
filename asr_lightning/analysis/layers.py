"""Layers of a recognizer side by side: measurements and t-SNE coordinates of their frames."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from asr_lightning.analysis.activations import Layer, layers_of_unit, read_layer
from asr_lightning.analysis.probes import LayerFigures, measure_layer, speaker_interval
from asr_lightning.analysis.projection import aligned, counterparts, project

FIGURES = tuple(field.name for field in fields(LayerFigures))


@dataclass(frozen=True)
class LayerProjection:
    """Frames of one layer and one speaker, and their t-SNE coordinates.

    Attributes:
        layer: N frames.
        positions: (N, 2).
    """

    layer: Layer
    positions: np.ndarray


@dataclass(frozen=True)
class LayerMeasurement:
    """Measurements of one layer and one speaker.

    Attributes:
        layer: Name.
        speaker: Name.
        space: `original`, or `tsne` where the two dimensions of the projection are measured.
        figures: The numbers.
    """

    layer: str
    speaker: str
    space: str
    figures: LayerFigures


def project_layers(layers: Sequence[Layer], speaker: str, seed: int = 1, **options: float) -> list[LayerProjection]:
    """Project the frames of one speaker, layer by layer, rotated alike.

    Args:
        layers: As `read_layer` gives them.
        speaker: Whose frames.
        seed: Of everything random.
        **options: Of `asr_lightning.analysis.projection.project`.
    """
    projected: list[LayerProjection] = []
    for layer in layers:
        frames = layer.where(np.flatnonzero(layer.speakers == speaker))
        points = project(frames.values, seed=seed, **options)  # type: ignore[arg-type]
        if projected:
            first = projected[0]
            rows = counterparts(frames.utterances, frames.starts, first.layer.utterances, first.layer.starts)
            turn = aligned(points[rows >= 0], first.positions[rows[rows >= 0]])
            points = _rotate(points, points[rows >= 0], turn)
        projected.append(LayerProjection(frames, points))
    return projected


def _rotate(points: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotate all points by the rotation that takes `source` to `target`."""
    turn = np.linalg.lstsq(source - source.mean(axis=0), target, rcond=None)[0]
    return (points - source.mean(axis=0)) @ turn


def measure_layers(projected: Iterable[LayerProjection], k: int = 5) -> list[LayerMeasurement]:
    """Measure layers in their own space and in the plane of t-SNE."""
    measured = []
    for layer_points in projected:
        layer = layer_points.layer
        groups = np.unique(layer.utterances, return_inverse=True)[1]
        centers = (layer.starts + layer.ends) / 2
        for space, values in (("original", layer.values), ("tsne", layer_points.positions)):
            figures = measure_layer(values, layer.phones, groups, centers, k)
            measured.append(LayerMeasurement(layer.name, str(layer.speakers[0]), space, figures))
    return measured


@dataclass(frozen=True)
class LayerCurve:
    """One number along the layers, over speakers.

    Attributes:
        figure: Its name.
        space: `original` or `tsne`.
        layers: L names, the lowest first.
        means: (L,).
        intervals: (L, 2), 95 %; NaN for a single speaker.
    """

    figure: str
    space: str
    layers: list[str]
    means: np.ndarray
    intervals: np.ndarray


def layer_curves(measured: Sequence[LayerMeasurement]) -> list[LayerCurve]:
    """Return the mean over speakers of every number, layer by layer."""
    layers = list(dict.fromkeys(measurement.layer for measurement in measured))
    result = []
    for space in dict.fromkeys(measurement.space for measurement in measured):
        for figure in FIGURES:
            values = [
                np.array(
                    [
                        getattr(measurement.figures, figure)
                        for measurement in measured
                        if (measurement.layer, measurement.space) == (layer, space)
                    ]
                )
                for layer in layers
            ]
            means = np.array(
                [np.nanmean(by_speaker) if not np.isnan(by_speaker).all() else np.nan for by_speaker in values]
            )
            result.append(
                LayerCurve(
                    figure, space, layers, means, np.array([speaker_interval(by_speaker) for by_speaker in values])
                )
            )
    return result


def layer_table(measured: Iterable[LayerMeasurement]) -> list[list[object]]:
    """Return a table with head: layer, speaker, space and the numbers."""
    head: list[object] = ["layer", "speaker", "space", *FIGURES]
    return [
        head,
        *(
            [measurement.layer, measurement.speaker, measurement.space, *astuple(measurement.figures)]
            for measurement in measured
        ),
    ]


def read_layers(folder: Path, modules: Sequence[str] | None = None) -> list[Layer]:
    """Return the layers of frames in a folder of activations."""
    return [read_layer(folder, name) for name in layers_of_unit(folder, "frame", modules)]
