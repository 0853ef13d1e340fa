"""A training step asks a GPU for nothing: the host queues work and does not wait. Tested without a GPU."""

from collections import Counter
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy

from asr_lightning.callbacks.gradients import GradientNorms
from asr_lightning.callbacks.progress import ProgressBar
from asr_lightning.callbacks.throughput import Throughput
from asr_lightning.callbacks.transcripts import Transcripts
from asr_lightning.models.checkpoints import build_recognizer
from tests.support.architectures import ARCHITECTURES, with_states
from tests.support.pretended_device import DEVICE, Accelerator, Waits, elsewhere
from tests.support.tones import TEXTS, batch_of, loader, make, make_trainer

FUSED = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "fused": True}}
# torch's CTC reads lengths from the GPU, in both passes, and copies them back: there is no other way to call it.
CTC = {
    "_ctc_loss with lengths on the device in losses/ctc.py:ctc_loss": 1,
    "_ctc_loss_backward with lengths on the device in models/global_batch.py:closure": 1,
}
# The number of nodes within the ranges is read back, and whether they are wide enough, for each widening.
PRUNED = {"nonzero in transducer/pruned.py:_score", "_local_scalar_dense in transducer/pruned.py:forward"}
# Each utterance has logits of its own size.
NORMALIZED = {"copy from the device in models/rnn_transducer.py:decoder_loss": 1}
# Its graphs are put together on the CPU, and its recursions end where utterances do, which the host has to know.
LATTICE_FREE_MMI = "hybrid with hidden Markov models and lattice-free MMI"


class PerStep(lightning.Callback):
    """Where the host waited in each step."""

    def __init__(self, waiting: Waits) -> None:
        self.waiting = waiting
        self.steps: list[Counter[str]] = []
        self._before: Counter[str] = Counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        counts = self.waiting.seen.copy()
        self.steps.append(counts - self._before)
        self._before = counts


def fit(folder: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], steps: int, **options: Any) -> PerStep:
    recognizer, batch = build_recognizer(config), batch_of(TEXTS[:1])
    with elsewhere(monkeypatch) as waiting:
        recorder = PerStep(waiting)
        strategy = SingleDeviceStrategy(device=DEVICE, accelerator=Accelerator())
        callbacks = [*options.pop("callbacks", []), recorder]
        settings = {"accelerator": "auto", "devices": "auto", "gradient_clip_val": 5.0, "max_steps": steps, **options}
        trainer = make_trainer(folder, strategy=strategy, callbacks=callbacks, **settings)
        trainer.fit(recognizer, loader([batch] * steps))
    return recorder


def with_optimizer(config: dict[str, Any], optimizer: dict[str, Any]) -> dict[str, Any]:
    return {**config, "init_args": {**config["init_args"], "optimizer": optimizer}}


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != LATTICE_FREE_MMI])
def test_no_step_waits_but_for_what_torch_reads_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = with_optimizer(with_states(ARCHITECTURES[name], tmp_path), FUSED)
    _, second = fit(tmp_path, monkeypatch, config, steps=2).steps
    with_ctc = config["class_path"].endswith("CTCRecognizer") or config["init_args"].get("ctc_weight")
    if "pruned" in name:
        assert set(second) == PRUNED and len(set(second.values())) == 1
    elif config["class_path"].endswith(("NormalizedTransducer", "OneHotTransducer")):
        assert second == NORMALIZED
    else:
        assert second == (CTC if with_ctc else {})


def test_the_device_that_is_not_there_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []

    class Keep(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            losses.append(outputs["loss"])

    config = ARCHITECTURES["RNN-T of LSTMs with CTC"]
    torch.manual_seed(1)
    fit(tmp_path, monkeypatch, config, steps=3, callbacks=[Keep()])
    torch.manual_seed(1)
    trainer = make_trainer(tmp_path, callbacks=[Keep()], gradient_clip_val=5.0)
    trainer.fit(build_recognizer(config), loader([batch_of(TEXTS[:1])] * 3))
    device_losses, cpu_losses = [float(loss.here) for loss in losses[:3]], [float(loss) for loss in losses[3:]]
    assert device_losses == pytest.approx(cpu_losses, rel=1e-4) and len(set(cpu_losses)) == 3


def test_an_optimizer_that_is_told_by_the_host_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, last = fit(tmp_path, monkeypatch, ARCHITECTURES["RNN-T of LSTMs"], steps=2).steps
    assert last == {"_local_scalar_dense in models/skipped_steps.py:skip_next_step": 1}


def test_the_callbacks_of_experiments_wait_only_where_they_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_optimizer(ARCHITECTURES["RNN-T of LSTMs"], FUSED)
    callbacks = [
        Transcripts(), GradientNorms(), Throughput(), LearningRateMonitor(), ProgressBar(),
        ModelCheckpoint(tmp_path, "last", every_n_train_steps=1000),
    ]  # fmt: skip
    steps = fit(
        tmp_path, monkeypatch, config, steps=8, callbacks=callbacks, log_every_n_steps=4, enable_checkpointing=True,
        enable_progress_bar=True, logger=CSVLogger(tmp_path),
    ).steps  # fmt: skip
    logged = {3, 4, 7}  # loggers write after the callbacks of a step, so what they wait for is counted with the next
    assert [sum(step.values()) for number, step in enumerate(steps) if number not in logged][1:] == [0, 0, 0, 0], steps
    assert sum(steps[3].values()) > 0 < sum(steps[4].values())


def test_what_waits_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(act: Any) -> str:
        with elsewhere(monkeypatch) as waiting:
            act(torch.arange(4.0).to(DEVICE, non_blocking=True))
        monkeypatch.undo()
        return " ".join(event.split(" in ")[0] for event in waiting.seen)

    assert reason(lambda x: float(x.sum())) == "_local_scalar_dense"
    assert reason(lambda x: bool((x > 1).any())) == "_local_scalar_dense"
    assert reason(lambda x: x[x > 1]) == "index with a mask"
    assert reason(lambda x: x.nonzero()) == "nonzero"
    assert reason(lambda x: x.cpu()) == reason(lambda x: x.tolist()) == "copy from the device"
    assert reason(lambda x: torch.ones(4).to(x.device)) == "copy to the device"
    assert reason(lambda x: torch.tensor(1.0, device=x.device)) == "copy to the device"
    assert reason(lambda x: x[torch.tensor([0, 2])]) == "index with places from the CPU"
    assert reason(lambda x: torch.equal(x, x)) == "equal"
    assert reason(lambda x: torch.where(x > 1, x, 0.0).sum() * 2) == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_not_waited_for(tmp_path: Path) -> None:
    class Strict(lightning.Callback):
        """From the second step on, when all kernels are chosen."""

        def on_train_batch_end(self, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("error")

        def on_train_epoch_end(self, *_: Any) -> None:
            torch.cuda.set_sync_debug_mode("default")

    try:
        trainer = make_trainer(tmp_path, accelerator="gpu", callbacks=[Strict()], gradient_clip_val=5.0)
        trainer.fit(make(ctc_weight=0.0, optimizer=FUSED), loader([batch_of().pin_memory()] * 4))
    finally:
        torch.cuda.set_sync_debug_mode("default")
