"""Corpora in shards, lhotse's Shar layout: many utterances a file, which file servers serve better than files of one.

```
ROOT/<subset>/cuts.000000.jsonl.gz      a line per utterance: id, transcript, speaker, duration
              recording.000000.tar      the same utterances in the same order: ID.flac, ID.json, ID.flac, …
              cuts.000001.jsonl.gz …
ROOT/<subset>.json                      what was written: files and their bytes; not in the folder, where lhotse would
                                        take it for data
```

`CutSet.from_shar(in_dir=ROOT/<subset>)` reads them too. Here an utterance is read by its place in the tar file, so that
batches, their order and resuming are those of a corpus of files.
"""

import functools
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import MonoCut
from lhotse.lazy import LazyManifestIterator
from tqdm import tqdm

from asr_lightning.errors import InputError
from data_modules import dataset
from data_modules.corpus import CorpusDataModule
from data_modules.manifest import BadFile, Found, Header, fingerprint

OPEN_FILES = 256  # at most, of a process; opening again costs a file server more than reading


class ShardsDataModule(CorpusDataModule):
    """Shards that `python -m asr_lightning.tools.shards` or lhotse wrote, on a disk or whatever is mounted as one.

    A subset is a folder below `root` with pairs of `cuts.*.jsonl.gz` and `recording.*.tar`. Where `<subset>.json` is
    beside it, every file must have the size it had when it was written. A shard that is damaged is left out as a whole
    with `on_bad: skip`.

    Args:
        root: The folder that contains the subsets.
        **arguments: Those of `CorpusDataModule`.
    """

    def __init__(self, root: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.root = Path(root).expanduser().absolute()
        self._headers: dict[str, Header] = {}

    @property
    def source(self) -> str:
        """Tells this corpus from others in the cache."""
        return str(self.root)

    def require(self, subsets: list[str]) -> None:
        """See that the subsets are there.

        Raises:
            InputError: Some are not.
        """
        missing = [subset for subset in subsets if not find_shards(self.root / subset)]
        if missing:
            there = sorted({path.parent.name for path in self.root.glob("*/cuts*.jsonl*")})
            raise InputError(
                f"No shards of {', '.join(missing)}: expected {self.root / missing[0]}/cuts.000000.jsonl.gz, "
                f"recording.000000.tar and so on, found subsets {', '.join(there) or 'none'}. Write them with "
                f"`python -m asr_lightning.tools.shards --config EXPERIMENT --output {self.root}`, or set "
                "--data.init_args.root."
            )

    def fingerprint(self, subset: str) -> str:
        """Changes when the subset's files do."""
        return fingerprint(self.root / subset, (".tar", ".jsonl", ".jsonl.gz", ".json"))

    def find_utterances(self, subset: str) -> tuple[list[Found], list[BadFile]]:
        """The subset's utterances, and what is damaged; of the audio, only where it begins and ends is looked at."""
        _open.cache_clear()  # what lies there may have been replaced
        bad = check_sizes(self.root, subset)
        damaged = {file.path for file in bad}
        found: dict[str, Found] = {}
        for cuts, recordings in tqdm(find_shards(self.root / subset), desc=f"Reading {subset}", unit=" shards"):
            if {str(cuts), str(recordings)} & damaged:
                continue
            try:
                utterances = list(zip(*read_shard(cuts, recordings), strict=True))
            except Exception as error:  # of gzip, json, tarfile, lhotse and the file system
                path = error.filename if isinstance(error, OSError) and error.filename else recordings
                bad.append(BadFile(str(path), "damaged shard", " ".join(str(error).split())[:200]))
                continue
            for one, header in utterances:
                if one.id in found:
                    bad.append(BadFile(one.path, "duplicate id", f"{one.id} is also {found[one.id].path}"))
                elif not header.samples:
                    bad.append(BadFile(one.path, "empty audio", one.id))
                elif not one.text:
                    bad.append(BadFile(one.path, "empty transcript", one.id))
                else:
                    found[one.id] = one
                    self._headers[one.path] = header
        return list(found.values()), bad

    def read_header(self, path: str) -> Header:
        """What the shard says of an utterance's audio; whether that is true is seen when it is read."""
        return self._headers.pop(path)

    @staticmethod
    def read_audio(cut: MonoCut) -> np.ndarray:
        """Read an utterance from its place in a tar file: (S,) in [-1, 1], channels mixed down.

        Raises:
            ValueError: It is not as long as the manifest says, or the file ends before.
            OSError: The file cannot be read.
            soundfile.LibsndfileError: The audio cannot be decoded.
        """
        path, offset, size = parse_place(str(cut.recording.sources[0].source))
        content = os.pread(_open(path).descriptor, size, offset)
        if len(content) != size:
            raise ValueError(f"the file ends after {len(content)} of {size} bytes")
        return dataset.decode_audio(cut, io.BytesIO(content))


def find_shards(folder: Path) -> list[tuple[Path, Path]]:
    """Every file of cuts of a subset, and where the audio must be that belongs to it."""
    return [
        (path, path.with_name(f"recording{path.name.removeprefix('cuts').partition('.jsonl')[0]}.tar"))
        for path in sorted(folder.glob("cuts*.jsonl*"))
    ]


def read_shard(cuts_path: Path, recordings: Path) -> tuple[list[Found], list[Header]]:
    """Read what is in a shard; the audio is passed over.

    Returns:
        The utterances with their places, and what the shard says of their audio.

    Raises:
        Exception: It is damaged.
    """
    cuts = list(LazyManifestIterator(cuts_path))
    with tarfile.open(recordings, "r:") as tar:
        members = [(member.name, member.offset_data, member.size) for member in tar]
    if len(members) != 2 * len(cuts):
        raise ValueError(f"{len(members)} members, expected two for each of {len(cuts)} utterances of {cuts_path.name}")
    found, headers = [], []
    for cut, (name, offset, size) in zip(cuts, members[::2], strict=True):
        id, _, suffix = name.rpartition(".")
        if id != cut.id:
            raise ValueError(f"{name} where {cut.id} was expected")
        text = " ".join(one.text for one in cut.supervisions if one.text)
        speaker = next((one.speaker for one in cut.supervisions if one.speaker), "")
        found.append(Found(cut.id, f"{recordings}@{offset}+{size}", text, speaker))
        channels = cut.recording.num_channels if cut.has_recording else 1
        samples = 0 if suffix == "nodata" else cut.num_samples
        headers.append(Header(cut.sampling_rate, samples, channels))
    return found, headers


def check_sizes(root: Path, subset: str) -> list[BadFile]:
    """Name the files that are not as `<subset>.json` says, where there is one."""
    path = root / f"{subset}.json"
    try:
        files: dict[str, int] = json.loads(path.read_text("utf-8"))["files"]
        expected = {str(root / subset / name): int(size) for name, size in files.items()}
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [BadFile(str(path), "unreadable list of shards", str(error))]
    bad = []
    for name, size in expected.items():
        try:
            found = f"{os.path.getsize(name)} bytes"
        except OSError as error:
            found = error.strerror or str(error)
        if found != f"{size} bytes":
            bad.append(BadFile(name, "damaged shard", f"expected {size} bytes, found: {found}"))
    return bad


def parse_place(place: str) -> tuple[str, int, int]:
    """The file, offset and bytes of an utterance, from `/path/recording.000000.tar@OFFSET+SIZE`."""
    path, _, span = place.rpartition("@")
    offset, _, size = span.partition("+")
    return path, int(offset), int(size)


class _Open:
    """A file that is open as long as somebody holds it; reads give their offset, so forked workers may share it."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@functools.lru_cache(maxsize=OPEN_FILES)
def _open(path: str) -> _Open:
    return _Open(path)
