"""Beam search of an attention decoder, with CTC and a language model if wanted."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from asr_lightning.decoding.ctc import CTCPrefixScorer
from asr_lightning.decoding.ctc_search import add_alignments
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.decoding.language_model import LanguageModel
from asr_lightning.errors import InputError
from asr_lightning.text.tokenizers import Tokenizer

PRUNING_MARGIN = 10.0  # nats below the best complete hypothesis

State = tuple[Tensor, ...]


class Decoder(Protocol):
    """Attention decoder (`asr_lightning.nn.sequences`): predicts each token of a hypothesis from those before it."""

    def initial_state(self, memory: State) -> State:
        """Return the state before any token, one row per utterance."""

    def step(self, tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
        """Read one token id of each hypothesis (N,), return logits of the next (N, V) and the new state."""


class AttentionSearch:
    """Beam search: hypotheses leave the beam at `<eos>` [Chan et al. 2016, §3.4], and complete ones are ranked.

    While it searches, a hypothesis scores

        (1 - ctc_weight) log P_attention + ctc_weight log P_ctc + language_model_weight log P_LM,

    [Hori et al. 2017, §3.2, one pass]; at the limit of tokens it ends with its score of `<eos>`, like any other. An
    utterance is done when no other can come among its `beam` best complete hypotheses by these scores, or when all
    others are far below the best of these. Where none can end, as in a word that the language model excludes, the
    best unfinished one is returned with a score of minus infinity.

    Args:
        beam: Hypotheses kept; 1 is greedy.
        ctc_weight: Share of the recognizer's CTC output, 0 to 1.
        language_model: For `language_model_weight` and `rescoring_weight`; it is not read where both are 0.
        language_model_weight: Of every token's log probability, added in the search (shallow fusion).
        rescoring_weight: λ of `log P(y|x) / |y| + λ log P_LM(y)`, by which complete hypotheses are ranked, with |y| the
            characters [Chan et al. 2016, eq. 15]. None: they are ranked by their scores in the search.
        length_power: Without rescoring, scores are divided by (tokens + 1) to this power; 0 for not at all.
        end_threshold: γ; `<eos>` is only taken if log P(<eos>) > γ · log P(best other token), by the attention decoder
            [Hannun et al. 2019, "Time-depth separable convolutions", §3.3.2]. None: always.
        tokens_per_frame: Most tokens of a hypothesis, per encoder frame.

    Raises:
        InputError: A number is out of its range, or a language model is missing.
    """

    def __init__(
        self,
        beam: int = 1,
        ctc_weight: float = 0.0,
        language_model: LanguageModel | None = None,
        language_model_weight: float = 0.0,
        rescoring_weight: float | None = None,
        length_power: float = 0.0,
        end_threshold: float | None = None,
        tokens_per_frame: float = 2.0,
    ) -> None:
        if beam < 1 or not 0.0 <= ctc_weight <= 1.0 or not 0.0 < tokens_per_frame < math.inf:
            raise InputError(
                "AttentionSearch needs beam >= 1, 0 <= ctc_weight <= 1 and a finite tokens_per_frame > 0, got "
                f"beam={beam}, ctc_weight={ctc_weight} and tokens_per_frame={tokens_per_frame}"
            )
        weights = {"language_model_weight": language_model_weight, "rescoring_weight": rescoring_weight or 0.0}
        if not all(0.0 <= weight < math.inf for weight in weights.values()) or not all(
            map(math.isfinite, (length_power, end_threshold or 0.0))
        ):
            raise InputError(
                "AttentionSearch needs finite weights of at least 0, a finite length_power and a finite end_threshold, "
                f"got {weights}, length_power={length_power} and end_threshold={end_threshold}"
            )
        used = language_model_weight != 0.0 or bool(rescoring_weight)
        if language_model is None and used:
            raise InputError(
                f"AttentionSearch needs a language_model for language_model_weight={language_model_weight} and "
                f"rescoring_weight={rescoring_weight}, got none: name one, or set the weights to 0"
            )
        self.beam = beam
        self.ctc_weight = ctc_weight
        self.language_model = language_model if used else None
        self.language_model_weight = language_model_weight
        self.rescoring_weight = rescoring_weight
        self.length_power = length_power
        self.end_threshold = end_threshold
        self.tokens_per_frame = tokens_per_frame

    @torch.no_grad()
    def __call__(
        self, decoder: Decoder, memory: State, lengths: Tensor, tokenizer: Tokenizer, ctc_logits: Tensor | None = None
    ) -> list[list[Hypothesis]]:
        """Search.

        Args:
            decoder: The attention decoder.
            memory: Of the B utterances, as the decoder prepares it.
            lengths: (B,) encoder frames.
            tokenizer: The vocabulary.
            ctc_logits: (B, T, V) of the recognizer's CTC output, if it has one.

        Returns:
            For each utterance at most `beam` hypotheses, the best first; with CTC output, the frames of their tokens by
            forced alignment.

        Raises:
            InputError: There is a `ctc_weight`, but no CTC output; or the language model cannot be used.
        """
        if self.ctc_weight > 0.0 and ctc_logits is None:
            raise InputError(
                f"the search has a ctc_weight of {self.ctc_weight}, but the recognizer was trained without CTC: set "
                "the search's ctc_weight to 0, or train it with a ctc_weight of its own"
            )
        if self.language_model is not None:
            self.language_model.prepare(tokenizer, lengths.device)
        search = _Search(self, self._scorers(decoder, memory, lengths, tokenizer, ctc_logits), lengths, tokenizer)
        ranked = [self._ranked(complete, tokenizer) for complete in search.run()]
        if ctc_logits is not None:
            add_alignments(ranked, ctc_logits.float().log_softmax(dim=2), lengths, tokenizer.blank_id)
        return ranked

    def _scorers(
        self, decoder: Decoder, memory: State, lengths: Tensor, tokenizer: Tokenizer, ctc_logits: Tensor | None
    ) -> list["_Scorer"]:
        def attend(tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
            logits, state = decoder.step(tokens, state, memory)
            return logits.float().log_softmax(dim=1), state

        scorers = [_Scorer("attention", 1.0 - self.ctc_weight, attend, decoder.initial_state(memory), memory)]
        if self.ctc_weight > 0.0 and ctc_logits is not None:
            prefix = CTCPrefixScorer(tokenizer.blank_id, tokenizer.eos_id)
            paths = prefix.remember(ctc_logits, lengths)
            scorers.append(_Scorer("ctc", self.ctc_weight, prefix.step, prefix.initial_state(paths), paths))
        if self.language_model is not None and self.language_model_weight != 0.0:
            model = self.language_model

            def predict(tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State]:
                return model.step(tokens, state)

            state = model.initial_state(len(lengths))
            scorers.append(_Scorer("language_model", self.language_model_weight, predict, state, ()))
        return scorers

    def _ranked(self, complete: list[Hypothesis], tokenizer: Tokenizer) -> list[Hypothesis]:
        if self.rescoring_weight is None:
            scored = [
                replace(hypothesis, score=hypothesis.score / (len(hypothesis.tokens) + 1) ** self.length_power)
                for hypothesis in complete
            ]
        else:
            texts = [tokenizer.decode(hypothesis.tokens) for hypothesis in complete]
            log_probs = [0.0] * len(texts)
            if self.language_model is not None and self.rescoring_weight:
                log_probs = self.language_model.score(texts)
            scored = [
                replace(
                    hypothesis,
                    score=hypothesis.score / max(1, len(text)) + self.rescoring_weight * log_prob,
                    parts={**hypothesis.parts, "rescoring": log_prob},
                )
                for hypothesis, text, log_prob in zip(complete, texts, log_probs, strict=True)
            ]
        return sorted(scored, key=lambda hypothesis: -hypothesis.score)[: self.beam]


@dataclass
class _Scorer:
    """Log probabilities of the next tokens by one model; its state follows the beam."""

    name: str
    weight: float
    step: Callable[[Tensor, State, State], tuple[Tensor, State]]
    state: State
    memory: State


class _Search:
    """Search over a batch. A utterances are not done yet; each has K hypotheses, in N = A · K rows."""

    def __init__(
        self, settings: AttentionSearch, scorers: Sequence[_Scorer], lengths: Tensor, tokenizer: Tokenizer
    ) -> None:
        self.beam = settings.beam
        self.end_threshold = settings.end_threshold
        self.scorers = scorers
        self.blank_id, self.eos_id = tokenizer.blank_id, tokenizer.eos_id
        self.limits = (lengths * settings.tokens_per_frame).ceil().long().clamp(min=1).tolist()  # most tokens
        self.complete: list[list[Hypothesis]] = [[] for _ in lengths]
        device = lengths.device
        self.utterances = list(range(len(lengths)))  # A indices
        self.no_words = torch.tensor([self.blank_id, self.eos_id], device=device)
        self.scores = torch.full((len(lengths), self.beam), -math.inf, device=device)
        self.scores[:, 0] = 0.0  # the others are only there to fill the beam
        self.tokens = torch.full((len(lengths), self.beam, 1), self.eos_id, device=device)  # (A, K, U)
        self.parts = torch.zeros(len(lengths), self.beam, len(scorers), device=device)
        self.attended = self.scores.new_zeros(len(lengths), self.beam, 0)  # log probabilities of the tokens (A, K, U)
        for scorer in scorers:
            scorer.state = tuple(part.repeat_interleave(self.beam, dim=0) for part in scorer.state)

    def run(self) -> list[list[Hypothesis]]:
        """Return the complete hypotheses of each utterance."""
        while len(self.utterances):
            self._grow(*self._following())
            self._drop_finished()
        return self.complete

    def _following(self) -> tuple[Tensor, Tensor]:
        """Return the log probabilities (A, K, V) of the next tokens, and those of each scorer, (A, K, V, scorers)."""
        shape = self.scores.shape
        by_scorer = []
        for scorer in self.scorers:
            log_probs, scorer.state = scorer.step(self.tokens[:, :, -1].flatten(), scorer.state, scorer.memory)
            by_scorer.append(log_probs.view(*shape, -1))
        log_probs = sum(
            (scorer.weight * part for scorer, part in zip(self.scorers, by_scorer, strict=True) if scorer.weight),
            start=torch.zeros_like(by_scorer[0]),
        )
        log_probs[:, :, self.blank_id] = -math.inf
        ends = log_probs[:, :, self.eos_id].clone()
        if self.end_threshold is not None:
            others = by_scorer[0].index_fill(2, self.no_words, -math.inf)
            early = by_scorer[0][:, :, self.eos_id] <= self.end_threshold * others.amax(dim=2)
            early &= log_probs.index_fill(2, self.no_words[1:], -math.inf).amax(dim=2) > -math.inf  # else it must end
            log_probs[:, :, self.eos_id].masked_fill_(early, -math.inf)
        last = [row for row, utterance in enumerate(self.utterances) if self.tokens.shape[2] > self.limits[utterance]]
        if last:  # there only the end may follow, at its own score
            log_probs[last] = -math.inf
            log_probs[last, :, self.eos_id] = ends[last]
        return log_probs, torch.stack(by_scorer, dim=3)

    def _grow(self, log_probs: Tensor, by_scorer: Tensor) -> None:
        """Take the best continuations: ends are complete, the others are the next beam."""
        count, beam, vocabulary = log_probs.shape
        candidates = (self.scores.unsqueeze(2) + log_probs).flatten(1)  # (A, K · V)
        scores, indices = candidates.topk(2 * beam, dim=1)  # at most K of them are ends
        parents, tokens = indices // vocabulary, indices % vocabulary
        ends = tokens == self.eos_id
        self._collect((ends & scores.isfinite())[:, :beam], scores, parents, by_scorer)
        order = ends.int().sort(dim=1, stable=True).indices
        scores, parents, tokens = (tensor.gather(1, order[:, :beam]) for tensor in (scores, parents, tokens))
        self._keep_unfinished(scores[:, 0], by_scorer)
        self.scores = scores
        rows = (torch.arange(count, device=parents.device).unsqueeze(1) * beam + parents).flatten()
        chosen = by_scorer.flatten(0, 1)[rows, tokens.flatten()].view(count, beam, -1)  # (A, K, scorers)
        if beam > 1:  # each row continues its parent
            self.tokens = self.tokens.flatten(0, 1)[rows].view(count, beam, -1)
            self.parts = self.parts.flatten(0, 1)[rows].view(count, beam, -1)
            self.attended = self.attended.flatten(0, 1)[rows].view(count, beam, self.attended.shape[2])
            for scorer in self.scorers:
                scorer.state = tuple(part.index_select(0, rows) for part in scorer.state)
        self.tokens = torch.cat([self.tokens, tokens.unsqueeze(2)], dim=2)
        self.parts = self.parts + chosen
        self.attended = torch.cat([self.attended, chosen[:, :, :1]], dim=2)

    def _collect(self, ended: Tensor, scores: Tensor, parents: Tensor, by_scorer: Tensor) -> None:
        for row, column in ended.nonzero().tolist():
            self._complete(row, int(parents[row, column]), float(scores[row, column]), by_scorer)

    def _keep_unfinished(self, best: Tensor, by_scorer: Tensor) -> None:
        """Take the best hypothesis as it is, without a probability, where none could end and none (A,) can go on."""
        for row in (~best.isfinite()).nonzero().flatten().tolist():
            if not self.complete[self.utterances[row]]:
                self._complete(row, 0, -math.inf, by_scorer)

    def _complete(self, row: int, parent: int, score: float, by_scorer: Tensor) -> None:
        parts = self.parts[row, parent] + by_scorer[row, parent, self.eos_id]
        names = [scorer.name for scorer in self.scorers]
        self.complete[self.utterances[row]].append(
            Hypothesis(
                tokens=tuple(self.tokens[row, parent, 1:].tolist()),
                score=score,
                parts=dict(zip(names, parts.tolist(), strict=True)),
                log_probs=tuple(self.attended[row, parent].tolist()),
            )
        )

    def _drop_finished(self) -> None:
        """Drop utterances whose best complete hypotheses can no longer change."""
        best = self.scores[:, 0].tolist()
        unfinished = [
            row
            for row, (utterance, score) in enumerate(zip(self.utterances, best, strict=True))
            if self._can_improve(utterance, score)
        ]
        if len(unfinished) == len(self.utterances):
            return
        kept_rows = torch.tensor(unfinished, dtype=torch.int64, device=self.scores.device)
        rows = (kept_rows.unsqueeze(1) * self.beam + torch.arange(self.beam, device=kept_rows.device)).flatten()
        self.utterances, self.scores = [self.utterances[row] for row in unfinished], self.scores[kept_rows]
        self.tokens, self.parts, self.attended = self.tokens[kept_rows], self.parts[kept_rows], self.attended[kept_rows]
        for scorer in self.scorers:
            scorer.state = tuple(part.index_select(0, rows) for part in scorer.state)
            scorer.memory = tuple(part.index_select(0, kept_rows) for part in scorer.memory)

    def _can_improve(self, utterance: int, best: float) -> bool:
        scores = sorted((hypothesis.score for hypothesis in self.complete[utterance]), reverse=True)
        if not scores:
            return True
        beaten = len(scores) >= self.beam and best <= scores[self.beam - 1]  # scores only fall
        return math.isfinite(best) and not (beaten or best <= scores[0] - PRUNING_MARGIN)
