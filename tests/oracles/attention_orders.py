"""A second implementation of attention decoders: one utterance, one character after the other, in NumPy.

Both orders are written out from the equations of Chan et al. 2016 (3.2) and of ESPnet's decoder of 2018, with the
location-aware attention of Chorowski et al. 2015 (2.2, sharpened as in 2.3). Nothing is prepared, stacked or padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray
Weights = dict[str, Array]  # of `Speller`, by name


@dataclass
class Spelling:
    """What a decoder has computed for each token that it read.

    Attributes:
        logits: (V,) each.
        states: (layers, hidden) each.
        attention: (T,) each.
    """

    logits: list[Array] = field(default_factory=list)
    states: list[Array] = field(default_factory=list)
    attention: list[Array] = field(default_factory=list)


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def lstm(weights: Weights, layer: int, x: Array, hidden: Array, cell: Array) -> tuple[Array, Array]:
    """One step of an LSTM layer; torch packs input gate, forget gate, content and output gate in this order."""
    parameters = {name.removeprefix(f"cells.{layer}."): value for name, value in weights.items()}
    gates = (
        parameters["weight_ih"] @ x + parameters["bias_ih"] + parameters["weight_hh"] @ hidden + parameters["bias_hh"]
    )
    size = len(hidden)
    entry, forget, content, output = (gates[size * number : size * (number + 1)] for number in range(4))
    cell = sigmoid(forget) * cell + sigmoid(entry) * np.tanh(content)
    return sigmoid(output) * np.tanh(cell), cell


def attend(weights: Weights, query: Array, previous: Array, frames: Array, sharpening: float) -> tuple[Array, Array]:
    """Context (D,) and weights (T,) of a query, from the weights (T,) before and the frames (T, D)."""
    parameters = {name.removeprefix("attention."): value for name, value in weights.items()}
    filters = parameters["convolution.weight"][:, 0]  # (C, 2 reach + 1)
    reach = filters.shape[1] // 2
    energies = np.zeros(len(frames))
    for position, frame in enumerate(frames):
        location = np.zeros(len(filters))
        for distance in range(-reach, reach + 1):
            if 0 <= position + distance < len(frames):
                location += filters[:, distance + reach] * previous[position + distance]
        hidden = parameters["query.weight"] @ query + parameters["key.weight"] @ frame + parameters["key.bias"]
        energies[position] = parameters["energy.weight"][0] @ np.tanh(hidden + parameters["location.weight"] @ location)
    shares = np.exp(sharpening * (energies - energies.max()))
    shares /= shares.sum()
    return shares @ frames, shares


def query_previous(weights: Weights, frames: Array, tokens: Sequence[int], sharpening: float) -> Spelling:
    """Attention first, asked with the state of the first layer; output of the last layer's state."""
    layers, size = _sizes(weights)
    hidden, cells = np.zeros((layers, size)), np.zeros((layers, size))
    alignment, spelling = np.zeros(len(frames)), Spelling()
    for token in tokens:
        context, alignment = attend(weights, hidden[0], alignment, frames, sharpening)
        x = np.concatenate([weights["embedding.weight"][token], context])
        for layer in range(layers):
            hidden[layer], cells[layer] = lstm(weights, layer, x, hidden[layer], cells[layer])
            x = hidden[layer]
        spelling.logits.append(weights["output.weight"] @ hidden[-1] + weights["output.bias"])
        spelling.states.append(hidden.copy())
        spelling.attention.append(alignment)
    return spelling


def query_current(weights: Weights, frames: Array, tokens: Sequence[int], sharpening: float) -> Spelling:
    """Attention last, asked with the new state of the last layer; output of state and context."""
    layers, size = _sizes(weights)
    hidden, cells = np.zeros((layers, size)), np.zeros((layers, size))
    context, alignment, spelling = np.zeros(frames.shape[1]), np.zeros(len(frames)), Spelling()
    for token in tokens:
        x = np.concatenate([weights["embedding.weight"][token], context])
        for layer in range(layers):
            hidden[layer], cells[layer] = lstm(weights, layer, x, hidden[layer], cells[layer])
            x = hidden[layer]
        context, alignment = attend(weights, hidden[-1], alignment, frames, sharpening)
        features = np.concatenate([hidden[-1], context])
        spelling.logits.append(weights["output.weight"] @ features + weights["output.bias"])
        spelling.states.append(hidden.copy())
        spelling.attention.append(alignment)
    return spelling


def _sizes(weights: Weights) -> tuple[int, int]:
    return sum(name.endswith("weight_hh") for name in weights), weights["cells.0.weight_hh"].shape[1]


ORDERS = {"current": query_current, "previous": query_previous}
