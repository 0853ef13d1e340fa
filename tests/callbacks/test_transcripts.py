import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from asr_lightning.batch import Batch
from asr_lightning.callbacks.transcripts import Transcripts, as_json_line, readable_time, transcripts
from asr_lightning.files import name_of_run
from asr_lightning.models.checkpoints import CheckpointFiles
from asr_lightning.scoring import COUNTS, RATES
from asr_lightning.text.timed_words import Word
from tests.support import SUPPORT, environment
from tests.support.transcribing_run import (
    Corpus,
    PlannedHypotheses,
    StepOutput,
    batch_of,
    loader,
    make_trainer,
    step_output,
)

SUBSETS = ["test-clean", "test-other"]


def fit(
    folder: Path, epochs: int, resume: Path | None = None, correct_from: int = 2, **options: Any
) -> lightning.Trainer:
    checkpoints = ModelCheckpoint(dirpath=folder / "checkpoints", filename="{epoch}", save_top_k=-1)
    callbacks = [Transcripts(**options.pop("transcripts", {})), *options.pop("callbacks", [checkpoints])]
    trainer = make_trainer(folder, max_epochs=epochs, callbacks=callbacks, enable_checkpointing=True, **options)
    trainer.fit(PlannedHypotheses(correct_from), datamodule=Corpus(), ckpt_path=resume)
    return trainer


def lines(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def epochs_and_rates(path: Path) -> list[tuple[int, str, float]]:
    return [(int(line["epoch"]), line["subset"], float(line["wer"])) for line in lines(path)]


def test_error_rates_hold_one_line_per_subset_and_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    fit(tmp_path / "rnnt_ws" / "seed3", 2, num_sanity_val_steps=2)
    text = (tmp_path / "rnnt_ws" / "seed3" / "error_rates.csv").read_text()
    assert text.splitlines()[0] == "run,seed,epoch,subset,wer,cer,ser,swer,unspaced_cer,utterances,words"
    assert text.splitlines()[1].startswith("rnnt_ws,7,1,test-clean,0.500000,")  # `say x`: one word of two is wrong
    assert text.splitlines()[4] == "rnnt_ws,7,2,test-other,0.000000,0.000000,0.000000,0.000000,0.000000,2,4"
    assert len(text.splitlines()) == 5
    assert not list(tmp_path.rglob(".*")), "a temporary file was left"


def test_the_run_can_be_named_and_is_else_named_after_its_folder(tmp_path: Path) -> None:
    assert name_of_run(tmp_path / "rnnt_ws" / "seed12") == ("rnnt_ws", "12")
    assert name_of_run(tmp_path / "rnnt_ws") == ("rnnt_ws", "")
    fit(tmp_path / "seed1", 1, transcripts={"run": "ours"})
    assert {line["run"] for line in lines(tmp_path / "seed1" / "error_rates.csv")} == {"ours"}


def test_a_fresh_training_replaces_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    fit(tmp_path, 3)
    fit(tmp_path, 1, correct_from=1)
    assert epochs_and_rates(tmp_path / "error_rates.csv") == [(1, "test-clean", 0.0), (1, "test-other", 0.0)]
    assert sorted(path.name for path in (tmp_path / "transcripts").iterdir()) == [
        f"validation-epoch1-{subset}.jsonl" for subset in SUBSETS
    ]


class InterruptedAt(Callback):
    """Breaks off in the middle of the training batches of an epoch, counted from 0."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("the power failed")


@pytest.mark.parametrize("save_on_train_epoch_end", [True, False])
def test_resuming_replaces_the_epochs_it_repeats_and_doubles_none(
    tmp_path: Path, save_on_train_epoch_end: bool
) -> None:
    def checkpoints() -> ModelCheckpoint:
        return ModelCheckpoint(
            dirpath=tmp_path / "checkpoints",
            filename="{epoch}",
            save_top_k=-1,
            save_on_train_epoch_end=save_on_train_epoch_end,
        )

    with pytest.raises(RuntimeError, match="the power failed"):
        fit(tmp_path, 4, correct_from=9, callbacks=[checkpoints(), InterruptedAt(3)])
    assert [epoch for epoch, _, _ in epochs_and_rates(tmp_path / "error_rates.csv")] == [1, 1, 2, 2, 3, 3]
    # from the end of the second epoch, and now it hears
    fit(tmp_path, 4, resume=tmp_path / "checkpoints" / "epoch=1.ckpt", correct_from=1, callbacks=[checkpoints()])
    assert epochs_and_rates(tmp_path / "error_rates.csv") == [
        (epoch, subset, 0.5 if epoch <= 2 else 0.0) for epoch in (1, 2, 3, 4) for subset in SUBSETS
    ]


def test_validation_before_training_is_epoch_0_and_alone_is_not_written(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[Transcripts()])
    model = PlannedHypotheses()
    trainer.validate(model, datamodule=Corpus(), verbose=False)
    assert not list(tmp_path.iterdir())
    trainer.fit(model, datamodule=Corpus())
    assert [epoch for epoch, _, _ in epochs_and_rates(tmp_path / "error_rates.csv")] == [0, 0, 1, 1]


def test_a_validation_inside_an_epoch_is_replaced_by_the_one_at_its_end(tmp_path: Path) -> None:
    fit(tmp_path, 2, val_check_interval=0.5)
    assert [epoch for epoch, _, _ in epochs_and_rates(tmp_path / "error_rates.csv")] == [1, 1, 2, 2]


@pytest.mark.parametrize(("keep", "epochs"), [("last", [2]), ("all", [1, 2])])
def test_transcripts_are_written_per_subset(tmp_path: Path, keep: str, epochs: list[int]) -> None:
    fit(tmp_path, 2, correct_from=9, transcripts={"keep": keep})
    expected = [f"validation-epoch{epoch}-{subset}.jsonl" for epoch in epochs for subset in SUBSETS]
    assert sorted(path.name for path in (tmp_path / "transcripts").iterdir()) == expected
    rows = [json.loads(line) for line in (tmp_path / "transcripts" / expected[0]).read_text().splitlines()]
    assert [row["id"] for row in rows] == list("abcde")
    assert rows[0] == {
        "id": "a",
        "speaker": "speaker a",
        "reference": "say a",
        "hypothesis": "say deaf",
        "word_errors": 1,
        "words": 2,
    }


def test_transcripts_of_empty_texts_and_batches_are_counted() -> None:
    batch = batch_of(["a", "b", "c"])
    batch.texts[0] = " "
    counts = [
        (row["word_errors"], row["words"])
        for row in transcripts(batch, step_output(["ah", "", "oh say  can c"])["hypotheses"])
    ]
    assert counts == [(1, 0), (2, 2), (2, 2)]
    assert transcripts(batch_of([]), []) == []


@pytest.mark.parametrize("weights_only", [False, True])
def test_test_results_are_of_the_epoch_of_the_checkpoint_and_kept_beside_others(
    tmp_path: Path, weights_only: bool
) -> None:
    saving = ModelCheckpoint(tmp_path / "checkpoints", "{epoch}", save_top_k=-1, save_weights_only=weights_only)
    fit(tmp_path, 3, callbacks=[saving])
    for checkpoint in ("epoch=2", "epoch=0", "epoch=2"):
        trainer = make_trainer(tmp_path, callbacks=[Transcripts()], plugins=[CheckpointFiles()])
        path = tmp_path / "checkpoints" / f"{checkpoint}.ckpt"
        trainer.test(PlannedHypotheses(9), datamodule=Corpus(), ckpt_path=path, verbose=False)
    epochs = [epoch for epoch, _, _ in epochs_and_rates(tmp_path / "test_error_rates.csv")]
    assert epochs == [1, 1, 3, 3]
    assert (tmp_path / "transcripts" / "test-epoch3-test-other.jsonl").exists()
    assert len(lines(tmp_path / "error_rates.csv")) == 6, "a test must leave the rates of training alone"


def test_a_test_after_training_is_of_the_last_epoch(tmp_path: Path) -> None:
    trainer = fit(tmp_path, 2)
    trainer.test(PlannedHypotheses(), datamodule=Corpus(), verbose=False)
    assert [epoch for epoch, _, _ in epochs_and_rates(tmp_path / "test_error_rates.csv")] == [2, 2]


def test_examples_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, 1, transcripts={"examples": 1})
    printed = capsys.readouterr().out
    assert (
        f"{tmp_path.name}, epoch 1 of 1  test-clean  WER  50.00%" in printed and "of 5 utterances, 10 words" in printed
    )
    assert "say a  →  say deaf" in printed
    assert "say b" not in printed


def test_the_time_that_is_left_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path / "rnnt" / "seed3", 2)
    printed = capsys.readouterr().out
    assert "rnnt seed 3, epoch 1 of 2, 1 s left  test-clean" in printed
    assert "rnnt seed 3, epoch 2 of 2  test-clean" in printed


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59, "59 s"), (61, "2 min"), (3600, "1 h 0 min"), (12_001, "3 h 21 min")]
)
def test_times_are_readable(seconds: float, text: str) -> None:
    assert readable_time(seconds) == text


def test_a_recognizer_that_logs_no_rates_is_told_which(tmp_path: Path) -> None:
    class Silent(PlannedHypotheses):
        def on_validation_epoch_end(self) -> None:
            self.log("test-clean/wer", 0.5)

    trainer = make_trainer(tmp_path, callbacks=[Transcripts()])
    with pytest.raises(
        ValueError, match="expected the recognizer to log test-clean/cer, but it logged.*test-clean/wer"
    ):
        trainer.fit(Silent(), datamodule=Corpus())


def test_dataloaders_without_names_are_one_subset(tmp_path: Path) -> None:
    class Pooled(PlannedHypotheses):
        def on_validation_epoch_start(self) -> None:
            pass

        def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> StepOutput:
            return step_output(batch.texts)

        def on_validation_epoch_end(self) -> None:
            self.log_dict({f"val/{name}": 0.0 for name in (*RATES, *COUNTS)})

    trainer = make_trainer(tmp_path, callbacks=[Transcripts()])
    trainer.fit(Pooled(), loader([batch_of("a")]), [loader([batch_of("b")]), loader([batch_of("c")])])
    assert epochs_and_rates(tmp_path / "error_rates.csv") == [(1, "val", 0.0)]
    assert len((tmp_path / "transcripts" / "validation-epoch1-val.jsonl").read_text().splitlines()) == 2


def test_all_ranks_transcripts_are_written_once(tmp_path: Path) -> None:
    command = [sys.executable, str(SUPPORT / "transcribing_run.py"), json.dumps({"folder": str(tmp_path)})]
    result = subprocess.run(command, env=environment(), timeout=120, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert epochs_and_rates(tmp_path / "error_rates.csv")[-1] == (2, "test-other", 0.0)
    assert len(lines(tmp_path / "error_rates.csv")) == 4
    rows = (tmp_path / "transcripts" / "validation-epoch2-test-clean.jsonl").read_text().splitlines()
    assert [json.loads(row)["id"] for row in rows] == list("abcde")
    assert result.stdout.count("epoch 2 of 2  test-clean") == 1


AWKWARD = 'a "b"\n\t\\ \u2028 \x85 한국어 \udcc7'  # quotes, every kind of line end, another script, half a character


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_awkward_texts_are_one_valid_line_each() -> None:
    line = as_json_line({"id": AWKWARD})
    assert line.splitlines() == [line.removesuffix("\n")]
    assert json.loads(line.encode("utf-8")) == {"id": AWKWARD}
    assert "한국어" in line


class Predicts(PlannedHypotheses):
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> StepOutput:
        return step_output([f"{text} heard" for text in batch.texts])


def of_subsets(names: str, subsets: list[str]) -> Batch:
    return replace(batch_of(names), subsets=subsets)


def test_predictions_are_written_by_the_subsets_of_utterances(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "transcripts").mkdir()
    (tmp_path / "transcripts" / ".predict-clean.jsonl.rank00000").write_text("from a killed run")
    (tmp_path / "transcripts" / "predict-other.jsonl").write_text("from an earlier run")
    trainer = make_trainer(tmp_path, callbacks=[Transcripts()])
    batches = [of_subsets("zb", ["clean", "other"]), batch_of(""), of_subsets("ac", ["clean", ""])]
    more = loader([of_subsets("y", ["other"])])
    trainer.predict(Predicts(), {"first": loader(batches), "second": more}, return_predictions=False)
    folder = tmp_path / "transcripts"
    names = ["predict-clean.jsonl", "predict-other.jsonl", "predict.jsonl"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert json_lines(folder / "predict-clean.jsonl") == [
        {"id": name, "speaker": f"speaker {name}", "hypothesis": f"say {name} heard", "words": []} for name in "za"
    ]
    assert [line["id"] for line in json_lines(folder / "predict-other.jsonl")] == ["b", "y"]
    assert [line["id"] for line in json_lines(folder / "predict.jsonl")] == ["c"]
    printed = capsys.readouterr().out
    assert all(str(folder / name) in printed for name in names)


def test_predictions_have_the_times_of_their_words(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(
        default_root_dir=tmp_path, global_rank=0, is_global_zero=True, strategy=SimpleNamespace(barrier=lambda: None)
    )
    callback, model = Transcripts(), SimpleNamespace(print=print)
    batch, outputs = of_subsets("ab", ["clean", "clean"]), step_output(["HELLO", ""])
    outputs["hypotheses"][0][0].words = (Word("HELLO", 0.5, 1.0, 0.25),)
    callback.on_predict_batch_end(trainer, model, outputs, batch, 0)
    callback.on_predict_end(trainer, model)
    first, second = json_lines(tmp_path / "transcripts" / "predict-clean.jsonl")
    assert first["words"] == [{"word": "HELLO", "start": 0.5, "end": 1.0, "confidence": 0.25}]
    assert second["words"] == []
    assert (
        tmp_path / "transcripts" / "predict-clean.ctm"
    ).read_text() == f"{batch.ids[0]} 1 0.500 0.500 HELLO 0.2500\n"


def test_predictions_are_on_disk_as_they_come_and_of_all_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    barriers: list[int] = []
    ranks = [
        SimpleNamespace(
            default_root_dir=tmp_path,
            global_rank=rank,
            is_global_zero=rank == 0,
            strategy=SimpleNamespace(barrier=lambda: barriers.append(1)),
        )
        for rank in range(11)
    ]
    callbacks, model = [Transcripts() for _ in ranks], SimpleNamespace(print=print)
    for callback, trainer in zip(callbacks, ranks, strict=True):
        callback.on_predict_start(trainer, model)
    attributes = [dict(vars(callback)) for callback in callbacks]
    for callback, trainer in reversed(list(zip(callbacks, ranks, strict=True))):
        if trainer.global_rank != 5:  # has no utterance
            batch = of_subsets("ab", ["clean", "clean"])
            batch.ids[:] = [f"{trainer.global_rank} {name}" for name in "ab"]
            callback.on_predict_batch_end(trainer, model, step_output(["", AWKWARD]), batch, 0)
    paths = sorted((tmp_path / "transcripts").iterdir())
    assert [len(json_lines(path)) for path in paths] == [2] * 10
    for callback, trainer in reversed(list(zip(callbacks, ranks, strict=True))):
        callback.on_predict_end(trainer, model)
    assert [vars(callback) for callback in callbacks] == attributes, "something was kept in memory"
    assert len(barriers) == 22
    rows = json_lines(tmp_path / "transcripts" / "predict-clean.jsonl")
    assert [row["id"] for row in rows] == [f"{rank} {name}" for rank in range(11) if rank != 5 for name in "ab"]
    assert rows[1]["hypothesis"] == AWKWARD
    assert [path.name for path in (tmp_path / "transcripts").iterdir()] == ["predict-clean.jsonl"]
    assert capsys.readouterr().out.count("Written to") == 1


def test_a_broken_prediction_leaves_the_earlier_one(tmp_path: Path) -> None:
    class Breaks(Predicts):
        def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> StepOutput:
            if batch_idx == 1:
                raise RuntimeError("the power failed")
            return super().predict_step(batch, batch_idx)

    def predict(model: Predicts, names: str) -> None:
        batches = loader([of_subsets(name, ["clean"]) for name in names])
        make_trainer(tmp_path, callbacks=[Transcripts()]).predict(model, batches, return_predictions=False)

    predict(Predicts(), "ab")
    with pytest.raises(RuntimeError, match="the power failed"):
        predict(Breaks(), "cd")
    assert [line["id"] for line in json_lines(tmp_path / "transcripts" / "predict-clean.jsonl")] == ["a", "b"]
    predict(Predicts(), "e")
    assert [line["id"] for line in json_lines(tmp_path / "transcripts" / "predict-clean.jsonl")] == ["e"]


def test_a_prediction_is_not_written_through_a_planted_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "transcripts").mkdir()
    part = tmp_path / "transcripts" / ".predict-clean.jsonl.rank00000"
    part.symlink_to(tmp_path / "victim")
    trainer = make_trainer(tmp_path, callbacks=[Transcripts()])
    trainer.predict(Predicts(), loader([of_subsets("a", ["clean"])]), return_predictions=False)
    assert (tmp_path / "victim").read_text() == "precious"
    assert len(json_lines(tmp_path / "transcripts" / "predict-clean.jsonl")) == 1


def test_a_test_writes_valid_lines_of_awkward_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Awkward(Corpus):
        def test_dataloader(self) -> Any:
            batch = batch_of("a")
            batch.ids[:], batch.texts[:], batch.speakers[:] = [AWKWARD], [AWKWARD], [AWKWARD]
            return {"test-clean": loader([batch, batch_of("b")])}

    make_trainer(tmp_path, callbacks=[Transcripts()]).test(PlannedHypotheses(1), datamodule=Awkward(), verbose=False)
    rows = json_lines(tmp_path / "transcripts" / "test-epoch0-test-clean.jsonl")
    assert [row["id"] for row in rows] == [AWKWARD, "b"]
    assert rows[0]["reference"] == rows[0]["hypothesis"] == rows[0]["speaker"] == AWKWARD
    assert (rows[0]["word_errors"], rows[0]["words"]) == (0, len(AWKWARD.split()))
    shown = 'a "b"\\n\\t\\ \\u2028 \\x85 한국어 \\udcc7'  # as it may be printed, in one line
    assert f"    {shown}  →  {shown}\n" in capsys.readouterr().out
