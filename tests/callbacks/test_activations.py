import filecmp
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from asr_lightning.analysis.activations import (
    PartWriter,
    Rows,
    UtteranceActivations,
    merge_parts,
    read_description,
    read_layer,
    read_utterances,
)
from asr_lightning.callbacks.activations import Activations
from asr_lightning.callbacks.observation import observe
from asr_lightning.errors import InputError
from asr_lightning.text.phones import PhoneLabels, Segment
from tests.support import SUPPORT, environment
from tests.support.activations_run import MODULES, Corpus, recognizer
from tests.support.tones import RATE, TEXTS, batch_of, make_trainer


def look(folder: Path, modules: dict[str, str] = MODULES, **options: Any) -> Path:
    trainer = make_trainer(folder, callbacks=[Activations(modules, **options)])
    trainer.test(recognizer(), datamodule=Corpus(), verbose=False)
    return folder / "activations" / "test"


class Halves(PhoneLabels):
    """Silence for 0.2 s, then one phone."""

    def segments(self, utterance: str) -> list[Segment]:
        return [] if utterance == "tone-3" else [Segment(0.0, 0.2, "SIL"), Segment(0.2, 9.0, utterance)]


def test_what_is_written_is_what_the_layers_said(tmp_path: Path) -> None:
    folder = look(tmp_path, labels=Halves())
    description = read_description(folder)
    assert description["recognizer"] == "EncoderDecoder" and description["paths"] == MODULES
    assert {name: module["unit"] for name, module in description["modules"].items()} == {
        "layer": "frame",
        "top": "frame",
        "state": "token",
    }
    model, batch = recognizer().eval(), batch_of(TEXTS)
    encoded, lengths = model(batch.audio, batch.audio_lengths)
    top = read_layer(folder, "top")
    assert list(dict.fromkeys(top.utterances)) == sorted(batch.ids)
    for row, name in enumerate(batch.ids):
        rows = top.where(top.utterances == name)
        np.testing.assert_allclose(rows.values, encoded[row, : lengths[row]].detach().numpy(), rtol=1e-4, atol=1e-5)
        assert rows.index.tolist() == list(range(lengths[row]))
        assert set(rows.speakers) == {f"speaker{row % 3}"}
        hop = 4 * 0.01
        np.testing.assert_allclose(rows.starts, np.arange(len(rows)) * hop + 0.0125 - hop / 2, atol=1e-4)
        np.testing.assert_allclose(rows.ends - rows.starts, hop, atol=2e-4)
        expected = [""] * len(rows) if name == "tone-3" else ["SIL"] * 5 + [name] * (len(rows) - 5)
        assert rows.phones.tolist() == expected
    spoken = read_utterances(folder)
    assert [spoken[name]["reference"] for name in batch.ids] == TEXTS
    assert float(spoken["tone-0"]["seconds"]) == pytest.approx(int(batch.audio_lengths[0]) / RATE)


def test_states_of_a_decoder_are_those_that_led_to_what_it_said(tmp_path: Path) -> None:
    folder = look(tmp_path, utterances=8)
    state = read_layer(folder, "state")
    model = recognizer().eval()
    for utterance in batch_of(TEXTS).ids[:3]:
        rows = state.where(state.utterances == utterance)
        words = "".join(rows.characters[:-1]).replace("_", " ").split()
        assert " ".join(words) == read_utterances(folder)[utterance]["hypothesis"]
        assert rows.characters[-1] == "<eos>"
        assert np.isnan(rows.starts).all()
    batch = batch_of(TEXTS[:1])
    [best] = [hypotheses[0] for hypotheses in model.recognize(batch)]
    encoded, lengths = model(batch.audio, batch.audio_lengths)
    memory = model.decoder.remember(encoded, lengths)
    decoder_state = model.decoder.initial_state(memory)
    rows = state.where(state.utterances == "tone-0")
    with torch.no_grad():
        for number, token in enumerate([model.tokenizer.eos_id, *best.tokens]):
            _, decoder_state = model.decoder.step(torch.tensor([token]), decoder_state, memory)
            np.testing.assert_allclose(rows.values[number], decoder_state[0][0], rtol=1e-4, atol=1e-5)


def test_two_processes_write_the_same_as_one(tmp_path: Path) -> None:
    single = look(tmp_path / "one", utterances=None)
    command = [sys.executable, str(SUPPORT / "activations_run.py")]
    arguments = json.dumps({"folder": str(tmp_path / "two"), "options": {}})
    result = subprocess.run([*command, arguments], env=environment(), capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-3000:]
    double = tmp_path / "two" / "activations" / "test"
    assert sorted(path.name for path in double.parent.iterdir()) == ["test"]
    names = sorted(path.name for path in single.iterdir())
    assert names == sorted(path.name for path in double.iterdir())
    same, different, missing = filecmp.cmpfiles(single, double, names, shallow=False)
    assert same == names, (different, missing)


def test_pandas_and_numpy_read_it(tmp_path: Path) -> None:
    folder = look(tmp_path)
    table = pandas.read_csv(folder / "top.csv")
    assert list(table.columns) == ["utterance", "speaker", "index", "start", "end", "character", "phone"]
    values = np.load(folder / "top.npy", mmap_mode="r")
    assert values.shape == (len(table), 64) and values.dtype == np.float32
    assert len(pandas.read_csv(folder / "utterances.csv")) == len(TEXTS)


def test_only_those_that_are_wanted(tmp_path: Path) -> None:
    assert len(read_utterances(look(tmp_path / "few", utterances=3))) == 3
    assert set(read_layer(look(tmp_path / "named", speakers=["speaker1"]), "top").speakers) == {"speaker1"}
    assert set(read_layer(look(tmp_path / "first", speakers=2), "top").speakers) == {"speaker0", "speaker1"}
    with pytest.raises(InputError, match="expected utterances of the subsets"):
        look(tmp_path / "none", subsets=["dev-clean"])


def test_without_labels_phones_are_characters_aligned_by_ctc(tmp_path: Path) -> None:
    folder = look(tmp_path)
    top = read_layer(folder, "top")
    rows = top.where(top.utterances == "tone-2")
    runs = [
        phone for phone, previous in zip(rows.phones, ["", *rows.phones], strict=False) if phone != previous and phone
    ]
    assert "".join(runs).replace("_", " ").strip() == "BED"


@pytest.mark.parametrize("stage", ["validate", "predict"])
def test_validation_and_prediction_are_looked_at_too(tmp_path: Path, stage: str) -> None:
    same = look(tmp_path / "test")
    trainer = make_trainer(tmp_path, callbacks=[Activations(MODULES, stages=[stage])])
    getattr(trainer, stage)(recognizer(), datamodule=Corpus())
    folder = tmp_path / "activations" / stage
    np.testing.assert_array_equal(np.load(folder / "state.npy"), np.load(same / "state.npy"))
    assert (folder / "top.csv").read_text() == (same / "top.csv").read_text()


def test_nothing_happens_in_other_stages(tmp_path: Path) -> None:
    look(tmp_path, stages=["validate"])
    assert not (tmp_path / "activations").exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("encoder.layer.0", "expected the path of a module of EncoderDecoder"),
        ("encoder:inside", "expected the path of a module"),
        ("encoder.layers.0.forward_lstm:weights", "expected attention weights over frames, found none"),
        ("augment", "expected the path"),
        ("decoder.output", None),
        ("encoder.subsampling.convolutions.0", r"gives \(2, 8, .*expected a row for every frame"),
    ],
)
def test_modules_that_cannot_be_looked_at_are_named(tmp_path: Path, path: str, message: str | None) -> None:
    if message is None:
        look(tmp_path, {"odd": path})
        return
    with pytest.raises(InputError, match=message):
        look(tmp_path, {"odd": path})


@pytest.mark.parametrize("options", [{"stages": ["fit"]}, {"modules": {}}, {"modules": {"../up": "encoder"}}])
def test_arguments_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="stages are|modules need names"):
        Activations(**{"modules": MODULES, **options})


def test_what_a_module_reads_and_where_an_attention_looks() -> None:
    model, batch = recognizer().eval(), batch_of(TEXTS[:2])
    paths = {"read": "encoder.norms.0:input", "layer": "encoder.layers.0", "weights": "decoder.attention:weights"}
    observation = observe(model, batch, paths, [model.tokenizer.encode(text) for text in TEXTS[:2]])
    torch.testing.assert_close(observation.outputs["read"].values, observation.outputs["layer"].values)
    weights = observation.outputs["weights"]
    assert weights.unit == "token" and weights.values.shape[1:] == (len(TEXTS[1]) + 2, int(observation.lengths.max()))
    torch.testing.assert_close(weights.values.sum(dim=2), torch.ones(weights.values.shape[:2]))


def test_files_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected activations in"):
        read_description(tmp_path)
    part = PartWriter(tmp_path / ".part")
    rows = Rows(np.ones((2, 3)), "frame", [0.0, 0.1], [0.1, 0.2], ["A", "_"], ["AA", "SIL"])
    part.append(UtteranceActivations("one", "test", "me", 0.2, "A", "A", {"top": rows}))
    assert merge_parts([part.folder], tmp_path / "all", {}) == 1
    layer = read_layer(tmp_path / "all", "top")
    assert layer.phones.tolist() == ["AA", "SIL"] and layer.ends.tolist() == [0.1, 0.2]
    with pytest.raises(InputError, match="expected one of the modules in .*, top; got 'bottom'"):
        read_layer(tmp_path / "all", "bottom")
    with (tmp_path / "all" / "top.csv").open("a") as file:
        file.write("one,me\n")
    with pytest.raises(InputError, match=r"expected 2 lines as in top.npy, found 3"):
        read_layer(tmp_path / "all", "top")
