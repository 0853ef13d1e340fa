"""Utterances of a run: each once per epoch, also after the run was killed, on several ranks, and with bad files."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut

from asr_lightning.batch import Utterance
from asr_lightning.errors import InputError
from data_modules import dataset
from data_modules.dataset import UnreadableUtterance
from data_modules.librispeech import LibriSpeechDataModule
from data_modules.workers import default_workers
from tests.support import collecting_run, environment
from tests.support.small_corpora import make_subset, write_chapter

UTTERANCES = 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_subset(tmp_path / "corpus", "train", UTTERANCES)
    make_subset(tmp_path / "corpus", "dev", 5, seed=1)
    return tmp_path / "corpus"


def arguments(root: Path, **more: Any) -> dict[str, Any]:
    return {"root": str(root), "train_subsets": ["train"], "batch_seconds": 3.0, "workers": 0, **more}


def ids(rows: list[dict[str, Any]], epoch: int) -> list[str]:
    return sorted(id for row in rows if row["epoch"] == epoch and row["kind"] == "train" for id in row["ids"])


def progress(checkpoint: Path) -> tuple[int, int]:
    """The epoch of a checkpoint, and how many batches of the run were trained on before it."""
    loops = torch.load(checkpoint, weights_only=True)["loops"]["fit_loop"]
    return loops["epoch_progress"]["current"]["processed"], loops["epoch_loop.batch_progress"]["total"]["processed"]


CHECKPOINTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "every step, the last of an epoch too": ({}, {"every_n_train_steps": 1}),
    "accumulated": ({"accumulate_grad_batches": 2}, {"every_n_train_steps": 1}),
    "after validation in mid-epoch": (
        {"val_check_interval": 3, "limit_val_batches": 1.0},
        {"save_on_train_epoch_end": False, "every_n_epochs": 1},
    ),
    "after validation at the epoch's end": (
        {"limit_val_batches": 1.0},
        {"save_on_train_epoch_end": False, "every_n_epochs": 1},
    ),
    "at the epoch's end": ({}, {"save_on_train_epoch_end": True, "every_n_epochs": 1}),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_resumed_run_sees_what_the_uninterrupted_one_saw(root: Path, tmp_path: Path, name: str) -> None:
    trainer, saving = CHECKPOINTS[name]
    trainer = {"max_epochs": 3, **trainer}
    data = arguments(root, validation_subsets=["dev"], speed_factors=[0.9, 1.0, 1.1])
    uninterrupted = collecting_run.run(
        str(tmp_path / "whole"), data, trainer, {"dirpath": str(tmp_path / "ckpt"), **saving}
    )
    trained = [row for row in uninterrupted if row["kind"] == "train"]
    for epoch in range(3):
        assert len(ids(uninterrupted, epoch)) == len(set(ids(uninterrupted, epoch))) == UTTERANCES
    if "accumulate_grad_batches" not in trainer:  # whose parts of one or two utterances may well come again
        assert len({row["sum"] for row in trained}) == len(trained)  # no batch does

    checkpoints = sorted((tmp_path / "ckpt").glob("*.ckpt"), key=progress)
    assert checkpoints
    for checkpoint in checkpoints[:: 1 + len(checkpoints) // 13]:
        _, done = progress(checkpoint)
        rest = collecting_run.run(str(tmp_path / checkpoint.stem), data, trainer, resume=str(checkpoint))
        assert [row for row in rest if row["kind"] == "train"] == trained[done:], checkpoint


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 1), (2, 3)])
def test_a_run_goes_on_with_other_parts_of_its_steps(root: Path, tmp_path: Path, old: int, new: int) -> None:
    """At the end of an epoch and within one: every utterance once, in the steps that were planned."""
    data = arguments(root, validation_subsets=["dev"])
    trainer = {"max_epochs": 2, "accumulate_grad_batches": old, "limit_val_batches": 1.0}
    saving = {"dirpath": str(tmp_path / "ckpt"), "every_n_train_steps": 1}
    planned = [
        row for row in collecting_run.run(str(tmp_path / "whole"), data, trainer, saving) if row["kind"] == "train"
    ]
    steps = [
        sorted(id for row in planned[first : first + old] for id in row["ids"]) for first in range(0, len(planned), old)
    ]
    checkpoints = sorted((tmp_path / "ckpt").glob("*.ckpt"), key=progress)
    for checkpoint in checkpoints[1 :: max(1, len(checkpoints) // 5)]:
        done = torch.load(checkpoint, weights_only=True)["global_step"]
        trainer["accumulate_grad_batches"] = new
        rest = collecting_run.run(str(tmp_path / checkpoint.stem), data, trainer, resume=str(checkpoint))
        rows = [row for row in rest if row["kind"] == "train"]
        resumed = [
            sorted(id for row in rows[first : first + new] for id in row["ids"]) for first in range(0, len(rows), new)
        ]
        assert resumed == steps[done:], checkpoint


def start(**run: Any) -> subprocess.CompletedProcess:
    command = [sys.executable, collecting_run.__file__, json.dumps(run)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)


def test_a_killed_run_goes_on_where_its_last_checkpoint_was_written(root: Path, tmp_path: Path) -> None:
    log, data, trainer = str(tmp_path / "log"), arguments(root, workers=2), {"max_epochs": 3}
    saving = {"dirpath": str(tmp_path / "ckpt"), "every_n_train_steps": 4}
    dead = start(log=log, data=data, trainer=trainer, checkpoint=saving, die_at=19)  # in the second epoch, 3 steps late
    assert dead.returncode == -signal.SIGKILL, dead.stderr[-2000:]
    earlier = collecting_run.rows(log)
    checkpoint = max((tmp_path / "ckpt").glob("*.ckpt"), key=progress)
    epoch, done = progress(checkpoint)
    assert (epoch, done) == (1, 16) and len(earlier) == 19

    later = collecting_run.run(log, data, trainer, resume=str(checkpoint))
    everything = sorted(ids(earlier, 0))
    assert len(set(everything)) == len(everything) == UTTERANCES
    assert ids(earlier[:done] + later, 1) == everything
    assert ids(later, 2) == everything
    assert earlier[done:] == later[: len(earlier) - done]  # the lost steps are the same again, audio included


def test_two_processes_share_an_epoch(root: Path, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    trainer = {
        "max_epochs": 2,
        "devices": 2,
        "strategy": "ddp",
        "limit_val_batches": 1.0,
        "use_distributed_sampler": True,
    }
    data = arguments(root, validation_subsets=["dev"], evaluation_batch_seconds=0.5)
    result = start(log=log, data=data, trainer=trainer)
    assert result.returncode == 0, result.stderr[-2000:]
    ranks = [collecting_run.rows(log, rank) for rank in range(2)]
    for epoch in range(2):
        assert len(ids(ranks[0], epoch)) > UTTERANCES / 4
        names = ids(ranks[0] + ranks[1], epoch)
        assert len(names) == len(set(names)) == UTTERANCES
        validated = [
            id
            for row in ranks[0] + ranks[1]
            if row["kind"] == "validation dev" and row["epoch"] == epoch
            for id in row["ids"]
        ]
        assert len(validated) == len(set(validated)) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"batch_seconds": 4.0},
        {"seed": 2},
        {"max_seconds": 0.7},
        {"speed_factors": [0.8]},
        {"speed_factors": [1.0, 1.1]},
    ],
)
def test_other_batches_are_not_resumed(root: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    saving = {"dirpath": str(tmp_path), "every_n_train_steps": 2}
    collecting_run.run(str(tmp_path / "log"), arguments(root), {"max_steps": 2}, saving)
    (checkpoint,) = tmp_path.glob("*.ckpt")
    with pytest.raises(InputError, match="in the checkpoint") as refusal:
        collecting_run.run(str(tmp_path / "log"), arguments(root, **change), {"max_epochs": 2}, resume=str(checkpoint))
    assert any(name in str(refusal.value) for name in (*change, "audio seconds"))


def test_another_order_of_the_same_durations_is_not_resumed(tmp_path: Path) -> None:
    """Of 80 utterances 20 would never be seen and 20 twice: numbers and seconds are the same."""
    texts = [f"u{number:02d}" for number in range(8)]
    seconds = [0.5] * 8
    for speaker, names in (("1", texts), ("2", texts[::-1])):  # the walk goes from folder to folder
        for part, subset in (("a", names[:4]), ("b", names[4:])):
            write_chapter(tmp_path / speaker / "train" / part / "1", {name: "A" for name in subset}, seconds[:4])
    data = {"train_subsets": ["train"], "batch_seconds": 1.0, "workers": 0}
    saving = {"dirpath": str(tmp_path / "ckpt"), "every_n_train_steps": 2}
    collecting_run.run(str(tmp_path / "log"), {"root": str(tmp_path / "1"), **data}, {"max_steps": 2}, saving)
    (checkpoint,) = (tmp_path / "ckpt").glob("*.ckpt")
    with pytest.raises(InputError, match="order of utterances: .* in the checkpoint") as refusal:
        collecting_run.run(
            str(tmp_path / "log"), {"root": str(tmp_path / "2"), **data}, {"max_epochs": 2}, resume=str(checkpoint)
        )
    assert "audio seconds" not in str(refusal.value)


def ready(**options: Any) -> LibriSpeechDataModule:
    data = LibriSpeechDataModule(**options)
    data.prepare_data()
    data.setup("fit")
    return data


def begun_readers() -> list[int]:
    """Two processes that read, each in a group of its own, which none of them is in from the start."""
    readers = [reader.pid for reader in multiprocessing.active_children() if reader.pid]
    assert len(readers) == 2
    end = time.monotonic() + 60
    while any(os.getpgid(reader) != reader for reader in readers):
        assert time.monotonic() < end
        time.sleep(0.01)
    return readers


def test_signals_to_the_run_s_process_group_do_not_reach_readers(root: Path) -> None:
    batches = iter(ready(**arguments(root, workers=2)).train_dataloader())
    next(batches)
    assert os.getpgid(0) not in begun_readers()
    assert len(list(batches)) > 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_readers_go_on_when_every_process_of_a_job_is_signalled(root: Path, number: int) -> None:
    expected = [batch.ids for batch in ready(**arguments(root)).train_dataloader()]
    batches = iter(ready(**arguments(root, workers=2)).train_dataloader())
    received = [next(batches).ids]
    readers = multiprocessing.active_children()
    for reader in begun_readers():
        os.kill(reader, number)
    received += [batch.ids for batch in batches]
    assert received == expected
    for reader in readers:
        reader.join(10)
        assert reader.exitcode == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_depends_on_seed_epoch_and_utterance_only(root: Path, workers: int) -> None:
    options: dict[str, Any] = {"speed_factors": [0.5, 1.0, 2.0], "noise": add_noise}

    def sums(epoch: int, **more: Any) -> dict[str, float]:
        batches = ready(**arguments(root, **options, **more)).train_dataloader()
        batches.progress = lambda: (epoch, 0)
        return {
            id: float(audio.abs().sum()) for batch in batches for id, audio in zip(batch.ids, batch.audio, strict=True)
        }

    reference = sums(3)
    assert sums(3, batch_seconds=5.0, workers=workers) == pytest.approx(reference)
    for changed in (sums(4), sums(3, seed=2)):
        assert np.mean([changed[id] == pytest.approx(reference[id], rel=1e-3) for id in reference]) < 0.3


def add_noise(audio: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return audio + torch.rand((), generator=generator) * torch.randn(audio.shape, generator=generator)


def test_speed_changes_duration_and_pitch(root: Path) -> None:
    batches = {
        factor: {
            id: audio[:length]
            for batch in ready(**arguments(root, speed_factors=[factor])).train_dataloader()
            for id, audio, length in zip(batch.ids, batch.audio, batch.audio_lengths, strict=True)
        }
        for factor in (1.0, 0.8)
    }
    for id, audio in batches[1.0].items():
        assert len(batches[0.8][id]) == pytest.approx(len(audio) / 0.8, abs=2)
    longest = max(
        len(batch.ids) * batch.audio.shape[1]
        for batch in ready(**arguments(root, speed_factors=[0.8])).train_dataloader()
    )
    assert longest <= 3.0 * 16_000 * 1.01  # the plan knew


def test_utterances_are_read_at_the_same_time_where_that_is_asked_for(root: Path) -> None:
    corpus = LibriSpeechDataModule(**arguments(root))
    corpus.prepare_data()
    corpus.setup("fit")
    together = threading.Barrier(4)

    def read_audio(cut: MonoCut) -> np.ndarray:
        together.wait(timeout=20)
        if cut.id.endswith("3"):
            raise ValueError("unreadable")
        return dataset.read_audio(cut)

    single, parallel = (
        dataset.SpeechDataset(corpus.manifests, 16_000, read, at_once=at_once)
        for read, at_once in ((dataset.read_audio, 1), (read_audio, 4))
    )
    keys = [(0, number) for number in (5, 0, 7, 3, 2, 11, 30, 9)]
    expected, items = single.__getitems__(keys), parallel.__getitems__(keys)
    assert [item.id for item in items] == [item.id for item in expected]
    lost = [isinstance(item, UnreadableUtterance) for item in items]
    assert lost == [item.id.endswith("3") for item in expected] and any(lost)
    for item, other in zip(items, expected, strict=True):
        if isinstance(item, Utterance) and isinstance(other, Utterance):
            assert item.audio.equal(other.audio)


def test_a_file_that_breaks_costs_itself_only(root: Path) -> None:
    data = ready(**arguments(root, validation_subsets=["dev"], evaluation_batch_seconds=0.1))
    broken = sorted(root.glob("train/**/*.flac"))[:3]
    broken[0].unlink()
    broken[1].write_bytes(broken[1].read_bytes()[: broken[1].stat().st_size // 2])
    soundfile.write(broken[2], np.full(16_000, 0.1), 16_000, subtype="PCM_16")  # another duration than it was
    with pytest.warns(UserWarning, match="cannot be read") as warnings:
        names = [id for batch in data.train_dataloader() for id in batch.ids]
    assert Counter(names).most_common(1)[0][1] == 1
    assert len(names) == UTTERANCES - 3
    assert set(data.lost_utterances) == {path.stem for path in broken}
    assert all(any(str(path) in str(warning.message) for warning in warnings) for path in broken)

    next(root.glob("dev/**/*.flac")).unlink()
    with pytest.warns(UserWarning):
        sizes = [len(batch) for batch in data.val_dataloader()["dev"]]
    assert sorted(sizes) == [0, 1, 1, 1, 1]  # every rank makes its steps


def test_a_byte_that_turns_wrong_in_mid_epoch_costs_its_utterance_only(root: Path) -> None:
    data = ready(**arguments(root))
    batches = iter(data.train_dataloader())
    names = list(next(batches).ids)
    victim, *others = sorted(path for path in root.glob("train/**/*.flac") if path.stem not in names)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1  # neither size nor header tells
    victim.write_bytes(content)
    with pytest.warns(UserWarning, match=f"cannot be read: {victim}"):
        rest = [id for batch in batches for id in batch.ids]
    assert sorted(rest) == [path.stem for path in others] and len(names) + len(rest) == UTTERANCES - 1
    assert data.lost_utterances == {victim.stem: 1}


def test_a_vanished_disk_stops_the_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_modules.corpus.LOST_IN_A_ROW", 20)
    data = ready(**arguments(root))
    for path in root.glob("train/**/*.flac"):
        path.unlink()
    with pytest.raises(InputError, match="could not be read"), pytest.warns(UserWarning):
        list(data.train_dataloader())


@pytest.mark.parametrize(("limits", "expected"), [({"max_seconds": 0.6}, range(1, 30)), ({"train_utterances": 7}, [7])])
def test_training_takes_what_was_asked_for(root: Path, limits: dict[str, Any], expected: Any) -> None:
    data = ready(**arguments(root, **limits))
    chosen = [sorted(id for batch in data.train_dataloader() for id in batch.ids) for _ in range(2)]
    assert chosen[0] == chosen[1] and len(chosen[0]) in expected
    assert all(data.train_dataloader().durations <= data.max_seconds)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_seconds": 0},
        {"evaluation_batch_seconds": -1.0},
        {"max_seconds": 0.05},
        {"speed_factors": [0.0]},
        {"workers": -1},
        {"batch_utterances": 0},
        {"train_utterances": 0},
        {"on_bad": "ignore"},
    ],
)
def test_arguments_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        LibriSpeechDataModule(**arguments(Path("."), **wrong))


def test_defaults_follow_the_test_subsets_the_training_batches_and_the_cores(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for batch_seconds, evaluation_seconds in ((8.0, 100.0), (400.0, 400.0)):
        data = ready(**arguments(root, test_subsets=["dev"], batch_seconds=batch_seconds))
        data.setup("predict")
        [(subset, batches)] = data.predict_dataloader().items()
        assert (subset, batches.batch_seconds) == ("dev", evaluation_seconds)
    nothing = LibriSpeechDataModule(**arguments(root, test_subsets=["dev"], predict_subsets=[]))
    assert nothing.subsets["predict"] == []
    for cores, workers in ((1, 1), (2, 1), (6, 5), (64, 8)):
        monkeypatch.setattr("os.sched_getaffinity", lambda process, cores=cores: set(range(cores)), raising=False)
        assert default_workers() == workers


def test_more_utterances_than_there_are(root: Path) -> None:
    with pytest.raises(InputError, match="Expected 41 utterances to train on, got 40"):
        ready(**arguments(root, train_utterances=41)).train_dataloader()
