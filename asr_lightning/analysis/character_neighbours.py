"""Nearest neighbours of decoder states and the characters before them: Table 2 [Lim et al. 2019, §3.4, §3.5]."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from asr_lightning.analysis.activations import Layer, read_layer
from asr_lightning.analysis.neighbours import (
    Matches,
    in_context,
    matching_before,
    nearest,
    ngram_baseline,
    shuffled_baseline,
    summarize_matches,
)

ORDERS = (1, 2, 3)  # of the character n-grams that states are compared with
SENTENCES = 79  # of Table 2; more candidates make longer matches
MISSING = "–"


@dataclass(frozen=True)
class PublishedTable:
    """A published table of matching characters.

    Attributes:
        sentences: Number of sentences.
        tokens: Tokens in these sentences.
        totals: Matching characters of each layer, the lowest first.
    """

    sentences: int
    tokens: int
    totals: list[int]

    def mean(self, layer: int, k: int) -> str:
        """Return the mean of one of k neighbours, cut off after two decimals as Lim et al. 2019 print it."""
        return f"{100 * self.totals[layer] // (self.tokens * k) / 100:.2f}"

    def columns(self, layer: int, k: int) -> list[str]:
        """Return total and mean of a layer by its number from 0; dashes where the paper has no such layer."""
        published = layer < len(self.totals)
        return [str(self.totals[layer]), self.mean(layer, k)] if published else [MISSING, MISSING]


@dataclass(frozen=True)
class CharacterNeighbours:
    """The characters of recognized sentences, each with its nearest neighbours in other sentences by one layer.

    Attributes:
        layer: Name.
        utterances: (N,) names.
        index: (N,) positions within a sentence.
        characters: (N,).
        neighbours: (N, k) rows of the neighbours, the nearest first; -1 for none.
        distances: (N, k) Euclidean.
        counts: (N, k) matching characters right before.
        shuffled: Matches of states that were permuted among the characters.
        ngrams: Matches of neighbours drawn at random that share the last 1, 2, 3 characters.
    """

    layer: str
    utterances: np.ndarray
    index: np.ndarray
    characters: np.ndarray
    neighbours: np.ndarray
    distances: np.ndarray
    counts: np.ndarray
    shuffled: Matches
    ngrams: tuple[Matches, ...]

    @property
    def matches(self) -> Matches:
        """The layer's line of Table 2."""
        return summarize_matches(self.counts)

    @property
    def sentences(self) -> int:
        """Number of sentences."""
        return len(np.unique(self.utterances))

    @cached_property
    def _sentence_starts(self) -> np.ndarray:
        """Where sentences begin, and the end of the last one."""
        return np.append(np.flatnonzero(self.index == 0), len(self.index))

    def context(self, row: int) -> str:
        """Show a character where it stands: `SO THEY <<S>>AID`."""
        if row < 0:
            return ""
        begin = row - int(self.index[row])
        end = int(self._sentence_starts[np.searchsorted(self._sentence_starts, row, side="right")])
        return in_context(self.characters[begin:end].tolist(), row - begin)


def find_character_neighbours(
    folder: Path, layers: Sequence[str], k: int = 5, seed: int = 1, device: str = "cpu", sentences: int | None = None
) -> list[CharacterNeighbours]:
    """Find the neighbours of every recognized character, layer by layer.

    Args:
        folder: Of activations.
        layers: Modules of tokens in that folder.
        k: Neighbours.
        seed: Of the sentences and of the baselines.
        device: Where states are compared.
        sentences: How many are compared with each other, drawn by lot from those with characters; all if None, or
            or if the data hold no more. The paper does not name its 79.

    Returns:
        An item per layer; an empty list with fewer than two sentences.

    Raises:
        InputError: There is no such layer.
    """
    by_layer: list[CharacterNeighbours] = []
    for layer in layers:
        states = _draw_sentences(read_layer(folder, layer), sentences, seed)
        groups = np.unique(states.utterances, return_inverse=True)[1]
        if len(np.unique(groups)) < 2:
            return []
        queries = np.arange(len(states))
        rows, distances = nearest(states.values, groups, k, device=device)
        ngrams = by_layer[0].ngrams if by_layer else tuple(  # these look at characters only, the same in every layer
            ngram_baseline(states.characters, groups, queries, k, order, seed) for order in ORDERS
        )  # fmt: skip
        by_layer.append(
            CharacterNeighbours(
                layer, states.utterances, states.index, states.characters, rows, distances,
                matching_before(states.characters, groups, rows, queries),
                shuffled_baseline(states.values, states.characters, groups, queries, k, seed), ngrams,
            )
        )  # fmt: skip
    return by_layer


def _draw_sentences(layer: Layer, count: int | None, seed: int) -> Layer:
    """Return the states of characters, without those of sentences' ends, of `count` sentences drawn by lot."""
    rows = layer.characters != "<eos>"
    names = np.unique(layer.utterances[rows])
    if count is not None and count < len(names):
        rows &= np.isin(layer.utterances, np.random.default_rng(seed).permutation(names)[:count])
    return layer.where(np.flatnonzero(rows))


def neighbour_table(layers: list[CharacterNeighbours], published: PublishedTable | None = None) -> list[list[str]]:
    """Return Table 2: for every layer, total and mean matching characters, the paper's, and the baselines' means.

    Args:
        layers: The layers, the lowest first.
        published: A paper's table, whose columns stand beside ours.
    """
    paper = ["published total", "published mean"] if published else []
    head = ["layer", "sentences", "tokens", "total", "mean", *paper, "shuffled states"]
    rows = [head + [f"{order}-gram" for order in ORDERS]]
    for number, layer in enumerate(layers):
        matches, k = layer.matches, layer.neighbours.shape[1]
        rows.append(
            [
                layer.layer,
                str(layer.sentences),
                str(len(layer.characters)),
                f"{matches.total:.0f}",
                f"{matches.mean:.2f}",
            ]
            + (published.columns(number, k) if published else [])
            + [f"{baseline.mean:.2f}" for baseline in (layer.shuffled, *layer.ngrams)]
        )
    return rows


def neighbour_caption(layers: list[CharacterNeighbours], seed: int, published: PublishedTable | None = None) -> str:
    """Return the caption of the table."""
    first = layers[0]
    caption = (
        f"{first.neighbours.shape[1]} neighbours of each of {len(first.characters):,} tokens of {first.sentences} "
        f"sentences (drawn with seed {seed} if the data hold more); neighbours come from the same sentences. Total and "
        "mean of the characters right before that match."
    )
    paper = f" The paper has {published.sentences} sentences and {published.tokens:,} tokens." if published else ""
    return caption + paper
