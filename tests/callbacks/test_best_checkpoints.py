"""Checkpoints are chosen by development subsets, and never by test subsets."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from asr_lightning.callbacks.best_checkpoints import BestCheckpoints, refuse_choice_by_tests, save_after_validation
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import load_recognizer
from data_modules.librispeech import LibriSpeechDataModule
from tests.support.tones import RATE, TEXTS, make, make_trainer, write_corpus


def corpus(folder: Path, **subsets: list[str]) -> LibriSpeechDataModule:
    for subset in ("train", "dev", "other", "test"):
        if not (folder / subset).exists():
            write_corpus(folder, subset, TEXTS[:2])
    named = {f"{role}_subsets": names for role, names in {"train": ["train"], **subsets}.items()}
    return LibriSpeechDataModule(str(folder), **named, batch_seconds=3.0, workers=0, sample_rate=RATE)  # type: ignore[arg-type]


def fit(
    folder: Path, callback: Any, wers: list[float], options: dict[str, Any] | None = None, **subsets: list[str]
) -> Any:
    """Train epochs whose error rate on `dev` is planted; on other subsets it falls all the time."""
    model = make()
    log = model.log

    def planted(name: str, value: Any, **more: Any) -> None:
        if name.endswith("/wer"):
            rate = wers[model.current_epoch] if name == "dev/wer" else 1.0 - 0.1 * model.current_epoch
            value = torch.tensor(rate)
        log(name, value, **more)

    model.log = planted  # type: ignore[assignment]
    callback.dirpath = str(folder / "checkpoints")
    settings = {"max_epochs": len(wers), "callbacks": [callback], "enable_checkpointing": True, **(options or {})}
    trainer = make_trainer(folder, **settings)
    trainer.fit(model, datamodule=corpus(folder / "corpus", **subsets))
    return callback


def test_the_best_by_the_development_subset_are_kept(tmp_path: Path) -> None:
    wers = [0.9, 0.3, 0.5, 0.2, 0.8]
    callback = fit(tmp_path, BestCheckpoints(keep=2), wers, validation=["test", "dev"], test=["test"])
    assert callback.monitor == "dev/wer"
    names = sorted(path.name.partition("-step")[0] for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best-epoch=1", "best-epoch=3"]
    assert callback.best_model_score == pytest.approx(0.2) and "epoch=3" in callback.best_model_path
    assert "optimizer_states" not in torch.load(callback.best_model_path, weights_only=True)
    load_recognizer(callback.best_model_path)


@pytest.mark.parametrize("callback", [BestCheckpoints(), ModelCheckpoint(monitor="dev/wer", save_top_k=-1)])
def test_steps_after_the_last_validation_are_not_chosen_by_its_metric(tmp_path: Path, callback: Any) -> None:
    save_after_validation([callback], {"validation": ["dev"]})
    write_corpus(tmp_path / "corpus", "long", TEXTS)
    trained = fit(tmp_path, callback, [0.9, 0.3], {"max_steps": 4}, train=["long"], validation=["dev"])
    assert [path.stem.partition("step=")[2] for path in (tmp_path / "checkpoints").iterdir()] == ["3"], trained


def test_a_run_without_validation_keeps_nothing_and_goes_on(tmp_path: Path) -> None:
    callback = BestCheckpoints()
    callback.dirpath = str(tmp_path / "checkpoints")
    options: dict[str, Any] = {"limit_val_batches": 0, "max_epochs": 2, "enable_checkpointing": True}
    trainer = make_trainer(tmp_path, callbacks=[callback], **options)
    trainer.fit(make(), datamodule=corpus(tmp_path / "corpus", validation=["dev"]))
    assert trainer.global_step > 0 and not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("subset", "subsets"),
    [
        (None, {"validation": ["test"], "test": ["test"]}),
        (None, {"validation": [], "test": ["test"]}),
        (None, {"validation": ["train"]}),
        ("test", {"validation": ["dev", "test"], "test": ["test"]}),
        ("other", {"validation": ["dev"]}),
    ],
)
def test_nothing_is_chosen_by_what_is_tested_or_trained_on(
    tmp_path: Path, subset: str | None, subsets: dict[str, list[str]]
) -> None:
    with pytest.raises(InputError, match="BestCheckpoints: expected .* neither trained nor tested on"):
        fit(tmp_path, BestCheckpoints(subset=subset), [0.1], **subsets)


SUBSETS = {"validation": ["dev", "test"], "test": ["test"]}


@pytest.mark.parametrize(
    "callback",
    [
        ModelCheckpoint(monitor="test/wer"),
        ModelCheckpoint(monitor="val/loss", save_top_k=3),
        EarlyStopping(monitor="test/cer"),
        EarlyStopping(monitor="val/wer"),
    ],
)
def test_callbacks_that_choose_by_a_test_subset_are_refused(callback: Any) -> None:
    with pytest.raises(InputError, match=r"on, got (test|val)/\w+, which is of test among .* as dev/wer"):
        refuse_choice_by_tests([callback], SUBSETS)


def test_callbacks_that_choose_nothing_or_by_others_are_let_be() -> None:
    keeping = [ModelCheckpoint(monitor="test/wer", save_top_k=-1), ModelCheckpoint(), BestCheckpoints()]
    choosing = [ModelCheckpoint(monitor="dev/wer"), EarlyStopping(monitor="dev/loss")]
    refuse_choice_by_tests([*keeping, *choosing], SUBSETS)
    refuse_choice_by_tests([EarlyStopping(monitor="val/wer")], {"validation": ["dev"], "test": ["test"]})
    refuse_choice_by_tests([EarlyStopping(monitor="val/loss")], {})
