"""The data module of corpora that list their utterances: roles of subsets, splits, unique ids, fingerprints."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_info

from asr_lightning.errors import InputError
from asr_lightning.text.english import english_transcript
from data_modules.corpus import CorpusDataModule
from data_modules.layouts import advise, init_args, listed, role_of
from data_modules.manifest import BadFile, Listing, summary

SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}
ALL = ""  # the name of the utterances of a corpus that names no subsets

Listings = tuple[list[Listing], list[BadFile]]


class ListedDataModule(CorpusDataModule, ABC):
    """A corpus whose files list its utterances; a subclass reads the lists: `list_subsets` and `list_utterances`.

    Where no subsets are named at all, those are used that the corpus has: `train…` to train on, `dev…` or `val…` to
    validate on, `test…` or `eval…` to test on. What the corpus lacks of these is split off by `split`.

    Args:
        root: The folder of the corpus.
        split: Subsets and their shares where the corpus names none. Where it has a subset to train on, but none to
            validate or test on, their shares are taken out of that. None: the corpus is left as it is.
        split_by: Whether all utterances of a speaker stay together, or each is drawn for itself; None: by speaker where
            every utterance has one, and there are three or more.
        split_seed: Draws other splits. The same utterances are always split alike with the same seed.
        channel: Of files with several, the one to take, counted from 0; None takes their mean.
        normalize: Write transcripts in LibriSpeech's own alphabet of capitals and apostrophes, with numbers in words,
            as `asr_lightning.text.english` says. For English only.
        **arguments: Those of `CorpusDataModule`.

    Raises:
        InputError: An argument is out of its range; or no subsets are named, and the corpus has none.
    """

    def __init__(
        self,
        root: str,
        split: dict[str, float] | None = SHARES,
        split_by: Literal["speaker", "utterance"] | None = None,
        split_seed: int = 1,
        channel: int | None = None,
        normalize: bool = False,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.root = Path(root).expanduser().absolute()
        self.split = dict(split or {})
        self.split_by = split_by
        self.split_seed = split_seed
        self.channel = channel
        self.normalize = normalize
        self._listings: dict[str, Listings] = {}
        if not all(0 < share <= 1 for share in self.split.values()) or sum(self.split.values()) > 1.000_001:
            raise InputError(f"split must be shares above 0 with a sum of at most 1, got {self.split}")
        if split_by not in ("speaker", "utterance", None):
            raise InputError(f"split_by must be speaker, utterance or null, got {split_by}")
        if channel is not None and channel < 0:
            raise InputError(f"channel must be 0 or more, or null for the mean of all, got {channel}")

    def use_all_subsets(self) -> None:
        """Take the subsets that the corpus has, where none are named; a subclass calls it when it is made.

        Raises:
            InputError: The corpus has none to train or to test on.
        """
        if any(self.subsets.values()):
            return
        names = self.subset_names()
        roles: dict[str, list[str]] = {role: [] for role in self.subsets}
        for name in names:
            if (role := role_of(name)) is not None:
                roles[role].append(name)
        if not any(roles.values()):
            raise InputError(
                f"{self.root} has the subsets {listed(names)}: expected names that begin with train, dev or test. "
                "Say what each is for: --data.init_args.train_subsets '[NAME]' --data.init_args.validation_subsets "
                "'[NAME]' --data.init_args.test_subsets '[NAME]'"
            )
        if unused := [name for name in names if role_of(name) is None]:
            used = listed([name for part in roles.values() for name in part])
            rank_zero_info(f"{self.root}: used by their names are {used}, and not {listed(unused)}.")
        self.subsets = {**roles, "predict": list(roles["test"])}

    @property
    @abstractmethod
    def layout(self) -> str:
        """A description of the files of such a corpus, for messages."""

    @abstractmethod
    def list_subsets(self) -> list[str]:
        """The subsets that the corpus itself names; `[ALL]` where it names none, and nothing where it is not there."""

    @abstractmethod
    def list_utterances(self, subset: str) -> Listings:
        """All utterances of a subset that the corpus itself names, or of `ALL`, and what cannot be used."""

    def options(self) -> tuple[object, ...]:
        """Options that the manifests depend on, beside the files."""
        return (self.split, self.split_by, self.split_seed, self.channel, self.normalize)

    def file_of(self, path: str) -> str:
        """The file that an utterance's path leads to."""
        return path

    @property
    def source(self) -> str:
        """Identifies this corpus in the cache."""
        return str(self.root)

    @property
    def manifest_folder(self) -> Path:
        """Where this corpus' manifests are cached; other options have other manifests."""
        folder = super().manifest_folder
        return folder.with_name(f"{folder.name}-{_digest(repr(self.options()))[:8]}")

    def subset_names(self) -> list[str]:
        """The subsets that can be asked for: of the corpus, and of the split.

        Raises:
            InputError: The corpus is not there.
        """
        names = self.list_subsets()
        if not names:
            raise InputError(self._unrecognized())
        pool, shares = self._division()
        return list(dict.fromkeys([name for name in names if name != ALL] + [name for name in shares if name != pool]))

    def require(self, subsets: list[str]) -> None:
        """Check that the subsets are there.

        Raises:
            InputError: Some are not.
        """
        names = self.subset_names()
        missing = [subset for subset in subsets if subset not in names]
        if missing:
            roles = {
                role: [name for name in names if role_of(name) == role] for role in ("train", "validation", "test")
            }
            options = init_args({f"{role}_subsets": part for role, part in roles.items() if part})
            raise InputError(
                f"{self.root} has no subset {', '.join(missing)}; it has {listed(names)}. Add to the command\n"
                f"  {options}"
            )

    def _unrecognized(self) -> str:
        return f"{type(self).__name__} found no corpus at {self.root}: expected {self.layout}.\n{advise(self.root)}"

    def _division(self) -> tuple[str | None, dict[str, float]]:
        """The subset of the corpus that is split, and the shares of its parts; None and nothing where none is."""
        names = self.list_subsets()
        if names == [ALL]:
            return ALL, self.split or {"train": 1.0}
        roles = Counter(role_of(name) for name in names)
        lacking = {name: share for name, share in self.split.items() if not roles[role_of(name)]}
        if not lacking or roles["train"] != 1:
            return None, {}
        pool = next(name for name in names if role_of(name) == "train")
        train_share = sum(share for name, share in self.split.items() if role_of(name) == "train")
        return pool, {pool: train_share, **lacking} if train_share else {}

    def fingerprint(self, subset: str) -> str:
        """A hash that changes with the lists and with the audio that they name."""
        listings, bad = self.find_utterances(subset)
        digest, files = hashlib.sha256(), dict.fromkeys(self.file_of(listing.path) for listing in listings)
        for entry in [*listings, *bad, *((path, *_size_and_time(path)) for path in files)]:
            digest.update(f"{entry!r}\n".encode(errors="surrogatepass"))
        return digest.hexdigest()

    def find_utterances(self, subset: str) -> Listings:
        """The subset's utterances, in the order of the corpus, and what cannot be used."""
        if subset not in self._listings:
            pool, shares = self._division()
            if subset not in shares:
                self._listings[subset] = self._complete(subset)
            else:
                assert pool is not None
                listings, bad = self._complete(pool)
                by = self.split_by or kept_together(listings, len(shares))
                try:
                    parts = divide(listings, shares, by, self.split_seed)
                except InputError as error:
                    notes = [f"{len(bad)} others cannot be used:", *summary(bad)] if bad else []
                    if listings:
                        roles: dict[str, object] = {
                            "train_subsets": [pool or "train"],
                            "validation_subsets": [],
                            "test_subsets": [],
                        }
                        notes.append(f"To train on all of them: --data.init_args.split null {init_args(roles)}")
                    raise InputError("\n".join([f"{self.root}: {error}.", *notes])) from error
                self._listings |= {
                    name: (part, bad if name == next(iter(shares)) else []) for name, part in parts.items()
                }
                counts = ", ".join(f"{name} {len(part):,}" for name, part in parts.items())
                rank_zero_info(f"{self.root}: {pool or 'all utterances'} split by {by} into {counts} utterances.")
        return self._listings[subset]

    def _complete(self, subset: str) -> Listings:
        """What the corpus lists, with unique ids and the transcripts that are trained on."""
        listings, bad = self.list_utterances(subset)
        bad = [*bad]
        if self.channel is not None:
            listings = [
                replace(listing, channel=self.channel) if listing.channel is None else listing for listing in listings
            ]
        if self.normalize:
            listings = [replace(listing, text=english_transcript(listing.text)) for listing in listings]
        return make_unique(listings, bad), bad

    def setup(self, stage: str) -> None:
        """Open the manifests that `prepare_data` made."""
        super().setup(stage)
        self._listings.clear()


def kept_together(listings: Sequence[Listing], subsets: int) -> Literal["speaker", "utterance"]:
    """Return what a split keeps together: speakers, if all utterances have one and there are three or more."""
    speakers = {listing.speaker for listing in listings}
    return "speaker" if "" not in speakers and len(speakers) >= max(3, subsets) else "utterance"


def divide(
    listings: Sequence[Listing], shares: dict[str, float], by: Literal["speaker", "utterance"], seed: int
) -> dict[str, list[Listing]]:
    """Split utterances in shares; which come together is decided by a hash of their speaker or their id.

    Every subset has at least one speaker or utterance where there are enough; the first takes what is left.

    Args:
        listings: The utterances.
        shares: Of each subset.
        by: What stays together.
        seed: Draws other splits.

    Raises:
        InputError: There are fewer speakers, or utterances, than subsets.
    """
    groups: dict[str, int] = Counter(listing.speaker if by == "speaker" else listing.id for listing in listings)
    if len(groups) < len(shares):
        kind = "speakers" if by == "speaker" else "utterances"
        raise InputError(
            f"expected at least {len(shares)} {kind} to split into {', '.join(shares)}, found {len(groups)}"
            + (": split_by: utterance splits without them" if by == "speaker" else "")
        )
    order = sorted(groups, key=lambda group: _digest(f"{seed} {group}"))
    owner: dict[str, str] = {}
    first, *others = shares
    total = sum(shares.values())
    for index, name in enumerate(others):
        count, target = 0, len(listings) * shares[name] / total
        while len(order) > len(others) - index and (not count or count + groups[order[-1]] / 2 <= target):
            group = order.pop()
            owner[group] = name
            count += groups[group]
    parts: dict[str, list[Listing]] = {name: [] for name in shares}
    for listing in listings:
        parts[owner.get(listing.speaker if by == "speaker" else listing.id, first)].append(listing)
    return parts


def make_unique(listings: Iterable[Listing], bad: list[BadFile]) -> list[Listing]:
    """Make ids unique: files of one name in several folders are called by the folders too, as `folder-name`.

    Args:
        listings: The utterances of a subset.
        bad: Gets utterances that still have the id of another, as of a line that comes twice; the first is kept.
    """
    listings = list(listings)
    folders: dict[str, set[str]] = defaultdict(set)
    for listing in listings:
        folders[listing.id].add(os.path.dirname(listing.path))
    shared = {id for id, parents in folders.items() if len(parents) > 1}
    above = os.path.commonpath([folder for id in shared for folder in folders[id]]) if shared else ""
    unique: dict[str, Listing] = {}
    for listing in listings:
        if listing.id in shared:
            parts = Path(os.path.relpath(os.path.dirname(listing.path), above)).parts
            listing = replace(listing, id="-".join([*parts, listing.id]))
        if listing.id in unique:
            bad.append(BadFile(listing.path, "duplicate id", f"{listing.id} was listed before; the first is kept"))
        unique.setdefault(listing.id, listing)
    return list(unique.values())


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:  # it is named as unreadable when its header is read
        return -1, -1
    return status.st_size, status.st_mtime_ns
