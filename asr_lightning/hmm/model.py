"""Hidden Markov models of phones; a tree ties the distributions of their states."""

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from tokenize import TokenError
from zipfile import BadZipFile

import kaldi_hmm_gmm as kaldi
import numpy as np

from asr_lightning.errors import InputError, reason
from asr_lightning.files import regular, replacing, write_atomically
from asr_lightning.hmm.kaldi_tree import read_tree
from asr_lightning.text.lexicon import NOT_SPEECH, SPOKEN_NOISE, Lexicon, read_lexicon, write_lexicon
from asr_lightning.text.phones import SILENCE

DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    MemoryError,
    RecursionError,
    BadZipFile,
    SyntaxError,
    TokenError,
)  # NumPy's
STATES = 3  # of every phone, where no other number is given: at least so many frames
CHAIN_STATES, CHAIN_SUBSAMPLING = 1, 3  # as Kaldi's chain models: a phone may last for one frame of 30 ms
TOPOLOGY = "topology.json"


@dataclass(frozen=True, eq=False)
class HiddenMarkovModel:
    """States of phones, their tied distributions (pdfs), and transition counts.

    A transition id is Kaldi's name of one transition of one state of a phone with one pdf; it begins at 1.

    Attributes:
        lexicon: Pronunciations.
        phones: SIL, SPN, then those of the lexicon; a phone's id is its index + 1.
        tree: From phones in context and the number of a state to pdfs.
        transition_counts: (transition ids + 1,) number of times each was seen; the first is not used.
        states: Of every phone, from left to right, none skipped: a phone lasts for as many frames at least.
        subsampling: Feature frames from one frame of this model to the next; frame i is feature frame i * subsampling.
    """

    lexicon: Lexicon
    phones: tuple[str, ...]
    tree: kaldi.ContextDependency
    transition_counts: np.ndarray
    states: int = STATES
    subsampling: int = 1

    @classmethod
    def monophone(cls, lexicon: Lexicon, states: int = STATES, subsampling: int = 1) -> "HiddenMarkovModel":
        """Return a model in which every state of every phone has its own pdf, and all transitions are alike."""
        lexicon = _with_capital_marks(lexicon)
        phones = (SILENCE, SPOKEN_NOISE, *lexicon.phones)
        ids = list(range(1, len(phones) + 1))
        classes = topology(len(phones), states).get_phone_to_num_pdf_classes()
        tree = kaldi.monophone_context_dependency(ids, classes)
        count = _transitions(tree, len(phones), states).num_transition_ids + 1
        return cls(lexicon, phones, tree, np.zeros(count), states, subsampling)

    @cached_property
    def transitions(self) -> kaldi.TransitionModel:
        """Kaldi's transition model, with the probabilities that follow from the counts."""
        model = _transitions(self.tree, len(self.phones), self.states)
        model.mle_update(self.transition_counts, kaldi.MleTransitionUpdateConfig())
        return model

    @property
    def pdfs(self) -> int:
        """Number of distributions."""
        return int(self.tree.num_pdfs)

    @cached_property
    def pdf_of(self) -> np.ndarray:
        """(transition ids + 1,) the pdf of the frame that each consumes."""
        return np.array(self.transitions.transition_id_to_pdf_array(), dtype=np.int64)

    @cached_property
    def phone_of(self) -> np.ndarray:
        """(transition ids + 1,) the id of the phone that each belongs to."""
        return np.array([0, *map(self.transitions.transition_id_to_phone, self._ids)], dtype=np.int64)

    @cached_property
    def stays(self) -> np.ndarray:
        """(transition ids + 1,) whether the state is the same after it."""
        return np.array([False, *map(self.transitions.is_self_loop, self._ids)])

    @cached_property
    def ends_phone(self) -> np.ndarray:
        """(transition ids + 1,) whether a phone ends after it."""
        return np.array([False, *map(self.transitions.is_final, self._ids)])

    @cached_property
    def _transition_numbers(self) -> dict[tuple[int, int, bool], int]:
        # A pdf belongs to one state of one phone; so these three name a transition.
        keys = zip(self.phone_of.tolist(), self.pdf_of.tolist(), self.stays.tolist(), strict=True)
        return {key: number for number, key in enumerate(keys) if number}

    @cached_property
    def _pdf_cache(self) -> dict[tuple[int, ...], int]:
        return {}

    def transition_id(self, triphone: Sequence[int], stays: bool) -> int:
        """Return the name of a transition.

        Args:
            triphone: Left, center and right phone, 0 beyond the edges of an utterance; and the number of the state.
            stays: Whether the state is the same after it.
        """
        left, phone, right, state = key = tuple(triphone)
        if key not in self._pdf_cache:
            context = [left, phone, right] if self.tree.context_width == 3 else [phone]
            self._pdf_cache[key] = self.tree.compute(context, state)[1]
        return self._transition_numbers[phone, self._pdf_cache[key], stays]

    @property
    def _ids(self) -> range:
        return range(1, self.transitions.num_transition_ids + 1)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The words of the lexicon; a word's id is its index + 1."""
        return tuple(sorted(self.lexicon.pronunciations))

    @cached_property
    def word_ids(self) -> dict[str, int]:
        """The id of every word."""
        return {word: number for number, word in enumerate(self.words, 1)}

    @cached_property
    def phone_ids(self) -> dict[str, int]:
        """The id of every phone."""
        return {phone: number for number, phone in enumerate(self.phones, 1)}

    def with_tree(self, tree: kaldi.ContextDependency) -> "HiddenMarkovModel":
        """Return the same phones tied by another tree, with no transitions counted yet."""
        count = _transitions(tree, len(self.phones), self.states).num_transition_ids + 1
        return replace(self, tree=tree, transition_counts=np.zeros(count))

    def with_counts(self, counts: np.ndarray) -> "HiddenMarkovModel":
        """Return the same model after its transitions were counted."""
        return replace(self, transition_counts=counts)

    def checksum(self) -> int:
        """Return a number (CRC-32) that differs where phones, tree or counts differ, and so the pdfs' meaning."""
        with TemporaryDirectory() as folder:
            self.tree.write(True, str(Path(folder) / "tree"))
            parts = [_phone_table(self.phones).encode(), (Path(folder) / "tree").read_bytes()]
        return zlib.crc32(b"".join([*parts, self.transition_counts.astype("<f8").tobytes()]))

    def write(self, folder: Path) -> None:
        """Write `lexicon.txt`, `phones.txt`, `topology.json`, `tree` (Kaldi's binary form) and `transitions.npy`."""
        write_lexicon(self.lexicon, folder / "lexicon.txt")
        write_atomically(folder / "phones.txt", _phone_table(self.phones))
        write_atomically(folder / TOPOLOGY, json.dumps({"states": self.states, "subsampling": self.subsampling}))
        with replacing(folder / "tree") as half:
            self.tree.write(True, str(half))
        with replacing(folder / "transitions.npy") as half, half.open("wb") as file:
            np.save(file, self.transition_counts)


def _with_capital_marks(lexicon: Lexicon) -> Lexicon:
    """Write silence and noise in capitals: Montreal Forced Aligner has `spn`."""
    marks = {mark.lower(): mark for mark in NOT_SPEECH}
    return Lexicon(
        {
            word: tuple(tuple(marks.get(phone.lower(), phone) for phone in phones) for phones in pronunciations)
            for word, pronunciations in lexicon.pronunciations.items()
        }
    )


def read_hmm(folder: Path) -> HiddenMarkovModel:
    """Read what `HiddenMarkovModel.write` has written.

    Raises:
        InputError: A file is missing, damaged, or does not fit the others.
    """
    lexicon = read_lexicon(folder / "lexicon.txt")
    with _reraise_read_errors(folder / "phones.txt") as path:
        text = regular(path).read_text(encoding="utf-8")
        phones = tuple(line.split(" ")[0] for line in text.splitlines())
        known = {SILENCE, SPOKEN_NOISE} | set(lexicon.phones)
        if text != _phone_table(phones) or len(set(phones)) < len(phones) or not known <= set(phones):
            raise ValueError("expected lines of a phone and its number, from 1, with all phones of the lexicon")
    states, subsampling = _read_topology(folder / TOPOLOGY)
    with _reraise_read_errors(folder / "tree") as path:
        tree = read_tree(regular(path).read_bytes(), len(phones), states)
    with _reraise_read_errors(folder / "transitions.npy") as path:
        counts = np.load(path, allow_pickle=False)
        size = (_transitions(tree, len(phones), states).num_transition_ids + 1,)
        if counts.shape != size or counts.dtype.kind not in "fiu" or not np.all((counts >= 0) & (counts < np.inf)):
            raise ValueError(f"expected counts {size} for its tree, found an array {counts.shape} of {counts.dtype}")
    return HiddenMarkovModel(lexicon, phones, tree, counts.astype(np.float64), states, subsampling)


def _read_topology(path: Path) -> tuple[int, int]:
    """Return states of a phone and subsampling; three and none in folders older than the choice."""
    if not path.exists():
        return STATES, 1
    with _reraise_read_errors(path):
        content = json.loads(regular(path).read_text("utf-8"))
        states, subsampling = content["states"], content["subsampling"]
        if not all(type(count) is int and 1 <= count <= 10 for count in (states, subsampling)):
            raise ValueError(f"expected states and subsampling from 1 to 10, found {states} and {subsampling}")
    return states, subsampling


def _phone_table(phones: Sequence[str]) -> str:
    return "".join(f"{phone} {number}\n" for number, phone in enumerate(phones, 1))


@contextmanager
def _reraise_read_errors(path: Path) -> Iterator[Path]:
    try:
        yield path
    except DAMAGED as error:
        raise InputError(f"cannot read {path} ({reason(error)}); make it anew with `asr hybrid`") from error


def _transitions(tree: kaldi.ContextDependency, phones: int, states: int) -> kaldi.TransitionModel:
    return kaldi.TransitionModel(tree, topology(phones, states))


def topology(phones: int, states: int = STATES) -> kaldi.HmmTopology:
    """Return Kaldi's description of phones 1 to `phones`: states from left to right, none skipped."""
    parts = " ".join(
        f"<State> {state} <PdfClass> {state} <Transition> {state} 0.75 <Transition> {state + 1} 0.25 </State>"
        for state in range(states)
    )
    entry = f"<ForPhones> {' '.join(map(str, range(1, phones + 1)))} </ForPhones> {parts} <State> {states} </State>"
    description = kaldi.HmmTopology()
    description.read(f"<Topology> <TopologyEntry> {entry} </TopologyEntry> </Topology> ")
    return description
