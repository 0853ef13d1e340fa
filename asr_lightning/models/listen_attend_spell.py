"""The attention decoder of Listen, Attend and Spell [Chan et al. 2016] and of models A and B of Lim et al. 2019.

Their encoders are `PyramidalLSTMEncoder` and `ProjectedLSTMEncoder` of `asr_lightning.nn.recurrent`.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from asr_lightning.errors import InputError
from asr_lightning.nn.axes import Axis, Fixed, Tokens, Units, axis, axis_size, units
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.mechanisms import Attention
from asr_lightning.nn.sequences import AttentionDecoder, State
from asr_lightning.nn.stepwise import StepLinear, StepLSTMCell, gathered


class Speller(AttentionDecoder):
    """LSTM layers with an attention over the encoded utterance, in one of two orders.

    `query_state: current`: the layers read the last token and the last context, the new state of the last layer is the
    query of the attention, and the output reads state and context [Chan et al. 2016, 3.2]:

        s_i = RNN(s_{i-1}, y_{i-1}, c_{i-1})        c_i, α_i = attention(s_i, α_{i-1})        y_i ~ linear(s_i, c_i)

    `query_state: previous`: the attention comes first, with the previous state of the first layer as its query; the
    layers read its context together with the last token, and the output reads only the state of the last layer:

        c_i, α_i = attention(s¹_{i-1}, α_{i-1})     s_i = RNN(s_{i-1}, y_{i-1}, c_i)          y_i ~ linear(s_i)

    In this order the states of a character have read its own frames, in the other order they have not. This is the
    order of Bahdanau et al. 2015 (A.1.2) and, with this output, of ESPnet, which Lim et al. 2019 used: class
    `Decoder` in `src/nets/e2e_asr_attctc_th.py` of 2018 (Shinji Watanabe), later in
    `espnet/nets/pytorch_backend/rnn/decoders.py`. ESPnet begins with even weights α_0 over the frames, here they are 0.

    Args:
        vocabulary: The V tokens; given by the recognizer.
        memory: The axis of the encoder's output; given by the recognizer.
        attention: A class of `asr_lightning.nn.mechanisms`.
        hidden: Units of each layer, and dimension of the embeddings.
        layers: LSTM layers.
        dropout: Of the input of each layer.
        sampling: In training, the probability that an input token is drawn from the decoder's own output instead of
            taken from the transcript [Bengio et al. 2015; 0.1 in Chan et al. 2016, 4.1].
        query_state: The state that is the query of the attention, `current` or `previous`: see above.

    Raises:
        InputError: `sampling` is not a probability.
    """

    def __init__(
        self,
        vocabulary: tuple[str, ...],
        memory: Axis,
        attention: Callable[[Axis, Axis], Attention],
        hidden: int = 512,
        layers: int = 2,
        dropout: float = 0.0,
        sampling: float = 0.0,
        query_state: Literal["current", "previous"] = "current",
    ) -> None:
        super().__init__(vocabulary)
        if not 0.0 <= sampling <= 1.0:
            raise InputError(f"Speller needs 0 <= sampling <= 1, got {sampling}")
        self.hidden = hidden
        self.sampling = sampling
        self.query_state = query_state
        self.attention = attention(units(hidden), memory)
        self.context_axis = self.attention.output_axis()
        self.context_dimension = axis_size(self.context_axis)
        self.embedding = nn.Embedding(len(vocabulary), hidden)
        inputs = [hidden + self.context_dimension] + [hidden] * (layers - 1)
        self.cells = nn.ModuleList(StepLSTMCell(size, hidden) for size in inputs)
        self.dropout = Dropout(dropout)
        self.output = StepLinear(axis_size(self._output_input_axis()), len(vocabulary))

    def _output_input_axis(self) -> Axis:
        """Return the axis of the input of the output layer."""
        return units(self.hidden) + (self.context_axis if self.query_state == "current" else ())

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Axes of the first layer, which reads embedding and context, and of embedding and output."""
        tokens = axis(Tokens(self.vocabulary))
        return {
            "embedding.weight": (tokens, units(self.hidden)),
            "cells.0.weight_ih": (axis(Fixed(4, "gates"), Units(self.hidden)), units(self.hidden) + self.context_axis),
            "output.weight": (tokens, self._output_input_axis()),
            "output.bias": (tokens,),
        }

    def remember(self, encoded: Tensor, lengths: Tensor) -> State:
        """Return the attention's memory of encoded utterances (B, T, D)."""
        return self.attention.remember(encoded, lengths)

    def initial_state(self, memory: State) -> State:
        """Return zeros: hidden state and cell (B, hidden) of every layer, and the attention's weights (B, H, T).

        With `query_state: current`, the context (B, D) is between them, for the next step.
        """
        weights = self.attention.initial_weights(memory)
        sizes = [self.hidden] * (2 * len(self.cells))
        sizes += [self.context_dimension] if self.query_state == "current" else []
        return (*(weights.new_zeros(len(weights), size) for size in sizes), weights)

    def step(self, tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        """Return logits (N, V) of the token after the last token id of each hypothesis (N,), and the next state."""
        x, state = self._read(self.embedding(tokens), state, memory)
        return self.output(x), state

    def forward(self, tokens: Tensor, memory: State) -> Tensor:
        """Return logits (B, U, V) of the token after each of the token ids (B, U); some are replaced in training."""
        with gathered(self):
            if self.training and self.sampling > 0.0:
                return self._sample(tokens, memory)
            state = self.initial_state(memory)
            outputs = []
            for embedded in self.embedding(tokens).unbind(dim=1):
                x, state = self._read(embedded, state, memory)
                outputs.append(x)
            return self.output(torch.stack(outputs, dim=1))

    def attention_weights(self, tokens: Tensor, memory: State) -> Tensor:
        """Return the mean weights of the heads, (B, U, T), after each of the token ids (B, U)."""
        state = self.initial_state(memory)
        weights = []
        for token in tokens.unbind(dim=1):
            _, state = self.step(token, state, memory)
            weights.append(state[-1].mean(dim=1))
        return torch.stack(weights, dim=1)

    def _sample(self, tokens: Tensor, memory: State) -> Tensor:
        state = self.initial_state(memory)
        logits: list[Tensor] = []
        for token in tokens.unbind(dim=1):
            if logits:
                sampled = logits[-1].detach().float().softmax(dim=1).multinomial(1).squeeze(1)
                token = torch.where(torch.rand_like(token, dtype=torch.float32) < self.sampling, sampled, token)
            next_logits, state = self.step(token, state, memory)
            logits.append(next_logits)
        return torch.stack(logits, dim=1)

    def _read(self, embedded: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        """Return the input of the output layer (N, D) for embeddings (N, D), and the next state."""
        if self.query_state == "previous":
            *cells, weights = state
            context, weights = self.attention(cells[0], weights, memory)
            x, next_cells = self._read_layers(torch.cat([embedded, context], dim=1), cells)
            return x, (*next_cells, weights)
        *cells, context, weights = state
        x, next_cells = self._read_layers(torch.cat([embedded, context], dim=1), cells)
        context, weights = self.attention(x, weights, memory)
        return torch.cat([x, context], dim=1), (*next_cells, context, weights)

    def _read_layers(self, x: Tensor, cells: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the last layer's state (N, hidden) for x (N, D), and hidden state and cell of all layers."""
        next_cells: list[Tensor] = []
        for cell, hidden, memory_cell in zip(self.cells, cells[::2], cells[1::2], strict=True):
            x, memory_cell = cell(self.dropout(x), (hidden, memory_cell))
            next_cells += [x, memory_cell]
        return x, next_cells
