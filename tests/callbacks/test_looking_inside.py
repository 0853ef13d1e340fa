"""t-SNE and neighbours, from activations that a real test run has written."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger

from asr_lightning.analysis.activations import PartWriter, Rows, UtteranceActivations, merge_parts
from asr_lightning.analysis.character_neighbours import (
    PublishedTable,
    find_character_neighbours,
    neighbour_caption,
    neighbour_table,
)
from asr_lightning.analysis.layers import layer_curves, measure_layers, project_layers, read_layers
from asr_lightning.callbacks.activations import Activations
from asr_lightning.callbacks.neighbours import Neighbours
from asr_lightning.callbacks.tsne import TSNE
from asr_lightning.errors import InputError
from asr_lightning.report import layer_figures
from asr_lightning.report.layer_figures import plot_order
from tests.support.activations_run import Corpus, recognizer
from tests.support.tones import make_trainer

MODULES = {"low": "encoder.layers.0", "top": "encoder", "state": "decoder.cells.0", "context": "decoder.attention"}
PHONES = ["SIL", "AA", "B", "S"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        logger = WandbLogger(project="test", save_dir=folder)
        callbacks = [Activations(MODULES), TSNE(iterations=60, perplexity=5, sentences=2), Neighbours(k=3)]
        trainer = make_trainer(folder, callbacks=callbacks, logger=logger)
        trainer.test(recognizer(), datamodule=Corpus(), verbose=False)
        logger.experiment.finish()
    return folder


def test_every_frame_of_the_speaker_has_a_place_in_every_layer(run: Path) -> None:
    folder = run / "tsne" / "test"
    [speaker] = [path for path in folder.iterdir() if path.is_dir()]
    low, top = (rows_of(speaker / f"{layer}.csv") for layer in ("low", "top"))
    assert len(low) == len(top) > 40
    assert {row["speaker"] for row in low} == {speaker.name}
    positions = np.array([[float(row["x"]), float(row["y"])] for row in low])
    assert np.square(positions).sum(axis=1).mean() == pytest.approx(1.0, abs=0.01)
    names = {row["utterance"] for row in low}
    pictures = [path.name for path in sorted(speaker.glob("*.png"))]
    assert len(pictures) == 4 and {name.rsplit("-", 1)[0] for name in pictures} <= names
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in speaker.rglob("*.png"))
    figures = rows_of(folder / "figures.csv")
    assert [(row["layer"], row["space"]) for row in figures] == [
        ("low", "original"), ("low", "tsne"), ("top", "original"), ("top", "tsne"),
    ]  # fmt: skip
    assert (folder / "figures.png").stat().st_size > 10_000


def test_weights_and_biases_gets_pictures_and_table(run: Path) -> None:
    files = [str(path.relative_to(run)) for path in (run / "wandb").rglob("*") if path.is_file()]
    for key in ("tsne/low/order", "tsne/top/phone", "neighbours"):
        assert any(f"media/images/{key}" in name or f"media/table/{key}" in name for name in files), files


def test_neighbours_are_in_other_sentences_and_are_shown(run: Path) -> None:
    folder = run / "neighbours" / "test"
    lines = rows_of(folder / "state.csv")
    assert len(lines) > 10
    for line in lines:
        assert f"<<{line['character']}>>" in line["sentence"]
        for rank in "123":
            assert line[f"utterance_{rank}"] != line["utterance"]
            assert "<<" in line[f"neighbour_{rank}"]
        distances = [float(line[f"distance_{rank}"]) for rank in "123"]
        assert distances == sorted(distances)
    totals = rows_of(folder / "table.csv")
    assert {(row["sentences"], row["tokens"]) for row in totals} == {
        (str(len({line["utterance"] for line in lines})), str(len(lines)))
    }
    assert [row["layer"] for row in totals] == ["state", "context"]
    counted = sum(int(line[f"matching_{rank}"]) for line in lines for rank in "123")
    assert float(totals[0]["total"]) == counted
    assert float(totals[0]["mean"]) == pytest.approx(counted / (3 * len(lines)), abs=0.01)
    table, caption = (folder / "table.md").read_text().split("\n\n")
    assert table.count("\n") == 3
    assert caption.startswith(f"3 neighbours of each of {len(lines)} tokens of {totals[0]['sentences']} sentences")


def planted(folder: Path, seed: int = 0) -> Path:
    """Two speakers; layer `phones` knows the phone, layer `time` the time; `history` the last two characters."""
    random = np.random.default_rng(seed)
    centers = {phone: 3 * random.normal(size=12) for phone in PHONES}
    codes = {character: random.normal(size=4) for character in "ABC_"}
    part = PartWriter(folder / ".part")
    for number in range(24):
        phones = [str(phone) for phone in random.choice(PHONES, 12) for _ in range(3)]
        starts = np.arange(36) * 0.04
        by_phone = np.stack([centers[phone] for phone in phones]) + 0.2 * random.normal(size=(36, 12))
        by_time = 0.02 * random.normal(size=(36, 12))
        by_time[:, :2] += np.stack([np.cos(starts), np.sin(starts)], axis=1)
        text = [str(character) for character in random.choice(list("ABC_"), 30)]
        codes_of = [codes[character] for character in text]
        nothing = np.zeros(4)
        history = [np.r_[2 * (codes_of[index - 1] if index else nothing), codes_of[index - 2] if index > 1 else nothing]
                   for index in range(31)]  # fmt: skip
        frames = [starts.tolist(), (starts + 0.04).tolist(), [""] * 36, phones]
        modules = {
            "phones": Rows(by_phone, "frame", *frames),
            "time": Rows(by_time, "frame", *frames),
            "history": Rows(np.array(history), "token", characters=[*text, "<eos>"]),
        }
        part.append(
            UtteranceActivations(f"u{number:02}", "test", f"s{number % 2}", 1.5, "".join(text), "".join(text), modules)
        )
    merge_parts([part.folder], folder / "test", {})
    return folder / "test"


def test_planted_layers_are_told_apart_in_both_spaces(tmp_path: Path) -> None:
    folder = planted(tmp_path)
    with pytest.raises(InputError, match="expected layers of frames, history, found phones, time"):
        read_layers(folder, ["history"])
    layers = read_layers(folder)
    measured = []
    for speaker in ("s0", "s1"):
        projected = project_layers(layers, speaker, perplexity=20, iterations=300)
        assert {len(projection.positions) for projection in projected} == {12 * 36}
        measured += measure_layers(projected)
    curves = {(curve.figure, curve.space): curve for curve in layer_curves(measured)}
    for space in ("original", "tsne"):
        purity, order = curves["purity", space], curves["order", space]
        assert purity.layers == ["phones", "time"]
        assert purity.means[0] > 0.95 and purity.means[1] < curves["chance", space].means[1] + 0.15
        assert order.means[1] > (0.98 if space == "original" else 0.6) > 0.3 > order.means[0]
        low, high = order.intervals[0]
        assert low <= order.means[0] <= high
    assert curves["silence", "original"].means[0] < 0.2 < curves["silence", "original"].means[1]


def test_states_of_two_characters_match_two_and_more(tmp_path: Path) -> None:
    [result] = find_character_neighbours(planted(tmp_path), ["history"])
    assert len(result.characters) == 24 * 30
    chance = 1 / 3  # of the characters further back, each the same with 1/4
    assert result.matches.mean == pytest.approx(2 + chance, abs=0.25)
    assert result.shuffled.mean < 0.5
    assert result.ngrams[1].mean == pytest.approx(1 + chance, abs=0.15)
    head, line = neighbour_table([result])
    assert head[:5] == ["layer", "sentences", "tokens", "total", "mean"] and line[:3] == ["history", "24", "720"]
    assert result.context(-1) == ""
    assert result.context(30).startswith("<<") and result.context(29).endswith(">>")


def test_as_many_sentences_as_the_paper_has_are_compared_with_each_other(tmp_path: Path) -> None:
    folder = planted(tmp_path)
    [few] = find_character_neighbours(folder, ["history"], sentences=7)
    assert few.sentences == 7 and len(few.characters) == 7 * 30
    assert few.neighbours.max() < 7 * 30  # no neighbour from others
    [repeated], [other] = (find_character_neighbours(folder, ["history"], seed=seed, sentences=7) for seed in (1, 2))
    assert set(repeated.utterances) == set(few.utterances) != set(other.utterances)
    [every], [more] = (find_character_neighbours(folder, ["history"], sentences=count) for count in (24, 79))
    assert every.sentences == more.sentences == 24 and every.matches == more.matches
    assert few.matches.mean < every.matches.mean  # fewer candidates, shorter matches


def test_the_papers_row_stands_beside_ours(tmp_path: Path) -> None:
    [result] = find_character_neighbours(planted(tmp_path), ["history"])
    published = PublishedTable(sentences=79, tokens=9566, totals=[88024])
    head, first, second = neighbour_table([result, result], published)
    column = head.index("published total")
    assert first[column : column + 2] == ["88024", "1.84"] and second[column : column + 2] == ["–", "–"]
    assert neighbour_caption([result], 1, published).endswith("The paper has 79 sentences and 9,566 tokens.")
    with pytest.raises(ValueError, match="at least 2"):
        Neighbours(sentences=1)


def test_characters_stand_along_the_color_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = PartWriter(tmp_path / ".part")
    rows = Rows(np.random.default_rng(0).normal(size=(5, 3)), "frame", [0, 1, 2, 3, 4], [1, 2, 3, 4, 5],
                ["", "A", "A", "B", "B"], ["SIL"] * 5)  # fmt: skip
    part.append(UtteranceActivations("u", "test", "s", 5.0, "AB", "AB", {"top": rows}))
    merge_parts([part.folder], tmp_path / "test", {})
    [projection] = project_layers(read_layers(tmp_path / "test"), "s", iterations=20)
    assert layer_figures._label_positions(projection.layer.characters) == ([0.25, 0.75], ["A", "B"])
    plot_order([projection], "u", "AB", tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").exists()
