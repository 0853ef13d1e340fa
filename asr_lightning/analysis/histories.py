"""Decoder states and the characters before them: neighbours of every character, and Table 2 [seed 000 §3.4, §3.5]."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from asr_lightning.analysis.activations import read_layer
from asr_lightning.analysis.neighbours import (
    Matches,
    in_context,
    matching_before,
    nearest,
    ngram_baseline,
    shuffled_baseline,
    summarise_matches,
)

ORDERS = (1, 2, 3)  # of the character n-grams that states are compared with


@dataclass(frozen=True)
class Histories:
    """The characters of recognised sentences, each with its nearest neighbours in other sentences by one layer.

    Attributes:
        layer: Name.
        utterances: (N,) names.
        index: (N,) places within a sentence.
        characters: (N,).
        places: (N, k) rows of the neighbours, the nearest first; -1 for none.
        distances: (N, k) Euclidean.
        counts: (N, k) matching characters right before.
        shuffled: What states of other characters share.
        ngrams: What neighbours share that are drawn by the last 1, 2, 3 characters only.
    """

    layer: str
    utterances: np.ndarray
    index: np.ndarray
    characters: np.ndarray
    places: np.ndarray
    distances: np.ndarray
    counts: np.ndarray
    shuffled: Matches
    ngrams: tuple[Matches, ...]

    @property
    def matches(self) -> Matches:
        """The layer's line of Table 2."""
        return summarise_matches(self.counts)

    @cached_property
    def _begins(self) -> np.ndarray:
        """Where sentences begin, and the end of the last one."""
        return np.append(np.flatnonzero(self.index == 0), len(self.index))

    def context(self, row: int) -> str:
        """Show a character where it stands: `SO THEY <<S>>AID`."""
        if row < 0:
            return ""
        begin = row - int(self.index[row])
        end = int(self._begins[np.searchsorted(self._begins, row, side="right")])
        return in_context(self.characters[begin:end].tolist(), row - begin)


def find_histories(
    folder: Path, layers: Sequence[str], k: int = 5, seed: int = 1, device: str = "cpu"
) -> list[Histories]:
    """Find the neighbours of every recognised character, layer by layer.

    Args:
        folder: Of activations.
        layers: Of its modules those of tokens.
        k: Neighbours.
        seed: Of the baselines.
        device: Where states are compared.

    Returns:
        Nothing where there are fewer than two sentences.

    Raises:
        InputError: There is no such layer.
    """
    found: list[Histories] = []
    for layer in layers:
        everything = read_layer(folder, layer)
        states = everything.where(np.flatnonzero(everything.characters != "<eos>"))
        groups = np.unique(states.utterances, return_inverse=True)[1]
        if len(np.unique(groups)) < 2:
            return []
        queries = np.arange(len(states))
        places, distances = nearest(states.values, groups, k, device=device)
        ngrams = found[0].ngrams if found else tuple(  # these look at characters only, the same in every layer
            ngram_baseline(states.characters, groups, queries, k, order, seed) for order in ORDERS
        )  # fmt: skip
        found.append(
            Histories(
                layer, states.utterances, states.index, states.characters, places, distances,
                matching_before(states.characters, groups, places, queries),
                shuffled_baseline(states.values, states.characters, groups, queries, k, seed), ngrams,
            )
        )  # fmt: skip
    return found


def table(found: list[Histories]) -> list[list[str]]:
    """Return Table 2: for every layer, total and mean matching characters, and the baselines' means."""
    head = ["layer", "characters", "total", "mean", "shuffled states", *(f"{order}-gram" for order in ORDERS)]
    rows = [head]
    for one in found:
        mine = one.matches
        others = [one.shuffled, *one.ngrams]
        rows.append(
            [one.layer, str(len(one.characters)), f"{mine.total:.0f}", f"{mine.mean:.2f}"]
            + [f"{other.mean:.2f}" for other in others]
        )
    return rows
