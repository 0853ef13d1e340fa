"""Phones of utterances, from files: CTM, as the embedded corpora have them, TextGrid, as aligners write, and TIMIT."""

import math
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from praatio import textgrid
from praatio.utilities.errors import PraatioException

from asr_lightning.errors import InputError, shown
from asr_lightning.files import read_number, regular
from asr_lightning.text.phones import SILENCE, PhoneLabels, Segment

OVERLAP = 0.021  # seconds between segments of two files: times may be rounded to hundredths
QUIET = {SILENCE.lower(), "sil", "sp"}  # what aligners call silence
TOLERANCE = 1e-6  # seconds: rounding of times in files
ALIGN = "asr align"
TIMIT_SUFFIXES = {"phones": ".PHN", "words": ".WRD"}
TIMIT_PHONES = dict(  # where a code is not CMUdict's in small letters
    pair.split(":")
    for pair in (
        "ax:AH ax-h:AH axr:ER ix:IH ux:UW hv:HH el:L em:M en:N nx:N eng:NG "
        f"bcl:B dcl:D gcl:G pcl:P tcl:T kcl:K h#:{SILENCE} pau:{SILENCE} epi:{SILENCE}"
    ).split()
)


class CTMLabels(PhoneLabels):
    """Lines `UTTERANCE CHANNEL START DURATION PHONE` [NIST; Kaldi], in any number of files; `;;` begins a comment.

    Args:
        path: A file; or a folder with `*.phones.ctm` at any depth, as `asr align` writes them beside those of words,
            or with `*.ctm` where there are none of these.
        made_by: The command that makes the files, which an error names where there are none.

    Raises:
        InputError: There is none, or one cannot be read.
    """

    def __init__(self, path: str, made_by: str = ALIGN) -> None:
        self.path = Path(path)
        self.made_by = made_by
        self._line_offsets: dict[str, list[tuple[Path, int]]] | None = (
            None  # of the lines of every utterance, file by file
        )

    def require(self) -> None:
        """Check that there is a file with labels."""
        self._index()

    def segments(self, utterance: str) -> list[Segment]:
        """Return the segments of an utterance in the order of time; none where no file names it."""
        segments: list[tuple[Segment, Path]] = []
        for path, offset in self._index().get(utterance, []):
            with path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    fields = line.decode("utf-8", "replace").split()
                    if not fields or fields[0] != utterance:
                        break
                    segments.append((_segment(fields, path), path))
        segments.sort(key=lambda pair: pair[0].start)
        for (first, path), (second, other) in pairwise(segments):
            if path != other and second.start < first.end - OVERLAP:
                raise InputError(f"{utterance} is in {path} and in {other} with different times: remove one of them")
        return [segment for segment, _ in segments]

    def utterances(self) -> list[str]:
        """Return the names of all utterances, in the order of the files."""
        return list(self._index())

    def _index(self) -> dict[str, list[tuple[Path, int]]]:
        if self._line_offsets is None:
            self._line_offsets = self._find()
        return self._line_offsets

    def _find(self) -> dict[str, list[tuple[Path, int]]]:
        candidates = (sorted(self.path.rglob(pattern)) for pattern in ("*.phones.ctm", "*.ctm"))
        paths = [self.path] if self.path.is_file() else next(filter(None, candidates), [])
        if not paths:
            raise InputError(
                f"no phone labels at {self.path} (looked for {self.path.absolute()} and *.ctm below it); make them "
                f"with `{self.made_by}`"
            )
        offsets: dict[str, list[tuple[Path, int]]] = {}
        for path in paths:
            previous, offset = "", 0
            try:
                with regular(path).open("rb") as file:
                    for line in file:
                        name = line.decode("utf-8", "replace").split(maxsplit=1)
                        if name and name[0] != previous and not name[0].startswith(";;"):
                            offsets.setdefault(name[0], []).append((path, offset))
                        previous = name[0] if name else ""
                        offset += len(line)
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror}") from error
        return offsets


def _segment(fields: list[str], path: Path) -> Segment:
    try:
        start, duration = read_number(fields[2]), read_number(fields[3])
        if not (0.0 <= start < math.inf and 0.0 <= duration < math.inf):
            raise ValueError
        return Segment(start, start + duration, fields[4])
    except (IndexError, ValueError) as error:
        raise InputError(
            f"{path}: expected `UTTERANCE CHANNEL START DURATION PHONE` with times in seconds, "
            f"got {shown(' '.join(fields))!r}"
        ) from error


class UtteranceFiles(PhoneLabels):
    """Base class of formats with one file per utterance, called as it is, at any depth below a folder.

    Args:
        folder: Where they lie.
        suffix: Of the files' names, with its dot; capitals and small letters are equal.
        advice: How they are made, which an error names where there are none.

    Raises:
        InputError: There is no such folder, or no file in it.
    """

    def __init__(self, folder: str, suffix: str, advice: str) -> None:
        self.folder = Path(folder)
        self.suffix = suffix
        self.advice = advice
        self._paths: dict[str, list[Path]] | None = None  # by stem

    def require(self) -> None:
        """Check that there is a file with labels."""
        self._index()

    def utterances(self) -> list[str]:
        """Return the names of all files without their suffix, in the order of the files."""
        return list(self._index())

    def _index(self) -> dict[str, list[Path]]:
        """Return all files by their stems."""
        if self._paths is None:
            paths = defaultdict(list)
            for path in sorted(self.folder.rglob("*")):
                if path.suffix.lower() == self.suffix.lower():
                    paths[path.stem].append(path)
            if not paths:
                raise InputError(
                    f"no *{self.suffix} in {self.folder} (looked in {self.folder.absolute()}); {self.advice}"
                )
            self._paths = paths
        return self._paths

    def _find(self, utterance: str) -> Path | None:
        """Return the file that has the name of an utterance, or the end of this name where it is a path."""
        files = self._index()
        paths = files.get(utterance, [])
        parts = utterance.split("-")
        for number in range(1, len(parts) if not paths else 0):
            for path in files.get("-".join(parts[number:]), []):
                folders = path.relative_to(self.folder).parts[:-1]
                if any("-".join([*folders[start:], path.stem]) == utterance for start in range(len(folders))):
                    paths = [*paths, path]
        if len(paths) > 1:
            raise InputError(
                f"expected one file of {utterance}, found {paths[0]} and {paths[1]}: name files by their utterances, "
                "or by their paths"
            )
        return paths[0] if paths else None


class TextGridLabels(UtteranceFiles):
    """Praat's TextGrid files, one per utterance and called as it is: `19-198-0000.TextGrid`, at any depth.

    Args:
        folder: Where they lie.
        tier: Name of the tier of phones; that of the Montreal Forced Aligner is `phones`. Tiers of
            speakers, which end in ` - phones`, are read too; those of several speakers are merged.
        made_by: The command that makes the files, which an error names where there are none.

    Raises:
        InputError: There is no such folder, or no file in it.
    """

    def __init__(self, folder: str, tier: str = "phones", made_by: str = ALIGN) -> None:
        super().__init__(folder, ".TextGrid", f"make them with `{made_by}`")
        self.tier = tier

    def segments(self, utterance: str) -> list[Segment]:
        """Return the segments of an utterance in the order of time, nameless ones as SIL; none where it has no file."""
        if (path := self._find(utterance)) is None:
            return []
        try:
            grid = textgrid.openTextgrid(str(regular(path)), includeEmptyIntervals=True)
            names = [name for name in grid.tierNames if name == self.tier or name.endswith(f" - {self.tier}")]
            if not names:
                raise InputError(
                    f"{path}: expected a tier {self.tier!r}, found {shown(', '.join(grid.tierNames)) or 'none'}"
                )
            tiers = [
                [
                    Segment(float(interval.start), float(interval.end), interval.label.strip() or SILENCE)
                    for interval in tier.entries
                ]
                for tier in map(grid.getTier, names)
            ]
            segments = [segment for tier in tiers for segment in tier]
            if wrong := [segment for segment in segments if not 0.0 <= segment.start <= segment.end < math.inf]:
                raise ValueError(f"an interval from {wrong[0].start:g} to {wrong[0].end:g} s")
            return segments if len(tiers) == 1 else _merged(segments, path, names)
        except InputError:
            raise
        # praatio reads by counting lines: in a file that is no TextGrid, indexing can fail with any error
        except (
            PraatioException,
            OSError,
            ValueError,
            IndexError,
            KeyError,
            AttributeError,
            TypeError,
            ArithmeticError,
        ) as error:
            raise InputError(
                f"{path} is no TextGrid that can be read ({type(error).__name__}: {shown(str(error))})"
            ) from error


def _merged(segments: list[Segment], path: Path, names: list[str]) -> list[Segment]:
    """Return what is spoken in any tier, in the order of time, with silence between.

    Raises:
        InputError: Two tiers have phones at the same time.
    """
    spoken = sorted(
        (segment for segment in segments if segment.label.lower() not in QUIET),
        key=lambda segment: (segment.start, segment.end),
    )
    merged: list[Segment] = []
    for segment in spoken:
        last_end = merged[-1].end if merged else 0.0
        if segment.start < last_end - TOLERANCE:
            raise InputError(
                f"{path}: expected one phone at a time, found {shown(merged[-1].label)} and {shown(segment.label)} at "
                f"{segment.start:g} s in the tiers {shown(', '.join(names))}: give one of these names as the tier"
            )
        if segment.start > last_end + TOLERANCE:
            merged.append(Segment(last_end, segment.start, SILENCE))
        merged.append(segment)
    end = max((segment.end for segment in segments), default=0.0)
    if end > (last_end := merged[-1].end if merged else 0.0) + TOLERANCE:
        merged.append(Segment(last_end, end, SILENCE))
    return merged


class TIMITLabels(UtteranceFiles):
    """Hand-made labels in the form of TIMIT [Garofolo et al. 1993]: lines `BEGIN END LABEL`, in samples.

    A file `SX287.PHN` or `SX287.WRD` belongs to each utterance, called as it is or by its path (`MADC0-SX287`), at any
    depth. Phones are folded to those of CMUdict as Lee and Hon 1989 do, with three differences: a closure is one phone
    with the release behind it (`tcl t` is `T`, `dcl jh` is `JH`), pauses are SIL, and the flap `DX` and the glottal
    stop `Q`, which CMUdict lacks, stay.

    Args:
        folder: Where they lie.
        tier: `phones` or `words`.
        rate: Samples per second of the audio that was labeled.

    Raises:
        InputError: There is no such folder, or no file in it.
    """

    def __init__(self, folder: str, tier: str = "phones", rate: int = 16000) -> None:
        if tier not in TIMIT_SUFFIXES:
            raise InputError(f"tier: expected one of {', '.join(TIMIT_SUFFIXES)}, got {tier!r}")
        super().__init__(folder, TIMIT_SUFFIXES[tier], "these files come with the corpus")
        self.tier = tier
        self.rate = rate

    def segments(self, utterance: str) -> list[Segment]:
        """Return the segments of an utterance in the order of time; none where it has no file."""
        if (path := self._find(utterance)) is None:
            return []
        try:
            lines = regular(path).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        segments: list[Segment] = []
        for line in filter(str.strip, lines):
            fields = line.split()
            if len(fields) != 3 or not (fields[0].isdecimal() and fields[1].isdecimal()):
                raise InputError(f"{path}: expected `BEGIN END LABEL` with times in samples, got {shown(line)!r}")
            start, end = (int(field) / self.rate for field in fields[:2])
            if end < start or (segments and start < segments[-1].start):
                raise InputError(f"{path}: expected segments in the order of time, got {shown(line)!r}")
            segments.append(Segment(start, end, fields[2]))
        if self.tier == "words":
            return [Segment(segment.start, segment.end, segment.label.upper()) for segment in segments]
        return _folded(segments)


def has_timit(folder: Path) -> bool:
    """Say whether there are files of phones or words in the form of TIMIT below a folder."""
    suffixes = {suffix.lower() for suffix in TIMIT_SUFFIXES.values()}
    return any(path.suffix.lower() in suffixes for path in folder.rglob("*"))


def _folded(segments: list[Segment]) -> list[Segment]:
    """Return TIMIT's phones as CMUdict's, with closures and their releases, and pauses in a row, put together."""
    folded: list[Segment] = []
    previous = ""
    for segment in segments:
        code = segment.label.lower()
        label = TIMIT_PHONES.get(code, code.upper())
        release = previous.endswith("cl") and code in (previous[0], {"t": "ch", "d": "jh"}.get(previous[0]))
        if folded and (release or label == folded[-1].label == SILENCE):
            label = label if release else SILENCE
            folded[-1] = Segment(folded[-1].start, segment.end, label)
        else:
            folded.append(Segment(segment.start, segment.end, label))
        previous = code
    return folded
