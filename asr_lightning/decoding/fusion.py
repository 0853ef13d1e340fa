"""Language models in the search of a transducer: shallow fusion and its corrections."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from asr_lightning.decoding.language_model import LanguageModel, State


@dataclass(frozen=True)
class Fusion:
    """Weighted log probabilities of texts, token by token, that a search adds to its own.

    Attributes:
        models: Prepared language models with their weights; those below 0 are subtracted.
        internal_weight: Of the internal language model, which is subtracted.
        length_bonus: Added for every token.
        vocabulary: V.
        blank_id: The blank, which is no token of a text.
        eos_id: The token before the first.
    """

    models: tuple[tuple[LanguageModel, float], ...]
    internal_weight: float
    length_bonus: float
    vocabulary: int
    blank_id: int
    eos_id: int

    def initial_states(self) -> list[State]:
        """Return the state of each model before any token, for one hypothesis."""
        return [model.initial_state(1) for model, _ in self.models]

    def step(self, tokens: Tensor, states: list[State], internal: Tensor | None) -> tuple[Tensor, list[State]]:
        """Read one token id of each hypothesis, `eos_id` before the first.

        Args:
            tokens: (N,).
            states: Of each model, before the tokens.
            internal: Logits (N, V) of the joint network without the encoder, after the tokens; None without weight.

        Returns:
            What is added for the next token, (N, V), with that for the end in the column of the blank; and the states
            after the tokens. What a model excludes is minus infinity, also where that model is subtracted.
        """
        following, new_states = torch.zeros(len(tokens), self.vocabulary, device=tokens.device), []
        for (model, weight), state in zip(self.models, states, strict=True):
            log_probs, new_state = model.step(tokens, state)
            new_states.append(new_state)
            weighted = weight * log_probs.float()
            following = following + (weighted if weight > 0 else weighted.masked_fill(weighted.isinf(), -math.inf))
        ends = following[:, self.eos_id].clone()
        if self.length_bonus:
            following = following + self.length_bonus
        if internal is not None:
            logits = internal.float().index_fill(1, tokens.new_tensor([self.blank_id]), -math.inf)
            following = following - self.internal_weight * logits.log_softmax(dim=1)
        following[:, self.blank_id] = ends
        return following, new_states
