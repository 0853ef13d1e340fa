"""Utterances with samples that no recording has are left out: weights and running statistics stay finite."""

from pathlib import Path
from typing import Any

import pytest
import torch

from asr_lightning.batch import Batch
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.recognizer import Recognizer, infinite_without_audio
from tests.support.architectures import ARCHITECTURES
from tests.support.tones import batch_of, loader, make_trainer

VALUES = [1e19, float("nan"), float("inf"), -1e30]
WITH_STATISTICS = [  # BatchNorm in a Conformer, in Deep Speech 2 and in Jasper; and features that are normalized
    "RNN-T with a Conformer",
    "RNN-T of LSTMs with CTC",
    "joint CTC-attention",
    "Deep Speech 2",
    "Deep Speech 2 with vanilla units, published attention and a prefix beam",
    "Jasper",
]


def spoiled(value: float) -> Batch:
    """Three utterances, of which the second has an impossible sample."""
    batch = batch_of(["CAB", "A BED", "DEAF BEE"])
    batch.audio[1, 300] = value
    return batch


def not_finite(recognizer: Recognizer) -> list[str]:
    return [name for name, value in recognizer.state_dict().items() if not value.isfinite().all()]


@pytest.mark.parametrize("name", WITH_STATISTICS)
def test_an_utterance_with_impossible_samples_is_left_out_and_named(name: str, tmp_path: Path) -> None:
    recognizer = build_recognizer(ARCHITECTURES[name])
    weights = {key: value.clone() for key, value in recognizer.state_dict().items()}
    trainer = make_trainer(tmp_path)
    with pytest.warns(UserWarning, match=r"4 utterances were skipped, .*impossible samples.*: tone-1, tone-1"):
        trainer.fit(recognizer, loader([spoiled(value) for value in VALUES]))
    assert not not_finite(recognizer)
    assert float(trainer.callback_metrics["train/skipped_utterances"]) == 4
    changed = [key for key, value in recognizer.state_dict().items() if not value.equal(weights[key])]
    assert changed  # by the other utterances


@pytest.mark.parametrize("value", VALUES)
def test_the_losses_of_the_others_are_what_they_are_without_it(value: float) -> None:
    recognizer = build_recognizer(ARCHITECTURES["RNN-T of LSTMs"]).eval()
    with torch.no_grad():
        batches = batch_of(["CAB", "A BED", "DEAF BEE"]), spoiled(value)
        expected, losses = (infinite_without_audio(recognizer.loss(batch), batch) for batch in batches)
    assert losses[1] == torch.inf
    torch.testing.assert_close(losses[[0, 2]], expected[[0, 2]])


def test_validation_goes_on_with_the_others(tmp_path: Path) -> None:
    recognizer = build_recognizer(ARCHITECTURES["Deep Speech 2"])
    batches: dict[str, Any] = {"dev": loader([spoiled(value) for value in VALUES])}
    [metrics] = make_trainer(tmp_path).validate(recognizer, batches, verbose=False)
    assert 0 < metrics["val/loss"] < float("inf") and not not_finite(recognizer)
    assert len(recognizer.transcribe(spoiled(1e19))) == 3
