"""Mixtures: how often each utterance comes, exact resuming, ranks, and subsets by corpus."""

import json
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asr_lightning.errors import InputError
from asr_lightning.models.instantiation import instantiate
from data_modules.corpus import CorpusDataModule
from data_modules.librispeech import LibriSpeechDataModule
from data_modules.mixture import EpochSlots, MixtureDataModule
from tests.support import collecting_run, environment
from tests.support.small_corpora import make_subset

LARGE, SMALL = 23, 7


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    make_subset(tmp_path / "a", "train", LARGE)
    make_subset(tmp_path / "a", "dev", 3, seed=1)
    make_subset(tmp_path / "b", "other", SMALL, seed=2)
    make_subset(tmp_path / "b", "dev", 4, seed=3)
    subsets = {"train_subsets": ["train"], "validation_subsets": ["dev"]}
    corpora = {
        "large": {"root": str(tmp_path / "a"), "speed_factors": [0.9, 1.0, 1.1], **subsets},
        "large-b": {"root": str(tmp_path / "b"), **subsets, "train_subsets": ["other"]},  # begins with the other name
    }
    weights = {"large": 0.4, "large-b": 3.0}
    return {"corpora": corpora, "weights": weights, "batch_seconds": 3.0, "workers": 0, "seed": 1}


def epoch_of(rows: list[dict[str, Any]], epoch: int) -> Counter[str]:
    return Counter(id for row in rows if row["epoch"] == epoch and row["kind"] == "train" for id in row["ids"])


@pytest.mark.parametrize("count", [1, 2, 9, 10, 31])
@pytest.mark.parametrize("weight", [Fraction(1), Fraction(3), Fraction(1, 2), Fraction(2, 5), Fraction(5, 2)])
def test_utterances_take_the_places_in_turn(count: int, weight: Fraction) -> None:
    durations = np.random.default_rng(count).uniform(1, 10, count)
    slots = EpochSlots(durations, weight)
    epochs = 2 * weight.denominator
    counts, comings = Counter[int](), Counter[tuple[int, int]]()
    for epoch in range(epochs):
        for slot in range(len(slots)):
            utterance, times = slots.utterance(slot, epoch)
            assert durations[utterance] <= slots.durations[slot]
            counts[utterance] += 1
            comings[utterance, times] += 1
    assert set(counts) == set(range(count)) and set(comings.values()) == {1}
    complete = count // weight.denominator * weight.denominator
    ordered = np.argsort(durations, kind="stable")
    assert {counts[int(utterance)] for utterance in ordered[:complete]} <= {epochs * weight}


def test_weights_say_how_often_an_utterance_comes(data: dict[str, Any], tmp_path: Path) -> None:
    rows = collecting_run.run(str(tmp_path / "log"), data, {"max_epochs": 5, "limit_val_batches": 1.0})
    total = Counter[str]()
    for epoch in range(5):
        counts = epoch_of(rows, epoch)
        small = [count for id, count in counts.items() if id.startswith("other")]
        assert small == [3] * SMALL
        total += counts
    large = [id for id in total if id.startswith("train")]
    assert len(large) == LARGE and all(total[id] in (2, 1, 3) for id in large)
    assert sum(total[id] == 2 for id in large) >= 20
    kinds = {row["kind"] for row in rows}
    assert kinds == {"train", "validation large-dev", "validation large-b-dev"}
    validated = [
        id for row in rows if row["kind"] == "validation large-b-dev" and row["epoch"] == 0 for id in row["ids"]
    ]
    assert sorted(validated) == sorted(path.stem for path in (tmp_path / "b" / "dev").rglob("*.flac"))


def test_comings_of_an_utterance_are_augmented_anew(data: dict[str, Any]) -> None:
    data["corpora"]["large"]["speed_factors"] = []
    data["corpora"]["large-b"]["speed_factors"] = [0.8, 0.9, 1.0, 1.1, 1.2]
    module = collecting_run.make(data, shards=False)
    module.prepare_data()
    module.setup("fit")
    lengths: dict[str, set[int]] = {}
    for batch in module.train_dataloader():
        for id, length, subset in zip(batch.ids, batch.audio_lengths.tolist(), batch.subsets, strict=True):
            lengths.setdefault(f"{subset} {id}", set()).add(length)
    assert any(len(several) > 1 for name, several in lengths.items() if name.startswith("large-b-other "))
    assert {name.split()[0] for name in lengths} == {"large-train", "large-b-other"}


def test_a_mixture_is_resumed_in_mid_epoch(data: dict[str, Any], tmp_path: Path) -> None:
    saving = {"dirpath": str(tmp_path / "ckpt"), "every_n_train_steps": 4}
    uninterrupted = collecting_run.run(str(tmp_path / "whole"), data, {"max_epochs": 3}, saving)
    checkpoints = list((tmp_path / "ckpt").glob("*.ckpt"))
    assert len(checkpoints) > 3
    for checkpoint in checkpoints[::3]:
        steps = int(checkpoint.stem.split("-")[0].partition("=")[2])
        rest = collecting_run.run(str(tmp_path / checkpoint.stem), data, {"max_epochs": 3}, resume=str(checkpoint))
        assert rest == uninterrupted[steps:]
    changed = {**data, "weights": {"large": 0.5, "large-b": 3.0}}
    with pytest.raises(InputError, match="weights: .* in the checkpoint"):
        collecting_run.run(str(tmp_path / "log"), changed, {"max_epochs": 3}, resume=str(checkpoints[0]))


def test_two_processes_share_a_mixture(data: dict[str, Any], tmp_path: Path) -> None:
    trainer = {"max_epochs": 2, "devices": 2, "strategy": "ddp", "limit_val_batches": 1.0}
    alone = collecting_run.run(str(tmp_path / "alone"), data, {"max_epochs": 2})
    call = json.dumps({"log": str(tmp_path / "log"), "data": data, "trainer": trainer})
    ended = subprocess.run(
        [sys.executable, collecting_run.__file__, call], env=environment(), capture_output=True, text=True, timeout=280
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    both = [row for rank in range(2) for row in collecting_run.rows(str(tmp_path / "log"), rank)]
    for epoch in range(2):
        assert epoch_of(both, epoch) == epoch_of(alone, epoch)


def test_an_experiment_names_corpora(data: dict[str, Any], tmp_path: Path) -> None:
    path = "data_modules.librispeech.LibriSpeechDataModule"
    corpora = {name: {"class_path": path, "init_args": options} for name, options in data["corpora"].items()}
    config = {"class_path": "data_modules.mixture.MixtureDataModule", "init_args": {**data, "corpora": corpora}}
    module, _ = instantiate(config, CorpusDataModule, "a corpus")  # type: ignore[type-abstract]
    assert module.subsets["validation"] == ["large-dev", "large-b-dev"]
    module.subsets["predict"] = ["large-b-dev"]
    module.prepare_data()
    module.setup("predict")
    [(subset, batches)] = module.predict_dataloader().items()
    assert subset == "large-b-dev" and {name for batch in batches for name in batch.subsets} == {"large-b-dev"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"weights": {"huge": 1.0}}, "weights must be of the corpora large, large-b, got huge"),
        ({"weights": {"large": 0.0}}, "above 0"),
        ({"weights": {"large": float("nan")}}, "above 0, to a twentieth, got large: nan"),
        ({"weights": {"large": float("inf")}}, "above 0, to a twentieth, got large: inf"),
        ({"sample_rate": 8_000}, "expected 8000 samples per second"),
        ({"corpora": {}, "weights": None}, "needs corpora"),
    ],
)
def test_what_does_not_fit_is_refused(data: dict[str, Any], change: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        collecting_run.make({**data, **change}, shards=False)


def test_arguments_of_batches_belong_to_the_mixture(data: dict[str, Any]) -> None:
    data["corpora"]["large"]["batch_seconds"] = 10.0
    with pytest.raises(InputError, match="batch_seconds of large would have no effect"):
        collecting_run.make(data, shards=False)
    del data["corpora"]["large"]["batch_seconds"]
    data["corpora"]["large"]["root"] = "/nowhere"
    with pytest.raises(InputError, match="large: Subset not found"):
        collecting_run.make(data, shards=False).prepare_data()
    assert isinstance(collecting_run.make(data, shards=False), MixtureDataModule)
    assert LibriSpeechDataModule(root=".").subsets["train"] == []
