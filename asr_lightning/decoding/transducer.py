"""Greedy and beam search of a transducer [Graves 2012, "Sequence transduction with recurrent neural networks"].

A transducer's alignment is a walk over the frames: in each it emits some tokens, then a blank that goes on to the next
frame. The score of an alignment is the log probability of all that it emits, blanks included; a frame that holds its
`max_symbols` tokens takes the blank at its own probability, so scores are those of the transducer loss.
"""

import math

import torch
from torch import Tensor

from asr_lightning.decoding.fusion import Fusion
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.decoding.language_model import LanguageModel
from asr_lightning.decoding.transducer_beam import beam_search
from asr_lightning.decoding.transducer_greedy import JointNetwork, PredictionNetwork, greedy_search
from asr_lightning.errors import InputError
from asr_lightning.text.tokenizers import Tokenizer


class TransducerSearch:
    """Greedy or beam search of a transducer, with language models if wanted.

    Hypotheses y of an utterance x are ranked by

        log P(y|x) + language_model_weight log P_LM(y) - density_ratio_weight log P_D(y)
                   - internal_language_model_weight log P_ILM(y) + length_bonus |y|.

    P_LM and P_D count the end of the sentence at the last frame. P_D is a model of the transcripts that the transducer
    was trained on: one like P_LM gives the density ratio [McDermott et al. 2019], an n-gram of low order the low-order
    density ratio [Zheng et al. 2022]. P_ILM is the internal language model: the softmax over the tokens, the blank left
    out, of the joint network without the encoder's term [Variani et al. 2020, 3.2; Meng et al. 2021, 3.2]. It has no
    end. A weight of 0 leaves its model out: it is neither read nor asked.

    Args:
        beam: Hypotheses kept. 1 without a language model and without a bonus is greedy.
        max_symbols: Most tokens emitted in one frame.
        language_model: For `language_model_weight`.
        language_model_weight: Of the log probability of every token, and of the end.
        internal_language_model_weight: Of what is subtracted for the internal language model.
        density_ratio_model: For `density_ratio_weight`.
        density_ratio_weight: Of what is subtracted for this model.
        length_bonus: Added for every token, against the shortness that language models prefer.

    Raises:
        InputError: A number is out of its range, or there is a weight without its language model.
    """

    def __init__(
        self,
        beam: int = 1,
        max_symbols: int = 10,
        language_model: LanguageModel | None = None,
        language_model_weight: float = 0.0,
        internal_language_model_weight: float = 0.0,
        density_ratio_model: LanguageModel | None = None,
        density_ratio_weight: float = 0.0,
        length_bonus: float = 0.0,
    ) -> None:
        if beam < 1 or max_symbols < 1:
            raise InputError(
                f"TransducerSearch needs beam >= 1 and max_symbols >= 1, got beam={beam} and max_symbols={max_symbols}"
            )
        weights = {
            "language_model_weight": language_model_weight,
            "internal_language_model_weight": internal_language_model_weight,
            "density_ratio_weight": density_ratio_weight,
        }
        if min(weights.values()) < 0 or not all(map(math.isfinite, (*weights.values(), length_bonus))):
            raise InputError(
                f"TransducerSearch needs weights of at least 0 and a finite length_bonus, got {weights} and "
                f"length_bonus={length_bonus}; it subtracts the internal language model and the density ratio itself"
            )
        for name, model in (("language_model", language_model), ("density_ratio", density_ratio_model)):
            if model is None and weights[f"{name}_weight"]:
                missing = "density_ratio_model" if name == "density_ratio" else name
                raise InputError(
                    f"TransducerSearch needs a {missing} for {name}_weight={weights[f'{name}_weight']}, got none: name "
                    "one, or set the weight to 0"
                )
        self.beam = beam
        self.max_symbols = max_symbols
        self.language_model = language_model
        self.language_model_weight = language_model_weight
        self.internal_language_model_weight = internal_language_model_weight
        self.density_ratio_model = density_ratio_model
        self.density_ratio_weight = density_ratio_weight
        self.length_bonus = length_bonus

    def __call__(
        self,
        encoder_outputs: Tensor,
        encoder_lengths: Tensor,
        predictor: PredictionNetwork,
        joint: JointNetwork,
        tokenizer: Tokenizer,
    ) -> list[list[Hypothesis]]:
        """Return for each of the B utterances at most `beam` hypotheses, the best first.

        Raises:
            InputError: A language model cannot be used.
        """
        arguments = (encoder_outputs, encoder_lengths, predictor, joint, tokenizer.blank_id)
        fusion = self._fusion(tokenizer, encoder_outputs.device)
        if self.beam == 1 and fusion is None:
            return [[best] for best in greedy_search(*arguments, max_symbols=self.max_symbols)]
        return beam_search(*arguments, beam=self.beam, max_symbols=self.max_symbols, fusion=fusion)

    def _fusion(self, tokenizer: Tokenizer, device: torch.device) -> Fusion | None:
        """Return what is added to the transducer's scores; None where nothing is."""
        models = []
        for model, weight in (
            (self.language_model, self.language_model_weight),
            (self.density_ratio_model, -self.density_ratio_weight),
        ):
            if model is not None and weight:
                model.prepare(tokenizer, device)
                models.append((model, weight))
        if not models and not self.internal_language_model_weight and not self.length_bonus:
            return None
        weights = tuple(models), self.internal_language_model_weight, self.length_bonus
        return Fusion(*weights, len(tokenizer), tokenizer.blank_id, tokenizer.eos_id)
