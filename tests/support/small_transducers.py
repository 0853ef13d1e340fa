"""Transducers small enough that all alignments of all token sequences can be counted through."""

import math
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]


class SmallPredictor(nn.Module):
    """An LSTM that remembers which tokens it was fed."""

    def __init__(self, vocabulary: int, dimension: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dimension)
        self.lstm = nn.LSTM(dimension, dimension, batch_first=True)
        self.fed: list[int] = []

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        return tuple(torch.zeros(batch_size, self.lstm.hidden_size, device=device) for _ in range(2))

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        self.fed += tokens.flatten().tolist()
        x, (hidden, cell) = self.lstm(3 * self.embedding(tokens), tuple(s.unsqueeze(0).contiguous() for s in state))
        return 2 * x, (hidden.squeeze(0), cell.squeeze(0))


class SmallJoint(nn.Module):
    def __init__(self, vocabulary: int, dimension: int, blank: int, blank_bias: float) -> None:
        super().__init__()
        self.output = nn.Linear(dimension, vocabulary)
        with torch.no_grad():
            self.output.weight.mul_(4)
            self.output.bias[blank] += blank_bias

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        return self.output(torch.tanh(encoded + predicted))


def small_transducer(seed: int, vocabulary: int, blank: int, bias: float) -> tuple[SmallPredictor, SmallJoint]:
    torch.manual_seed(seed)
    return SmallPredictor(vocabulary, 8).eval(), SmallJoint(vocabulary, 8, blank, bias).eval()


@torch.no_grad()
def exhaustive(
    encoded: Tensor,
    predictor: SmallPredictor,
    joint: SmallJoint,
    blank: int,
    most: int,
    tokens_of_texts: tuple[int, ...] = (0, 1, 2),
) -> dict[tuple[int, ...], tuple[float, tuple[int, ...]]]:
    """The log of the summed probability of all alignments of each token sequence that fits (T, D), and the best one."""
    vocabulary = [token for token in tokens_of_texts if token != blank]
    totals = {}
    for count in range(most * len(encoded) + 1):
        spread = [
            frames
            for frames in combinations_with_replacement(range(len(encoded)), count)
            if all(frames.count(frame) <= most for frame in range(len(encoded)))
        ]
        for tokens in product(vocabulary, repeat=count):
            predicted, _ = predictor(torch.tensor([[blank, *tokens]]), predictor.initial_state(1, encoded.device))
            log_probs = joint(encoded.unsqueeze(1), predicted).double().log_softmax(-1).tolist()  # (T, U + 1, V)
            scores = {frames: alignment(log_probs, tokens, frames, blank) for frames in spread}
            total = math.log(sum(math.exp(score) for score in scores.values()))
            totals[tokens] = total, max(scores, key=lambda frames: scores[frames])
    return totals


def alignment(
    log_probs: list[list[list[float]]], tokens: tuple[int, ...], frames: tuple[int, ...], blank: int
) -> float:
    emissions = sum(log_probs[frame][u][tokens[u]] for u, frame in enumerate(frames))
    return emissions + sum(rows[sum(other <= frame for other in frames)][blank] for frame, rows in enumerate(log_probs))
