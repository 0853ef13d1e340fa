"""Pictures and tables without labels or points are errors that say what is missing, not blanks."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from asr_lightning.analysis.activations import read_description
from asr_lightning.callbacks.activations import Activations
from asr_lightning.callbacks.inspection import without_result
from asr_lightning.callbacks.neighbours import Neighbours
from asr_lightning.callbacks.tsne import TSNE
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.text.phones import PhoneLabels, Segment
from data_modules.phone_labels import CTMLabels
from tests.support.activations_run import Corpus, recognizer
from tests.support.tones import attention_decoder, lstm_encoder, make_trainer, speller, transducer


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    def test(**callbacks: Any) -> None:
        trainer = make_trainer(tmp_path / "run", callbacks=list(callbacks.values()))
        trainer.test(recognizer(), datamodule=Corpus(), verbose=False)

    with pytest.raises(InputError, match=r"expected activations in .* writes them"):
        test(tsne=TSNE())
    frames = Activations({"top": "encoder"})
    with pytest.raises(InputError, match="expected speakers among speaker0, speaker1, speaker2, got nobody"):
        test(activations=frames, tsne=TSNE(speakers=["nobody"], iterations=20))
    with pytest.raises(InputError, match="expected layers of tokens"):
        test(activations=frames, neighbours=Neighbours())


def biased(bias: float, encoder: float = 0.0) -> lightning.LightningModule:
    """A transducer that emits nothing, or whose encoder overflows."""
    model = build_recognizer(transducer())
    with torch.no_grad():
        model.joint.output.bias[model.tokenizer.blank_id] += bias
        model.encoder.norms[0].bias += encoder
    return model


def test_a_network_that_says_nothing_has_no_neighbours(tmp_path: Path) -> None:
    callbacks = [Activations({"top": "encoder", "state": "prediction"}), Neighbours()]
    old = tmp_path / "neighbours" / "test" / "table.csv"
    old.parent.mkdir(parents=True)
    old.write_text("of another test")
    message = r"no neighbours: .*at least two sentences.* 8 utterances"
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path, callbacks=callbacks).test(biased(50.0), datamodule=Corpus(), verbose=False)
    callbacks[1] = Neighbours(silence="warn")  # as in a rehearsal
    with pytest.warns(UserWarning, match=message):
        make_trainer(tmp_path, callbacks=callbacks).test(biased(50.0), datamodule=Corpus(), verbose=False)
    assert (tmp_path / "activations" / "test" / "top.npy").exists() and not old.exists()


def test_a_network_that_overflows_has_no_places(tmp_path: Path) -> None:
    callbacks = [Activations({"top": "encoder"}, labels=Known()), TSNE(iterations=20)]
    model = biased(0.0, float("nan"))
    with pytest.warns(UserWarning, match="finite"), pytest.raises(InputError, match="no t-SNE: none of the speakers"):
        make_trainer(tmp_path, callbacks=callbacks).test(model, datamodule=Corpus(), verbose=False)
    assert not (tmp_path / "tsne" / "test" / "figures.csv").exists()


def test_a_validation_while_training_only_warns(recwarn: pytest.WarningsRecorder) -> None:
    training, testing = (SimpleNamespace(state=SimpleNamespace(fn=fn)) for fn in (TrainerFn.FITTING, TrainerFn.TESTING))
    without_result(training, "nothing yet")
    assert "nothing yet" in str(recwarn.pop(UserWarning).message)
    with pytest.raises(InputError, match="nothing yet"):
        without_result(testing, "nothing yet")


class Known(PhoneLabels):
    """Two phones of every utterance but some."""

    def __init__(self, *without: str) -> None:
        self.without = without

    def segments(self, utterance: str) -> list[Segment]:
        return [] if utterance in self.without else [Segment(0.0, 0.2, "SIL"), Segment(0.2, 9.0, "AA")]


def test_without_phones_the_test_is_refused_before_it_begins(tmp_path: Path) -> None:
    """An attention model without CTC cannot say when characters are spoken: its pictures would be blank."""
    top = {"top": "encoder"}
    model = build_recognizer(attention_decoder(encoder=lstm_encoder(20), decoder=speller("AdditiveAttention")))
    for callbacks, expected in (
        ([Activations(top), TSNE()], r"expected phones to color .* Activations has no labels.*asr align"),
        ([Activations(top, labels=CTMLabels(str(tmp_path / "none"), "make them"))], "no phone labels at .*`make them`"),
    ):
        with pytest.raises(InputError, match=expected):
            make_trainer(tmp_path, callbacks=callbacks).test(model, datamodule=Corpus(), verbose=False)
        assert not (tmp_path / "activations" / "test").exists()
    nobody = Known(*(f"tone-{number}" for number in range(8)))
    with pytest.raises(InputError, match=r"expected phones of the 8 utterances, found none in Known.*asr align"):
        make_trainer(tmp_path, callbacks=[Activations(top, labels=nobody), TSNE()]).test(
            model, datamodule=Corpus(), verbose=False
        )
    assert not (tmp_path / "tsne").exists()


def test_sentences_are_drawn_by_their_texts_and_the_longest_stands_in(tmp_path: Path) -> None:
    """Speaker 0 says tones 0, 3 and 6, `A CAB`, `HE FED` and `EGG AGE`; the last, the longest, was not aligned."""
    callbacks = [
        Activations({"top": "encoder"}, labels=Known("tone-6")),
        TSNE(iterations=20, perplexity=3, sentences=["he fed.", "not in these data"]),
    ]
    trainer = make_trainer(tmp_path, callbacks=callbacks)
    with pytest.warns(UserWarning, match="tone-0 is drawn: the longest sentence of speaker speaker0: there is no 'not"):
        trainer.test(recognizer(), datamodule=Corpus(), verbose=False)
    folder = tmp_path / "tsne" / "test"
    with (folder / "sentences.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["speaker"], line["utterance"], bool(line["note"])) for line in lines] == [
        ("speaker0", "tone-3", False), ("speaker0", "tone-0", True),
    ]  # fmt: skip
    assert {path.name for path in (folder / "speaker0").glob("*.png")} == {
        f"tone-{number}-{kind}.png" for number in (0, 3) for kind in ("order", "phone")
    }
    assert read_description(tmp_path / "activations" / "test")["with_phones"] == 7
