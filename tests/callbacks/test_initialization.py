import re
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from asr_lightning.callbacks.initialization import Initialization, Scheme, initialize
from asr_lightning.nn.conformer import Conformer
from asr_lightning.nn.recurrent import LSTMEncoder
from tests.support.transcribing_run import Beginning, PlannedHypotheses, batch_of, loader, make_trainer

XAVIER: Callable[[int, int], float] = lambda inputs, outputs: sqrt(6 / (inputs + outputs))  # noqa: E731
HE: Callable[[int, int], float] = lambda inputs, outputs: sqrt(6 / inputs)  # noqa: E731
BOUNDS = pytest.mark.parametrize(("scheme", "bound"), [("xavier", XAVIER), ("he", HE)])


def fills(weight: Tensor, bound: float) -> bool:
    """Whether a uniform distribution fills its interval up to the bound, and no further."""
    return 0.9 * bound < float(weight.detach().abs().max()) <= bound


@BOUNDS
def test_every_gate_is_a_matrix_of_its_own(scheme: Scheme, bound: Callable[[int, int], float]) -> None:
    lstm = nn.LSTM(20, 30)
    old = {name: weight.clone() for name, weight in lstm.named_parameters()}
    initialize(lstm, scheme)
    for gate in lstm.weight_ih_l0.split(30):
        assert fills(gate, bound(20, 30))
    for gate in lstm.weight_hh_l0.split(30):
        assert fills(gate, bound(30, 30))
    for name in ("bias_ih_l0", "bias_hh_l0"):
        assert torch.equal(getattr(lstm, name), old[name])


@BOUNDS
def test_every_part_of_a_conformer_has_the_bound_of_its_own_matrix(
    scheme: Scheme, bound: Callable[[int, int], float]
) -> None:
    encoder = Conformer(8, 24, layers=1, heads=4, feed_forward=40, kernel=31, channels=12)
    old = {name: weight.clone() for name, weight in encoder.named_parameters()}
    initialize(encoder, scheme)
    new = dict(encoder.named_parameters())
    for half in new["layers.0.convolution.gated.weight"].split(24):
        assert fills(half, bound(24, 24))
    assert fills(new["layers.0.attention.query.weight"], bound(24, 24))
    assert fills(new["layers.0.first_feed_forward.1.weight"], bound(24, 40))
    assert fills(new["layers.0.convolution.depthwise.filter.weight"], bound(31, 31)), "one filter for each channel"
    assert fills(new["subsampling.convolutions.1.weight"], bound(9 * 12, 9 * 12))
    untouched = [name for name in new if new[name].dim() == 1 or name.endswith(("content_bias", "position_bias"))]
    assert len(untouched) > 15
    for name in untouched:
        assert torch.equal(new[name], old[name]), name
    changed = [name for name in new if name not in untouched]
    assert not any(torch.equal(new[name], old[name]) for name in changed)


def test_a_projection_to_both_directions_is_one_matrix() -> None:
    encoder = LSTMEncoder(8, hidden=30, layers=1, channels=10)
    initialize(encoder, "xavier")
    assert fills(encoder.subsampling.projection.weight, XAVIER(20, 60))
    for gate in encoder.layers[0].backward_lstm.weight_ih_l0.split(30):
        assert fills(gate, XAVIER(60, 30))


@pytest.mark.parametrize("scheme", ["xavier", "he"])
def test_embeddings_are_untouched(scheme: Scheme) -> None:
    embedding = nn.Embedding(5, 4)
    old = embedding.weight.clone()
    initialize(nn.Sequential(embedding, nn.Linear(4, 3)), scheme)
    assert torch.equal(embedding.weight, old)


def test_default_changes_nothing_and_draws_nothing() -> None:
    linear = nn.Linear(4, 3)
    old, state = linear.weight.clone(), torch.get_rng_state()
    initialize(linear, "default")
    assert torch.equal(linear.weight, old)
    assert torch.equal(torch.get_rng_state(), state)


def test_uniform_draws_everything_but_norms() -> None:
    encoder = Conformer(8, 24, layers=1, heads=4, feed_forward=40, kernel=31, channels=12)
    old = {name: weight.clone() for name, weight in encoder.named_parameters()}
    initialize(encoder, "uniform", bound=0.3)
    for name, weight in encoder.named_parameters():
        unchanged = bool(re.search(r"norm\.(weight|bias)|feed_forward\.0\.", name))
        assert torch.equal(weight, old[name]) == unchanged, name
        assert unchanged or (weight.abs().max() <= 0.3 and (weight.numel() < 50 or fills(weight, 0.3))), name


def test_the_seed_decides() -> None:
    weights = []
    for seed in (1, 1, 2):
        linear = nn.Linear(4, 3)
        initialize(linear, "he", torch.Generator().manual_seed(seed))
        weights.append(linear.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def fit(folder: Path, scheme: Scheme, seed: int = 1, ckpt_path: Path | None = None, **options: Any) -> Any:
    lightning.seed_everything(seed, verbose=False)
    model, beginning = PlannedHypotheses(), Beginning()
    built = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = {"callbacks": [Initialization(scheme), beginning], "limit_val_batches": 0, **options}
    trainer = make_trainer(folder, **options)
    trainer.fit(model, loader([batch_of("a"), batch_of("b")]), ckpt_path=ckpt_path)
    return trainer, built, beginning.weights


def test_the_callback_draws_when_training_begins(tmp_path: Path) -> None:
    _, built, first = fit(tmp_path, "xavier")
    assert not torch.equal(built["joint.weight"], first["joint.weight"])
    assert torch.equal(built["joint.bias"], first["joint.bias"])
    assert torch.equal(fit(tmp_path, "xavier")[2]["joint.weight"], first["joint.weight"])
    assert not torch.equal(fit(tmp_path, "xavier", seed=2)[2]["joint.weight"], first["joint.weight"])
    _, built, first = fit(tmp_path, "default")
    assert all(torch.equal(built[name], first[name]) for name in built)


def test_a_resumed_run_keeps_its_weights(tmp_path: Path) -> None:
    trainer, *_ = fit(tmp_path, "he", max_steps=1)
    trainer.save_checkpoint(tmp_path / "middle.ckpt")
    saved = torch.load(tmp_path / "middle.ckpt", weights_only=True)["state_dict"]
    _, _, resumed = fit(tmp_path, "he", seed=2, ckpt_path=tmp_path / "middle.ckpt", max_epochs=3)
    assert all(torch.equal(saved[name], resumed[name]) for name in saved)


def test_a_second_fit_goes_on(tmp_path: Path) -> None:
    callback, beginning, model = Initialization("he"), Beginning(), PlannedHypotheses()
    for _ in range(2):
        trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        trainer = make_trainer(tmp_path, callbacks=[callback, beginning], limit_val_batches=0)
        trainer.fit(model, loader([batch_of("a")]))
    assert all(torch.equal(trained[name], beginning.weights[name]) for name in trained)


def test_ranks_that_were_seeded_differently_draw_what_rank_0_says() -> None:
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model, strategy = PlannedHypotheses(), SimpleNamespace(broadcast=lambda value: 7)
        Initialization("xavier").on_fit_start(SimpleNamespace(ckpt_path=None, strategy=strategy), model)
        weights.append(model.joint.weight.detach())
    assert torch.equal(weights[0], weights[1])
