"""Objects from configurations, `{"class_path": …, "init_args": {…}}`."""

import difflib
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from asr_lightning.errors import InputError, nearest, shown
from asr_lightning.models.class_paths import (
    check_class_paths,
    check_classes,
    denied_name,
    imports_only,
    is_no_class,
    refusal,
)
from asr_lightning.renamed import current_class_paths

# Experiments need no class of Python's standard library. And where a parameter has no type, as of some optimizers, the
# parser would call a class path without any check.
set_parsing_settings(instantiate_subclass_spec_in_any=False, import_path_denylist=sorted(sys.stdlib_module_names))

Instance = TypeVar("Instance")

MOST_PARAMETERS = 10_000  # tensors; a Transformer of 100 blocks has some 2,000
KNOWN_PACKAGES = ("asr_lightning", "data_modules")  # packages whose classes are known
MOST_SUGGESTIONS = 12  # classes that a message names in place of one that does not exist
LONG = 200  # characters of a line in a message
MOST_LINES = 12  # of a message
UNKNOWN_ARGUMENT = re.compile(r"class_path '(?P<path>[\w.]+)':\s+Option '(?P<argument>\w+)' is not accepted")
WRONG_NAMES = ("Problem with given class_path", "has no attribute", "Import path", "Option ")  # of jsonargparse
LONG_REASON = 2_000  # characters of a message on a configuration, whose important part is its end


def instantiate(
    config: dict[str, Any], kind: type[Instance], expected: str, allowed: Iterable[str] | None = None
) -> tuple[Instance, dict[str, Any]]:
    """Build an object from `{"class_path": …, "init_args": {…}}`; return it, and the configuration with all defaults.

    Args:
        config: Class path and arguments.
        kind: The required class, or a base class of it.
        expected: Name of such an object in messages.
        allowed: Names that the configuration of a checkpoint may import; None for an experiment.

    Raises:
        InputError: The configuration names what does not exist or is of another kind, or arguments that do not fit.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "instance", required=True)
    with _importing(allowed), _raise_input_errors(expected):
        parsed = _parse(parser, config, expected, allowed)
        with within_memory():
            instance: Instance = parser.instantiate(parsed).instance
    return instance, _dump(parser, parsed)


def with_defaults(
    config: dict[str, Any], kind: type, expected: str, allowed: Iterable[str] | None = None
) -> dict[str, Any]:
    """Return a configuration with all its defaults, without building anything; arguments as of `instantiate`.

    Raises:
        InputError: As `instantiate`.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "instance", required=True)
    with _importing(allowed), _raise_input_errors(expected):
        return _dump(parser, _parse(parser, config, expected, allowed))


def parsed_strictly(config: dict[str, Any], kind: type, expected: str, allowed: Iterable[str]) -> Namespace:
    """Return the parsed configuration of a checkpoint, for another parser to build it.

    Raises:
        InputError: As `instantiate`.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "instance", required=True)
    with imports_only(allowed), _raise_input_errors(expected):
        return _parse(parser, config, expected, allowed).instance


def _parse(parser: ArgumentParser, config: dict[str, Any], expected: str, allowed: Iterable[str] | None) -> Namespace:
    config = current_class_paths(config)
    if allowed is not None:
        check_class_paths(config, allowed)
    parsed = parser.parse_object({"instance": config})
    if is_no_class(parsed.instance.class_path):
        raise InputError(f"this is no configuration of {expected}: {parsed.instance.class_path} is not a class")
    if allowed is not None:
        check_classes(parsed.instance)
    return parsed


def _dump(parser: ArgumentParser, parsed: Namespace) -> dict[str, Any]:
    complete: dict[str, Any] = json.loads(parser.dump(parsed, format="json", skip_unset=False))["instance"]
    return complete


def _importing(allowed: Iterable[str] | None) -> AbstractContextManager[None]:
    return nullcontext() if allowed is None else imports_only(allowed)


@contextmanager
def _raise_input_errors(expected: str) -> Iterator[None]:
    """Turn errors of jsonargparse and of constructors into an `InputError`."""
    try:
        yield
    except (ArgumentError, TypeError, ValueError, ImportError, AttributeError, RuntimeError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        if (of_constructor := input_error(error)) is not None:
            raise of_constructor from error
        if (name := denied_name(error)) is not None and "'*'" in str(error):
            raise refusal(name) from error
        raise InputError(f"this is no configuration of {expected}: {shown(brief(str(error)), LONG_REASON)}") from error


@contextmanager
def within_memory() -> Iterator[None]:
    """Refuse modules larger than the memory before they are filled: a wrong number would otherwise take hours."""
    tensors, bytes_ = 0, 0
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, bytes_
        if parameter is None:
            return
        tensors += 1
        bytes_ += 0 if parameter.is_meta else parameter.nbytes
        if tensors > MOST_PARAMETERS or bytes_ > limit:
            raise InputError(
                f"the model has more than {MOST_PARAMETERS:,} weights and biases, or they take more than the "
                f"{limit / 2**30:.0f} GB of this machine; {type(module).__name__}.{name} has {parameter.numel():,} "
                "numbers: expected fewer layers, or smaller ones"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def input_error(error: BaseException | None) -> InputError | None:
    """Return the `InputError` of a constructor that an error of jsonargparse wraps, if there is one."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def misspelt_class(message: str) -> str:
    """Return a hint on a class of this project that does not exist, if a message names one; else an empty text."""
    for path in re.findall(rf"\b((?:{'|'.join(KNOWN_PACKAGES)})(?:\.\w+)+)", message):
        package, module = path.split(".")[0], sys.modules.get(path.split(".")[0])
        for name in path.split(".")[1:]:
            inner = getattr(module, name, None)
            if inner is None and hasattr(module, "__path__") and importlib.util.find_spec(f"{package}.{name}"):
                inner = importlib.import_module(f"{package}.{name}")
            if inner is None:
                names = _members(module)
                close = difflib.get_close_matches(name, names, cutoff=0.0, n=len(names))
                return (
                    f"there is no {name} in {package}; there are {', '.join(close[:MOST_SUGGESTIONS])}" if close else ""
                )
            if inspect.isclass(inner):
                break
            package, module = f"{package}.{name}", inner
    return ""


def _members(module: Any) -> list[str]:  # noqa: ANN401 - a module
    """Return the names of a package's modules, or of a module's own public classes."""
    if hasattr(module, "__path__"):
        return [info.name for info in pkgutil.iter_modules(module.__path__)]
    members = inspect.getmembers(module, inspect.isclass)
    return [name for name, member in members if member.__module__ == module.__name__ and not name.startswith("_")]


def brief(message: str) -> str:
    """Shorten jsonargparse's message on a value of several possible types, of which the user meant only one."""
    if misspelt := misspelt_class(message):
        return misspelt
    noise = (
        "Does not validate against any",
        "Subtypes: ",
        "Errors:",
        "- Expected a <class 'NoneType'>",
        "Given value type:",
        "Given value: NestedArg",
    )
    lines = [
        line
        for line in message.splitlines()
        if not line.strip().startswith(noise) and not (line.strip().startswith("Given value:") and len(line) > LONG)
    ]
    if any(mark in line for line in lines for mark in WRONG_NAMES):  # other possible types do not help then
        lines = [line for line in lines if not line.strip().startswith(("- Expected a ", "- Not a valid subclass"))]
    return "\n".join(line[:LONG] for line in lines[:MOST_LINES]).strip(" -") + nearest_line(*_unknown_argument(message))


def nearest_line(name: str, names: Iterable[str]) -> str:
    """Return the last line of a message on an unknown name; empty where none of the known ones is near."""
    near = nearest(name, names)
    return f"\nThe nearest is {near}." if near else ""


def _unknown_argument(message: str) -> tuple[str, list[str]]:
    """Return the unknown argument of a class in a message of jsonargparse, and those of the class; empty if none."""
    match = UNKNOWN_ARGUMENT.search(message)
    module, _, name = match["path"].rpartition(".") if match else ("", "", "")
    kind = getattr(sys.modules.get(module), name, None)
    if match is None or not inspect.isclass(kind):
        return "", []
    signatures = (
        inspect.signature(vars(base)["__init__"]).parameters for base in kind.__mro__ if "__init__" in vars(base)
    )
    return match["argument"], [name for names in signatures for name in names]
