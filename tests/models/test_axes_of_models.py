"""Axes of every model: a larger network with a student's weights where selection reads them computes the same.

No list of parameters is needed for this, so that a new architecture is checked as soon as it is in ARCHITECTURES. The
student's weights are put where `select_weights` would read them, and zeros everywhere else. What is not selected is
silent then, so the teacher computes what the student does. It does not where a flattened axis is taken for a plain one,
since a unit is then written in one place and read in another.
"""

import pkgutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import asr_lightning
from asr_lightning.callbacks.weight_selection import ElementRule, select_weights
from asr_lightning.errors import InputError
from asr_lightning.models import speech_transformer
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.nn.axes import Units, module_axes
from asr_lightning.nn.int8 import Int8Linear
from tests.support import sentences
from tests.support.architectures import ARCHITECTURES, with_states
from tests.support.tones import attention_decoder, batch_of, ctc, deep_speech_2, frame_attention, lstm_encoder, speller

Triple = tuple[nn.Module, nn.Module, nn.Module]
SCALED_DOT = attention_decoder(encoder=lstm_encoder(20), decoder=speller("ScaledDotAttention"))
NO_ATTENTION = speller("FixedContext")
NO_ATTENTION["init_args"]["attention"].pop("init_args")  # it has no dimension
JOINED = {"directions": "concatenate"}
HEADS = frame_attention("HeadAttention", heads=4)
PLACED = frame_attention("TimeAttention", heads=2, positions=True)
ADDITIVE = frame_attention("AdditiveTimeAttention", hidden=16)
MODELS: dict[str, dict[str, Any]] = {  # without a class path: of a language model
    **ARCHITECTURES,
    "scaled dot products": SCALED_DOT,
    "LAS without attention": attention_decoder(encoder=lstm_encoder(20), decoder=NO_ATTENTION),
    "joined directions": ctc(deep_speech_2("VGG", attention=HEADS, **JOINED)),
    "joined directions with positions": ctc(deep_speech_2(attention=PLACED, **JOINED)),
    "joined directions with additive attention": ctc(deep_speech_2(attention=ADDITIVE, **JOINED)),
    "language model": {"embedding_dimension": 16, "hidden": 24},
    "language model with tied weights": {"embedding_dimension": 32, "hidden": 32, "tied": True},
}
WIDTHS = {
    "hidden", "dimension", "channels", "feed_forward", "joint_dimension", "recurrent_projection", "projection",
    "fully_connected", "embedding_dimension",
}  # fmt: skip
OWN = ("asr_lightning.nn.", "asr_lightning.models.", "asr_lightning.audio.normalization")
RULES: tuple[ElementRule, ...] = ("uniform", "consecutive", "random_consistent")


def wider(config: Any, heads: bool = True) -> Any:
    """The same model, 1.5 times as wide: with more heads of the same size, or with larger heads."""
    if not isinstance(config, dict):
        return config
    result: dict[str, Any] = {}
    for name, value in config.items():
        if name in WIDTHS:
            result[name] = [width * 3 // 2 for width in value] if isinstance(value, list) else value * 3 // 2
        elif name in ("prologue", "epilogue"):
            result[name] = [value[0] * 3 // 2, *value[1:]]
        elif name == "heads" and heads:
            result[name] = value * 3 // 2
        elif name == "head_dimension" and not heads:
            result[name] = value * 3 // 2
        else:
            # More heads change what each of them is in an attention over heads.
            result[name] = wider(value, heads != str(config.get("class_path")).endswith(".HeadAttention"))
    return result


def build(config: dict[str, Any]) -> nn.Module:
    if "class_path" not in config:
        return sentences.make(**config).eval()
    return build_recognizer(config).eval()


def losses(model: Any) -> Tensor:
    with torch.no_grad():
        if isinstance(model, sentences.LSTMLanguageModel):
            return model.losses(sentences.TEXTS)[0]
        return model.loss(batch_of())


@pytest.fixture(autouse=True)
def _silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let silent units change nothing: neither means over units, nor √D, nor the wavelengths of sinusoids."""

    def sinusoids(positions: Tensor, dimension: int) -> Tensor:
        both = torch.stack([positions.float().sin(), positions.float().cos()], dim=1)
        return both.repeat(1, dimension // 2)

    def add_positions(x: Tensor, before: int = 0) -> Tensor:
        return x + sinusoids(torch.arange(before, before + x.shape[1]), x.shape[2])

    attend: Callable[..., Tensor] = nn.functional.scaled_dot_product_attention
    for name, module in list(sys.modules.items()):
        if name.startswith("asr_lightning.") and hasattr(module, "sinusoids"):
            monkeypatch.setattr(module, "sinusoids", sinusoids)
    monkeypatch.setattr(speech_transformer, "_add_positions", add_positions)
    monkeypatch.setattr(
        nn.functional,
        "scaled_dot_product_attention",
        lambda *arguments, **options: attend(*arguments, **{**options, "scale": 0.25}),
    )
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda norm, x: x * norm.weight + norm.bias)


@pytest.fixture(scope="module")
def triple(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Triple]:
    """A student and two teachers of a model, made once."""

    @cache
    def make(name: str) -> Triple:
        config = MODELS[name]
        if "class_path" in config:
            config = with_states(config, tmp_path_factory.mktemp("states"))
        return build(config), build(wider(config)), build(wider(config, heads=False))

    return make


def wrong_axes(student: nn.Module, teacher: nn.Module, other: nn.Module) -> list[str]:
    """Return what is wrong with the axes of a model; nothing if they are right."""
    torch.manual_seed(6)
    problems = list(never_larger(student, teacher, other))
    for name, tensor in student.state_dict().items():
        if tensor.is_floating_point() and not name.startswith("features.") and name != "log_priors":
            tensor.uniform_(0.5, 1.0) if name.endswith("variance") else tensor.uniform_(-0.4, 0.4)
    expected = losses(student)
    assert expected.isfinite().all()
    for tensor in teacher.state_dict().values():
        if not tensor.dtype == torch.int64:
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))  # each number says where it is
    numbered = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    for rule in RULES:
        teacher.load_state_dict(numbered)
        if "log_priors" in numbered:
            teacher.get_buffer("log_priors").copy_(student.get_buffer("log_priors"))
        indices, _ = select_weights(student, teacher, elements=rule)
        silent = {name: torch.zeros_like(tensor) for name, tensor in numbered.items()}
        for name, weight in student.state_dict().items():
            if name == "log_priors":
                silent[name].copy_(weight)
                continue
            silent[name].view(-1)[indices[name].long().flatten()] = weight.flatten()
        teacher.load_state_dict(silent)
        if not torch.allclose(losses(teacher), expected, rtol=1e-4, atol=1e-4):
            problems.append(f"{rule}: what is selected is not the network that was put there")
    return problems


def never_larger(student: nn.Module, *teachers: nn.Module) -> Iterator[str]:
    """Name axes of units that have the same size in every teacher, and so do not grow with any width."""
    teacher_axes = [module_axes(teacher) for teacher in teachers]
    for name, axes in module_axes(student).items():
        for index, axis in enumerate(axes):
            for number, product in enumerate(axis):
                for position, factor in enumerate(product):
                    counterparts = [axes[name][index][number][position] for axes in teacher_axes]
                    if (
                        isinstance(factor, Units)
                        and factor.size > 1
                        and all(factor == counterpart for counterpart in counterparts)
                    ):
                        yield f"axis {index} of {name} has {factor.size} units in every teacher"


@pytest.mark.parametrize("name", MODELS)
def test_what_is_selected_is_a_network(name: str, triple: Callable[[str], Triple]) -> None:
    assert not wrong_axes(*triple(name))


def networks() -> dict[str, type[nn.Module]]:
    """Every class of the project that is a network or a part of one, and can be trained."""
    classes = {}
    for module in pkgutil.walk_packages(asr_lightning.__path__, "asr_lightning."):
        if module.name.split(".")[1] in ("nn", "models", "audio"):
            for value in vars(import_module(module.name)).values():
                is_own = getattr(value, "__module__", "").startswith(OWN)
                if is_own and isinstance(value, type) and issubclass(value, nn.Module) and value is not Int8Linear:
                    classes[f"{value.__module__}.{value.__qualname__}"] = value
    return classes


def declaring() -> dict[str, type[nn.Module]]:
    """Networks that declare `parameter_axes`."""
    return {path: network for path, network in networks().items() if "parameter_axes" in vars(network)}


def test_every_network_of_the_project_is_among_the_models(triple: Callable[[str], Triple]) -> None:
    classes = {base for name in MODELS for part in triple(name)[0].modules() for base in type(part).mro()}
    missing = [path for path, network in networks().items() if network not in classes]
    assert not missing, "add a row to ARCHITECTURES of tests/support/architectures.py"


@pytest.mark.parametrize("path", declaring())
def test_no_class_can_do_without_its_axes(
    path: str, triple: Callable[[str], Triple], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = declaring()[path]
    names = [name for name in MODELS if any(isinstance(part, network) for part in triple(name)[0].modules())]
    assert names, f"no model in MODELS has a {path}: add one to ARCHITECTURES of tests/support/architectures.py"
    monkeypatch.setattr(network, "parameter_axes", lambda part: {})
    assert any(is_seen(*triple(name)) for name in names), "it is not seen that they are missing"


def is_seen(student: nn.Module, teacher: nn.Module, other: nn.Module) -> bool:
    """Whether something is wrong, or another class misses what this one declares."""
    try:
        return bool(wrong_axes(student, teacher, other))
    except KeyError:
        return True


@pytest.mark.parametrize("name", MODELS)
def test_a_teacher_of_the_students_size_is_taken_whole_and_a_smaller_one_refused(
    name: str, triple: Callable[[str], Triple]
) -> None:
    student, teacher, _ = triple(name)
    for layers in ("first", "uniform", "last"):
        weights, _ = select_weights(student, student, layers=layers, elements="uniform")
        assert all(torch.equal(weights[part], value) for part, value in student.state_dict().items())
    with pytest.raises(InputError, match=r"this teacher cannot be used: axis \d of \S+ has \d+ entries, but only \d+"):
        select_weights(teacher, student)
