"""LibriSpeech, and any corpus in its layout: `root/<subset>/<speaker>/<chapter>/` with audio and `*.trans.txt`."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lhotse.recipes import download_librispeech

from asr_lightning.errors import InputError, shown
from asr_lightning.files import regular
from asr_lightning.text.english import english_transcript
from data_modules.corpus import CorpusDataModule
from data_modules.layouts import advise
from data_modules.manifest import BadFile, Listing
from data_modules.table_reading import decode
from data_modules.walk import fingerprint, name_apart, walk

AUDIO_SUFFIXES = (".flac", ".wav", ".mp3", ".opus", ".ogg")
TRANSCRIPT_SUFFIX = ".trans.txt"
DOWNLOAD_MEGABYTES = {  # what openslr.org has, as archives
    "dev-clean": 337,
    "dev-other": 314,
    "test-clean": 346,
    "test-other": 328,
    "train-clean-100": 6_400,
    "train-clean-360": 23_000,
    "train-other-500": 30_000,
    "dev-clean-2": 126,
    "train-clean-5": 332,
}


class LibriSpeechDataModule(CorpusDataModule):
    """LibriSpeech, or any corpus in its layout.

    A subset is a folder below `root`, or below `root/LibriSpeech`; its name is one of the official seven
    (`train-clean-100`, `train-clean-360`, `train-other-500`, `dev-clean`, `dev-other`, `test-clean`, `test-other`) or
    any other. In it, every folder with audio (FLAC, WAV, MP3, Opus, Ogg) has a `*.trans.txt` with lines
    `<file name without suffix> <transcript>` in UTF-8. The speaker is the name of the folder below the subset.
    Files of one name in several folders are called by their paths in the subset: `speaker-chapter-name`.

    Args:
        root: The folder that contains the subsets.
        download: Fetch missing subsets from openslr.org into `root`.
        normalize: Write transcripts in LibriSpeech's own alphabet of capitals and apostrophes, as
            `asr_lightning.text.english` says; those that are in it already stay as they are.
        **arguments: Those of `CorpusDataModule`.
    """

    def __init__(self, root: str, download: bool = False, normalize: bool = True, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.normalize = normalize
        self.root = Path(root).expanduser().absolute()
        self.download = download

    @property
    def source(self) -> str:
        """Identifies this corpus in the cache."""
        return str(self.root)

    @property
    def manifest_folder(self) -> Path:
        """Where this corpus' manifests are cached; transcripts are in them as they are trained on."""
        folder = super().manifest_folder
        return folder if self.normalize else folder.with_name(f"{folder.name}-as-it-is")

    def require(self, subsets: list[str]) -> None:
        """Check that the subsets are there, or fetch them.

        Raises:
            InputError: Some are not, and `download` is off or cannot fetch them.
        """
        missing = [subset for subset in subsets if find_subset(self.root, subset) is None]
        if missing and not self.download:
            raise InputError(_missing_message(self.root, missing))
        if missing:
            download_subsets(self.root, missing)

    def fingerprint(self, subset: str) -> str:
        """A text that changes when the subset's files do."""
        return fingerprint(self._folder(subset), (*AUDIO_SUFFIXES, TRANSCRIPT_SUFFIX))

    def find_utterances(self, subset: str) -> tuple[list[Listing], list[BadFile]]:
        """The subset's utterances, and the files without a partner."""
        listings, bad = find_utterances(self.root, subset)
        return [
            replace(listing, text=english_transcript(listing.text)) for listing in listings
        ] if self.normalize else listings, bad

    def _folder(self, subset: str) -> Path:
        folder = find_subset(self.root, subset)
        if folder is None:
            raise InputError(_missing_message(self.root, [subset]))
        return folder


def find_subset(root: Path, subset: str) -> Path | None:
    """The folder of a subset, directly below the root or below its `LibriSpeech`."""
    candidates = [root / subset, root / "LibriSpeech" / subset]
    return next((folder for folder in candidates if folder.is_dir()), None)


def find_utterances(root: Path, subset: str) -> tuple[list[Listing], list[BadFile]]:
    """Read the layout and the transcripts of a subset, without opening audio.

    Args:
        root: The folder that contains the subset, or one that contains `LibriSpeech/<subset>`.
        subset: A folder's name.

    Returns:
        The utterances sorted by path, and the files that cannot be used.
    """
    folder = find_subset(Path(root), subset)
    if folder is None:
        raise InputError(_missing_message(Path(root), [subset]))
    listings: list[Listing] = []
    bad: list[BadFile] = []
    for directory, audio, transcripts in _directories(folder, bad):
        parts = directory.relative_to(folder).parts
        lines = _read_transcripts(directory, transcripts, bad)
        for name in audio:
            path, id = str(directory / name), _stem(name)
            key = name if name in lines and id not in lines else id  # some lists have the suffixes
            text = lines.get(key)
            if text is not None:
                listings.append(Listing(id, path, text, speaker=parts[0] if parts else ""))
            elif key not in lines:
                bad.append(BadFile(path, "audio without transcript", f"{id} is in no *{TRANSCRIPT_SUFFIX} beside it"))
        without_audio = lines.keys() - set(audio) - {_stem(name) for name in audio}
        bad += [BadFile(f"{directory}/{shown(id)}.*", "transcript without audio") for id in sorted(without_audio)]
    return name_apart(listings, folder, bad), bad


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _directories(folder: Path, bad: list[BadFile]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Every directory with its sorted names of audio files and of transcripts."""
    for directory, names in walk(folder, bad):
        audio = [name for name in names if name.lower().endswith(AUDIO_SUFFIXES)]
        transcripts = [name for name in names if name.lower().endswith(TRANSCRIPT_SUFFIX)]
        if audio or transcripts:
            yield directory, audio, transcripts


def _read_transcripts(directory: Path, names: list[str], bad: list[BadFile]) -> dict[str, str | None]:
    """The texts by id, maybe empty. Lines that cannot be used are added to `bad`, and their text is None."""
    texts: dict[str, str | None] = {}
    for name in names:
        path = directory / name
        try:
            content = regular(path).read_bytes()
        except OSError as error:
            bad.append(BadFile(str(path), "unreadable transcript", str(error)))
            continue
        for number, line in enumerate(re.split("\r\n|\r|\n", decode(content)), start=1):
            id, _, words = line.strip().replace("\t", " ", 1).partition(" ")
            if not id:
                continue
            location = f"{path}:{number}"
            text: str | None = words.strip()
            if any("\ud800" <= character <= "\udfff" for character in words):
                bad.append(BadFile(location, "transcript not UTF-8", f"{id}; convert it, as with `iconv -f LATIN1`"))
                text = None
            if id in texts:
                bad.append(BadFile(location, "duplicate id", f"{id} was transcribed before; the first is kept"))
            texts.setdefault(id, text)
    return texts


def download_subsets(root: Path, subsets: list[str]) -> None:
    """Fetch subsets from openslr.org into `root/LibriSpeech`, or `root` if that is its name.

    They are unpacked in `root/.download` and moved when complete, so that an interrupted download is never taken for a
    subset; the next one continues it.

    Raises:
        InputError: There is no such subset on openslr.org, or it cannot be fetched.
    """
    unknown = [subset for subset in subsets if subset not in DOWNLOAD_MEGABYTES]
    if unknown:
        raise InputError(
            f"Cannot download {', '.join(unknown)}: openslr.org has {', '.join(DOWNLOAD_MEGABYTES)}.\n"
            f"Copy it to {root / unknown[0]}, or leave it out of the subsets."
        )
    sizes = ", ".join(f"{subset} ({DOWNLOAD_MEGABYTES[subset] / 1000:.1f} GB)" for subset in subsets)
    print(f"Downloading {sizes} from openslr.org into {root}; while unpacking it takes twice that space.", flush=True)
    workplace, target = root / ".download", root if root.name == "LibriSpeech" else root / "LibriSpeech"
    try:
        for subset in subsets:
            download_librispeech(workplace, dataset_parts=[subset])
            target.mkdir(exist_ok=True)
            os.replace(workplace / "LibriSpeech" / subset, target / subset)
            (workplace / f"{subset}.tar.gz").unlink(missing_ok=True)
        shutil.rmtree(workplace)
    except Exception as error:  # of urllib, http, tarfile, gzip and the file system
        raise InputError(
            f"Cannot download {sizes}: {error}.\nThe next try continues with what is in {workplace}. By hand: fetch "
            f"https://www.openslr.org/resources/12/<subset>.tar.gz and unpack it in {root}."
        ) from error


def _missing_message(root: Path, missing: list[str]) -> str:
    candidates = [str(path / subset) for subset in missing for path in (root, root / "LibriSpeech")]
    return (
        f"Subset not found: {', '.join(missing)}. Looked for\n  "
        + "\n  ".join(candidates)
        + f"\n{advise(root)}\nEither\n"
        "  point --data.init_args.root at a copy of the corpus, or\n"
        "  fetch it with --data.init_args.download true, or\n"
        "  train on the embedded corpus, which needs no data: --config experiments/demo/rnnt_ws.yaml"
    )
