"""CutSets of lhotse: `cuts_train.jsonl.gz`, `cuts_dev.jsonl.gz`, … in a folder, over audio files.

For cuts with their audio in tar files, lhotse's Shar layout, see `shards.py`.
"""

import functools
import gzip
import json
import math
import zlib
from pathlib import Path
from typing import Any

from lhotse import MonoCut, MultiCut
from lhotse.serialization import deserialize_item

from asr_lightning.errors import InputError, reason
from asr_lightning.files import regular
from data_modules.layouts import find_cuts, role_of
from data_modules.listed import ALL, ListedDataModule, Listings
from data_modules.manifest import BadFile, Listing
from data_modules.walk import find_file

GZIP = b"\x1f\x8b"  # the beginning of a compressed file


class CutsDataModule(ListedDataModule):
    """CutSets of lhotse: `data: {class_path: data_modules.cuts.CutsDataModule, init_args: {root: …}}`.

    A subset is a file of cuts (`.jsonl` or `.jsonl.gz` with `cuts` in its name), and is called by what stands before
    `.jsonl`. Every cut is an utterance: a recording in one file or a part of it, whose supervisions make its
    transcript. Relative paths begin at `root` or the working directory. Cuts that are mixed, padded or changed in speed
    have no file of their own; write them as Shar, and read them with `data_modules.shards.ShardsDataModule`.

    Args:
        root: The folder of the files, or one of them.
        **arguments: Those of `ListedDataModule` and `CorpusDataModule`.
    """

    def __init__(self, root: str, **arguments: Any) -> None:
        super().__init__(root, **arguments)
        self.use_all_subsets()

    @property
    def layout(self) -> str:
        """A description of the files of such a corpus, for messages."""
        return "files of lhotse's cuts, as cuts_train.jsonl.gz"

    @functools.cached_property
    def files(self) -> dict[str, Path]:
        """The files of cuts by the names of their subsets."""
        paths = [self.root] if self.root.is_file() else find_cuts(self.root)
        names = {path.name.partition(".jsonl")[0]: path for path in paths}
        return {ALL: paths[0]} if len(names) == 1 and not any(map(role_of, names)) else names

    def list_subsets(self) -> list[str]:
        """The names of the files."""
        return list(self.files)

    def list_utterances(self, subset: str) -> Listings:
        """The cuts of a file that can be used, in their order, and those that cannot."""
        path = self.files[subset]
        try:
            content = regular(path).read_bytes()
            text = (gzip.decompress(content) if content[:2] == GZIP else content).decode("utf-8")
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {reason(error)}. Copy it again.") from error
        listings, bad = [], list[BadFile]()
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                entry = self._listing(line, f"{path}:{number}")
                listings.append(entry) if isinstance(entry, Listing) else bad.append(entry)
        return listings, bad

    def _listing(self, line: str, location: str) -> Listing | BadFile:
        try:
            cut = deserialize_item(json.loads(line))
        except Exception as error:  # of json and lhotse
            return BadFile(location, "malformed line", f"expected a cut of lhotse: {reason(error)}")
        kind = type(cut).__name__
        if not isinstance(cut, MonoCut | MultiCut) or cut.recording is None:
            found = f"a {kind}" if not isinstance(cut, MonoCut | MultiCut) else "none"
            detail = f"expected a MonoCut with a recording, found {found}: write Shar"
            return BadFile(location, "unsupported cut", detail)
        if cut.recording.transforms or len(cut.recording.sources) != 1 or cut.recording.sources[0].type != "file":
            return BadFile(
                location, "unsupported cut", f"{cut.id}: expected an unchanged recording in one file: write Shar"
            )
        source = str(cut.recording.sources[0].source)
        path = find_file(source, (self.root, self.root.parent, Path.cwd()))
        if path is None:
            return BadFile(location, "transcript without audio", f"{cut.id}: no file {source}")
        supervisions = sorted(cut.supervisions, key=lambda supervision: supervision.start)
        fields = [cut.id, *(value for part in supervisions for value in (part.text or "", part.speaker or ""))]
        numbers = (cut.start, cut.duration)
        if not all(isinstance(value, str) for value in fields) or not all(map(math.isfinite, numbers)):
            return BadFile(location, "malformed line", f"{cut.id}: expected texts and finite times of a cut of lhotse")
        words = " ".join(supervision.text for supervision in supervisions if supervision.text)
        speaker = next((supervision.speaker for supervision in supervisions if supervision.speaker), "")
        several = isinstance(cut, MonoCut) and (cut.recording.num_channels or 1) > 1
        channel = int(cut.channel) if several else None
        return Listing(cut.id, path, words, speaker, cut.start, cut.start + cut.duration, channel)
