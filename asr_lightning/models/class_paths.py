"""Classes that the configuration of a checkpoint may name.

An experiment (YAML, command line) is code of its author and may name any class. A checkpoint is data of any source: it
may name classes of torch.optim, of Lightning and of this project's models, classes that the experiment beside it names
too, and those that the user allows in the environment variable ASR_LIGHTNING_ALLOW. Names are checked before anything
is imported, and names of other things than classes are refused. Renamed classes are in `asr_lightning/renamed.py`.
"""

import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jsonargparse import Namespace, set_parsing_settings
from jsonargparse._common import parsing_settings

from asr_lightning.errors import InputError, shown
from asr_lightning.renamed import CLASS_KEYS

TRUSTED = (
    *("torch.optim", "lightning.pytorch", "asr_lightning.text", "asr_lightning.audio", "asr_lightning.nn"),
    *("asr_lightning.losses", "asr_lightning.decoding", "asr_lightning.hmm", "asr_lightning.models"),
)
VARIABLE = "ASR_LIGHTNING_ALLOW"
DENIED = re.compile(r"Importing '([^']*)' is not allowed")


def allowed_by_user() -> tuple[str, ...]:
    """Return the packages and classes that the user allows checkpoints to name.

    Raises:
        InputError: The variable contains other things than dotted names.
    """
    names = tuple(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip())
    if wrong := [name for name in names if not _is_dotted_name(name)]:
        raise InputError(
            f"{VARIABLE}: expected names of packages or classes with commas between them, as my_package,other.Class, "
            f"found {shown(wrong[0])!r}"
        )
    return names


def allowed_beside(experiment: Any) -> set[str]:  # noqa: ANN401 - values of any kind, nested
    """Return the names that a checkpoint may use beside an experiment: trusted ones and the experiment's classes."""
    names = {name for _, name in _class_paths(experiment) if isinstance(name, str)}
    # A class may be defined in another module than the module in its class path.
    classes = [_loaded_object(name) for name in names]
    defined = {f"{value.__module__}.{value.__qualname__}" for value in classes if inspect.isclass(value)}
    return {*TRUSTED, *allowed_by_user(), *names, *defined}


def check_class_paths(configuration: Any, allowed: Iterable[str]) -> None:  # noqa: ANN401 - as above
    """Refuse a checkpoint's configuration that names classes that are not allowed, without importing anything.

    Args:
        configuration: Of a checkpoint; names without a dot are left to the parser, which accepts them only for classes
            that are imported already.
        allowed: Names of packages, modules and classes.

    Raises:
        InputError: A class path is not a text, or is not allowed.
    """
    names = tuple(allowed)
    for key, name in _class_paths(configuration):
        if not isinstance(name, str):
            raise InputError(f"{key}: expected the path of a class, found {shown(repr(name))}")
        if "." in name and not any(f"{name}.".startswith(f"{prefix}.") for prefix in names):
            raise refusal(name, key)


def refusal(name: str, key: str = "") -> InputError:
    """Return the error for a name that a checkpoint may not use."""
    package = name.partition(".")[0]
    return InputError(
        f"{f'{key}: ' if key else ''}the configuration names {shown(name)}, which a checkpoint may not: expected "
        "classes of torch.optim, lightning.pytorch, asr_lightning, or of the experiment beside it. A checkpoint is not "
        f"code; if you trust this one, allow the package by {VARIABLE}={shown(package)}"
    )


@contextmanager
def imports_only(allowed: Iterable[str]) -> Iterator[None]:
    """Restrict what jsonargparse imports to allowed classes, in every form of a value.

    Its policy is that of the process and can only be extended, so the former policy is restored at the end.
    """
    settings = dict(parsing_settings)
    set_parsing_settings(
        import_path_denylist=["*"], import_path_allowlist=[name for name in allowed if _is_dotted_name(name)]
    )
    try:
        yield
    finally:
        parsing_settings.update(settings)


def denied_name(error: BaseException) -> str | None:
    """Return the name that `imports_only` refused, if this caused an error of jsonargparse."""
    match = DENIED.search(str(error))
    return match[1] if match else None


def check_classes(parsed: Any, key: str = "") -> None:  # noqa: ANN401 - jsonargparse's namespace, or a value in it
    """Refuse functions and objects in a parsed configuration, which the parser accepts beside classes.

    Raises:
        InputError: A class path names something else than a class, or a value is a function or an object.
    """
    if isinstance(parsed, Namespace | Mapping):
        items = vars(parsed).items() if isinstance(parsed, Namespace) else parsed.items()
        if isinstance(path := dict(items).get("class_path"), str) and not inspect.isclass(_loaded_object(path)):
            raise InputError(f"{key}: expected a class, found {shown(path)}, which is not a class")
        for name, value in items:
            check_classes(value, f"{key}.{name}".strip("."))
    elif isinstance(parsed, list | tuple | set):
        for value in parsed:
            check_classes(value, key)
    elif callable(parsed) or inspect.ismodule(parsed):
        raise InputError(f"{key}: expected a class or a plain value, found {shown(repr(parsed))}")


def is_no_class(path: str) -> bool:
    """Whether a class path names a function or an object; the parser has imported it already."""
    return (value := _loaded_object(path)) is not None and not inspect.isclass(value)


def _loaded_object(path: str) -> Any:  # noqa: ANN401 - of any kind
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _class_paths(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - as above
    """Yield dotted keys and values of all class paths at any depth."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name in CLASS_KEYS:
                yield key or "model", inner
            else:
                yield from _class_paths(inner, f"{key}.{name}".strip(".") if name != "init_args" else key)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            yield from _class_paths(inner, key)


def _is_dotted_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))
