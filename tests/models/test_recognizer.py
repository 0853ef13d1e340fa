"""What all recognizers share: skipped utterances and batches, error rates, predictions and resumed runs."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from asr_lightning.batch import Batch
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.errors import InputError
from asr_lightning.models import recognizer as recognizer_module
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.scoring.error_rates import space_free_errors
from data_modules.librispeech import LibriSpeechDataModule
from tests.support import SUPPORT, environment, shared_run
from tests.support.tones import (
    RATE,
    TEXTS,
    batch_of,
    conformer,
    features,
    loader,
    lstm_encoder,
    make,
    make_trainer,
    transducer,
    write_corpus,
)

Weights = dict[str, torch.Tensor]
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
IMPOSSIBLE = "ABC" * 40


def impossible(texts: list[str], *indices: int) -> Batch:
    """Spoken texts, of which those of some indices have a transcript too long for their audio."""
    batch = batch_of(texts)
    ids = [f"impossible-{index}" if index in indices else id for index, id in enumerate(batch.ids)]
    return replace(
        batch, ids=ids, texts=[IMPOSSIBLE if index in indices else text for index, text in enumerate(batch.texts)]
    )


def copy(weights: Weights) -> Weights:
    return {name: value.clone() for name, value in weights.items()}


def assert_same(weights: Weights, expected: Weights) -> None:
    assert weights.keys() == expected.keys()
    assert not [name for name, value in weights.items() if not torch.equal(value, expected[name])]


# Training.


def test_an_impossible_utterance_is_named_and_changes_nothing_for_the_others(tmp_path: Path) -> None:
    texts = ["CAB", "A", "DEAF BEE"]
    trained, clean = make(optimizer=SGD), make(optimizer=SGD)
    start = copy(trained.state_dict())
    with pytest.warns(UserWarning, match=r"1 utterances were skipped.*impossible-1"):
        make_trainer(tmp_path).fit(trained, loader([impossible(texts, 1)]))
    batch = batch_of(texts)
    possible = Batch(
        [batch.ids[0], batch.ids[2]], batch.audio[[0, 2]], batch.audio_lengths[[0, 2]], RATE,
        [batch.texts[0], batch.texts[2]], ["", ""], ["", ""],
    )  # fmt: skip
    make_trainer(tmp_path).fit(clean, loader([possible]))
    for name, value in clean.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert max((value - start[name]).abs().max() for name, value in clean.state_dict().items()) > 1e-3


def counted(trainer: Any) -> float:
    return float(trainer.callback_metrics["train/skipped_utterances"])


def test_skipped_utterances_are_counted_over_the_epoch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_epochs=2)
    with pytest.warns(UserWarning, match="3 utterances were skipped"):
        trainer.fit(make(), loader([impossible(["A", "CAB"], 0), batch_of(["BED"]), impossible(["A", "A"], 0, 1)]))
    assert counted(trainer) == 3  # of the second epoch, not six


def no_usable_loss(recognizer: Recognizer) -> Batch:
    return impossible(["A", "CAB"], 0, 1)


def a_gradient_that_is_no_number(recognizer: Recognizer) -> Batch:
    weight = next(recognizer.parameters())
    weight.register_hook(lambda gradient: torch.full_like(gradient, torch.nan))
    return batch_of(["A", "CAB"])


class Remember(Callback):
    """The weights and the optimizer's state after every step."""

    def __init__(self) -> None:
        self.seen: list[tuple[Weights, Weights]] = []

    def on_train_batch_end(self, trainer: Any, module: Recognizer, *_: Any) -> None:
        state = {
            f"{number} {name}": torch.as_tensor(value).clone()
            for number, part in trainer.optimizers[0].state_dict()["state"].items()
            for name, value in part.items()
        }
        self.seen.append((copy(dict(module.named_parameters())), state))


class SpoilSecondStep(Callback):
    def __init__(self, spoil: Callable[[Recognizer], Batch]) -> None:
        self.spoil = spoil

    def on_train_batch_start(self, trainer: Any, module: Recognizer, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 1:
            self.spoil(module)


@pytest.mark.parametrize("spoil", [no_usable_loss, a_gradient_that_is_no_number])
@pytest.mark.parametrize("clipping", [None, 1.0])
@pytest.mark.parametrize("fused", [False, True])
def test_a_useless_batch_leaves_weights_and_optimizer_untouched(
    tmp_path: Path, spoil: Callable[[Recognizer], Batch], clipping: float | None, fused: bool
) -> None:
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "weight_decay": 0.5, "fused": fused}}
    trained, memory = make(optimizer=adamw), Remember()
    batches = [batch_of(["CAB", "BED"]), no_usable_loss(trained) if spoil is no_usable_loss else batch_of(["BED"])]
    trainer = make_trainer(tmp_path, callbacks=[SpoilSecondStep(spoil), memory], gradient_clip_val=clipping)
    with pytest.warns(UserWarning, match="skipped"):
        trainer.fit(trained, loader(batches))
    (weights, state), (weights_after, state_after) = memory.seen
    assert state and all(value.isfinite().all() for value in weights.values())
    assert_same(weights_after, weights)
    assert_same(state_after, state)


def test_fused_optimizers_clip_in_bfloat16(tmp_path: Path) -> None:
    moved = []
    for clipping in (None, 1e-3):
        sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0, "fused": True}}
        trained = make(optimizer=sgd)
        start = copy(dict(trained.named_parameters()))
        trainer = make_trainer(tmp_path, gradient_clip_val=clipping, precision="bf16-mixed")
        trainer.fit(trained, loader([batch_of(["CAB", "BED"])]))
        steps = [(value - start[name]).detach() for name, value in trained.named_parameters()]
        moved.append(float(torch.nn.utils.get_total_norm(steps)))
    assert moved[0] > 1.0 and moved[1] == pytest.approx(1e-3, rel=1e-3)


def test_accumulated_gradients_survive_a_useless_batch_behind_them(tmp_path: Path) -> None:
    trained, start = make(optimizer=SGD), make(optimizer=SGD).state_dict()
    trainer = make_trainer(tmp_path, accumulate_grad_batches=2)
    trainer.fit(trained, loader([batch_of(["CAB", "BED"]), impossible(["A"], 0)]))
    assert [name for name, value in trained.state_dict().items() if not torch.equal(value, start[name])]


def test_training_stops_when_nothing_teaches_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognizer_module, "LOST_BATCHES_IN_A_ROW", 3)
    trained, memory = make(), Remember()
    bad, good = impossible(["A"], 0), batch_of(["CAB"])
    with pytest.warns(UserWarning, match="impossible-0"), pytest.raises(InputError, match="3 batches in a row"):
        make_trainer(tmp_path, callbacks=[memory]).fit(trained, loader([bad, bad, good, bad, bad, bad, good]))
    assert len(memory.seen) == 5  # two bad batches in a row are skipped; the step of the third does not end


def test_training_stops_when_gradients_stay_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognizer_module, "LOST_BATCHES_IN_A_ROW", 3)
    trained, memory = make(), Remember()
    hook = next(trained.parameters()).register_hook
    fates = iter([1.0, torch.nan, torch.nan, 1.0, torch.nan, torch.nan, torch.nan, 1.0])
    hook(lambda gradient: gradient * next(fates))
    trainer = make_trainer(tmp_path, callbacks=[memory])
    with pytest.warns(UserWarning, match="step 2 is skipped"), pytest.raises(InputError, match="gradient in 3 steps"):
        trainer.fit(trained, loader([batch_of(["CAB"])] * 8))
    assert len(memory.seen) == 6  # two in a row are skipped
    assert_same(memory.seen[-1][0], memory.seen[3][0])


def test_training_stops_at_the_first_step_after_weights_that_overflowed(tmp_path: Path) -> None:
    trained = make(optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 3e38}})
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(InputError, match="not finite after 1 steps"):
        make_trainer(tmp_path).fit(trained, loader([batch_of(["CAB"])] * 3))


def test_a_wrong_sample_rate_is_refused(tmp_path: Path) -> None:
    recognizer, wrong = make(), replace(batch_of(["A"]), sample_rate=16_000)
    for run in ("fit", "validate", "predict"):
        with pytest.raises(InputError, match="8000 Hz, got 16000 Hz"):
            getattr(make_trainer(tmp_path), run)(recognizer, loader([wrong]))


# Error rates.


class Clock:
    """A clock that stands still unless a test moves it."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


def mishear(batch: Batch) -> list[str]:
    """Wrong in words of the longer utterances only, with all three kinds of errors."""
    misheard = {"DEAF BEE": "DEAF B E", "HE FED": "HE", "EGG AGE": "EGG FACE AGE GAD"}
    return [misheard.get(text, text) for text in batch.texts]


def let_mishear(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the search of a recognizer by `mishear`, which takes a quarter of a second for each batch."""
    batches: list[Batch] = []

    def on_batch_start(batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        batches.append(batch)

    def decode(encoded: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        CLOCK.now += 0.25
        return [[Hypothesis(tuple(map(ord, text)), 0.0)] for text in mishear(batches[-1])]

    monkeypatch.setattr(recognizer, "on_validation_batch_start", on_batch_start)
    monkeypatch.setattr(recognizer, "on_test_batch_start", on_batch_start)
    monkeypatch.setattr(recognizer, "decode", decode)
    monkeypatch.setattr(recognizer.tokenizer, "decode", lambda tokens: "".join(map(chr, tokens)))


def test_error_rates_are_those_of_the_corpus_and_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer, trainer = make(), make_trainer(tmp_path)
    let_mishear(recognizer, monkeypatch)
    monkeypatch.setattr("asr_lightning.models.recognizer.time", CLOCK)
    clean = [batch_of(["DEAF BEE"]), batch_of(["BED", "GAD", "CAGED", "A CAB"])]
    other = [batch_of(["HE FED", "EGG AGE"])]

    def rates(batches: list[Batch]) -> dict[str, float]:
        references = [text for batch in batches for text in batch.texts]
        hypotheses = [text for batch in batches for text in mishear(batch)]
        wrong = sum(reference != hypothesis for reference, hypothesis in zip(references, hypotheses, strict=True))
        with torch.no_grad():
            losses = torch.cat([recognizer.eval().loss(batch) for batch in batches])
        return {
            "wer": jiwer.wer(references, hypotheses),
            "cer": jiwer.cer(references, hypotheses),
            "ser": wrong / len(references),
            "swer": sum(map(space_free_errors, references, hypotheses)) / len(" ".join(references).split()),
            "unspaced_cer": jiwer.cer(*([text.replace(" ", "") for text in side] for side in (references, hypotheses))),
            "utterances": len(references),
            "words": len(" ".join(references).split()),
            "loss": float(losses.mean()),
        }

    # Other data each time: rates of the same data would not tell whether they were counted twice.
    runs = [("val", trainer.validate, clean), ("val", trainer.validate, clean[:1]), ("test", trainer.test, clean[1:])]
    for stage, run, data in runs:
        run(recognizer, {"test-clean": loader(data), "test-other": loader(other)}, verbose=False)
        subsets = {"test-clean": data, "test-other": other, stage: data + other}
        expected = {name: rates(batches) for name, batches in subsets.items()}
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        assert {
            name: value for name, value in logged.items() if not name.endswith(("real_time_factor", "floor"))
        } == pytest.approx(
            {f"{name}/{key}": value for name, values in expected.items() for key, value in values.items()}
        )
        factors = {name: float(logged[f"{name}/real_time_factor"]) for name in expected}
        seconds = {name: sum(batch.seconds for batch in batches) for name, batches in subsets.items()}
        assert {name: factors[name] * seconds[name] for name in factors} == pytest.approx(
            {name: 0.25 * len(batches) for name, batches in subsets.items()}
        )
    assert rates(clean)["wer"] not in (0.0, rates(other)["wer"])


def test_a_subset_may_be_called_as_the_stage_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer, trainer = make(), make_trainer(tmp_path)
    let_mishear(recognizer, monkeypatch)
    trainer.test(
        recognizer, {"test": loader([batch_of(["BED"])]), "noise": loader([batch_of(["HE FED"])])}, verbose=False
    )
    assert float(trainer.callback_metrics["noise/wer"]) == 0.5


def test_utterances_without_a_usable_loss_still_count_as_errors(tmp_path: Path) -> None:
    recognizer, trainer = make(), make_trainer(tmp_path)
    [logged] = trainer.validate(recognizer, {"dev": loader([impossible(["A", "CAB"], 0)])}, verbose=False)
    with torch.no_grad():
        expected = float(recognizer.eval().loss(batch_of(["A", "CAB"]))[1])
    assert logged["val/loss"] == pytest.approx(expected, rel=1e-4)
    assert logged["val/ser"] == 1.0


def test_predictions_are_the_transcripts(tmp_path: Path) -> None:
    recognizer, batch = make(), batch_of(TEXTS)
    empty = Batch.collate([], RATE)
    [first, second] = make_trainer(tmp_path).predict(recognizer, loader([batch, empty]))
    assert [best.text for [best] in first["hypotheses"]] == recognizer.eval().transcribe(batch)
    assert second == {"hypotheses": []}


# Resuming.


def test_a_network_in_training_mode_recognizes_as_in_evaluation_mode() -> None:
    augment = {"class_path": "asr_lightning.audio.augment.SpecAugment", "init_args": {"frequency_mask_bands": 10}}
    network, batch = make(encoder=lstm_encoder(20, dropout=0.5, layers=2), augment=augment).train(), batch_of(TEXTS)
    network.joint.eval()  # frozen
    scores = [
        [best.score for best, *_ in recognize(batch)] for recognize in (network.recognize, network.recognize_words)
    ]
    assert network.encoder.training and not network.joint.training
    network.eval()
    expected = [best.score for best, *_ in network.recognize(batch)]
    assert scores == [expected, expected]


def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", "train", [*TEXTS, "FEE", "HEAD", "ABE", "BADGE"])
    write_corpus(tmp_path / "corpus", "dev", TEXTS[:2])
    model = transducer(
        encoder=conformer(20, dropout=0.2),
        features=features("LogMel", "GlobalNormalization", mels=20),
        ctc_weight=0.3,
        augment={
            "class_path": "asr_lightning.audio.augment.SpecAugment",
            "init_args": {"time_mask_fraction": 0.2, "frequency_mask_bands": 6, "warmup_epochs": 2},
        },
        scheduler={
            "class_path": "asr_lightning.models.schedules.WarmupCosine",
            "init_args": {"warmup_share": 0.3},
        },
    )

    def run(seed: int, folder: str, validate: bool, resume: Path | None = None) -> tuple[Recognizer, Weights]:
        torch.manual_seed(seed)
        recognizer = build_recognizer(model)
        data = LibriSpeechDataModule(
            root=str(tmp_path / "corpus"), train_subsets=["train"], validation_subsets=["dev"], batch_seconds=1.5,
            workers=0, sample_rate=RATE, speed_factors=[0.9, 1.0, 1.1],
        )  # fmt: skip
        saving = ModelCheckpoint(tmp_path / folder, "{step}", save_top_k=-1, every_n_train_steps=1)
        trainer = make_trainer(
            tmp_path, max_epochs=2, callbacks=[saving], enable_checkpointing=True, gradient_clip_val=1.0,
            limit_val_batches=1.0 if validate else 0,
        )  # fmt: skip
        trainer.fit(recognizer, datamodule=data, ckpt_path=resume)
        return recognizer, copy(recognizer.state_dict())

    undisturbed, expected = run(1, "first", validate=True)
    assert undisturbed.trainer.num_training_batches >= 4
    assert undisturbed.trainer.global_step == 2 * undisturbed.trainer.num_training_batches
    for step in (2, undisturbed.trainer.num_training_batches + 1):  # in the first epoch, in the second
        checkpoint = tmp_path / "first" / f"step={step}.ckpt"
        early = torch.load(checkpoint, weights_only=True)["state_dict"]
        assert not torch.equal(early["joint.output.weight"], expected["joint.output.weight"])
        resumed, weights = run(99, f"from {step}", validate=False, resume=checkpoint)
        assert resumed.trainer.global_step == undisturbed.trainer.global_step
        assert_same(weights, expected)
        assert_same(
            torch.load(tmp_path / f"from {step}" / f"step={resumed.trainer.global_step}.ckpt")["state_dict"], expected
        )


# Several processes.


def test_two_ranks_with_uneven_batches_train_as_one_process_does(tmp_path: Path) -> None:
    script = [sys.executable, str(SUPPORT / "shared_run.py"), json.dumps({"folder": str(tmp_path), "ranks": 2})]
    ended = subprocess.run(script, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr[-3000:]
    shared_run.run(str(tmp_path), 1)
    single, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    assert_same(first["weights"], second["weights"])
    assert_same(single["start"], first["start"])
    changes = []
    for name, expected in single["weights"].items():
        torch.testing.assert_close(first["weights"][name], expected, rtol=1e-4, atol=1e-6, msg=name)
        changes.append(float((expected - single["start"][name]).abs().max()))
    assert max(changes) > 1e-2
    for name in ("val/wer", "val/cer", "val/ser", "val/loss", "clean/wer", "other/cer", "train/skipped_utterances"):
        assert first["logged"][name] == pytest.approx(single["logged"][name], rel=1e-4), name
        assert second["logged"][name] == first["logged"][name], name
    assert single["logged"]["train/skipped_utterances"] == 1
