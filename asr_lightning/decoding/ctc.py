"""CTC outputs: probabilities of texts, token by token, and forced alignment."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

State = tuple[Tensor, ...]

IMPOSSIBLE = -1e6  # log probability of a token in padding, or with a logit of -inf: none, but sums remain numbers


class CTCPrefixScorer:
    """Scores hypotheses by the probability of all CTC paths that begin with them [Hori et al. 2017, Algorithm 2].

    The published recursion walks over the frames for every new token. Here the sum over frames is a matrix product for
    all tokens at once, and the two recursions of a chosen token are cumulative sums, in 64-bit logarithms.

    Args:
        blank_id: The blank's token id.
        eos_id: The token that begins and ends a hypothesis.
    """

    def __init__(self, blank_id: int, eos_id: int) -> None:
        self.blank_id = blank_id
        self.eos_id = eos_id

    def remember(self, logits: Tensor, lengths: Tensor) -> State:
        """Prepare CTC logits (B, T, V) of the given lengths (B,); all tensors have one row per utterance."""
        log_probs = logits.double().log_softmax(dim=2).clamp(min=IMPOSSIBLE)
        padding = torch.arange(logits.shape[1], device=logits.device) >= lengths.unsqueeze(1)  # (B, T)
        log_probs = log_probs.masked_fill(padding.unsqueeze(2), IMPOSSIBLE)
        log_probs[:, :, self.blank_id].masked_fill_(padding, 0.0)
        return log_probs, log_probs.exp()

    def initial_state(self, memory: State) -> State:
        """Return the state of the empty hypothesis, one row per utterance.

        It holds for every frame the log probability of all paths so far that spell the hypothesis and end with its last
        token (B, T), and with a blank (B, T); the last token (B,); and the hypothesis's own score (B,).
        """
        log_probs = memory[0]
        blanks = log_probs[:, :, self.blank_id].cumsum(dim=1)
        last = torch.full_like(blanks[:, 0], self.eos_id, dtype=torch.int64)
        return torch.full_like(blanks, float("-inf")), blanks, last, torch.zeros_like(blanks[:, 0])

    def step(self, tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        """Read one token of each hypothesis, and score what may follow.

        Args:
            tokens: (N,) token ids; `eos_id` before the first. N = B · K, those of an utterance side by side.
            state: Of the hypotheses without these tokens.
            memory: Of `remember`.

        Returns:
            Log probabilities (N, V) of the next token, `eos_id` for the end; and the state after `tokens`.
        """
        log_probs, probs = memory
        utterance = torch.arange(len(tokens), device=tokens.device) // (len(tokens) // len(log_probs))
        state = self._advance(tokens, state, log_probs, utterance)
        by_token, by_blank, last, score = state
        entries = self._entries(torch.logaddexp(by_token, by_blank), last)  # (N, T)
        peak = entries.max(dim=1, keepdim=True).values.clamp(min=-1e30)
        weights = (entries - peak).exp().unflatten(0, (len(log_probs), -1))  # (B, K, T)
        following = (weights @ probs).flatten(0, 1).log() + peak  # (N, V)
        # A token after itself needs a blank between. Padding has no probability here, as in the product.
        emissions = probs[utterance, :, last].log()
        repeated = (self._entries(by_blank, last) + emissions).logsumexp(dim=1)
        following.scatter_(1, last.unsqueeze(1), repeated.unsqueeze(1))
        following[:, self.eos_id] = torch.logaddexp(by_token[:, -1], by_blank[:, -1])
        following[:, self.blank_id] = float("-inf")
        following = following.masked_fill(following < IMPOSSIBLE / 2, float("-inf"))  # some frame of all paths is
        return (following - score.unsqueeze(1)).nan_to_num(nan=float("-inf")).float(), state

    def _advance(self, tokens: Tensor, state: State, log_probs: Tensor, utterance: Tensor) -> State:
        by_token, by_blank, last, _ = state
        paths = torch.where((tokens == last).unsqueeze(1), by_blank, torch.logaddexp(by_token, by_blank))
        emissions = log_probs[utterance, :, tokens]  # (N, T)
        new_by_token = _accumulate(self._entries(paths, last), emissions)
        blanks = log_probs[utterance, :, self.blank_id]
        new_by_blank = _accumulate(functional.pad(new_by_token[:, :-1], (1, 0), value=float("-inf")), blanks)
        score = (self._entries(paths, last) + emissions).logsumexp(dim=1)
        starts = tokens == self.eos_id  # nothing is read yet
        return (
            torch.where(starts.unsqueeze(1), by_token, new_by_token),
            torch.where(starts.unsqueeze(1), by_blank, new_by_blank),
            tokens,
            torch.where(starts, state[3], score),
        )

    def _entries(self, paths: Tensor, last: Tensor) -> Tensor:
        """Return the log probability (N, T) of the paths up to each frame that may emit a new token in it."""
        start = torch.where(last == self.eos_id, 0.0, float("-inf")).to(paths)
        return torch.cat([start.unsqueeze(1), paths[:, :-1]], dim=1)


def _accumulate(entries: Tensor, stays: Tensor) -> Tensor:
    """Return r with r_t = log(exp(r_{t-1}) + exp(entries_t)) + stays_t, all (N, T)."""
    total = stays.cumsum(dim=1)
    return total + (entries - (total - stays)).logcumsumexp(dim=1)


def forced_alignments(
    log_probs: Tensor, lengths: Tensor, rows: Sequence[int], sequences: Sequence[Sequence[int]], blank_id: int
) -> list[list[tuple[int, int]] | None]:
    """Return first and last frame of every token on the most probable CTC path of its sequence [Viterbi 1967].

    Of equally probable paths it is the one that is further along, compared from the last frame backwards.

    Args:
        log_probs: (B, T, V).
        lengths: (B,) real frames.
        rows: N utterances, one for each sequence.
        sequences: N times U token ids, without blanks.
        blank_id: The blank's token id.

    Returns:
        N lists of U spans; None where no path of finite log probability spells the tokens, as where they are more than
        the frames.
    """
    if not sequences:
        return []
    device = log_probs.device
    sizes = torch.tensor([len(tokens) for tokens in sequences], device=device)
    states = 2 * max(1, *map(len, sequences)) + 1  # S: blanks around each token
    labels = torch.full((len(sequences), states), blank_id)
    for row, tokens in zip(labels, sequences, strict=True):
        row[1 : 2 * len(tokens) : 2] = torch.tensor(tokens, dtype=torch.int64)
    labels = labels.to(device)
    changes = functional.pad(labels[:, 2:] != labels[:, :-2], (2, 0), value=False)  # where a blank may be left out
    utterance = torch.tensor(rows, device=device)
    scores = torch.full(labels.shape, float("-inf"), dtype=torch.float64, device=device)
    scores[:, 0] = 0.0
    steps = []  # (T, N, S): by how many states the best path into each has moved
    for frame in range(log_probs.shape[1]):
        one_back, two_back = (functional.pad(scores, (back, 0), value=float("-inf"))[:, :-back] for back in (1, 2))
        best, moved = torch.stack([scores, one_back, two_back.masked_fill(~changes, float("-inf"))]).max(dim=0)
        has_frame = (frame < lengths[utterance]).unsqueeze(1)
        scores = torch.where(has_frame, best + log_probs[utterance.unsqueeze(1), frame, labels], scores)
        steps.append((moved * has_frame).to(torch.uint8))
    ends = torch.stack([2 * sizes, (2 * sizes - 1).clamp(min=0)], dim=1)  # (N, 2): a blank, or the last token
    totals, last = scores.gather(1, ends).max(dim=1)
    state = ends.gather(1, last.unsqueeze(1))
    visited = [state]
    for step in reversed(steps):
        state = state - step.gather(1, state)
        visited.append(state)
    paths = torch.cat(visited[:-1][::-1] or [state[:, :0]], dim=1).cpu().numpy()  # (N, T)
    possible = (totals > float("-inf")).tolist()
    return [
        _spans(path[: int(lengths[row])], len(tokens)) if fits else None
        for row, path, tokens, fits in zip(rows, paths, sequences, possible, strict=True)
    ]


def _spans(states: np.ndarray, tokens: int) -> list[tuple[int, int]]:
    """Return the first and the last frame of every token, from the state of every frame, which never falls."""
    token_states = np.arange(1, 2 * tokens, 2)
    firsts, ends = (np.searchsorted(states, token_states, side=side).tolist() for side in ("left", "right"))
    return [(first, end - 1) for first, end in zip(firsts, ends, strict=True)]
