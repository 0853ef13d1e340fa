"""Initialization from a checkpoint, and parts that are frozen."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from asr_lightning.callbacks.freezing import Freezing
from asr_lightning.callbacks.gradients import GradientNorms
from asr_lightning.callbacks.transfer import InitializeFrom, transfer_weights
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.text.tokenizers import CharacterTokenizer
from tests.support.tones import (
    TEXTS,
    attention_decoder,
    batch_of,
    conformer,
    ctc,
    features,
    loader,
    lstm_encoder,
    make_trainer,
    speller,
    transducer,
)

GREEK = {"class_path": f"{__name__}.Greek"}


class Reordered(CharacterTokenizer):
    """The same tokens in another order, and one more."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = (*self.tokens[:3], "Ä", *reversed(self.tokens[3:]))
        self._ids = {token: number for number, token in enumerate(self.tokens)}


class Greek(CharacterTokenizer):
    """Other letters, of which none is spoken."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = (*self.tokens[:3], *"αβγδεζηθικλμνξοπρστυφχψω")
        self._ids = {token: number for number, token in enumerate(self.tokens)}


def save(model: nn.Module, path: Path) -> str:
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}  # type: ignore[arg-type]
    torch.save({**content, "pytorch-lightning_version": lightning.__version__}, path)
    return str(path)


def initialized(config: dict[str, Any], path: str, folder: Path, **options: Any) -> Any:  # noqa: ANN401
    """A model before its first step."""
    torch.manual_seed(7)
    model = build_recognizer(config)
    InitializeFrom(path, **options).on_fit_start(make_trainer(folder), model)
    return model


def rates(model: Any, folder: Path) -> dict[str, float]:  # noqa: ANN401
    [metrics] = make_trainer(folder).test(
        model, loader([batch_of([*TEXTS, "FAB HEAD", "DECADE", "BADGE GHA"])]), verbose=False
    )
    return {name: value for name, value in metrics.items() if "real_time" not in name}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, float], str]:
    """A transducer that has learned something, its error rates, and its checkpoint."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("source")
    model = build_recognizer(transducer(ctc_weight=0.3))
    make_trainer(folder, max_epochs=150, limit_val_batches=0).fit(model, loader([batch_of()]))
    return model, rates(model, folder), save(model, folder / "source.ckpt")


def test_zero_steps_have_the_error_rates_of_the_source(
    trained: tuple[Any, dict[str, float], str], tmp_path: Path
) -> None:
    source, expected, path = trained
    model = initialized(transducer(ctc_weight=0.3), path, tmp_path)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    assert rates(model, tmp_path) == expected
    assert 0 < expected["test/wer"] and expected["test/cer"] < 0.9, "the source says something, and not all of it right"
    fresh = build_recognizer(transducer(ctc_weight=0.3))
    assert rates(fresh, tmp_path) != expected


def test_rows_of_tokens_follow_their_names(trained: tuple[Any, dict[str, float], str], tmp_path: Path) -> None:
    """A vocabulary in another order, with a token more, recognizes the same."""
    source, expected, path = trained
    tokenizer = {"class_path": f"{__name__}.Reordered"}
    model = initialized(transducer(ctc_weight=0.3, tokenizer=tokenizer), path, tmp_path)
    tokens, source_tokens = model.tokenizer.tokens, source.tokenizer.tokens
    assert tokens != source_tokens and set(tokens) - set(source_tokens) == {"Ä"}
    for name in ("ctc.weight", "ctc.bias"):
        weight, source_weight = model.state_dict()[name], source.state_dict()[name]
        assert all(
            torch.equal(weight[tokens.index(token)], source_weight[source_tokens.index(token)])
            for token in source_tokens
        )
    with torch.no_grad():  # the new token is never emitted
        for name, bias in model.named_parameters():
            if name.endswith("bias") and bias.shape == (len(tokens),):
                bias[tokens.index("Ä")] = -1e4
    assert rates(model, tmp_path)["test/wer"] == expected["test/wer"]


def test_larger_and_smaller_networks_take_what_fits(trained: tuple[Any, dict[str, float], str]) -> None:
    source = trained[0]
    for hidden, layers in ((16, 1), (48, 2)):
        model = build_recognizer(transducer(encoder=lstm_encoder(20, hidden=hidden, layers=layers)))
        initial = {name: value.clone() for name, value in model.state_dict().items()}
        weights, report = transfer_weights(model, source)
        kinds = {entry.name: entry.kind for entry in report}
        assert list(kinds) == list(initial)
        name = next(name for name in initial if name.startswith("encoder.") and name.endswith("weight_hh_l0"))
        assert kinds[name] == "cut"
        smaller = min(hidden, 32)
        gates, source_gates = (
            weight.reshape(4, -1, weight.shape[1]) for weight in (weights[name], source.state_dict()[name])
        )
        assert torch.equal(gates[:, :smaller, :smaller], source_gates[:, :smaller, :smaller]), "gate by gate"
        initial_gates = initial[name].reshape(4, hidden, hidden)
        assert torch.equal(gates[:, smaller:], initial_gates[:, smaller:]) and torch.equal(
            gates[:, :, smaller:], initial_gates[:, :, smaller:]
        )
        if layers == 2:
            new = [
                key for key in initial if key.startswith("encoder") and "weight_hh" in key and kinds[key] == "random"
            ]
            assert new and all(torch.equal(weights[key], initial[key]) for key in new)
        assert model.state_dict().keys() == weights.keys() and all(
            torch.equal(value, initial[key]) for key, value in model.state_dict().items()
        ), "the network itself is not changed"


def test_heads_are_exchanged(trained: tuple[Any, dict[str, float], str], tmp_path: Path, caplog: Any) -> None:
    """A CTC recognizer and an attention decoder begin with a transducer's encoder."""
    source, _, path = trained
    with caplog.at_level("INFO", "lightning.pytorch"):
        model = initialized(ctc(lstm_encoder(20)), path, tmp_path, rename={"output": "ctc"})
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, source.encoder.state_dict()[name])
    assert torch.equal(model.state_dict()["output.weight"], source.state_dict()["ctc.weight"])
    assert f"initialized from {path}: " in caplog.text and "from ctc.weight: " in caplog.text
    assert "not used of the checkpoint: encoder_projection, prediction, joint" in caplog.text
    decoder = attention_decoder(encoder=lstm_encoder(20), decoder=speller("DotAttention"), ctc_weight=0.3)
    model = initialized(decoder, path, tmp_path, skip=["ctc"])
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, source.encoder.state_dict()[name])
    assert not torch.equal(model.state_dict()["ctc.weight"], source.state_dict()["ctc.weight"])


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (transducer(encoder=conformer(20)), {}, r"encoder: Conformer here, LSTMEncoder in the.*skip: \[encoder"),
        (transducer(features=features("LogMel", mels=20)), {}, "trained on other features"),
        (transducer(tokenizer=GREEK), {}, r"share none.*skip: \["),
        (
            transducer(),
            {"skip": ["decodr"]},
            r"initialize_from.skip: expected paths.*found decodr; at the top there are .*encoder",
        ),
        (transducer(), {"rename": {"joint": "nothing"}}, "initialize_from.rename: expected paths.*found nothing"),
        (
            transducer(),
            {"skip": ["encoder", "encoder_projection", "prediction", "joint"]},
            "expected a checkpoint with parts of this",
        ),
    ],
    ids=["class", "features", "tokens", "skip", "rename", "nothing"],
)
def test_what_does_not_fit_is_refused_by_its_name(
    trained: tuple[Any, dict[str, float], str], config: Any, options: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"(?s){message}"):
        initialized(config, trained[2], tmp_path, **options)


def test_a_resumed_run_keeps_its_weights(trained: tuple[Any, dict[str, float], str], tmp_path: Path) -> None:
    model = build_recognizer(transducer(ctc_weight=0.3))
    trainer = make_trainer(tmp_path, callbacks=[InitializeFrom(trained[2])], limit_val_batches=0)
    trainer.fit(model, loader([batch_of()]))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    starts: list[dict[str, Tensor]] = []

    class Start(lightning.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401
            starts.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    callbacks = [InitializeFrom(str(tmp_path / "gone.ckpt")), Start()]  # nor is the source needed again
    resumed = make_trainer(tmp_path, callbacks=callbacks, limit_val_batches=0, max_epochs=2)
    resumed.fit(build_recognizer(transducer(ctc_weight=0.3)), loader([batch_of()]), ckpt_path=tmp_path / "one.ckpt")
    assert all(torch.equal(value, saved[name]) for name, value in starts[0].items())


class Memory(lightning.Callback):
    """Keeps the weights after every epoch, and the gradient norms."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.norms: list[float] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401
        self.weights.append({name: value.clone() for name, value in pl_module.state_dict().items()})
        self.norms.append(float(trainer.callback_metrics["grad_norm/encoder"]))


def test_a_part_is_frozen_until_its_epoch_with_its_statistics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    decay = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2, "weight_decay": 0.1}}
    model = build_recognizer(transducer(encoder=conformer(20, layers=1), optimizer=decay))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    assert any("running_mean" in name for name in start if name.startswith("encoder.")), "it has statistics"
    memory = Memory()
    callbacks = [Freezing({"encoder": 3}), GradientNorms(1), memory]
    trainer = make_trainer(tmp_path, max_epochs=4, callbacks=callbacks, log_every_n_steps=1)
    trainer.fit(model, loader([batch_of(TEXTS[:4]), batch_of(TEXTS[4:])]), loader([batch_of()]))
    encoder = [name for name in start if name.startswith("encoder.")]
    others = [name for name, _ in model.named_parameters() if not name.startswith("encoder.")]
    for epoch, weights in enumerate(memory.weights, 1):
        changed = [name for name in encoder if not torch.equal(weights[name], start[name])]
        assert (changed == []) == (epoch < 3), (epoch, changed)
        if epoch >= 3:
            assert {name for name, _ in model.encoder.named_parameters(prefix="encoder")} <= set(changed)
        assert (memory.norms[epoch - 1] == 0) == (epoch < 3)
    assert not all(torch.equal(memory.weights[0][name], start[name]) for name in others)
    means = [name for name in encoder if "running_mean" in name]
    assert not any(torch.equal(memory.weights[3][name], start[name]) for name in means)


def test_a_frozen_part_that_does_not_exist_is_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[Freezing({"encodr": 2})], limit_val_batches=0)
    with pytest.raises(InputError, match="freeze.until: expected the path of a module .*found encodr; .*encoder"):
        trainer.fit(build_recognizer(transducer()), loader([batch_of()]))
    with pytest.raises(ValueError, match="expected epochs from 1"):
        Freezing({"encoder": 0})
