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
    own = {name.removeprefix(f"cells.{layer}."): value for name, value in weights.items()}
    gates = own["weight_ih"] @ x + own["bias_ih"] + own["weight_hh"] @ hidden + own["bias_hh"]
    size = len(hidden)
    entry, forget, content, output = (gates[size * number : size * (number + 1)] for number in range(4))
    cell = sigmoid(forget) * cell + sigmoid(entry) * np.tanh(content)
    return sigmoid(output) * np.tanh(cell), cell


def attend(weights: Weights, query: Array, before: Array, frames: Array, sharpening: float) -> tuple[Array, Array]:
    """Context (D,) and weights (T,) of a query, from the weights (T,) before and the frames (T, D)."""
    own = {name.removeprefix("attention."): value for name, value in weights.items()}
    filters = own["convolution.weight"][:, 0]  # (C, 2 reach + 1)
    reach = filters.shape[1] // 2
    energies = np.zeros(len(frames))
    for place, frame in enumerate(frames):
        location = np.zeros(len(filters))
        for distance in range(-reach, reach + 1):
            if 0 <= place + distance < len(frames):
                location += filters[:, distance + reach] * before[place + distance]
        hidden = own["query.weight"] @ query + own["key.weight"] @ frame + own["key.bias"]
        energies[place] = own["energy.weight"][0] @ np.tanh(hidden + own["location.weight"] @ location)
    shares = np.exp(sharpening * (energies - energies.max()))
    shares /= shares.sum()
    return shares @ frames, shares


def query_previous(weights: Weights, frames: Array, tokens: Sequence[int], sharpening: float) -> Spelling:
    """Attention first, asked with the state of the first layer; output of the last layer's state."""
    layers, size = _sizes(weights)
    hidden, cells = np.zeros((layers, size)), np.zeros((layers, size))
    alignment, found = np.zeros(len(frames)), Spelling()
    for token in tokens:
        context, alignment = attend(weights, hidden[0], alignment, frames, sharpening)
        x = np.concatenate([weights["embedding.weight"][token], context])
        for layer in range(layers):
            hidden[layer], cells[layer] = lstm(weights, layer, x, hidden[layer], cells[layer])
            x = hidden[layer]
        found.logits.append(weights["output.weight"] @ hidden[-1] + weights["output.bias"])
        found.states.append(hidden.copy())
        found.attention.append(alignment)
    return found


def query_current(weights: Weights, frames: Array, tokens: Sequence[int], sharpening: float) -> Spelling:
    """Attention last, asked with the new state of the last layer; output of state and context."""
    layers, size = _sizes(weights)
    hidden, cells = np.zeros((layers, size)), np.zeros((layers, size))
    context, alignment, found = np.zeros(frames.shape[1]), np.zeros(len(frames)), Spelling()
    for token in tokens:
        x = np.concatenate([weights["embedding.weight"][token], context])
        for layer in range(layers):
            hidden[layer], cells[layer] = lstm(weights, layer, x, hidden[layer], cells[layer])
            x = hidden[layer]
        context, alignment = attend(weights, hidden[-1], alignment, frames, sharpening)
        both = np.concatenate([hidden[-1], context])
        found.logits.append(weights["output.weight"] @ both + weights["output.bias"])
        found.states.append(hidden.copy())
        found.attention.append(alignment)
    return found


def _sizes(weights: Weights) -> tuple[int, int]:
    return sum(name.endswith("weight_hh") for name in weights), weights["cells.0.weight_hh"].shape[1]


ORDERS = {"current": query_current, "previous": query_previous}
