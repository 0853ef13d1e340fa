from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from asr_lightning.callbacks.gradients import GradientNorms, gradient_norm
from asr_lightning.errors import InputError
from tests.support.transcribing_run import KnownGradients, batch_of, loader, make_trainer


class Reader(lightning.Callback):
    """Keeps what was logged after each batch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        metrics = trainer.callback_metrics.items()
        self.seen.append({name: float(value) for name, value in metrics if name.startswith("grad_norm/")})


def fit(folder: Path, names: list[str], callback: GradientNorms, **options: Any) -> list[dict[str, float]]:
    reader = Reader()
    trainer = make_trainer(folder, callbacks=[callback, reader], limit_val_batches=0, **options)
    trainer.fit(KnownGradients(), loader([batch_of([name]) for name in names]))
    return reader.seen


def test_norms_of_parts_and_of_the_whole_are_those_before_clipping(tmp_path: Path) -> None:
    logged = fit(tmp_path, ["a", "b"], GradientNorms(), log_every_n_steps=1, gradient_clip_val=0.1)
    root = 2**0.5
    expected = {"grad_norm/encoder": 3 * root, "grad_norm/joint": 4 * root, "grad_norm/total": 5 * root}
    assert logged[0] == pytest.approx(expected)
    assert logged[1] == pytest.approx({name: 2 * norm for name, norm in expected.items()})


def test_norms_are_measured_every_n_steps(tmp_path: Path) -> None:
    logged = fit(tmp_path, list("abcd"), GradientNorms(every_n_steps=2), log_every_n_steps=4)
    totals = [norms.get("grad_norm/total", 0) / (5 * 2**0.5) for norms in logged]
    assert totals == pytest.approx([0, 2, 2, 4])


def test_norms_are_of_the_accumulated_gradient(tmp_path: Path) -> None:
    logged = fit(tmp_path, list("ab"), GradientNorms(), log_every_n_steps=1, accumulate_grad_batches=2)
    assert logged[0] == {}
    assert logged[1]["grad_norm/total"] == pytest.approx(1.5 * 5 * 2**0.5)  # the mean of 1 and 2


def test_a_step_without_gradients_is_left_out(tmp_path: Path) -> None:
    logged = fit(tmp_path, ["none"], GradientNorms(), log_every_n_steps=1)
    assert logged == [{}]


def test_an_interval_that_loggers_would_misreport_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="every_n_steps is 3, but must divide.* 4"):
        fit(tmp_path, ["a"], GradientNorms(every_n_steps=3), log_every_n_steps=4)


def test_a_scale_that_the_optimizer_removes_itself_is_divided_out(tmp_path: Path) -> None:
    class Precision(lightning.pytorch.plugins.Precision):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

        def pre_backward(self, tensor: torch.Tensor, module: lightning.LightningModule) -> torch.Tensor:
            return self.scaler.scale(tensor)

    class Fused(KnownGradients):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1, fused=True)  # takes a scale in its own step

    reader = Reader()
    options = {"limit_val_batches": 0, "log_every_n_steps": 1, "plugins": [Precision()]}
    trainer = make_trainer(tmp_path, callbacks=[GradientNorms(), reader], **options)
    trainer.fit(Fused(), loader([batch_of("a")]))
    assert reader.seen[0]["grad_norm/total"] == pytest.approx(5 * 2**0.5)


def test_gradient_norm_without_gradients_is_zero() -> None:
    assert float(gradient_norm(torch.nn.Linear(2, 2))) == 0.0
