"""Write a subset of any corpus as shards, atomically, in the layout that `shards.py` describes."""

import hashlib
import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut
from lhotse.shar.utils import to_shar_placeholder
from lhotse.shar.writers.cut import JsonlShardWriter
from lhotse.shar.writers.tar import TarWriter
from tqdm import tqdm

from asr_lightning.audio.reading import Header
from asr_lightning.errors import InputError, printable
from asr_lightning.files import locked, remove, write_atomically
from data_modules.corpus import CorpusDataModule
from data_modules.dataset import read_at
from data_modules.manifest import Listing, Manifest, make_cut
from data_modules.shards import check_sizes, read_members
from data_modules.storage import list_files
from data_modules.workers import threads

FORMAT = 2  # of what is written; raise it when it changes, and old shards are no longer taken for the same
PROBES = 20  # utterances that are compressed to guess how much space all of them take
SPARE = 1.1  # of that guess
SHARD = re.compile(r"(cuts|recording)\.\d+\.(jsonl\.gz|tar)")  # what a folder of shards holds


@dataclass(frozen=True)
class WrittenSubset:
    """Counts of a subset in shards, which were written or there already."""

    utterances: int
    seconds: float
    shards: int
    bytes: int
    new: bool


def write_subset(
    corpus: CorpusDataModule, subset: str, output: Path, utterances_per_shard: int = 1000, replace: bool = False
) -> WrittenSubset:
    """Write a subset of a corpus as `output/<subset>` and `output/<subset>.json`, unless it is there already.

    It is written beside its place and renamed when complete. Utterances keep the order of the corpus, so that a plan of
    batches made for the one holds for the other. Audio is FLAC of 16 bits and one channel, to the bit what is read from
    the corpus itself.

    Args:
        corpus: With the subset's manifest open.
        subset: Its name.
        output: The root of the shards.
        utterances_per_shard: The last shard may have fewer.
        replace: Take the place of other shards.

    Raises:
        InputError: Something else is in the place, there is no space, or an utterance cannot be read.
    """
    manifest, folder = corpus.manifests[subset], output / subset
    origin = f"{FORMAT} {corpus.manifest_folder.name} {manifest.fingerprint} {utterances_per_shard}"
    identity = hashlib.sha256(origin.encode()).hexdigest()
    try:
        with locked(folder):
            existing = _find_written(output, subset, identity, replace)
            if existing is not None:
                return existing
            _check_space(corpus, manifest, output, subset)
            partial = output / f".{subset}.partial"
            remove(partial)  # of a writer that was killed: we hold the lock
            try:
                partial.mkdir()
                seconds, utterances = _write(corpus, subset, partial, utterances_per_shard)
                files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
                spans = {name: _member_spans(partial / name) for name in files if name.endswith(".tar")}
                content = {"utterances": utterances, "seconds": seconds, "files": files, "identity": identity}
                content["places"] = spans
                # before the folder, which without its list would be taken for something else by the next writer
                write_atomically(output / f"{subset}.json", json.dumps(content, indent=1) + "\n")
                remove(folder)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            return WrittenSubset(utterances, seconds, len(files) // 2, sum(files.values()), new=True)
    except OSError as error:
        raise InputError(
            f"Cannot write shards to {folder}: {error}. Free some space, or give another --output."
        ) from error


def _member_spans(path: Path) -> str:
    """Offsets and sizes of the utterances of a tar file, which save a reader of object storage a request for each."""
    with path.open("rb") as file:
        return " ".join(f"{offset}+{size}" for _, offset, size in read_members(file))


def _find_written(output: Path, subset: str, identity: str, replace: bool) -> WrittenSubset | None:
    """Return the shards that are there, if they are complete and those that would be written."""
    folder, path = output / subset, output / f"{subset}.json"
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        same = content["identity"] == identity
        files: dict[str, int] = content["files"]
        existing = WrittenSubset(
            content["utterances"], content["seconds"], len(files) // 2, sum(files.values()), new=False
        )
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if same and not check_sizes(str(folder), files, list_files(str(output), subset)):
        return existing
    if not replace or not folder.is_dir():
        description = "damaged shards" if same else "something else than these utterances in shards of this size"
        raise InputError(f"{folder} holds {description}: give another --output, delete it, or add --replace.")
    foreign = sorted(path.name for path in folder.iterdir() if not SHARD.fullmatch(path.name))
    if foreign:
        raise InputError(
            f"{folder} holds files that are no shards, as {foreign[0]}: give another --output, or delete it."
        )
    return None


def _check_space(corpus: CorpusDataModule, manifest: Manifest, output: Path, subset: str) -> None:
    """Compress some utterances, and check that there is space for all."""
    probes = [manifest[int(number)] for number in np.linspace(0, len(manifest) - 1, min(PROBES, len(manifest)))]
    sizes = [(len(content), cut.duration) for cut in probes if isinstance(content := _encode(corpus, cut)[0], bytes)]
    if not sizes:
        return  # writing reports what is wrong with them
    per_second = sum(size for size, _ in sizes) / sum(duration for _, duration in sizes)
    members = 4 * 512  # bytes of an utterance beside its audio: two headers, the JSON, what fills up blocks
    needed = SPARE * (per_second * float(manifest.durations.sum(dtype=np.float64)) + members * len(manifest))
    free = shutil.disk_usage(output).free
    if needed > free:
        raise InputError(
            f"{subset} needs about {needed / 1e9:.2f} GB in {output}, where {free / 1e9:.2f} GB are free: free some "
            "space, or give another --output."
        )


def _write(corpus: CorpusDataModule, subset: str, folder: Path, utterances_per_shard: int) -> tuple[float, int]:
    """Write all shards; return the seconds and the number of utterances in them."""
    manifest = corpus.manifests[subset]
    pattern = str(folder).replace("%", "%%")
    seconds, utterances = 0.0, 0
    with ExitStack() as stack:
        recordings = stack.enter_context(TarWriter(f"{pattern}/recording.%06d.tar", utterances_per_shard))
        cuts = stack.enter_context(JsonlShardWriter(f"{pattern}/cuts.%06d.jsonl.gz", utterances_per_shard))
        bar = stack.enter_context(tqdm(total=len(manifest), desc=f"Writing {subset}", unit=" utterances"))
        for content, cut in _encode_all(corpus, manifest):
            bar.update()
            if isinstance(content, str):
                message = f"{cut.recording.sources[0].source} cannot be read: {content}"
                if corpus.on_bad == "error":
                    raise InputError(
                        f"{message}.\nRepair or remove it, or leave it out: on_bad: skip in the experiment."
                    )
                warnings.warn(printable(f"Left out: {message}"), stacklevel=2)
                continue
            recordings.write(f"{cut.id}.flac", io.BytesIO(content))
            description = json.dumps(cut.recording.to_dict()).encode() + b"\n"
            recordings.write(f"{cut.id}.json", io.BytesIO(description), count=False)
            cuts.write(cut)
            seconds += cut.duration
            utterances += 1
    if not utterances:
        raise InputError(f"No utterance of {subset} can be read.")
    return seconds, utterances


Encoded = tuple[bytes | str, MonoCut]
"""FLAC and the cut of a shard; or why the audio cannot be read, and the cut that says where it is."""


def _encode_all(corpus: CorpusDataModule, manifest: Manifest) -> Iterator[Encoded]:
    """Encode in the order of the manifest, several at a time, with a few in memory."""
    count = os.cpu_count() or 1
    window = 16 * count
    encode: Callable[[int], Encoded] = lambda number: _encode(corpus, manifest[number])  # noqa: E731
    with threads(count) as pool:
        for start in range(0, len(manifest), window):
            yield from pool.map(encode, range(start, min(start + window, len(manifest))))


def _encode(corpus: CorpusDataModule, cut: MonoCut) -> Encoded:
    try:
        audio = read_at(corpus.sample_rate, corpus.read_audio, cut)
        # Not by lhotse's writer: libsndfile scales floats by 32,767, and loud samples would come back one smaller.
        samples = (audio * 32_768).astype(np.int16)
        file = io.BytesIO()
        soundfile.write(file, samples, corpus.sample_rate, format="FLAC", subtype="PCM_16")
    except Exception as error:  # every decoder has its own
        return " ".join(str(error).split())[:200], cut
    supervision = cut.supervisions[0]
    listing = Listing(cut.id, "", supervision.text or "", supervision.speaker or "")
    shard_cut = make_cut(listing, Header(corpus.sample_rate, len(samples), 1), corpus.sample_rate)
    shard_cut.recording = to_shar_placeholder(shard_cut.recording)
    return file.getvalue(), shard_cut
