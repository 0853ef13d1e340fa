"""The speller of Listen, Attend and Spell [seed 001; Chan et al. 2016], and of the end-to-end models of seed 000.

Their listeners are `PyramidalLSTMEncoder` and `ProjectedLSTMEncoder` of `asr_lightning.nn.recurrent`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from asr_lightning.errors import InputError
from asr_lightning.nn.axes import Axis, Fixed, Tokens, Units, axis, axis_size, units
from asr_lightning.nn.decoder import Decoder, State
from asr_lightning.nn.dropout import Dropout
from asr_lightning.nn.mechanisms import Attention
from asr_lightning.nn.stepwise import StepLinear, StepLSTMCell, gathered


class Speller(Decoder):
    """LSTM layers that look along the encoded utterance after every token.

        s_i = RNN(s_{i-1}, y_{i-1}, c_{i-1})        c_i, α_i = attention(s_i, α_{i-1})        y_i ~ linear(s_i, c_i)

    Args:
        vocabulary: The V tokens; given by the recogniser.
        memory: What the encoder's output means; given by the recogniser.
        attention: A class of `asr_lightning.nn.mechanisms`.
        hidden: Units of each layer, and dimension of the embeddings.
        layers: LSTM layers.
        dropout: Of what each layer reads.
        sampling: In training, the chance of each token to be the decoder's own draw instead of the transcript's, when
            it is read [Bengio et al. 2015, "Scheduled sampling"; 0.1 in Chan et al. 2016, §4.1].

    Raises:
        InputError: `sampling` is no probability.
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
    ) -> None:
        super().__init__(vocabulary)
        if not 0.0 <= sampling <= 1.0:
            raise InputError(f"Speller needs 0 <= sampling <= 1, got {sampling}")
        self.hidden = hidden
        self.sampling = sampling
        self.attention = attention(units(hidden), memory)
        self.context_axis = self.attention.output_axis()
        self.context_dimension = axis_size(self.context_axis)
        self.embedding = nn.Embedding(len(vocabulary), hidden)
        inputs = [hidden + self.context_dimension] + [hidden] * (layers - 1)
        self.cells = nn.ModuleList(StepLSTMCell(size, hidden) for size in inputs)
        self.dropout = Dropout(dropout)
        self.output = StepLinear(hidden + self.context_dimension, len(vocabulary))

    def parameter_axes(self) -> dict[str, tuple[Axis, ...]]:
        """Say that the first layer reads embedding and context, and the output state and context."""
        tokens, both = axis(Tokens(self.vocabulary)), units(self.hidden) + self.context_axis
        return {
            "embedding.weight": (tokens, units(self.hidden)),
            "cells.0.weight_ih": (axis(Fixed(4, "gates"), Units(self.hidden)), both),
            "output.weight": (tokens, both),
            "output.bias": (tokens,),
        }

    def remember(self, encoded: Tensor, lengths: Tensor) -> State:
        """Return what the attention prepares of encoded utterances (B, T, D)."""
        return self.attention.remember(encoded, lengths)

    def initial_state(self, memory: State) -> State:
        """Return (B, hidden) twice for every layer, the context (B, D), and the attention's weights (B, H, T)."""
        weights = self.attention.initial_weights(memory)
        cells = [weights.new_zeros(len(weights), self.hidden) for _ in range(2 * len(self.cells))]
        return (*cells, weights.new_zeros(len(weights), self.context_dimension), weights)

    def step(self, tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        """Read one token id of each hypothesis (N,), return logits of the next (N, V) and the state behind it."""
        known, state = self._read(self.embedding(tokens), state, memory)
        return self.output(known), state

    def forward(self, tokens: Tensor, memory: State) -> Tensor:
        """Read token ids (B, U), some of them its own in training; return logits (B, U, V) of what follows each."""
        with gathered(self):
            if self.training and self.sampling > 0.0:
                return self._sample(tokens, memory)
            state = self.initial_state(memory)
            known = []
            for embedded in self.embedding(tokens).unbind(dim=1):
                one, state = self._read(embedded, state, memory)
                known.append(one)
            return self.output(torch.stack(known, dim=1))

    def _sample(self, tokens: Tensor, memory: State) -> Tensor:
        state = self.initial_state(memory)
        logits: list[Tensor] = []
        for token in tokens.unbind(dim=1):
            if logits:
                own = logits[-1].detach().float().softmax(dim=1).multinomial(1).squeeze(1)
                token = torch.where(torch.rand_like(token, dtype=torch.float32) < self.sampling, own, token)
            following, state = self.step(token, state, memory)
            logits.append(following)
        return torch.stack(logits, dim=1)

    def _read(self, embedded: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        """Read embeddings (N, D); return what is known of the next token, state and context, (N, D)."""
        *cells, context, weights = state
        after: list[Tensor] = []
        x = torch.cat([embedded, context], dim=1)
        for cell, hidden, memory_cell in zip(self.cells, cells[::2], cells[1::2], strict=True):
            x, memory_cell = cell(self.dropout(x), (hidden, memory_cell))
            after += [x, memory_cell]
        context, weights = self.attention(x, weights, memory)
        return torch.cat([x, context], dim=1), (*after, context, weights)
