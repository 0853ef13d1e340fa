"""Change single values of an experiment, addressed by dotted keys."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from asr_lightning.errors import InputError, shown

Experiment = dict[str, Any]  # the content of an experiment's YAML
CALLBACK_KEYS = (  # what every run does, set up by the command line with a key each
    *("initialization", "initialize_from", "weight_selection", "distillation", "freeze", "transcripts"),
    *("checkpoints", "gradient_norms", "update_sizes", "distance_from_start"),
)


def override(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """Return an experiment with other values.

    A key is the path to a value, as `model.init_args.encoder.init_args.layers`. A member of a list, as a callback, is
    addressed by the name of its class: `trainer.callbacks.WeightSelection.init_args.layers`. A key that ends in `+`
    appends its value to a list: `trainer.callbacks+`. A class that is given as a value takes the place of the old one,
    with its arguments. Keys below `CALLBACK_KEYS` need not be in the experiment: `weight_selection.layers`.

    Args:
        experiment: The content of a YAML; it is not changed.
        values: New value by key.

    Raises:
        InputError: The experiment has no such key.
    """
    result = copy.deepcopy(experiment)
    for key, value in values.items():
        *path, last = key.split(".")
        node: Any = result
        for depth, part in enumerate(path):
            node = _step(node, part, key, path[:depth])
        if last.endswith("+"):
            members = node.get(last[:-1]) if isinstance(node, dict) else None
            if members is None and [*path, last] == ["trainer", "callbacks+"]:
                members = node["callbacks"] = []
            if not isinstance(members, list):
                raise InputError(f"{key}: expected a list to append to at {'.'.join([*path, last[:-1]])}, found none")
            members.append(copy.deepcopy(value))
        elif isinstance(node, dict) and (last in node or _takes_new_keys(path)):
            node[last] = copy.deepcopy(value)
        else:
            raise InputError(_missing_key_message(key, last, path, node))
    return result


def _step(node: Any, part: str, key: str, path: list[str]) -> Any:  # noqa: ANN401 - any value of a YAML
    """Go one step down a path."""
    if isinstance(node, dict) and part == "init_args" and "class_path" in node:
        return node.setdefault("init_args", {})
    if isinstance(node, dict) and not path and part in CALLBACK_KEYS:
        return node.setdefault(part, {})
    if isinstance(node, dict) and part in node:
        return node[part]
    if isinstance(node, dict) and f"{part}+" in node:  # of what is added to an experiment
        return node[f"{part}+"]
    if isinstance(node, list):
        matches = [member for member in node if _class_name(member) == part]
        if len(matches) == 1:
            return matches[0]
    raise InputError(_missing_key_message(key, part, path, node))


def _takes_new_keys(path: list[str]) -> bool:
    """Whether keys may be missing in the YAML, since a class has defaults for them."""
    return not path or path[-1] == "init_args" or path == ["trainer"] or (len(path) == 1 and path[0] in CALLBACK_KEYS)


def _class_name(member: object) -> str:
    path = member.get("class_path") if isinstance(member, dict) else member
    return str(path).rpartition(".")[2]


def _missing_key_message(key: str, part: str, path: list[str], node: object) -> str:
    keys = (
        node if isinstance(node, dict) else [_class_name(member) for member in node] if isinstance(node, list) else []
    )
    available = ", ".join(map(str, keys)) or "nothing below it"
    return (
        f"{key}: expected a key of the experiment, found no {part!r} at {'.'.join(path) or 'the top'}; "
        f"there is {available}"
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each value that two experiments have differently: `key: old before, new now`."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    missing = "nothing"
    return [
        f"{key}: {shown(str(old.get(key, missing)))} before, {shown(str(new.get(key, missing)))} now"
        for key in [*old, *(key for key in new if key not in old)]
        if old.get(key, missing) != new.get(key, missing)
    ]


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any value of a YAML
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list) and any(isinstance(member, Mapping) for member in node):
        for index, member in enumerate(node):
            yield from _leaves(member, f"{path}.{_class_name(member) or index}")
    else:
        yield path, node


def as_yaml(experiment: Experiment) -> str:
    """Write an experiment as its YAML, in the order of its keys."""
    return yaml.safe_dump(experiment, sort_keys=False, allow_unicode=True, width=120)
