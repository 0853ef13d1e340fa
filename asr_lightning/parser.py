"""The parser of the command line and of experiments, with short messages of what is wrong in them."""

import os
import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from asr_lightning.errors import reason
from asr_lightning.files import check_aliases, regular
from asr_lightning.models.instantiation import LONG, brief, nearest_line
from asr_lightning.renamed import current_names

# Some defaults of Lightning's callbacks, as of its Timer, are enumerations, which YAML does not know.
yaml.representer.SafeRepresenter.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))

UNKNOWN_OPTION = re.compile(r"(?:does not accept option '|unrecognized arguments: --)([\w.]+)")


class CommandLineParser(LightningArgumentParser):
    """Lightning's parser with messages that name the error only, not all other possibilities."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:  # noqa: ANN401 - Lightning's own signature
        # A misspelt option is refused, and not taken for one that begins with it.
        super().__init__(*arguments, **{**keywords, "allow_abbrev": False})

    def add_lightning_class_args(
        self,
        lightning_class: Any,  # noqa: ANN401 - Lightning's own signature
        nested_key: str,
        subclass_mode: bool = False,
        required: bool = True,
    ) -> list[str]:
        """Accept a checkpoint in place of an experiment's model, see `CommandLine._parse_ckpt_path`."""
        required = required and nested_key != "model"
        return super().add_lightning_class_args(lightning_class, nested_key, subclass_mode, required)

    def parse_path(self, path: str | os.PathLike, *arguments: Any, **keywords: Any) -> Namespace:
        """Read an experiment from a file; pipes and devices, which might never end, are refused."""
        try:
            regular(Path(path))
        except OSError as error:
            self.error(f"{path}: {error.strerror}")
        return super().parse_path(path, *arguments, **keywords)

    def parse_string(self, content: str, path: str | os.PathLike = "", *arguments: Any, **keywords: Any) -> Namespace:
        """Read an experiment with the current names of classes; refuse aliases that expand to too many values."""
        try:
            check_aliases(content)
            top = yaml.compose(content, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError) as error:
            self.error(f"{path}: this is no YAML to be read: {reason(error)}")
        if not isinstance(top, yaml.MappingNode):
            description = "nothing" if top is None else f"only {content.strip()[:LONG]!r}"
            self.error(
                f"{path}: expected an experiment, with keys such as model, data and trainer, found {description}"
            )
        return super().parse_string(current_names(content), path, *arguments, **keywords)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with the part of a message that helps."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        command = parser.prog.replace(" [options]", "")
        near = ""
        if unknown := UNKNOWN_OPTION.search(message):
            near = nearest_line(unknown[1], [action.dest for action in parser._actions])
        self.exit(2, f"error: {brief(message)}{near}\n`{command} --help` lists its options.\n")


def experiments_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the command and `--config FILE` before all others, each in their order."""
    command, remaining = list(arguments[:1]), list(arguments[1:])
    configs: list[str] = []
    others: list[str] = []
    while remaining:
        argument = remaining.pop(0)
        if argument in ("-c", "--config") and remaining:
            configs += [argument, remaining.pop(0)]
        else:
            (configs if argument.startswith("--config=") else others).append(argument)
    return [*command, *configs, *others]
