"""Distillation in training runs, and the networks it refuses."""

import copy
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from asr_lightning.batch import Batch, Utterance
from asr_lightning.callbacks.distillation import Distillation, check_terms
from asr_lightning.callbacks.distillation_terms import (
    CTCDistillation,
    DistillationTerm,
    EncodedBatch,
    EncoderDistillation,
    LatticeDistillation,
    PathDistillation,
)
from asr_lightning.callbacks.initialization import Initialization
from asr_lightning.callbacks.weight_changes import DistanceFromStart
from asr_lightning.cli import CommandLine
from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer, load_recognizer
from asr_lightning.models.recognizer import Recognizer
from tests.oracles import distillation as by_definition
from tests.support.planted_teachers import RATE
from tests.support.teacher_checkpoint import configuration, save_teacher
from tests.support.transcribing_run import loader, make_trainer


def with_ctc(width: int, **arguments: Any) -> dict[str, Any]:
    config = configuration(width)
    config["init_args"] |= {"ctc_weight": 0.3, **arguments}
    return config


def ctc_config(width: int) -> dict[str, Any]:
    arguments = {
        k: v for k, v in configuration(width)["init_args"].items() if k not in ("predictor", "joint_dimension")
    }
    return {"class_path": "asr_lightning.models.ctc.CTCRecognizer", "init_args": arguments}


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    texts = {"a": ("AB", 3_000), "b": ("CABBA", 4_100), "c": ("", 2_500)}
    return Batch.collate(
        [Utterance(id, torch.randn(n, generator=generator) / 10, RATE, text) for id, (text, n) in texts.items()]
    )


def batches(count: int = 4) -> Any:
    return loader([batch(seed) for seed in range(count)])


def student(config: dict[str, Any] | None = None, seed: int = 1) -> Recognizer:
    torch.manual_seed(seed)
    return build_recognizer(config or with_ctc(3))


def terms() -> list[DistillationTerm]:
    return [LatticeDistillation(0.01, 2.0), PathDistillation(0.2), EncoderDistillation(3.0), CTCDistillation(0.1)]


def fit(
    folder: Path, model: Recognizer, callbacks: list[lightning.Callback], ckpt_path: Path | None = None,
    data: Any = None, **options: Any,
) -> lightning.Trainer:  # fmt: skip
    lightning.seed_everything(7, verbose=False)
    trainer = make_trainer(folder, callbacks=callbacks, limit_val_batches=0, **options)
    trainer.fit(model, batches() if data is None else data, ckpt_path=ckpt_path)
    return trainer


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    return save_teacher(tmp_path, with_ctc(6))[0]


class Nothing(DistillationTerm):
    """Reads both networks, and adds zeros."""

    name = "nothing"

    def prepare(self, student: Recognizer, teacher: Recognizer) -> None:
        pass

    def forward(self, student: EncodedBatch, teacher: EncodedBatch) -> Tensor:
        return 0.0 * student.frames.sum(dim=(1, 2)) + 0.0 * teacher.frames.sum(dim=(1, 2))


def zero_terms() -> list[DistillationTerm]:
    return [LatticeDistillation(0.0), PathDistillation(0.0), EncoderDistillation(0.0), CTCDistillation(0.0)]


@pytest.mark.parametrize("added", [zero_terms(), [Nothing(1.0)]], ids=["weights of 0", "a term of zeros"])
def test_a_run_without_weight_is_the_run_without_a_teacher_to_the_digit(
    tmp_path: Path, teacher: Path, added: list[DistillationTerm]
) -> None:
    plain, beside = student(), student()
    fit(tmp_path, plain, [Initialization("xavier")])
    fit(tmp_path, beside, [Initialization("xavier"), Distillation(str(teacher), terms=added)])
    assert equal(plain.state_dict(), beside.state_dict())
    assert not equal(plain.state_dict(), student().state_dict())


def test_terms_change_what_is_learned_but_not_the_teacher(tmp_path: Path, teacher: Path) -> None:
    plain = student()
    fit(tmp_path, plain, [])
    for term in terms():
        distilled, content = student(), teacher.read_bytes()
        watching = Watching()
        fit(tmp_path, distilled, [Distillation(str(teacher), terms=[term]), watching])
        assert not equal(plain.state_dict(), distilled.state_dict()), term
        assert teacher.read_bytes() == content
        assert watching.modes == {False} and watching.grown == {False} and watching.unchanged


class Watching(lightning.Callback):
    """Looks at the teacher after every batch."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        [callback] = [callback for callback in trainer.callbacks if isinstance(callback, Distillation)]
        self.network = callback._network
        self.first = copy.deepcopy(self.network.state_dict())
        self.modes, self.grown = set(), set()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.modes |= {module.training for module in self.network.modules()}
        self.grown |= {p.requires_grad or p.grad is not None for p in self.network.parameters()}
        self.unchanged = equal(self.network.state_dict(), self.first)


def test_student_and_checkpoint_hold_nothing_of_teacher_and_projection(tmp_path: Path, teacher: Path) -> None:
    model, saved = student(), tmp_path / "saved.ckpt"
    names = [*model.state_dict()]
    trainer = fit(tmp_path, model, [Distillation(str(teacher), terms=terms())], max_steps=2)
    [group] = trainer.optimizers[0].param_groups
    count = sum(parameter.numel() for parameter in model.parameters())
    size = model.encoder.dimension, 2 * 6
    assert sum(p.numel() for p in group["params"]) == count + size[0] * size[1] + size[1], "the projection is trained"
    trainer.save_checkpoint(saved)
    content = torch.load(saved, weights_only=True)
    assert [*content["state_dict"]] == names == [*model.state_dict()]
    assert equal(load_recognizer(saved).state_dict(), content["state_dict"])
    [state] = [state for key, state in content["callbacks"].items() if "Distillation" in key]
    assert [tuple(value.shape) for value in state.values()] == [(size[1], size[0]), (size[1],)]
    assert model.added_loss is None and "distillation" not in dict(model.named_children())


class SaveAt(lightning.Callback):
    """Saves a checkpoint behind a step, while training goes on."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("step", [2, 4])  # in the middle of an epoch, and at its end
def test_a_resumed_run_goes_on_exactly(tmp_path: Path, teacher: Path, step: int) -> None:
    same = loader([batch()] * 4)  # a plain loader begins again with its first batch
    undisturbed, continued = student(), student(seed=2)
    callback, resumed = (Distillation(str(teacher), terms=terms()) for _ in range(2))
    saving = SaveAt(tmp_path / "middle.ckpt", step)
    fit(tmp_path, undisturbed, [callback, saving], data=same, max_epochs=2)
    halves = load_recognizer(saving.path).state_dict()
    fit(tmp_path, continued, [resumed], saving.path, data=same, max_epochs=2)
    assert equal(undisturbed.state_dict(), continued.state_dict())
    assert not equal(undisturbed.state_dict(), halves)
    assert equal(callback.state_dict(), resumed.state_dict()) and len(callback.state_dict()) == 2


class Losses(lightning.Callback):
    """Record the term added to the loss of the first batch, and the encoded batches it is computed from."""

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        added, pl_module.added_loss = pl_module.added_loss, None
        alone = pl_module.loss(batch)
        pl_module.added_loss = added
        self.added = (pl_module.loss(batch) - alone).detach().double()
        with torch.no_grad():
            encoded, lengths = pl_module(batch.audio, batch.audio_lengths)
        self.own = EncodedBatch(pl_module, encoded, lengths, *pl_module.targets(batch))
        [callback] = [callback for callback in trainer.callbacks if isinstance(callback, Distillation)]
        self.other = callback.encode(batch, lengths, pl_module.targets(batch))


def losses_of(folder: Path, teacher: Path, term: DistillationTerm) -> Losses:
    """Of a student that a step does not change."""
    losses, still = Losses(), {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}
    callbacks = [Distillation(str(teacher), terms=[term]), losses]
    fit(folder, student(with_ctc(3, optimizer=still)), callbacks, limit_train_batches=1)
    assert losses.own.lengths.tolist() == [9, 13, 8], "there is padding"
    return losses


@pytest.mark.parametrize(("kind", "oracle"), [
    (LatticeDistillation, by_definition.of_lattice), (PathDistillation, by_definition.of_path)
])  # fmt: skip
def test_the_loss_of_transducers_is_the_one_by_definition(
    tmp_path: Path, teacher: Path, kind: Any, oracle: Any
) -> None:
    losses = losses_of(tmp_path, teacher, kind(25.0, 2.0))
    logits = []
    for encoded in (losses.own, losses.other):
        inputs = encoded.joint_inputs()
        logits.append(inputs.joint(inputs.frames.unsqueeze(2), inputs.histories.unsqueeze(1)).detach().double())
    rows = zip(losses.own.targets.tolist(), losses.own.lengths, losses.own.target_lengths, *logits, strict=True)
    expected = [25.0 * oracle(p[:t, : u + 1], q[:t, : u + 1], row[:u], 0, 2.0) for row, t, u, p, q in rows]
    torch.testing.assert_close(losses.added, torch.stack(expected), rtol=1e-3, atol=1e-3)
    assert (losses.added > 0.01).all()


def test_the_loss_of_encoders_is_the_one_by_definition(tmp_path: Path, teacher: Path) -> None:
    term = EncoderDistillation(20.0)
    losses = losses_of(tmp_path, teacher, term)
    assert term.projection is not None
    for row, length in enumerate(losses.own.lengths.tolist()):
        projected = losses.own.frames[row, :length] @ term.projection.weight.T + term.projection.bias
        expected = 20.0 * (projected - losses.other.frames[row, :length]).square().mean()
        assert float(losses.added[row]) == pytest.approx(float(expected.detach()), rel=1e-4) and expected > 0.1


def test_the_loss_of_ctc_outputs_is_the_one_by_definition(tmp_path: Path, teacher: Path) -> None:
    losses = losses_of(tmp_path, teacher, CTCDistillation(0.5, 3.0))
    for row, length in enumerate(losses.own.lengths.tolist()):
        probabilities = [
            (encoded.recognizer.ctc(encoded.frames[row, :length]) / 3).softmax(-1).double().detach()  # type: ignore[misc]
            for encoded in (losses.other, losses.own)
        ]
        expected = 0.5 * 9 * sum(by_definition.kullback_leibler(p, q) for p, q in zip(*probabilities, strict=True))
        assert float(losses.added[row]) == pytest.approx(float(expected), rel=1e-4) and expected > 0.01


@pytest.mark.parametrize("term", terms(), ids=lambda term: term.name)
def test_the_teacher_itself_adds_nothing(tmp_path: Path, teacher: Path, term: DistillationTerm) -> None:
    copied, losses = load_recognizer(teacher), Losses()
    fit(tmp_path, copied, [Distillation(str(teacher), terms=[term]), losses], limit_train_batches=1)
    assert losses.added.abs().max() < 1e-5


def test_what_is_measured_of_a_start_leaves_the_projection_out(tmp_path: Path, teacher: Path) -> None:
    distances = DistanceFromStart(1)
    model = student()
    trainer = fit(
        tmp_path, model, [distances, Distillation(str(teacher), terms=terms())], max_steps=2, log_every_n_steps=1
    )
    trainer.save_checkpoint(tmp_path / "middle.ckpt")
    start = torch.load(tmp_path / "checkpoints/initial.ckpt", weights_only=True)["state_dict"]
    assert start.keys() == student().state_dict().keys()
    again = DistanceFromStart(1)
    fit(tmp_path, student(), [again, Distillation(str(teacher), terms=terms())], tmp_path / "middle.ckpt",
        max_steps=3, log_every_n_steps=1)  # fmt: skip
    assert again._checksum == distances._checksum


def other_tokens(config: dict[str, Any]) -> dict[str, Any]:
    tokenizer = {"class_path": "asr_lightning.text.tokenizers.CharacterTokenizer", "init_args": {"characters": "AB"}}
    config["init_args"]["tokenizer"] = tokenizer
    return config


def other_frames(config: dict[str, Any]) -> dict[str, Any]:
    config["init_args"]["features"]["init_args"]["hop_seconds"] = 0.02
    return config


REFUSED: list[tuple[dict[str, Any], dict[str, Any], list[DistillationTerm], str]] = [
    (with_ctc(3), other_frames(with_ctc(6)), [EncoderDistillation()], r"teacher encodes .* as \d+ .* student as \d+"),
    (ctc_config(3), with_ctc(6), [LatticeDistillation()], "expected a transducer as the student, found CTCRecognizer"),
    (with_ctc(3), ctc_config(6), [PathDistillation()], "expected a transducer as the teacher, found CTCRecognizer"),
    (configuration(3), with_ctc(6), [CTCDistillation()], "expected a CTC output of the student, found none"),
    (with_ctc(3), configuration(6), [CTCDistillation()], "expected a CTC output of the teacher, found none"),
]


@pytest.mark.parametrize(
    ("config", "teacher_config", "used", "message"), REFUSED, ids=[message for *_, message in REFUSED]
)
def test_networks_that_cannot_be_compared_are_refused(
    tmp_path: Path, config: dict[str, Any], teacher_config: dict[str, Any], used: list[DistillationTerm], message: str
) -> None:
    path, _ = save_teacher(tmp_path, teacher_config)
    with pytest.raises(InputError, match=message):
        fit(tmp_path, student(config), [Distillation(str(path), terms=used)])


def test_a_ctc_model_learns_from_the_ctc_output_of_a_transducer(tmp_path: Path, teacher: Path) -> None:
    used: list[DistillationTerm] = [CTCDistillation(1.0), EncoderDistillation(1.0)]
    model = student(ctc_config(3))
    trainer = fit(tmp_path, model, [Distillation(str(teacher), terms=used)])
    assert trainer.global_step == 4 and float(trainer.callback_metrics["train/distillation/ctc"]) > 0


def test_a_missing_teacher_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no teacher's checkpoint at .*none\.ckpt.*make it with `make teacher`"):
        fit(tmp_path, student(), [Distillation(str(tmp_path / "none.ckpt"), "make teacher")])


def test_a_teacher_of_other_tokens_is_refused_by_the_first(tmp_path: Path, teacher: Path) -> None:
    class Reversed:
        def __init__(self, tokenizer: Any) -> None:
            self.tokens, self.blank_id = (tokenizer.tokens[0], *tokenizer.tokens[:0:-1]), tokenizer.blank_id

    model, network = student(), load_recognizer(teacher)
    network.tokenizer = Reversed(network.tokenizer)
    with pytest.raises(InputError, match=f"first {model.tokenizer.tokens[1]!r} and {network.tokenizer.tokens[1]!r}"):
        LatticeDistillation().prepare(model, network)
    EncoderDistillation().prepare(model, network)


def test_a_projection_is_kept_for_encoders_of_its_sizes_only(teacher: Path) -> None:
    term, network = EncoderDistillation(), load_recognizer(teacher)
    model, other = student(), student()
    term.prepare(model, network)
    projection = term.projection
    term.prepare(other, network)
    assert term.projection is projection
    sizes = rf"{model.encoder.dimension} and {network.encoder.dimension} units"
    other.encoder.dimension += 1
    with pytest.raises(InputError, match=rf"encoders have {sizes}.*found {other.encoder.dimension} and "):
        term.prepare(other, network)


def test_a_callback_that_resumed_once_still_needs_its_terms_in_the_checkpoint(tmp_path: Path, teacher: Path) -> None:
    with_terms, without = tmp_path / "with.ckpt", tmp_path / "without.ckpt"
    callback = Distillation(str(teacher), terms=[EncoderDistillation()])
    fit(tmp_path, student(), [callback], max_steps=2).save_checkpoint(with_terms)
    fit(tmp_path, student(), [], max_steps=2).save_checkpoint(without)
    fit(tmp_path, student(), [callback], with_terms)
    with pytest.raises(InputError, match="was trained without these distillation terms"):
        fit(tmp_path, student(), [callback], without)


def test_training_without_the_terms_is_not_resumed_with_them(tmp_path: Path, teacher: Path) -> None:
    saved = tmp_path / "saved.ckpt"
    fit(tmp_path, student(), [], max_steps=2).save_checkpoint(saved)
    with pytest.raises(InputError, match="was trained without these distillation terms"):
        fit(tmp_path, student(), [Distillation(str(teacher), terms=[EncoderDistillation()])], saved)
    callback = Distillation(str(teacher), terms=[LatticeDistillation()])
    fit(tmp_path, student(), [callback], max_steps=2).save_checkpoint(saved)
    with pytest.raises(InputError, match="was trained without these distillation terms"):
        fit(tmp_path, student(), [Distillation(str(teacher), terms=terms())], saved)
    callback = Distillation(str(teacher), terms=[EncoderDistillation()])
    fit(tmp_path, student(), [callback], max_steps=2).save_checkpoint(saved)
    with pytest.raises(InputError, match="other distillation terms.*0 EncoderDistillation.*2 EncoderDistillation"):
        fit(tmp_path, student(), [Distillation(str(teacher), terms=terms())], saved)
    content = torch.load(saved, weights_only=True)
    with pytest.raises(InputError, match="is of a training with distillation.*found none"):
        check_terms([], content, saved)
    check_terms([callback], content, saved)


@pytest.mark.parametrize("make", [
    lambda: LatticeDistillation(-1.0), lambda: PathDistillation(float("nan")), lambda: CTCDistillation(1.0, 0.0)
])  # fmt: skip
def test_weights_and_temperatures_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="expected a (weight|temperature)"):
        make()


def test_it_is_a_key_of_an_experiment(tmp_path: Path) -> None:
    parser = LightningArgumentParser(exit_on_error=False)
    CommandLine.add_arguments_to_parser(None, parser)  # type: ignore[arg-type] # it needs no command line
    path = "asr_lightning.callbacks.distillation_terms"
    descriptions = [
        {"class_path": f"{path}.LatticeDistillation", "init_args": {"weight": 0.02, "temperature": 2.0}},
        {"class_path": f"{path}.EncoderDistillation"},
    ]
    callback = parser.instantiate(
        parser.parse_object({"distillation": {"teacher": "teacher.ckpt", "terms": descriptions}})
    ).distillation
    assert isinstance(callback, Distillation) and callback.teacher == "teacher.ckpt"
    assert [(type(term), term.weight) for term in callback.terms] == [
        (LatticeDistillation, 0.02), (EncoderDistillation, 1.0)
    ]  # fmt: skip
