"""Similarity of a student's layers to its teacher's while it is trained."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from asr_lightning.batch import Batch, Utterance
from asr_lightning.callbacks.teacher_similarity import TeacherSimilarity
from asr_lightning.callbacks.weight_selection import WeightSelection
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.report.similarity_figure import read_similarities
from tests.support.planted_teachers import RATE
from tests.support.teacher_checkpoint import configuration, save_teacher
from tests.support.transcribing_run import loader, make_trainer


def layered(width: int, layers: int) -> dict[str, Any]:
    config = configuration(width)
    config["init_args"]["encoder"]["init_args"] |= {"layers": layers, "dropout": 0.1}
    return config


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch.collate(
        [
            Utterance(f"{seed}{text}", torch.randn(size, generator=generator) / 10, RATE, text)
            for text, size in (("AB", 6_000), ("CAB", 8_100))
        ]
    )


class Speech(lightning.LightningDataModule):
    """Two batches of two utterances for training, and two for each of two validation subsets."""

    def train_dataloader(self) -> Any:
        return loader([batch(0), batch(1)])

    def val_dataloader(self) -> Any:
        return {"dev-clean": loader([batch(2), batch(3)]), "dev-other": loader([batch(4)])}


def student(width: int = 3) -> Recognizer:
    torch.manual_seed(1)
    return build_recognizer(layered(width, 2))


def fit(
    folder: Path,
    model: Recognizer,
    callbacks: list[Any],
    epochs: int = 2,
    ckpt_path: Path | None = None,
    data: Any = None,
) -> None:
    lightning.seed_everything(7, verbose=False)
    trainer = make_trainer(folder, callbacks=callbacks, limit_val_batches=0, max_epochs=epochs)
    trainer.fit(model, datamodule=data or Speech(), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / f"epoch{epochs}.ckpt")


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    return save_teacher(tmp_path, layered(6, 3))[0]


def test_a_run_is_the_same_to_the_digit_and_its_layers_are_measured_by_epoch(tmp_path: Path, teacher: Path) -> None:
    plain, measured = student(), student()
    fit(tmp_path / "plain", plain, [])
    fit(tmp_path / "measured", measured, [TeacherSimilarity(str(teacher), "last")])
    for name, value in plain.state_dict().items():
        assert torch.equal(measured.state_dict()[name], value), name
    rows = read_similarities(tmp_path / "measured/similarity.csv")
    assert [(row.epoch, row.layer, row.teacher_layer) for row in rows] == [
        (epoch, f"layers.{layer}", f"layers.{layer + 1}") for epoch in (0, 1, 2) for layer in (0, 1)
    ]
    assert all(0.0 < row.similarity < 0.999 for row in rows)
    assert len({row.similarity for row in rows}) == len(rows)
    assert all((tmp_path / f"measured/similarity.{kind}").stat().st_size > 3_000 for kind in ("png", "svg"))


def test_a_student_of_the_teacher_s_size_begins_as_its_teacher(tmp_path: Path, teacher: Path) -> None:
    fit(tmp_path / "run", student(6), [WeightSelection(str(teacher)), TeacherSimilarity(str(teacher))], 1)
    before, after = (
        [row.similarity for row in read_similarities(tmp_path / "run/similarity.csv") if row.epoch == epoch]
        for epoch in (0, 1)
    )
    assert before == pytest.approx([1.0, 1.0]) and all(value < 0.99999 for value in after)


def test_a_resumed_run_has_the_rows_of_one_that_was_not_stopped(tmp_path: Path, teacher: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fit(whole, student(), [TeacherSimilarity(str(teacher))], 3)
    fit(stopped, student(), [TeacherSimilarity(str(teacher))], 1)
    fit(stopped, student(), [TeacherSimilarity(str(teacher))], 3, stopped / "epoch1.ckpt")
    assert (stopped / "similarity.csv").read_text() == (whole / "similarity.csv").read_text()
    (stopped / "similarity.csv").write_text("epoch,layer\n1,layers.0\n")
    with pytest.raises(InputError, match="expected similarities by epoch and layer"):
        fit(stopped, student(), [TeacherSimilarity(str(teacher))], 3, stopped / "epoch1.ckpt")


def test_what_cannot_be_compared_is_named(tmp_path: Path, teacher: Path) -> None:
    class Unvalidated(Speech):
        def val_dataloader(self) -> Any:
            return {}

    with pytest.raises(InputError, match="expected a validation subset with speech"):
        fit(tmp_path, student(), [TeacherSimilarity(str(teacher))], data=Unvalidated())
    with pytest.raises(InputError, match="2 layers, but only 1 in the teacher"):
        small = save_teacher(tmp_path, layered(6, 1))[0]
        fit(tmp_path, student(), [TeacherSimilarity(str(small))])
    with pytest.raises(InputError, match="missing.ckpt"):
        fit(tmp_path, student(), [TeacherSimilarity(str(tmp_path / "missing.ckpt"))])
    with pytest.raises(InputError, match="utterances from 1, got 0"):
        TeacherSimilarity(str(teacher), utterances=0)
