"""KsponSpeech as AI Hub distributes it: headerless PCM, annotated transcripts beside it, and lists of official parts.

```
ROOT/KsponSpeech_01/KsponSpeech_0001/KsponSpeech_000001.pcm     16 kHz, mono, 16 bits, little-endian
                                     KsponSpeech_000001.txt     the annotated line, CP949 or UTF-8
ROOT/KsponSpeech_eval/eval_clean/KsponSpeech_E00001.pcm
ROOT/scripts/train.trn, dev.trn, eval_clean.trn, eval_other.trn     PATH :: the annotated line
```
"""

import io
import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import MonoCut

from asr_lightning.audio import reading
from asr_lightning.audio.reading import Header
from asr_lightning.errors import InputError
from asr_lightning.files import regular
from asr_lightning.text.korean import AnnotationError, Side, normalize_korean
from data_modules import dataset, table_reading
from data_modules.corpus import CorpusDataModule
from data_modules.excerpt import DIVIDED, Excerpt, folder_number
from data_modules.layouts import advise
from data_modules.manifest import BadFile, Listing
from data_modules.walk import fingerprint, name_apart, walk

SAMPLE_RATE = 16_000  # Hz, of all PCM files; they do not say it themselves
AUDIO_SUFFIXES = (".pcm", ".flac", ".wav")  # those who convert the corpus keep its names
FOREIGN = (b"RIFF", b"fLaC", b"OggS", b"<htm", b"<!DO", b"PK\x03\x04")  # beginnings of files that are no PCM
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
LIST_FOLDERS = ("scripts", "KsponSpeech_scripts", ".")
LAST_TRAINING_FOLDER = 620  # of the official parts: train is 0001 to 0620, dev 0621 to 0623
PRO_FILES = {"501006", "502173", "542363"}  # a bare % is read 프로 there, and 퍼센트 elsewhere


class KsponSpeechDataModule(CorpusDataModule):
    """KsponSpeech, or any corpus in its layout.

    A subset is a list `<subset>.trn` in `root/scripts`, `root/KsponSpeech_scripts` or `root`. Where there is no such
    list, the official subsets `train`, `dev`, `eval_clean` and `eval_other` are found by their folders, and any other
    name is a folder below `root`; the transcripts are then the `.txt` files beside the audio. PCM of an odd number of
    bytes, as all official evaluation files are, loses the last one. The corpus does not name its speakers.

    Args:
        root: The folder that contains `KsponSpeech_01` and so on.
        side: Of dual transcriptions, `spelling` or `pronunciation`.
        excerpt: Takes `train` and `dev` from some folders only; None takes the official ones.
        **arguments: Those of `CorpusDataModule`.
    """

    def __init__(
        self, root: str, side: Side = "pronunciation", excerpt: Excerpt | None = None, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.root = Path(root).expanduser().absolute()
        self.side: Side = side
        self.excerpt = excerpt

    @property
    def source(self) -> str:
        """Identifies this corpus in the cache."""
        return str(self.root)

    @property
    def manifest_folder(self) -> Path:
        """Where this corpus' manifests are cached; transcripts are in them as they are trained on."""
        folder = super().manifest_folder
        part = "" if self.excerpt is None else f"-{self.excerpt.folders}-folders-{self.excerpt.held_out}-held-out"
        return folder.with_name(f"{folder.name}-{self.side}{part}")

    def require(self, subsets: list[str]) -> None:
        """Check that the subsets are there.

        Raises:
            InputError: Some are not.
        """
        missing = [subset for subset in subsets if self.find_list(subset) is None and not self._in_folders(subset)]
        if missing:
            raise InputError(self._missing_message(missing))

    def fingerprint(self, subset: str) -> str:
        """A text that changes when files of the corpus do."""
        return f"{subset} {self._fingerprint}"

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.root, (*AUDIO_SUFFIXES, ".txt", ".trn"))

    @cached_property
    def _audio(self) -> dict[str, list[Path]]:
        """All audio files by their stems, in one walk."""
        files: dict[str, list[Path]] = defaultdict(list)
        for folder, names in walk(self.root, self._unreadable):
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in AUDIO_SUFFIXES:
                    files[_fold(stem)].append(folder / name)
        return dict(files)

    @cached_property
    def _unreadable(self) -> list[BadFile]:
        """Folders that the walk could not read."""
        return []

    def find_list(self, subset: str) -> Path | None:
        """The list of a subset, where there is one."""
        if self.excerpt is not None and subset in DIVIDED:
            return None
        candidates = [self.root / folder / f"{subset}.trn" for folder in LIST_FOLDERS]
        return next((path for path in candidates if path.is_file()), None)

    def find_utterances(self, subset: str) -> tuple[list[Listing], list[BadFile]]:
        """The subset's utterances, and what cannot be used: no partner, unreadable text, malformed annotation."""
        self._audio  # noqa: B018 - walks, and finds what cannot be read
        bad: list[BadFile] = [*self._unreadable]
        listings: dict[str, Listing] = {}  # by path
        path = self.find_list(subset)
        pairs = self._read_list(path, bad) if path is not None else self._read_pairs(subset, bad)
        for location, audio, content in pairs:
            line = decode(content)
            id = Path(audio).stem
            if line is None:
                bad.append(BadFile(location, "transcript neither UTF-8 nor CP949", id))
            elif audio in listings:
                bad.append(BadFile(location, "duplicate id", f"{audio} has a transcript already, which is kept"))
            elif (text := self._normalize(line, id, location, bad)) is not None:
                listings[audio] = Listing(id, audio, text)
        return name_apart(list(listings.values()), self.root, bad), bad

    def _normalize(self, line: str, id: str, location: str, bad: list[BadFile]) -> str | None:
        percent = "프로" if id.rpartition("_")[2] in PRO_FILES else "퍼센트"
        try:
            return normalize_korean(line, self.side, percent)
        except AnnotationError as error:
            bad.append(BadFile(location, "malformed annotation", str(error)))
            return None

    def _read_list(self, path: Path, bad: list[BadFile]) -> Iterator[tuple[str, str, bytes]]:
        """Location, audio file and undecoded text of every line of a list whose audio is there."""
        with regular(path).open("rb") as file:
            marked = file.peek(2)[:2] in UTF_16_MARKS
            lines = io.BytesIO(table_reading.decode(file.read()).encode("utf-8", "replace")) if marked else file
            for number, content in enumerate(lines, start=1):
                if not (content := content.removeprefix(b"\xef\xbb\xbf").strip()):
                    continue
                location = f"{path}:{number}"
                raw_name, mark, text = content.partition(b"::")  # a text may hold the mark too
                name = raw_name.strip().decode("utf-8", errors="replace")
                if not mark:
                    bad.append(BadFile(location, "malformed line", f"expected PATH :: TEXT, got {name[:80]!r}"))
                elif not (audio := self._find(name)):
                    bad.append(BadFile(location, "transcript without audio", f"no {name} below {self.root}"))
                elif len(audio) > 1:
                    several = " and ".join(str(file.relative_to(self.root)) for file in audio[:5])
                    bad.append(
                        BadFile(
                            location,
                            "ambiguous path",
                            f"{name} may be {several}: write more of its folders in the list",
                        )
                    )
                else:
                    yield location, str(audio[0]), text

    def _find(self, name: str) -> list[Path]:
        """The audio of a listed path, several where it could be any of them.

        Such paths begin with more folders than there are, fewer, or with KaiSpeech: the file with the longest equal end
        is meant. Without any folder in common, only a name that is nowhere twice tells which file is meant.
        """
        path = Path(name.replace("\\", "/"))
        files = self._audio.get(_fold(path.stem), [])
        ends = [_common_end(path.parent, file.parent) for file in files]
        best = [file for file, end in zip(files, ends, strict=True) if end == max(ends)]
        if len({file.parent for file in best}) > 1:
            return best
        if best and not max(ends) and path.parent != Path() and not self._names_are_unique:
            return []
        return sorted(best, key=lambda file: file.suffix.lower() != path.suffix.lower())[:1]

    @cached_property
    def _names_are_unique(self) -> bool:
        """Whether no two folders have files of one name, as in the corpus itself."""
        return all(len({file.parent for file in files}) == 1 for files in self._audio.values())

    def _in_folders(self, subset: str) -> list[str]:
        """The audio files of a subset that has no list, sorted."""
        files = {(file.parent, file.stem): file for paths in self._audio.values() for file in reversed(paths)}
        relative = {str(file): file.relative_to(self.root) for file in files.values()}
        if self.excerpt is not None and subset in DIVIDED:
            return self.excerpt.select(relative, subset, self.root)
        return sorted(file for file, path in relative.items() if _is_of_subset(path, subset))

    def _read_pairs(self, subset: str, bad: list[BadFile]) -> Iterator[tuple[str, str, bytes]]:
        """The transcript, the audio and the undecoded text of every pair of files."""
        for audio in self._in_folders(subset):
            path = Path(audio).with_suffix(".txt")
            try:
                yield str(path), audio, regular(path).read_bytes()
            except FileNotFoundError:
                bad.append(BadFile(audio, "audio without transcript", f"no {path.name} beside it"))
            except OSError as error:
                bad.append(BadFile(str(path), "unreadable transcript", str(error)))

    def _missing_message(self, missing: list[str]) -> str:
        names = ", ".join(missing)
        if not self.root.is_dir():
            return f"No KsponSpeech with {names}. {advise(self.root)}"
        lists = sorted({path.stem for folder in LIST_FOLDERS for path in (self.root / folder).glob("*.trn")})
        return (
            f"{self.root} has no {names}: expected a list scripts/<subset>.trn, or folders "
            f"KsponSpeech_01/KsponSpeech_0001 and so on with audio ({', '.join(AUDIO_SUFFIXES)}).\n"
            f"Lists there: {', '.join(lists) or 'none'}. "
            f"KsponSpeech comes from aihub.or.kr; unpack its archives into this folder.\n{advise(self.root)}"
        )

    @staticmethod
    def read_header(path: str) -> Header:
        """Count the samples of a PCM file; of any other, read the header."""
        if not path.lower().endswith(".pcm"):
            return reading.read_header(path)
        with regular(Path(path)).open("rb") as file:
            beginning = file.read(4)
        if beginning in FOREIGN:
            raise InputError(
                f"expected PCM without a header, found a file that begins with {beginning!r}: give it the suffix of "
                "its format"
            )
        return Header(SAMPLE_RATE, os.path.getsize(path) // 2, 1)

    @staticmethod
    def read_audio(cut: MonoCut) -> np.ndarray:
        """Read the file of a cut: (S,) in [-1, 1].

        Raises:
            ValueError: The file is not as long as the manifest says.
            OSError: It cannot be read.
        """
        path = str(cut.recording.sources[0].source)
        if not path.lower().endswith(".pcm"):
            return dataset.read_audio(cut)
        content = regular(Path(path)).read_bytes()
        samples = np.frombuffer(content, dtype="<i2", count=len(content) // 2)  # without an odd last byte
        if len(samples) != cut.recording.num_samples:
            raise ValueError(f"{len(samples)} samples, expected {cut.recording.num_samples}")
        return samples.astype(np.float32) / 32_768


def _fold(name: str) -> str:
    """Return a name as it is today: an older release is called KaiSpeech."""
    return name.replace("KaiSpeech", "KsponSpeech")


def _common_end(path: Path, other: Path) -> int:
    """Count the folders that two paths have in common at their ends."""
    pairs = zip(reversed(path.parts), reversed(other.parts), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: _fold(pair[0]) == _fold(pair[1]), pairs))


def decode(content: bytes) -> str | None:
    """Decode a transcript; UTF-8 and CP949 occur in the corpus, UTF-16 in copies of it. None if it is none of them."""
    for encoding in ("utf-16",) if content[:2] in UTF_16_MARKS else ("utf-8-sig", "cp949"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    return None


def _is_of_subset(path: Path, subset: str) -> bool:
    """Whether a path below the root is of a subset without a list."""
    if subset not in DIVIDED:
        return subset in path.parts[:-1]
    number = folder_number(path)
    return number is not None and (number <= LAST_TRAINING_FOLDER) == (subset == "train")
