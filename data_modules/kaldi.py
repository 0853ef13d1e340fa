"""Kaldi data folders: `wav.scp`, `text`, and where they are there `utt2spk` and `segments`.

```
ROOT/train/wav.scp       RECORDING PATH            a path, no pipe
           text          UTTERANCE THE TEXT
           utt2spk       UTTERANCE SPEAKER
           segments      UTTERANCE RECORDING BEGIN END      in seconds; without this file utterances are recordings
ROOT/dev/…
```
"""

import functools
import math
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from asr_lightning.errors import InputError, shown
from asr_lightning.files import read_number, regular
from data_modules.layouts import role_of
from data_modules.listed import ALL, ListedDataModule, Listings
from data_modules.manifest import BadFile, Listing
from data_modules.table_reading import decode
from data_modules.walk import find_file

END_OF_FILE = -1.0  # an end of a segment


class KaldiDataModule(ListedDataModule):
    """Kaldi's data folders: `data: {class_path: data_modules.kaldi.KaldiDataModule, init_args: {root: …}}`.

    A subset is a folder below `root` with `wav.scp` and `text`, called by its name. `root` may be such a folder itself,
    which is split, see `split`, unless its name begins with train, dev or test. Relative paths begin at the folder that
    the recipe is run in: the data folder, one of the four above it or the working directory, whichever has the file.

    Args:
        root: The folder of the data folders, as `egs/corpus/s5/data`, or one of them.
        **arguments: Those of `ListedDataModule` and `CorpusDataModule`.
    """

    def __init__(self, root: str, **arguments: Any) -> None:
        super().__init__(root, **arguments)
        self.use_all_subsets()

    @property
    def layout(self) -> str:
        """A description of the files of such a corpus, for messages."""
        return "wav.scp and text in it, or in folders below it"

    @functools.cached_property
    def folders(self) -> dict[str, Path]:
        """The data folders by the names of their subsets."""
        if _is_data(self.root):
            return {self.root.name if role_of(self.root.name) else ALL: self.root}
        if not self.root.is_dir():
            return {}
        paths = sorted(self.root.iterdir())
        if silent := [path.name for path in paths if (path / "wav.scp").is_file() and not _is_data(path)]:
            rank_zero_warn(f"{self.root}: {', '.join(silent)} cannot be used: there is wav.scp, but no text in it.")
        return {path.name: path for path in paths if _is_data(path)}

    def list_subsets(self) -> list[str]:
        """The names of the data folders."""
        return list(self.folders)

    def list_utterances(self, subset: str) -> Listings:
        """The utterances of a data folder that have audio and a transcript, in the order of its lists."""
        folder = self.folders[subset]
        bad: list[BadFile] = []
        recordings = self._recordings(folder, bad)
        texts = _read_pairs(folder / "text", bad)
        speakers = _read_pairs(folder / "utt2spk", bad) if (folder / "utt2spk").is_file() else {}
        if (folder / "segments").is_file():
            parts = _segments(folder / "segments", bad)
        else:
            parts = dict[str, tuple[str, float, float | None] | None]((id, (id, 0.0, None)) for id in recordings)
        listings = []
        for id, part in parts.items():
            if part is None:
                continue
            recording, begin, end = part
            path = recordings.get(recording)
            if path is None:
                if recording not in recordings:
                    bad.append(BadFile(f"{folder}/segments", "segment without audio", f"{recording} is not in wav.scp"))
            elif id not in texts:
                bad.append(BadFile(path, "audio without transcript", f"{shown(id)} is not in {folder}/text"))
            else:
                listings.append(Listing(id, path, texts[id], speakers.get(id, ""), begin, end))
        bad += [BadFile(f"{folder}/text", "transcript without audio", shown(id)) for id in texts if id not in parts]
        return listings, bad

    def _recordings(self, folder: Path, bad: list[BadFile]) -> dict[str, str | None]:
        """The files of `wav.scp` by recording; None where there is none, which is added to `bad`."""
        recordings: dict[str, str | None] = {}
        bases = [folder, *folder.parents[:4], Path.cwd()]
        for id, name in _read_pairs(folder / "wav.scp", bad).items():
            recordings[id] = None
            location = f"{folder}/wav.scp"
            if name.endswith("|"):
                bad.append(
                    BadFile(location, "a pipe", f"{id}: expected a path, found a command, which is not run; convert "
                            "the audio once, as with `wav-copy scp:wav.scp ark,scp:wav.ark,new.scp` or sox, and list "
                            "files")
                )  # fmt: skip
                continue
            path = find_file(name, bases)
            if path is None:
                ark = "; archives (.ark:OFFSET) are not read, list audio files" if ".ark:" in name else ""
                bad.append(BadFile(location, "transcript without audio", f"{id}: no file {shown(name)}{ark}"))
            recordings[id] = path
        return recordings


def _is_data(folder: Path) -> bool:
    return (folder / "wav.scp").is_file() and (folder / "text").is_file()


def _read_pairs(path: Path, bad: list[BadFile]) -> dict[str, str]:
    """The rest of every line by its first word; lines that cannot be used are added to `bad`.

    Raises:
        InputError: The file cannot be read.
    """
    pairs: dict[str, str] = {}
    try:
        text = decode(regular(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.split(None, 1)
        if not words:
            continue
        if not line.isprintable() and any("\ud800" <= character <= "\udfff" for character in line):
            bad.append(BadFile(f"{path}:{number}", "not UTF-8", f"{words[0]}; convert it, as with `iconv -f LATIN1`"))
            continue
        if words[0] in pairs:
            bad.append(BadFile(f"{path}:{number}", "duplicate id", f"{shown(words[0])} was listed before"))
        pairs.setdefault(words[0], words[1].strip() if len(words) > 1 else "")
    return pairs


def _segments(path: Path, bad: list[BadFile]) -> dict[str, tuple[str, float, float | None] | None]:
    """The recording, begin and end of every utterance; None where its line cannot be used."""
    segments: dict[str, tuple[str, float, float | None] | None] = {}
    for id, line in _read_pairs(path, bad).items():
        fields = line.split()
        try:
            begin, end = read_number(fields[1]), read_number(fields[2])
            if not (0 <= begin < math.inf and (end == END_OF_FILE or begin < end < math.inf)):
                raise ValueError
        except (ValueError, IndexError):
            bad.append(
                BadFile(
                    str(path),
                    "malformed line",
                    f"{shown(id)}: expected RECORDING BEGIN END, seconds from the first to a later one, found "
                    f"{shown(line)}",
                )
            )
            segments[id] = None
            continue
        segments[id] = fields[0], begin, None if end == END_OF_FILE else end
    return segments
