"""What is known of a corpus without decoding it: a line of JSON per utterance on disk, and an index in memory."""

import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from lhotse.serialization import deserialize_item
from tqdm import tqdm

from asr_lightning.errors import SAID, InputError, printable, reason, shown
from asr_lightning.files import regular, replacing

FORMAT = 2  # of the files below; raise it when they change, and old ones are rebuilt
HEADER_THREADS = 8  # waiting for a disk or a file server, not computing


@dataclass(frozen=True)
class Found:
    """An utterance as a corpus lists it: the audio is not opened yet."""

    id: str
    path: str
    text: str
    speaker: str = ""


class BadFile(NamedTuple):
    """A file that cannot be used, and why."""

    path: str
    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.kind}" + (f" ({self.detail})" if self.detail else ""))


class Header(NamedTuple):
    """What an audio file says of itself; `samples` are those of one channel."""

    sample_rate: int
    samples: int
    channels: int


ReadHeader = Callable[[str], Header]


def read_header(path: str) -> Header:
    """Read the header of any file that libsndfile knows.

    A FLAC file is also asked for its last sample, which a truncated file does not have: 0.1 ms. In an MP3 file this
    would need decoding; its length is counted by libsndfile, so a truncated one is merely shorter.
    """
    with soundfile.SoundFile(str(regular(Path(path)))) as file:
        if file.format == "FLAC" and file.frames:
            file.seek(file.frames - 1)
            if len(file.read(1)) != 1:
                raise soundfile.SoundFileError("truncated")
        return Header(file.samplerate, file.frames, file.channels)


def make_cut(found: Found, header: Header) -> MonoCut:
    """One utterance as lhotse sees it: a cut over a whole recording with one supervision."""
    seconds = header.samples / header.sample_rate
    recording = Recording(
        id=found.id,
        sources=[AudioSource(type="file", channels=list(range(header.channels)), source=found.path)],
        sampling_rate=header.sample_rate,
        num_samples=header.samples,
        duration=seconds,
    )
    supervision = SupervisionSegment(
        id=found.id, recording_id=found.id, start=0, duration=seconds, text=found.text, speaker=found.speaker
    )
    return MonoCut(id=found.id, start=0, duration=seconds, channel=0, supervisions=[supervision], recording=recording)


def measure(
    utterances: list[Found], sample_rate: int, title: str, read_header: ReadHeader = read_header
) -> Iterator[MonoCut | BadFile]:
    """Read the headers of all utterances, in their order, several at a time.

    Args:
        utterances: As the corpus lists them.
        sample_rate: What every file must have.
        title: Said beside the progress bar.
        read_header: Raises any `Exception` for a file that cannot be read.
    """

    def check(found: Found) -> MonoCut | BadFile:
        if wrong := [name for name in (found.id, found.speaker) if set(name) & set("/\0") or name in (".", "..")]:
            # what is found out about utterances goes to files that are called as they are
            return BadFile(found.path, "unusable id", f"no / may be in {wrong[0]!r}, nor may it be . or ..")
        try:
            header = read_header(found.path)
        except Exception as error:  # libsndfile, the file system and decoders each have their own
            return BadFile(found.path, "unreadable audio", " ".join(str(error).split())[:200])
        if header.sample_rate != sample_rate:
            return BadFile(found.path, "wrong sample rate", f"{header.sample_rate} Hz, expected {sample_rate} Hz")
        if header.samples == 0:
            return BadFile(found.path, "empty audio", "0 samples")
        return make_cut(found, header)

    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        yield from tqdm(
            pool.map(check, utterances),
            total=len(utterances),
            desc=printable(f"Reading headers of {title}"),
            unit=" files",
        )


def fingerprint(folder: Path, suffixes: Iterable[str]) -> str:
    """Hash the relative paths, sizes and modification times of the files with these suffixes, in one walk."""
    wanted = tuple(suffixes)
    digest = hashlib.sha256()
    for path, size, modified in sorted(_walk(str(folder), "", wanted)):
        digest.update(f"{path}\0{size}\0{modified}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _walk(folder: str, prefix: str, suffixes: tuple[str, ...]) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", suffixes)
            elif entry.name.lower().endswith(suffixes):
                status = entry.stat()
                yield f"{prefix}{entry.name}", status.st_size, status.st_mtime_ns


class Manifest:
    """The utterances of one subset, read from disk one at a time.

    Only an offset and a duration per utterance are in memory. The file stays open, so that a run goes on with the
    manifest it began with when another process replaces it; reads give their offset, so forked workers may share it.

    Args:
        path: Of `<subset>.cuts.jsonl`; its index lies beside it.

    Attributes:
        durations: (N,) float32 seconds.
        fingerprint: Of the files it was made from.
        empty: (N,) whether the transcript has no words.
        characters: How often each character comes in the transcripts, in Unicode's composed form (NFC).
        bad: Number of files that were left out.
        bad_path: Where they are listed, one a line: kind, path and reason, separated by tabs.

    Raises:
        OSError: There is no such manifest.
        ValueError: It is not whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            with np.load(index_path(self.path)) as index:
                self._offsets: np.ndarray = index["offsets"]
                self.durations: np.ndarray = index["durations"]
                self.fingerprint = str(index["fingerprint"])
                self.bad = int(index["bad"])
                self.empty: np.ndarray = index["empty"]
                counted = zip(index["characters"].tolist(), index["character_counts"].tolist(), strict=True)
                self.characters = Counter({chr(code): count for code, count in counted})
        except OSError:
            raise
        except Exception as error:  # zipfile, KeyError, EOFError: whatever a damaged archive gives
            raise ValueError(f"{index_path(self.path)} is damaged: {reason(error)}") from error
        self.bad_path = bad_path(self.path)
        self._file: BinaryIO = self.path.open("rb")
        size = os.fstat(self._file.fileno()).st_size
        if size != self._offsets[-1] or len(self._offsets) != len(self.durations) + 1 != len(self.empty) + 1:
            raise ValueError(f"{self.path} has {size} bytes, expected {self._offsets[-1]}")

    def __len__(self) -> int:
        return len(self.durations)

    def __getitem__(self, index: int) -> MonoCut:
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        return deserialize_item(json.loads(os.pread(self._file.fileno(), end - start, start)))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._file = self.path.open("rb")

    def empty_transcripts(self) -> list[BadFile]:
        """The utterances without words, which can be scored but not be learned from."""
        cuts = (self[int(number)] for number in np.flatnonzero(self.empty))
        return [BadFile(str(cut.recording.sources[0].source), "empty transcript", cut.id) for cut in cuts]

    def bad_files(self) -> list[BadFile]:
        """The files that were left out."""
        text = self.bad_path.read_bytes().decode("utf-8", errors="surrogateescape") if self.bad else ""
        lines = text.split("\n")[:-1]  # not `splitlines`: names may have what else Unicode takes for the end of a line
        kinds_paths_details = (line.split("\t", 2) for line in lines)
        return [BadFile(path, kind, detail) for kind, path, detail in kinds_paths_details]


def index_path(path: Path) -> Path:
    """Where the index of a manifest lies."""
    return path.with_name(path.name.removesuffix(".cuts.jsonl") + ".index.npz")


def bad_path(path: Path) -> Path:
    """Where the files that a manifest leaves out are listed."""
    return path.with_name(path.name.removesuffix(".cuts.jsonl") + ".bad.tsv")


def write_manifest(path: Path, entries: Iterable[MonoCut | BadFile], fingerprint: str) -> Manifest:
    """Write a manifest, its index and the list of bad files; each appears whole or not at all.

    Args:
        path: To `<subset>.cuts.jsonl`; its folder is made.
        entries: In the order wanted.
        fingerprint: Of the files this is made from.

    Raises:
        InputError: The folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        offsets, durations, bad, empty, characters = [0], [], 0, [], Counter[str]()
        with (
            replacing(path) as half, half.open("wb") as lines,
            replacing(bad_path(path)) as bad_half, bad_half.open("wb") as bad_lines,
        ):  # fmt: skip
            for entry in entries:
                if isinstance(entry, BadFile):
                    bad += 1
                    place = entry.path.replace("\t", r"\t").replace("\n", r"\n")
                    row = "\t".join((entry.kind, place, shown(entry.detail, SAID))).replace("\n", " ") + "\n"
                    bad_lines.write(row.encode("utf-8", errors="surrogateescape"))
                else:
                    line = json.dumps(entry.to_dict(), ensure_ascii=True).encode() + b"\n"
                    lines.write(line)
                    offsets.append(offsets[-1] + len(line))
                    durations.append(entry.duration)
                    text = unicodedata.normalize("NFC", entry.supervisions[0].text or "")
                    empty.append(not text.strip())
                    characters.update(text)
        with replacing(index_path(path)) as half, half.open("wb") as index:
            np.savez(
                index,
                offsets=np.array(offsets, dtype=np.int64),
                durations=np.array(durations, dtype=np.float32),
                fingerprint=np.array(fingerprint),
                bad=np.array(bad),
                empty=np.array(empty, dtype=bool),
                characters=np.array([ord(one) for one in characters], dtype=np.int64),
                character_counts=np.array(list(characters.values()), dtype=np.int64),
            )
    except OSError as error:
        raise InputError(
            f"Cannot write a manifest into {path.parent}: {error}.\n"
            "Set the environment variable ASR_LIGHTNING_CACHE to a folder that can be written to."
        ) from error
    return Manifest(path)
