"""Corpora in shards, lhotse's Shar layout: many utterances a file, which file servers serve better than files of one.

```
ROOT/<subset>/cuts.000000.jsonl.gz      a line per utterance: id, transcript, speaker, duration
              recording.000000.tar      the same utterances in the same order: ID.flac, ID.json, ID.flac, …
              cuts.000001.jsonl.gz …
ROOT/<subset>.json                      what was written: files and their bytes; not in the folder, where lhotse would
                                        take it for data
```

`CutSet.from_shar(in_dir=ROOT/<subset>)` reads them too. Here an utterance is read by its place in the tar file, so that
batches, their order and resuming are those of a corpus of files. In object storage that is one request, and there are
several at a time; in the list are the places of all utterances, so that the tar files need not be looked through.
"""

import errno
import gzip
import hashlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from lhotse import MonoCut
from lhotse.serialization import deserialize_item
from tqdm import tqdm

from asr_lightning.audio.reading import Header
from asr_lightning.errors import InputError
from data_modules import dataset, storage
from data_modules.corpus import CorpusDataModule
from data_modules.layouts import advise
from data_modules.manifest import BadFile, Listing
from data_modules.storage import Entry
from data_modules.workers import threads


class ShardsDataModule(CorpusDataModule):
    """Shards that `asr shards` or lhotse wrote, on a disk or in object storage.

    A subset is a folder below `root` with pairs of `cuts.*.jsonl.gz` and `recording.*.tar`. Where `<subset>.json` is
    beside it, every file must have the size it had when it was written. A shard that is damaged is left out as a whole
    with `on_bad: skip`.

    Args:
        root: The folder that contains the subsets, or its address: `s3://bucket/folder` or whatever else fsspec knows.
            On a web server, `<subset>.json` must be there.
        **arguments: Those of `CorpusDataModule`.
    """

    def __init__(self, root: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.root = storage.normalize(root)
        self.probes = not storage.is_remote(self.root)
        self.reads_at_once = storage.REQUESTS if storage.is_remote(self.root) else 1
        self._files: dict[str, dict[str, Entry]] = {}
        self._headers: dict[str, Header] = {}

    @property
    def source(self) -> str:
        """Identifies this corpus in the cache."""
        return self.root

    def require(self, subsets: list[str]) -> None:
        """Check that the subsets are there.

        Raises:
            InputError: Some are not, or the storage cannot be reached.
        """
        self._files = {subset: storage.list_files(self.root, subset) for subset in subsets}
        missing = [subset for subset, files in self._files.items() if not find_shards(files)]
        if missing:
            expected = f"{self.root}/{missing[0]}.json and " if storage.is_remote(self.root) else ""
            advice = "" if storage.is_remote(self.root) else f"\n{advise(Path(self.root))}"
            available = ", ".join(storage.list_folders(self.root)) or "none"
            raise InputError(
                f"No shards of {', '.join(missing)}: expected {expected}{self.root}/{missing[0]}/cuts.000000.jsonl.gz, "
                f"recording.000000.tar and so on, found subsets {available}. "
                "Write them with `asr shards --config EXPERIMENT --output FOLDER`, or set "
                f"--data.init_args.root.{advice}"
            )

    def fingerprint(self, subset: str) -> str:
        """A hash of the names, sizes, and ETags or times of the subset's files."""
        files = self._list(subset)
        digest = hashlib.sha256()
        for name in sorted(files):
            if not name.startswith(".") and name.endswith((".tar", ".jsonl", ".jsonl.gz", ".json")):
                digest.update(f"{name}\0{files[name].size}\0{files[name].version}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def find_utterances(self, subset: str) -> tuple[list[Listing], list[BadFile]]:
        """The subset's utterances, and what is damaged; of the audio, only beginnings and ends are looked at.

        Raises:
            InputError: The storage cannot be reached; what was read so far is no manifest.
        """
        storage.close_files()
        folder, files = f"{self.root}/{subset}", self._list(subset)
        subset_list = read_list(self.root, subset)
        bad = [subset_list] if isinstance(subset_list, BadFile) else check_sizes(folder, subset_list.sizes, files)
        spans = {} if isinstance(subset_list, BadFile) or not storage.is_remote(folder) else subset_list.places
        damaged = {file.path for file in bad}
        shards = [
            (f"{folder}/{cuts}", f"{folder}/{recordings}", files.get(recordings), spans.get(recordings))
            for cuts, recordings in find_shards(files)
            if not {f"{folder}/{cuts}", f"{folder}/{recordings}"} & damaged
        ]
        listings: dict[str, Listing] = {}
        with threads(storage.REQUESTS if storage.is_remote(folder) else 1) as pool:
            results = pool.map(lambda shard: _try_shard(*shard), shards)
            for utterances in tqdm(results, total=len(shards), desc=f"Reading {subset}", unit=" shards"):
                if isinstance(utterances, BadFile):
                    bad.append(utterances)
                    continue
                for listing, header in utterances:
                    if listing.id in listings:
                        bad.append(
                            BadFile(listing.path, "duplicate id", f"{listing.id} is also {listings[listing.id].path}")
                        )
                    elif not header.samples:
                        bad.append(BadFile(listing.path, "empty audio", listing.id))
                    else:
                        listings[listing.id] = listing
                        self._headers[listing.path] = header
        return list(listings.values()), bad

    def _list(self, subset: str) -> dict[str, Entry]:
        """The subset's files, as `require` has just seen them."""
        return self._files[subset] if subset in self._files else storage.list_files(self.root, subset)

    def read_header(self, path: str) -> Header:
        """The header of an utterance's audio by its shard; it is checked when the audio is read."""
        return self._headers.pop(path)

    @staticmethod
    def read_audio(cut: MonoCut) -> np.ndarray:
        """Read an utterance from its place in a tar file: (S,) in [-1, 1], channels mixed down.

        Raises:
            ValueError: It cannot be decoded, is not as long as the manifest says, or the file ends before.
            OSError: The file cannot be read, or the storage does not give it.
        """
        path, offset, size = parse_span(str(cut.recording.sources[0].source))
        content = storage.read_range(path, offset, size)
        if len(content) != size:
            raise ValueError(f"the file ends after {len(content)} of {size} bytes")
        return dataset.decode_audio(cut, io.BytesIO(content))


class SubsetList(NamedTuple):
    """What `<subset>.json` says: the bytes of every file, and `OFFSET+SIZE` of all utterances of a tar file."""

    sizes: dict[str, int]
    places: dict[str, str]


Utterances = list[tuple[Listing, Header]]
"""Those of a shard with their places, and what the shard says of their audio."""


def find_shards(files: Iterable[str]) -> list[tuple[str, str]]:
    """Every file of cuts of a subset, and the name of its tar file of audio."""
    return [
        (name, f"recording{name.removeprefix('cuts').partition('.jsonl')[0]}.tar")
        for name in sorted(files)
        if name.startswith("cuts") and ".jsonl" in name
    ]


def _try_shard(cuts: str, recordings: str, entry: Entry | None, spans: str | None) -> Utterances | BadFile:
    """Return the utterances of a shard, or what is wrong with it."""
    try:
        return read_shard(cuts, recordings, entry, spans)
    except ConnectionError as error:  # it tells nothing of the shard
        raise InputError(str(error)) from error
    except Exception as error:  # of gzip, json, tarfile, lhotse and the file system
        path = error.filename if isinstance(error, OSError) and error.filename else recordings
        return BadFile(str(path), "damaged shard", " ".join(str(error).split())[:200])


def read_shard(cuts_path: str, recordings: str, entry: Entry | None, places: str | None = None) -> Utterances:
    """Return the utterances of a shard; their audio is not read.

    Args:
        cuts_path: The file of cuts, on a disk or in storage.
        recordings: The tar file.
        entry: What a listing says of the tar file.
        places: Where its utterances are, if that is known; then only the first is looked at.

    Raises:
        ConnectionError: The storage does not give it.
        Exception: It is damaged.
    """
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), recordings)
    cuts = read_cuts(cuts_path)
    with storage.open_file(recordings, entry.size) as file:
        members = read_members(file, 1 if places else None)
    if places:
        spans = [parse_span(f"@{span}")[1:] for span in places.split()]
        if members[0][1:] != spans[0]:
            raise ValueError(f"an utterance at {members[0][1:]}, expected it at {spans[0]}")
        names = [members[0][0], *(f"{cut.id}.flac" for cut in cuts[1:])]
        members = [(name, *span) for name, span in zip(names, spans, strict=True)]
    if len(members) != len(cuts):
        raise ValueError(f"{len(members)} utterances, expected the {len(cuts)} of {os.path.basename(cuts_path)}")
    utterances = []
    for cut, (name, offset, size) in zip(cuts, members, strict=True):
        id, _, suffix = name.rpartition(".")
        if id != cut.id:
            raise ValueError(f"{name} where {cut.id} was expected")
        text = " ".join(supervision.text for supervision in cut.supervisions if supervision.text)
        speaker = next((supervision.speaker for supervision in cut.supervisions if supervision.speaker), "")
        channels = cut.recording.num_channels if cut.has_recording else 1
        samples = 0 if suffix == "nodata" else cut.num_samples
        listing = Listing(cut.id, f"{recordings}@{offset}+{size}", text, speaker)
        utterances.append((listing, Header(cut.sampling_rate, samples, channels)))
    return utterances


def read_cuts(path: str) -> list[MonoCut]:
    """Read a file of cuts.

    Raises:
        Exception: It is damaged.
    """
    content = storage.read_file(path)
    lines = (gzip.decompress(content) if path.endswith(".gz") else content).splitlines()
    try:
        return [deserialize_item(json.loads(line)) for line in lines]
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error


def read_members(file: BinaryIO, utterances: int | None = None) -> list[tuple[str, int, int]]:
    """Name, offset and bytes of the audio of the first utterances, or of all; each is followed by its description.

    Raises:
        tarfile.ReadError: The file is damaged.
        ValueError: It does not hold pairs.
    """
    with tarfile.open(fileobj=file, mode="r:") as tar:
        selected = itertools.islice(tar, utterances)
        members = [(member.name, member.offset_data, member.size) for member in selected]
    if not members or (utterances is None and len(members) % 2):
        raise ValueError(f"{len(members)} members, expected two for each utterance")
    return members[::2]


def read_list(root: str, subset: str) -> SubsetList | BadFile:
    """Read `<subset>.json`, where there is one.

    Raises:
        InputError: The storage does not give it.
    """
    path = f"{root}/{subset}.json"
    try:
        content = json.loads(storage.read_file(path))
        sizes = {str(name): int(size) for name, size in content["files"].items()}
        return SubsetList(sizes, {str(name): str(spans) for name, spans in content.get("places", {}).items()})
    except FileNotFoundError:
        return SubsetList({}, {})
    except ConnectionError as error:
        raise InputError(str(error)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return BadFile(path, "unreadable list of shards", str(error))


def check_sizes(folder: str, sizes: dict[str, int], files: dict[str, Entry]) -> list[BadFile]:
    """Return the files of a folder that do not have the size in `<subset>.json`."""
    bad = []
    for name, size in sizes.items():
        actual = f"{files[name].size} bytes" if name in files else os.strerror(errno.ENOENT)
        if actual != f"{size} bytes":
            bad.append(BadFile(f"{folder}/{name}", "damaged shard", f"expected {size} bytes, found: {actual}"))
    return bad


def parse_span(place: str) -> tuple[str, int, int]:
    """The file, offset and bytes of an utterance, from `/path/recording.000000.tar@OFFSET+SIZE`."""
    path, _, span = place.rpartition("@")
    offset, _, size = span.partition("+")
    return path, int(offset), int(size)
