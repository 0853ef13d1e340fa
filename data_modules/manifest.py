"""Manifests of corpora: a line of JSON per utterance on disk, and an index in memory; no audio is decoded for them."""

import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from lhotse.serialization import deserialize_item
from tqdm import tqdm

from asr_lightning.audio.reading import TOLERANCE, Header, read_header
from asr_lightning.audio.resampling import SAMPLE_RATES, resampled_length
from asr_lightning.errors import REASON, InputError, printable, reason, shown
from asr_lightning.files import replacing
from data_modules.workers import threads

FORMAT = 3  # of the files below; raise it when they change, and old ones are rebuilt
WHOLE = 0.002  # seconds that a table of rounded times may leave of a file that is meant as a whole
BAD_FILES_SHOWN = 20
PROBES = 40  # utterances of a subset whose audio is looked at before it is used
HEADER_THREADS = 8  # waiting for a disk or a file server, not computing


@dataclass(frozen=True)
class Listing:
    """An utterance as a corpus lists it: the audio is not opened yet.

    Attributes:
        id: Unique within its subset.
        path: Of the file, or its address.
        text: The transcript.
        speaker: Empty where unknown.
        begin: Second of the file that the utterance begins with.
        end: Second that it ends before; None for the end of the file.
        channel: The channel to take, from 0; None for the mean of all.
    """

    id: str
    path: str
    text: str
    speaker: str = ""
    begin: float = 0.0
    end: float | None = None
    channel: int | None = None


class BadFile(NamedTuple):
    """A file that cannot be used, and why."""

    path: str
    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.kind}" + (f" ({self.detail})" if self.detail else ""))


def summary(bad: Sequence[BadFile]) -> list[str]:
    """Return lines that count bad files by their kinds, and name the first of them."""
    kinds = Counter(file.kind for file in bad).most_common()
    more = len(bad) - BAD_FILES_SHOWN
    return [
        *(f"  {count} {kind}" for kind, count in kinds),
        *map(str, bad[:BAD_FILES_SHOWN]),
        *([f"... and {more} more"] if more > 0 else []),
    ]


ReadHeader = Callable[[str], Header]


def make_cut(listing: Listing, header: Header, sample_rate: int) -> MonoCut:
    """An utterance as lhotse sees it: a cut over a recording with one supervision.

    Its duration is that of the audio as it will be read, at `sample_rate`, which may be a sample longer than the file.
    What lhotse has no place for is in `custom`: `first` and `samples` of a part of a file, and the `channel` chosen.

    Raises:
        ValueError: The utterance is no part of the file.
    """
    first, samples = _part(listing, header)
    seconds = resampled_length(samples, header.sample_rate, sample_rate) / sample_rate
    recording = Recording(
        id=listing.id,
        sources=[AudioSource(type="file", channels=list(range(header.channels)), source=listing.path)],
        sampling_rate=header.sample_rate,
        num_samples=header.samples,
        duration=header.samples / header.sample_rate,
    )
    supervision = SupervisionSegment(
        id=listing.id, recording_id=listing.id, start=0, duration=seconds, text=listing.text, speaker=listing.speaker
    )
    custom = {"first": first, "samples": samples} if (first, samples) != (0, header.samples) else {}
    if listing.channel is not None:
        custom["channel"] = listing.channel
    return MonoCut(
        id=listing.id,
        start=first / header.sample_rate,
        duration=seconds,
        channel=listing.channel or 0,
        supervisions=[supervision],
        recording=recording,
        custom=custom or None,
    )


def _part(listing: Listing, header: Header) -> tuple[int, int]:
    """The first sample of an utterance in its file, and their number; times may be off by a rounding error."""
    rate, seconds = header.sample_rate, header.samples / header.sample_rate
    end = seconds if listing.end is None else listing.end
    if not 0 <= listing.begin <= end <= seconds + TOLERANCE:
        raise ValueError(
            f"expected a part of its {seconds:.3f} s, found {listing.begin:.3f} to {end:.3f}; times are in seconds"
        )
    if listing.channel is not None and not 0 <= listing.channel < header.channels:
        raise ValueError(f"expected a channel {listing.channel}, counted from 0, found {header.channels} channels")
    first = round(listing.begin * rate)
    if first == 0 and abs(end - seconds) < WHOLE:
        return 0, header.samples
    return first, max(0, min(round(end * rate), header.samples) - first)


def is_usable(name: str) -> bool:
    """Whether a file can be called so: without a slash, control characters, and bytes that are no UTF-8 (Cs)."""
    odd = any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)
    return not odd and "/" not in name and name not in (".", "..")


def read_headers(
    utterances: list[Listing],
    sample_rate: int,
    title: str,
    read_header: ReadHeader = read_header,
    probe: Callable[[MonoCut], bool | None] | None = None,
) -> Iterator[MonoCut | BadFile]:
    """Read the headers of all utterances, in their order, several at a time.

    Args:
        utterances: As the corpus lists them.
        sample_rate: Of the audio as it will be read.
        title: Of the progress bar.
        read_header: Raises any `Exception` for a file that cannot be read.
        probe: Says of an utterance whether its audio is narrow-band, or raises any `Exception` where it cannot be used;
            asked for some utterances, and for all that have channels to be mixed.
    """
    interval = max(1, len(utterances) // PROBES)

    def check(number: int) -> MonoCut | BadFile:
        listing = utterances[number]
        if wrong := [name for name in (listing.id, listing.speaker) if not is_usable(name)]:
            # results are written to files that are called as utterances are
            return BadFile(
                listing.path, "unusable id", f"{ascii(wrong[0])} has a /, a control character, no UTF-8, or is . or .."
            )
        try:
            header = read_header(listing.path)
        except Exception as error:  # libsndfile, the file system and decoders each have their own
            link = f"a link to {os.readlink(listing.path)}: " if os.path.islink(listing.path) else ""
            return BadFile(listing.path, "unreadable audio", link + " ".join(str(error).split())[:200])
        if not SAMPLE_RATES[0] <= header.sample_rate <= SAMPLE_RATES[1]:
            expected = f"expected {SAMPLE_RATES[0]:,} to {SAMPLE_RATES[1]:,} Hz"
            return BadFile(listing.path, "wrong sample rate", f"{header.sample_rate:,} Hz, {expected}")
        if header.samples == 0:
            return BadFile(listing.path, "empty audio", "0 samples")
        try:
            cut = make_cut(listing, header, sample_rate)
        except ValueError as error:
            return BadFile(listing.path, "no such part", f"{listing.id}: {error}")
        if cut.duration == 0:
            return BadFile(listing.path, "empty audio", f"{listing.begin:.3f} to {listing.end:.3f} s")
        mixed = header.channels > 1 and listing.channel is None
        if probe is not None and (mixed or number % interval == 0):
            try:
                narrow = probe(cut)
            except Exception as error:  # as above
                return BadFile(listing.path, "unusable audio", " ".join(str(error).split())[:300])
            if number % interval == 0 and narrow is not None:
                cut.custom = {**(cut.custom or {}), "narrow_band": narrow}
        return cut

    with threads(HEADER_THREADS) as pool:
        yield from tqdm(
            pool.map(check, range(len(utterances))),
            total=len(utterances),
            desc=printable(f"Reading headers of {title}"),
            unit=" files",
        )


class Manifest:
    """The utterances of one subset, read from disk one at a time.

    Only an offset and a duration per utterance are in memory. The file stays open, so that a run goes on with the
    manifest it began with when another process replaces it; reads give their offset, so forked workers may share it.

    Args:
        path: Of `<subset>.cuts.jsonl`; its index lies beside it.

    Attributes:
        durations: (N,) float32 seconds.
        ids: (N,) uint32, a hash of the id of each utterance.
        fingerprint: Of the files it was made from.
        empty: (N,) whether the transcript has no words.
        characters: How often each character comes in the transcripts, in Unicode's composed form (NFC).
        rates: Number of utterances by samples per second of their files.
        mixed: Number of utterances whose channels are mixed.
        narrow: Number of utterances without anything in the upper half of their band, of those that were probed.
        probed: Number of utterances whose audio was looked at for that.
        bad: Number of files that were left out.
        bad_path: Where they are listed, one a line: kind, path and reason, separated by tabs.

    Raises:
        OSError: There is no such manifest.
        ValueError: It is not as it was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            with np.load(index_path(self.path)) as index:
                self._offsets: np.ndarray = index["offsets"]
                self.durations: np.ndarray = index["durations"]
                self.ids: np.ndarray = index["ids"]
                self.fingerprint = str(index["fingerprint"])
                self.bad = int(index["bad"])
                digest = str(index["digest"])
                self.empty: np.ndarray = index["empty"]
                counted = zip(index["characters"].tolist(), index["character_counts"].tolist(), strict=True)
                self.characters = Counter({chr(code): count for code, count in counted})
                self.rates = Counter(dict(index["rates"].tolist()))
                self.mixed, self.narrow, self.probed = (int(count) for count in index["counts"])
        except OSError:
            raise
        except Exception as error:  # zipfile, KeyError, EOFError: whatever a damaged archive gives
            raise ValueError(f"{index_path(self.path)} is damaged: {reason(error)}") from error
        self.bad_path = bad_path(self.path)
        self._file: BufferedIOBase = self.path.open("rb")
        with self.bad_path.open("rb") as bad_lines:
            if _digest(self._file, bad_lines) != digest:
                raise ValueError(f"{self.path} was changed after it was written")
        size = os.fstat(self._file.fileno()).st_size
        if size != self._offsets[-1] or len(self._offsets) != len(self.durations) + 1 != len(self.empty) + 1:
            raise ValueError(f"{self.path} has {size} bytes, expected {self._offsets[-1]}")

    def __len__(self) -> int:
        return len(self.durations)

    def __getitem__(self, index: int) -> MonoCut:
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        try:
            return deserialize_item(json.loads(os.pread(self._file.fileno(), end - start, start)))
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:  # it was whole when it was opened
            raise InputError(f"{self.path} changed while it was read: start again, which writes it anew") from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._file = self.path.open("rb")

    def empty_transcripts(self) -> list[BadFile]:
        """The utterances without words, which can be scored but not be learned from."""
        cuts = (self[int(number)] for number in np.flatnonzero(self.empty))
        return [BadFile(str(cut.recording.sources[0].source), "empty transcript", cut.id) for cut in cuts]

    def shared_with(self, other: "Manifest") -> list[str]:
        """The ids of the utterances that another manifest has too: the same part of the same file, by the same id."""
        theirs = {_audio_of(other[int(number)]) for number in np.flatnonzero(np.isin(other.ids, self.ids))}
        cuts = (self[int(number)] for number in np.flatnonzero(np.isin(self.ids, other.ids)))
        return [cut.id for cut in cuts if _audio_of(cut) in theirs]

    def bad_files(self) -> list[BadFile]:
        """The files that were left out."""
        text = self.bad_path.read_bytes().decode("utf-8", errors="surrogateescape") if self.bad else ""
        lines = text.split("\n")[:-1]  # not `splitlines`: names may have what else Unicode takes for the end of a line
        kinds_paths_details = (line.split("\t", 2) for line in lines)
        return [BadFile(path, kind, detail) for kind, path, detail in kinds_paths_details]


def _audio_of(cut: MonoCut) -> tuple[str, float, float, int]:
    """What tells whether two cuts are the same audio."""
    return os.path.realpath(str(cut.recording.sources[0].source)), cut.start, cut.duration, int(cut.channel)


def _digest(*files: BufferedIOBase) -> str:
    """Hash the contents of files from their beginning, some 200 MB of a full corpus in a fraction of a second."""
    digests = []
    for file in files:
        file.seek(0)
        digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return " ".join(digests)


def hash_id(id: str) -> int:
    """Return a hash of an utterance's id in 32 bits, the same in every version of Python."""
    return int.from_bytes(hashlib.blake2b(id.encode(errors="surrogatepass"), digest_size=4).digest(), "little")


def index_path(path: Path) -> Path:
    """The path of the index of a manifest."""
    return path.with_name(path.name.removesuffix(".cuts.jsonl") + ".index.npz")


def bad_path(path: Path) -> Path:
    """The path of the list of files that a manifest leaves out."""
    return path.with_name(path.name.removesuffix(".cuts.jsonl") + ".bad.tsv")


def write_manifest(path: Path, entries: Iterable[MonoCut | BadFile], fingerprint: str) -> Manifest:
    """Write a manifest, its index and the list of bad files, each atomically.

    Args:
        path: To `<subset>.cuts.jsonl`; its folder is made.
        entries: In the order wanted.
        fingerprint: Of the files this is made from.

    Raises:
        InputError: The folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        offsets, durations, ids, bad, empty, characters = [0], [], [], 0, [], Counter[str]()
        rates, mixed, narrow, probed = Counter[int](), 0, 0, 0
        with (
            replacing(path) as unfinished, unfinished.open("w+b") as lines,
            replacing(bad_path(path)) as unfinished_bad, unfinished_bad.open("w+b") as bad_lines,
        ):  # fmt: skip
            for entry in entries:
                if isinstance(entry, BadFile):
                    bad += 1
                    escaped = entry.path.replace("\t", r"\t").replace("\n", r"\n")
                    row = "\t".join((entry.kind, escaped, shown(entry.detail, REASON))).replace("\n", " ") + "\n"
                    bad_lines.write(row.encode("utf-8", errors="surrogateescape"))
                else:
                    line = json.dumps(entry.to_dict(), ensure_ascii=True).encode() + b"\n"
                    lines.write(line)
                    offsets.append(offsets[-1] + len(line))
                    durations.append(entry.duration)
                    ids.append(hash_id(entry.id))
                    text = unicodedata.normalize("NFC", entry.supervisions[0].text or "")
                    empty.append(not text.strip())
                    characters.update(text)
                    custom = entry.custom or {}
                    rates[entry.recording.sampling_rate] += 1
                    mixed += entry.recording.num_channels > 1 and "channel" not in custom
                    narrow += custom.get("narrow_band", False)
                    probed += "narrow_band" in custom
            digest = _digest(lines, bad_lines)
        with replacing(index_path(path)) as unfinished, unfinished.open("wb") as index:
            np.savez(
                index,
                offsets=np.array(offsets, dtype=np.int64),
                durations=np.array(durations, dtype=np.float32),
                fingerprint=np.array(fingerprint),
                bad=np.array(bad),
                ids=np.array(ids, dtype=np.uint32),
                digest=np.array(digest),
                empty=np.array(empty, dtype=bool),
                characters=np.array([ord(character) for character in characters], dtype=np.int64),
                character_counts=np.array(list(characters.values()), dtype=np.int64),
                rates=np.array(sorted(rates.items()), dtype=np.int64).reshape(-1, 2),
                counts=np.array([mixed, narrow, probed]),
            )
    except OSError as error:
        raise InputError(
            f"Cannot write a manifest into {path.parent}: {error}.\n"
            "Set the environment variable ASR_LIGHTNING_CACHE to a folder that can be written to."
        ) from error
    return Manifest(path)
