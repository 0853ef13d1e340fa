"""Labels along the color bar of a sentence."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from asr_lightning.analysis.activations import Layer
from asr_lightning.analysis.layers import LayerProjection
from asr_lightning.report import layer_figures
from asr_lightning.report.alignment_figure import spread
from asr_lightning.report.layer_figures import plot_order, plot_phones, short_names


def projected(characters: list[str], phones: list[str]) -> LayerProjection:
    count = len(phones)
    names, numbers = np.array(["u"] * count), np.arange(count)
    layer = Layer(
        "layer1", "frame", np.zeros((count, 3), np.float32), names, names, numbers, numbers * 0.01,
        numbers * 0.01 + 0.01, np.array(characters, dtype=str), np.array(phones, dtype=str),
    )  # fmt: skip
    return LayerProjection(layer, np.random.default_rng(1).normal(size=(count, 2)))


def labels_along(layer: LayerProjection, panels: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[float]]:
    figures: list[Figure] = []
    monkeypatch.setattr(layer_figures, "_save", lambda figure, title, path: figures.append(figure))
    plot_order([layer] * panels, "u", "title", Path("x.png"))
    bar = figures[0].axes[-1]
    return [tick.get_text() for tick in bar.get_xticklabels()], [float(position) for position in bar.get_xticks()]


def test_characters_begin_where_they_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = projected(["_", "_", "A", "", "B", "B", "_"], ["SIL", "SIL", "a", "a", "b", "b", "SIL"])
    labels, positions = labels_along(layer, 1, monkeypatch)
    assert labels == ["␣", "A", "B", "␣"]
    assert positions == pytest.approx([0, 2 / 6, 4 / 6, 1])


def test_words_are_kept_where_they_do_not_overlap() -> None:
    characters = [*"ONE_TWO_THREE_FOUR"]
    positions = [number / (len(characters) - 1) for number in range(len(characters))]
    middles, words = layer_figures._words(positions, characters)
    assert words == ["ONE", "TWO", "THREE", "FOUR"]
    assert middles == pytest.approx([1 / 17, 5 / 17, 10 / 17, 15.5 / 17])
    assert layer_figures._without_overlaps(middles, words, 30) == (middles, words)
    assert layer_figures._without_overlaps(middles, words, 12)[1] == ["ONE", "THREE"]  # others would overlap
    assert layer_figures._words(positions[:4], [*"_A__"]) == (positions[1:2], ["A"])


def test_words_stand_there_where_characters_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "_".join(["ABC"] * 12)
    labels, positions = labels_along(projected(list(text), ["x"] * len(text)), 1, monkeypatch)
    assert set(labels) == {"ABC"} and 5 < len(labels) < 12
    assert np.diff(positions).min() >= 4 / layer_figures.LETTERS - 1e-9


def test_phones_stand_there_where_nobody_knows_the_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = projected([""] * 6, ["SIL", "aa", "aa", "b", "SIL", "SIL"])
    labels, positions = labels_along(layer, 1, monkeypatch)
    assert labels == ["SIL", "aa", "b", "SIL"] and positions == pytest.approx([0, 0.2, 0.6, 0.8])
    many = projected([""] * 90, ["SIL", "oU", "t"] * 30)
    labels, positions = labels_along(many, 1, monkeypatch)
    assert 8 < len(labels) < 20


def test_names_of_layers_go_without_the_module_that_holds_all_of_them() -> None:
    assert short_names(["encoder.subsampling", "encoder.layers.0"]) == ["subsampling", "layers.0"]
    assert short_names(["encoder.layers.0", "decoder.layers.0"]) == ["encoder.layers.0", "decoder.layers.0"]
    assert short_names(["encoder.layers.0"]) == ["encoder.layers.0"]
    assert short_names(["low", "low.0"]) == ["low", "low.0"]


def test_a_figure_of_phones_holds_its_legend_and_is_an_svg_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phones = (
        "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH".split()
    )
    layer = projected([""] * len(phones), phones)
    figures: list[Figure] = []
    save = layer_figures.save_figure
    monkeypatch.setattr(layer_figures, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path)))
    for panels in (1, 4, 6):
        plot_phones([layer] * panels, "u", "A TITLE", tmp_path / f"{panels}.png")
        [legend] = figures[-1].legends
        box = legend.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figures[-1].bbox.width and box.y0 >= 0
        assert len(legend.get_texts()) == len(phones)
        assert len(figures[-1].axes) == panels
        assert (tmp_path / f"{panels}.svg").read_text().startswith("<?xml")


def test_tokens_of_an_alignment_do_not_overlap() -> None:
    middles = spread([0.0, 0.1, 0.1, 0.5, 1.0, 1.0], [0.1] * 6, 1.0)
    assert min(np.diff(middles)) >= 0.1 - 1e-9 and max(middles) <= 0.95 + 1e-9
    assert middles[:4] == pytest.approx([0.0, 0.1, 0.2, 0.5])
