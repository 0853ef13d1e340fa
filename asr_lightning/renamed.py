"""Current names of renamed classes and modules, for YAMLs and checkpoints that hold the old ones."""

import re
from collections.abc import Mapping
from typing import Any

# Old class path or module -> the current one. A module stands for all classes in it. After a second renaming the first
# entry gets the newest name. Whatever reads a YAML (`files.load_yaml`, the command line) or the configuration of a
# checkpoint (`models/same_network.configuration`) replaces the old names.
RENAMED: dict[str, str] = {
    "asr_lightning.audio.features.KaldiFilterBank": "asr_lightning.audio.kaldi_filter_bank.KaldiFilterBank",
    "asr_lightning.callbacks.choosing": "asr_lightning.callbacks.best_checkpoints",
    "asr_lightning.callbacks.looking": "asr_lightning.callbacks.inspection",
    "asr_lightning.callbacks.looking.Looking": "asr_lightning.callbacks.inspection.Inspection",
    "asr_lightning.callbacks.movement": "asr_lightning.callbacks.weight_changes",
    "asr_lightning.models.rnn_transducer.NormalizedLSTMPredictor": (
        "asr_lightning.models.normalized_transducer.NormalizedLSTMPredictor"
    ),
    "asr_lightning.models.rnn_transducer.NormalizedTransducer": (
        "asr_lightning.models.normalized_transducer.NormalizedTransducer"
    ),
    "asr_lightning.models.rnn_transducer.OneHotTransducer": (
        "asr_lightning.models.one_hot_transducer.OneHotTransducer"
    ),
}
CLASS_KEYS = ("class_path", "_class_path")


def current_names(text: str) -> str:
    """Return a text, as that of a YAML, with all old class paths and modules replaced by the current ones."""
    if not any(old in text for old in RENAMED):
        return text
    longest_first = sorted(RENAMED, key=len, reverse=True)  # a class may have its own entry beside its module's
    pattern = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, longest_first))})(?!\w)")
    return pattern.sub(lambda match: RENAMED[match[1]], text)


def current_class_paths(value: Any) -> Any:  # noqa: ANN401 - of a configuration
    """Return a configuration, nested mappings and lists, with current class paths at any depth.

    Raises:
        RecursionError: It is nested too deeply.
    """
    if isinstance(value, Mapping):
        return {
            key: current_names(inner) if key in CLASS_KEYS and isinstance(inner, str) else current_class_paths(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)([current_class_paths(inner) for inner in value])
    return value


def current_state_key(key: str) -> str:
    """Return the key of a callback's state in a checkpoint, which begins with the name of its class, as it is now."""
    name, brace, arguments = key.partition("{")
    for old, new in RENAMED.items():
        if old.startswith("asr_lightning.callbacks.") and old.rpartition(".")[2] == name:
            return f"{new.rpartition('.')[2]}{brace}{arguments}"
    return key
