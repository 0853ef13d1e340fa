"""Formats of transcripts: one stream of lines, or a file in each format beside each other in a folder."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.errors import InputError, printable
from asr_lightning.files import regular, write_atomically
from asr_lightning.text.timed_words import Word, as_ctm, as_srt, as_textgrid, as_vtt

SOUNDS = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf", ".sph"}


@dataclass(frozen=True)
class Part:
    """A piece of a file: its time in seconds, and its hypotheses, the best first."""

    start: float
    end: float
    hypotheses: tuple[Hypothesis, ...]


@dataclass(frozen=True)
class Transcript:
    """The transcript of a file, or why there is none.

    Attributes:
        path: Of the file.
        text: Of all of it.
        problem: Why there is no transcript; empty where there is one.
        words: With times from the beginning of the file.
        seconds: Length of the audio.
        parts: The pieces in which the file was recognized.
    """

    path: str
    text: str = ""
    problem: str = ""
    words: tuple[Word, ...] = ()
    seconds: float = 0.0
    parts: tuple[Part, ...] = ()


def as_line(transcript: Transcript, terminal: bool) -> str:
    """Return `path<TAB>text`; on a terminal, without bytes of the path that are no UTF-8."""
    path = printable(transcript.path) if terminal else as_column(transcript.path)
    return f"{path}\t{printable(transcript.text)}\n"


def as_column(path: str) -> str:
    """Write a path for other programs: what would end a column or line is escaped, bytes that are no UTF-8 stay."""
    return re.sub("[^\udc80-\udcff]+", lambda match: printable(match[0]), path)


def as_json(transcript: Transcript, n_best: int = 1) -> str:
    """Return a line of JSON: `path`, `seconds`, `text`, `words`, and with `n_best` the hypotheses of each piece.

    Args:
        transcript: Of a file.
        n_best: Hypotheses of each piece, at most, in `pieces`; none if 1. Pieces overlap, and so do their texts.
    """
    content: dict[str, Any] = {
        "path": transcript.path,
        "seconds": round(transcript.seconds, 3),
        "text": transcript.text,
        "words": [word.as_json() for word in transcript.words],
    }
    if n_best > 1:
        content["pieces"] = [
            {
                "start": round(part.start, 3),
                "end": round(part.end, 3),
                "n_best": [
                    {"text": hypothesis.text, "score": hypothesis.score, **hypothesis.parts}
                    for hypothesis in part.hypotheses[:n_best]
                ],
            }
            for part in transcript.parts
        ]
    # Unicode's own line ends are escaped, and halves of characters, which UTF-8 cannot write.
    line = json.dumps(content, ensure_ascii=False)
    return re.sub("[\x85\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", line) + "\n"


def writers(n_best: int) -> dict[str, Callable[[Transcript], str]]:
    """Return the formats of files by their endings."""
    return {
        "txt": lambda transcript: printable(transcript.text) + "\n",
        "json": lambda transcript: as_json(transcript, n_best),
        "ctm": lambda transcript: as_ctm(Path(transcript.path).stem, transcript.words),
        "srt": lambda transcript: as_srt(transcript.words),
        "vtt": lambda transcript: as_vtt(transcript.words),
        "TextGrid": lambda transcript: as_textgrid(transcript.words, transcript.seconds),
    }


FORMATS = tuple(writers(1))


class TranscriptFolder:
    """Files of transcripts, `FOLDER/NAME.FORMAT`.

    Args:
        folder: Of all files.
        formats: Endings of `FORMATS`.
        names: Names by paths, as of `find_sounds`.
        n_best: Hypotheses in JSON.
        overwrite: Whether files that are complete are made anew.

    Raises:
        InputError: Two paths have the same name, or the folder cannot be made.
    """

    def __init__(
        self, folder: Path, formats: Sequence[str], names: dict[str, str], n_best: int, overwrite: bool
    ) -> None:
        owners: dict[str, str] = {}
        for path, name in names.items():
            if name in owners:
                raise InputError(
                    f"--output: {printable(owners[name])} and {printable(path)} would both be written to "
                    f"{printable(str(folder / name))}.*: transcribe them into different folders"
                )
            owners[name] = path
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--output: cannot make the folder {printable(str(folder.absolute()))}: {error.strerror}"
            ) from error
        self.folder, self.names, self.overwrite = folder, names, overwrite
        self.writers = {ending: writer for ending, writer in writers(n_best).items() if ending in formats}

    def unfinished(self) -> list[str]:
        """Return the paths that are to be transcribed: those that miss a file, or all with `overwrite`."""
        return [
            path
            for path in self.names
            if self.overwrite or not all(self._file(path, ending).is_file() for ending in self.writers)
        ]

    def write(self, transcript: Transcript) -> None:
        """Write the files of a transcript; each is complete or not there."""
        for ending, writer in self.writers.items():
            write_atomically(self._file(transcript.path, ending), writer(transcript))

    def _file(self, path: str, ending: str) -> Path:
        return self.folder / f"{self.names[path]}.{ending}"


def find_sounds(paths: Iterable[str]) -> dict[str, str]:
    """Return the sound files of files and folders, each with a name for its transcript.

    A file is taken whatever its ending; of a folder, all files at any depth with an ending of sound files, in the order
    of their names. The name is the path below the given folder, or that of the file, without its ending.

    Raises:
        InputError: A folder has no sound file.
    """
    names: dict[str, str] = {}
    for source in paths:
        root = Path(source)
        if not root.is_dir():
            names[source] = root.stem
            continue
        sounds = sorted(path for path in root.rglob("*") if path.suffix.lower() in SOUNDS and path.is_file())
        if not sounds:
            raise InputError(
                f"{printable(source)}: expected a folder with sound files ({', '.join(sorted(SOUNDS))}), found none"
            )
        names |= {str(path): str(path.relative_to(root).with_suffix("")) for path in sounds}
    return names


def read_file_list(path: Path) -> list[str]:
    """Return the lines of a file, or of standard input for `-`, but empty ones.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else regular(path).read_text("utf-8", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"--list: cannot read {path}: {error.strerror}") from error
    return [line for line in text.splitlines() if line.strip()]
