"""Objects from configurations, `{"class_path": …, "init_args": {…}}`."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from asr_lightning.errors import InputError, shown
from asr_lightning.models.class_paths import (
    check_class_paths,
    check_classes,
    denied_name,
    imports_only,
    is_no_class,
    refusal,
)
from asr_lightning.renamed import current_class_paths

# No class path that an experiment needs is Python's own; and where a parameter has no type, as those of some
# optimizers, a class path would be called without a look at what it names.
set_parsing_settings(instantiate_subclass_spec_in_any=False, import_path_denylist=sorted(sys.stdlib_module_names))

Made = TypeVar("Made")

MOST_PARAMETERS = 10_000  # tensors; a Transformer of 100 blocks has some 2,000
LONG = 200  # characters of a line in a message
MOST_LINES = 12  # of a message
NAMED = ("Problem with given class_path", "has no attribute", "Import path", "Option ")  # what tells of a slip
SAID = 2_000  # characters of what is told of a configuration: what matters stands last


def instantiate(
    config: dict[str, Any], kind: type[Made], wanted: str, allowed: Iterable[str] | None = None
) -> tuple[Made, dict[str, Any]]:
    """Make an object of `{"class_path": …, "init_args": {…}}`, and return this with all its defaults too.

    Args:
        config: What to make.
        kind: The class that it must be of, or a base class of it.
        wanted: What users call it.
        allowed: For the configuration of a checkpoint, names that it may import; None for that of an experiment.

    Raises:
        InputError: The configuration names what does not exist or is of another kind, or arguments that do not fit.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "made", required=True)
    with _importing(allowed), _refusing(wanted):
        parsed = _parse(parser, config, wanted, allowed)
        with within_memory():
            made: Made = parser.instantiate(parsed).made
    return made, _dump(parser, parsed)


def with_defaults(
    config: dict[str, Any], kind: type, wanted: str, allowed: Iterable[str] | None = None
) -> dict[str, Any]:
    """Return a configuration with all its defaults, without making anything; arguments as of `instantiate`.

    Raises:
        InputError: As `instantiate`.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "made", required=True)
    with _importing(allowed), _refusing(wanted):
        return _dump(parser, _parse(parser, config, wanted, allowed))


def parsed_strictly(config: dict[str, Any], kind: type, wanted: str, allowed: Iterable[str]) -> Namespace:
    """Return the configuration of a checkpoint as a parser leaves it, ready to be made in another one.

    Raises:
        InputError: As `instantiate`.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "made", required=True)
    with imports_only(allowed), _refusing(wanted):
        return _parse(parser, config, wanted, allowed).made


def _parse(parser: ArgumentParser, config: dict[str, Any], wanted: str, allowed: Iterable[str] | None) -> Namespace:
    config = current_class_paths(config)
    if allowed is not None:
        check_class_paths(config, allowed)
    parsed = parser.parse_object({"made": config})
    if is_no_class(parsed.made.class_path):
        raise InputError(f"this is no configuration of {wanted}: {parsed.made.class_path} is no class")
    if allowed is not None:
        check_classes(parsed.made)
    return parsed


def _dump(parser: ArgumentParser, parsed: Namespace) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(parser.dump(parsed, format="json", skip_unset=False))["made"]
    return whole


def _importing(allowed: Iterable[str] | None) -> AbstractContextManager[None]:
    return nullcontext() if allowed is None else imports_only(allowed)


@contextmanager
def _refusing(wanted: str) -> Iterator[None]:
    """Turn what jsonargparse and constructors raise into what users read."""
    try:
        yield
    except (ArgumentError, TypeError, ValueError, ImportError, AttributeError, RuntimeError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        if (said := input_error(error)) is not None:
            raise said from error
        if (name := denied_name(error)) is not None and "'*'" in str(error):
            raise refusal(name) from error
        raise InputError(f"this is no configuration of {wanted}: {shown(brief(str(error)), SAID)}") from error


@contextmanager
def within_memory() -> Iterator[None]:
    """Refuse modules that no machine could hold, before they are filled: a mistaken number would take hours to end."""
    tensors, bytes_ = 0, 0
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, bytes_
        if parameter is None:
            return
        tensors += 1
        bytes_ += 0 if parameter.is_meta else parameter.nbytes
        if tensors > MOST_PARAMETERS or bytes_ > most:
            raise InputError(
                f"the model has more than {MOST_PARAMETERS:,} weights and biases, or they take more than the "
                f"{most / 2**30:.0f} GB of this machine; {type(module).__name__}.{name} has {parameter.numel():,} "
                "numbers: expected fewer layers, or smaller ones"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def input_error(error: BaseException | None) -> InputError | None:
    """Return what a constructor said to the user, if that is what jsonargparse's own error wraps."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def brief(message: str) -> str:
    """Shorten what jsonargparse says of a value that is none of several types, of which only one was meant."""
    noise = (
        "Does not validate against any",
        "Subtypes: ",
        "Errors:",
        "- Expected a <class 'NoneType'>",
        "Given value type:",
    )
    lines = [
        line
        for line in message.splitlines()
        if not line.strip().startswith(noise) and not (line.strip().startswith("Given value:") and len(line) > LONG)
    ]
    if any(mark in line for line in lines for mark in NAMED):  # a slip in a name; what else could stand there says less
        lines = [line for line in lines if not line.strip().startswith(("- Expected a ", "- Not a valid subclass"))]
    return "\n".join(line[:LONG] for line in lines[:MOST_LINES]).strip(" -")
