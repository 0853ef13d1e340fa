"""Nearest neighbours of states in other sentences, and what these have in common [Lim et al. 2019, 3.4 and 3.5]."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

QUERIES = 256  # of a block
CANDIDATES = 8_192  # of a block: with 256 queries 8 MiB of distances, which caches hold
STRIPES = 32  # of a block, whose minima are compared first
PRECISE_QUERIES = 128  # of a block in double precision: as much memory
SPARE = 8  # candidates that are measured again in double precision, besides those asked for


def nearest(
    states: np.ndarray, groups: np.ndarray, k: int = 5, queries: np.ndarray | None = None, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest states by Euclidean distance, of other groups only; exactly, and in bounded memory.

    Candidates are found in single precision. Where its rounding could hide a nearer state, as among states that are
    nearly the same, all distances are computed in double precision. Of equal distances the lower index comes first.

    Args:
        states: (N, D); may lie on disk.
        groups: (N,) integers: states of one group, as a sentence, are no neighbours of each other.
        k: How many.
        queries: (Q,) indices of the states whose neighbours are wanted; all if None.
        device: Where blocks are compared.

    Returns:
        Indices (Q, k) and distances (Q, k), the nearest first; -1 and infinity beyond the last neighbour.
    """
    queries = np.arange(len(states)) if queries is None else np.asarray(queries)
    neighbours = np.full((len(queries), k), -1, dtype=np.int64)
    distances = np.full((len(queries), k), np.inf)
    center, longest = _center_and_radius(states)
    for begin in range(0, len(queries), QUERIES):
        rows = queries[begin : begin + QUERIES]
        candidates, farthest = _candidates(states, groups, rows, center, k + SPARE, device)
        exact = _exact_distances(states, rows, candidates)
        unsure = np.flatnonzero(~_are_certain(states[rows] - center, np.sort(exact, axis=1)[:, :k], farthest, longest))
        for start in range(0, len(unsure), PRECISE_QUERIES):
            indices = unsure[start : start + PRECISE_QUERIES]
            candidates[indices] = _precise_candidates(states, groups, rows[indices], candidates.shape[1], device)
            exact[indices] = _exact_distances(states, rows[indices], candidates[indices])
        order = np.argsort(exact, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(exact, order, axis=1)
        distances[begin : begin + len(rows), : best.shape[1]] = best
        neighbours[begin : begin + len(rows), : best.shape[1]] = np.where(
            np.isfinite(best), np.take_along_axis(candidates, order, axis=1), -1
        )
    return neighbours, distances


def _center_and_radius(states: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the mean (D,) of all states, and the greatest distance from it."""
    center, longest = np.zeros(states.shape[1]), 0.0
    for begin in range(0, len(states), CANDIDATES):
        center += states[begin : begin + CANDIDATES].sum(axis=0, dtype=np.float64) / len(states)
    for begin in range(0, len(states), CANDIDATES):
        offsets = states[begin : begin + CANDIDATES] - center
        longest = max(longest, float(np.sqrt(np.einsum("nd,nd->n", offsets, offsets).max())))
    return center, longest


def _are_certain(query: np.ndarray, nearest: np.ndarray, farthest: np.ndarray, longest: float) -> np.ndarray:
    """Return for which queries (Q,) every state that is no candidate is farther than the last of the nearest.

    Args:
        query: (Q, D) from the center.
        nearest: (Q, k) exact distances, the last one the greatest.
        farthest: (Q,) squares of the last candidates' distances in single precision, without those of the queries;
            infinite where all states are candidates.
        longest: Greatest distance of a state from the center.

    The error of a sum of D products is at most D roundings of the sum of their sizes [Higham 2002, section 3.1]; a
    few more are those of the states themselves and of the terms that are added.
    """
    rounding = 2.0**-24 if torch.get_float32_matmul_precision() == "highest" else 2.0**-8
    squares = np.einsum("qd,qd->q", query, query)
    errors = 1.1 * (query.shape[1] + 6) * rounding * longest * (longest + 2 * np.sqrt(squares))
    return np.isinf(farthest) | (nearest[:, -1] ** 2 < farthest + squares - errors)


def _candidates(
    states: np.ndarray, groups: np.ndarray, rows: np.ndarray, center: np.ndarray, count: int, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest in single precision, and the squared distances of the last, without the queries' squares.

    Indices (Q, count) in ascending order, -1 for none; squares (Q,) are then infinite.
    """
    query = torch.from_numpy((states[rows] - center).astype(np.float32)).to(device)
    query_groups = torch.from_numpy(groups[rows].astype(np.int64)).to(device).unsqueeze(1)
    best = torch.full((len(rows), count), float("inf"), device=device)
    nearest_rows = torch.full((len(rows), count), -1, dtype=torch.int64, device=device)
    for begin in range(0, len(states), CANDIDATES):
        block = torch.from_numpy((states[begin : begin + CANDIDATES] - center).astype(np.float32)).to(device)
        block_groups = torch.from_numpy(groups[begin : begin + CANDIDATES].astype(np.int64)).to(device)
        squares = torch.addmm(block.square().sum(dim=1), query, block.T, alpha=-2.0)  # without the same |query|²
        if torch.isin(block_groups, query_groups).any():  # of a few blocks, as sentences stand in one piece
            squares.masked_fill_(query_groups == block_groups, float("inf"))
        near, column = _smallest(squares, min(count, len(block)))
        best, order = torch.cat([best, near], dim=1).topk(count, dim=1, largest=False)
        nearest_rows = torch.cat([nearest_rows, column + begin], dim=1).gather(1, order)
    candidates = torch.where(best.isinf(), -1, nearest_rows)
    return candidates.sort(dim=1).values.cpu().numpy(), best.amax(dim=1).double().cpu().numpy()


def _smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the smallest of each row (Q, count), in ascending order, and their columns; faster than `topk`.

    A row (N,) is read as N / STRIPES columns of STRIPES values. The smallest values lie in the `count` columns with the
    smallest minima: a column before theirs holds a smaller value itself.
    """
    width = values.shape[1] // STRIPES
    if values.shape[1] % STRIPES or width <= count:
        smallest, columns = values.topk(count, dim=1, largest=False)
        return smallest, columns
    table = values.view(len(values), STRIPES, width)
    column = table.amin(dim=1).topk(count, dim=1, largest=False, sorted=False).indices.unsqueeze(1)  # (Q, 1, count)
    candidates = table.gather(2, column.expand(-1, STRIPES, -1)).flatten(1)  # (Q, STRIPES * count)
    columns = column + width * torch.arange(STRIPES, device=values.device)[:, None]  # (Q, STRIPES, count)
    smallest, order = candidates.topk(count, dim=1, largest=False)
    return smallest, columns.flatten(1).gather(1, order)


def _precise_candidates(
    states: np.ndarray, groups: np.ndarray, rows: np.ndarray, count: int, device: str
) -> np.ndarray:
    """Return the indices (Q, count) of the nearest in double precision, in ascending order; -1 for none.

    Of equally near states the lower indices.
    """
    query = torch.from_numpy(states[rows].astype(np.float64)).to(device)
    query_groups = torch.from_numpy(groups[rows].astype(np.int64)).to(device).unsqueeze(1)
    best = torch.full((len(rows), count), float("inf"), dtype=torch.float64, device=device)
    nearest_rows = torch.full((len(rows), count), -1, dtype=torch.int64, device=device)
    for begin in range(0, len(states), CANDIDATES):
        block = torch.from_numpy(states[begin : begin + CANDIDATES].astype(np.float64)).to(device)
        block_groups = torch.from_numpy(groups[begin : begin + CANDIDATES].astype(np.int64)).to(device)
        distances = torch.cdist(query, block, compute_mode="donot_use_mm_for_euclid_dist")
        distances.masked_fill_(query_groups == block_groups, float("inf"))
        near, column = (part[:, :count] for part in distances.sort(dim=1, stable=True))
        best, order = (part[:, :count] for part in torch.cat([best, near], dim=1).sort(dim=1, stable=True))
        nearest_rows = torch.cat([nearest_rows, column + begin], dim=1).gather(1, order)
    return torch.where(best.isinf(), -1, nearest_rows).sort(dim=1).values.cpu().numpy()


def _exact_distances(states: np.ndarray, rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the distances (Q, count) in double precision; infinite for index -1."""
    offsets = np.subtract(states[candidates.clip(min=0)], states[rows][:, None], dtype=np.float64)  # (Q, count, D)
    exact = np.sqrt(np.einsum("qcd,qcd->qc", offsets, offsets))
    return np.where(candidates >= 0, exact, np.inf)


def matching_before(
    characters: np.ndarray, groups: np.ndarray, neighbours: np.ndarray, queries: np.ndarray
) -> np.ndarray:
    """Count the characters right before each query's that also stand right before its neighbours'.

    Args:
        characters: (N,) of every state, in the order of their sentences.
        groups: (N,) sentences, each in one piece.
        neighbours: (Q, k) neighbours of each query; -1 for none, which matches nothing.
        queries: (Q,) indices.

    Returns:
        (Q, k) counts: 0 where the character before differs, or a sentence has just begun.
    """
    counts = np.zeros(neighbours.shape, dtype=np.int64)
    positions = np.broadcast_to(queries[:, None], neighbours.shape)
    matching = neighbours >= 0
    back = 0
    while matching.any():
        back += 1
        query_rows, neighbour_rows = positions - back, neighbours - back
        inside = (query_rows >= 0) & (neighbour_rows >= 0)
        query_rows, neighbour_rows = query_rows.clip(min=0), neighbour_rows.clip(min=0)
        matching = (
            matching
            & inside
            & (groups[query_rows] == groups[positions])
            & (groups[neighbour_rows] == groups[neighbours])
        )
        matching &= characters[query_rows] == characters[neighbour_rows]
        counts += matching
    return counts


@dataclass(frozen=True)
class Matches:
    """A line of Table 2 of Lim et al. 2019.

    Attributes:
        total: Matching preceding characters, of all neighbours of all queries.
        mean: Of one neighbour.
        deviation: Standard deviation of the mean of one draw over draws, for what is drawn at random; else 0.
    """

    total: float
    mean: float
    deviation: float = 0.0


def summarize_matches(counts: np.ndarray) -> Matches:
    """Add up counts (Q, k)."""
    return Matches(float(counts.sum()), float(counts.mean()) if counts.size else 0.0)


def shuffled_baseline(
    states: np.ndarray, characters: np.ndarray, groups: np.ndarray, queries: np.ndarray, k: int, seed: int = 1,
    draws: int = 1,
) -> Matches:  # fmt: skip
    """Return the matches after permuting the states among the characters: matches by chance."""
    random = np.random.default_rng(seed)
    results = []
    for _ in range(draws):
        neighbours, _ = nearest(states[random.permutation(len(states))], groups, k, queries)
        results.append(matching_before(characters, groups, neighbours, queries))
    return _summarize_draws(results)


def ngram_baseline(
    characters: np.ndarray, groups: np.ndarray, queries: np.ndarray, k: int, order: int, seed: int = 1, draws: int = 5
) -> Matches:
    """Return the matches of random neighbours that share the last `order` characters.

    The character itself is the last of them: order 1 draws any state of the same character in another sentence. Where
    there are fewer than k, the next shorter order fills up.
    """
    random = np.random.default_rng(seed)
    histories = [_histories(characters, groups, length) for length in range(order, 0, -1)]
    members = [_indices_by_key(keys) for keys in histories]
    results = []
    for _ in range(draws):
        neighbours = np.full((len(queries), k), -1, dtype=np.int64)
        for keys, rows_of in zip(histories, members, strict=True):
            for row, query in enumerate(queries):
                missing = int((neighbours[row] < 0).sum())
                if not missing:
                    continue
                candidates = rows_of[keys[query]]
                allowed = candidates[(groups[candidates] != groups[query]) & ~np.isin(candidates, neighbours[row])]
                sample = random.permutation(allowed)[:missing] if len(allowed) <= missing else random.choice(
                    allowed, missing, replace=False
                )  # fmt: skip
                neighbours[row, k - missing : k - missing + len(sample)] = sample
        results.append(matching_before(characters, groups, neighbours, queries))
    return _summarize_draws(results)


def _summarize_draws(results: Sequence[np.ndarray]) -> Matches:
    means = [float(counts.mean()) for counts in results]
    deviation = float(np.std(means, ddof=1)) if len(means) > 1 else 0.0
    return Matches(float(np.mean([counts.sum() for counts in results])), float(np.mean(means)), deviation)


def _histories(characters: np.ndarray, groups: np.ndarray, length: int) -> np.ndarray:
    """Return a number (N,) for every different history of `length` characters, within a sentence."""
    _, keys = np.unique(characters, return_inverse=True)
    numbers = keys.astype(np.int64)
    rows = np.arange(len(numbers))
    for back in range(1, length):
        previous = (rows - back).clip(min=0)
        inside = (rows >= back) & (groups[previous] == groups)
        joined = numbers * (keys.max() + 2) + np.where(inside, keys[previous] + 1, 0)
        _, numbers = np.unique(joined, return_inverse=True)
    return numbers


def _indices_by_key(keys: np.ndarray) -> dict[int, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    return {int(keys[part[0]]): part for part in np.split(order, edges)}


def in_context(characters: Sequence[str], index: int, before: int = 20, after: int = 10) -> str:
    """Show a character where it stands, as the paper does: `SO THEY <<S>>AID`, `SO<<_>>THEY SAID`.

    Args:
        characters: Of the sentence, `_` for a space.
        index: Of the character.
        before: Characters shown before it.
        after: Characters shown after it.
    """
    start = max(0, index - before)
    preceding, following = (
        "".join(part).replace("_", " ") for part in (characters[start:index], characters[index + 1 : index + 1 + after])
    )
    ellipsis = "…" if index + 1 + after < len(characters) else ""
    return f"{'…' if start else ''}{preceding}<<{characters[index]}>>{following}{ellipsis}".strip()
