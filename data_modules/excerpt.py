"""A part of KsponSpeech: its first folders, divided into training and development utterances."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from asr_lightning.errors import InputError
from data_modules.manifest import hash_id

DIVIDED = ("train", "dev")  # the subsets that are divided by folders where no list says what is in them


@dataclass(frozen=True)
class Excerpt:
    """The first folders of the corpus as `train` and `dev`; the official lists of these are not read.

    Which utterances are `dev` depends on their names alone: the same in every run, whatever its seed.

    Attributes:
        folders: How many folders `KsponSpeech_NNNN`, of 1,000 pairs each, from the lowest number.
        held_out: Utterances of them that are `dev`; the others are `train`.

    Raises:
        InputError: A number is below 1.
    """

    folders: int = 10
    held_out: int = 500

    def __post_init__(self) -> None:
        if self.folders < 1 or self.held_out < 1:
            raise InputError(f"expected an excerpt of one folder or more, one utterance held out or more, got {self}")

    def select(self, files: Mapping[str, PurePath], subset: str, root: Path) -> list[str]:
        """Return the audio files of `train` or `dev`, sorted.

        Args:
            files: Of the whole corpus, with their paths below `root`.
            subset: One of `DIVIDED`.
            root: Of the corpus, for messages.

        Raises:
            InputError: There are fewer folders or utterances.
        """
        numbers = {file: number for file, path in files.items() if (number := folder_number(path)) is not None}
        lowest = sorted(set(numbers.values()))[: self.folders]
        chosen = [file for file, number in numbers.items() if number in lowest]
        if len(lowest) < self.folders or len(chosen) <= self.held_out:
            raise InputError(
                f"{root}: expected {self.folders} folders KsponSpeech_0001 and so on with more than {self.held_out} "
                f"utterances, found {len(lowest)} with {len(chosen)}. Set --data.init_args.excerpt.folders and "
                "--data.init_args.excerpt.held_out, or --data.init_args.excerpt null for the whole corpus"
            )
        ordered = sorted(chosen, key=lambda file: (hash_id(files[file].stem), file))
        return sorted(ordered[: self.held_out] if subset == "dev" else ordered[self.held_out :])


def folder_number(path: PurePath) -> int | None:
    """Return NNNN of the innermost folder KsponSpeech_NNNN that a file is in, if it is in one."""
    matches = [re.fullmatch(r"(?:Kspon|Kai)Speech_(\d{4})", folder) for folder in path.parts[:-1]]
    numbers = [int(match[1]) for match in matches if match]
    return numbers[-1] if numbers else None
