"""Greedy and prefix beam search of a CTC output [Graves et al. 2006; Hannun et al. 2014].

A path names a token or a blank for every frame; repeats of a token without a blank between them are one, and blanks are
dropped. So many paths spell one text, whose probability is the sum of theirs.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from asr_lightning.decoding.ctc import forced_alignments
from asr_lightning.decoding.hypothesis import Hypothesis, without_impossible
from asr_lightning.decoding.language_model import LanguageModel
from asr_lightning.errors import InputError
from asr_lightning.text.tokenizers import Tokenizer

State = tuple[Tensor, ...]

# Of the rolling 64-bit hashes that tell hypotheses apart; odd numbers without pattern.
HASH_FACTOR, HASH_STEP = 6_364_136_223_846_793_005, 1_442_695_040_888_963_407
FILLER_SIZE = -1_000_000  # length of a hypothesis that fills the beam while there are not enough


class CTCSearch:
    """Greedy or prefix beam search of a CTC output, with a language model if wanted.

    With a beam, prefixes are grown frame by frame, and all paths that spell the same prefix are one hypothesis. They
    are ranked by

        log P_ctc + language_model_weight log P_LM + length_bonus tokens.

    Args:
        beam: Prefixes kept. 1 without a language model and without a bonus takes the best path.
        language_model: For `language_model_weight`; it is not read where that is 0.
        language_model_weight: Of every token's log probability, and of the end's.
        length_bonus: Added for every token, against the shortness that language models prefer.

    Raises:
        InputError: A number is out of its range, or there is a weight without a language model.
    """

    def __init__(
        self,
        beam: int = 1,
        language_model: LanguageModel | None = None,
        language_model_weight: float = 0.0,
        length_bonus: float = 0.0,
    ) -> None:
        if beam < 1:
            raise InputError(f"CTCSearch needs beam >= 1, got beam={beam}")
        if not 0.0 <= language_model_weight < math.inf or not math.isfinite(length_bonus):
            raise InputError(
                "CTCSearch needs a finite language_model_weight of at least 0 and a finite length_bonus, got "
                f"language_model_weight={language_model_weight} and length_bonus={length_bonus}"
            )
        if language_model is None and language_model_weight != 0.0:
            raise InputError(
                f"CTCSearch needs a language_model for language_model_weight={language_model_weight}, got none: name "
                "one, or set the weight to 0"
            )
        self.beam = beam
        self.language_model = language_model if language_model_weight else None
        self.language_model_weight = language_model_weight
        self.length_bonus = length_bonus

    @torch.no_grad()
    def __call__(self, logits: Tensor, lengths: Tensor, tokenizer: Tokenizer) -> list[list[Hypothesis]]:
        """Search.

        Args:
            logits: (B, T, V) of the CTC output.
            lengths: (B,) real frames.
            tokenizer: The vocabulary.

        Returns:
            For each utterance at most `beam` hypotheses, the best first; each token with the first frame in which the
            most probable path of the hypothesis names it.

        Raises:
            InputError: The language model cannot be used.
        """
        log_probs = logits.double().log_softmax(dim=2)
        if self.beam == 1 and self.language_model is None and not self.length_bonus:
            return [[best] for best in best_paths(log_probs, lengths, tokenizer.blank_id)]
        if self.language_model is not None:
            self.language_model.prepare(tokenizer, logits.device)
        beams = _Beams(self, log_probs, tokenizer)
        for frame in range(int(lengths.max()) if len(lengths) else 0):
            beams.read(frame, frame < lengths)
        return beams.hypotheses(lengths)


def best_paths(log_probs: Tensor, lengths: Tensor, blank_id: int) -> list[Hypothesis]:
    """Return what the most probable path of each utterance spells, given log probabilities (B, T, V)."""
    best, path = log_probs.max(dim=2)  # (B, T)
    padding = torch.arange(path.shape[1], device=path.device) >= lengths.unsqueeze(1)
    path = path.masked_fill(padding, blank_id)
    repeats = torch.zeros_like(padding)
    repeats[:, 1:] = path[:, 1:] == path[:, :-1]
    named = path != blank_id
    firsts = (named & ~repeats).nonzero().tolist()
    lasts = (named & ~functional.pad(repeats[:, 1:], (0, 1))).nonzero().tolist()
    spans: list[list[tuple[int, int]]] = [[] for _ in path]
    for (row, first), (_, last) in zip(firsts, lasts, strict=True):
        spans[row].append((first, last))
    scores = best.masked_fill(padding, 0.0).sum(dim=1).tolist()
    tokens, certainties = path.tolist(), best.tolist()
    return [
        Hypothesis(
            tuple(tokens[row][first] for first, _ in spans[row]),
            score,
            tuple(first for first, _ in spans[row]),
            parts={"ctc": score},
            log_probs=tuple(max(certainties[row][first : last + 1]) for first, last in spans[row]),
            ends=tuple(last for _, last in spans[row]),
        )
        for row, score in enumerate(scores)
    ]


def add_alignments(hypotheses: list[list[Hypothesis]], log_probs: Tensor, lengths: Tensor, blank_id: int) -> None:
    """Give hypotheses first and last frame of each token by forced alignment, and its highest log probability there.

    Hypotheses that no path spells stay without frames.

    Args:
        hypotheses: Of each of B utterances.
        log_probs: (B, T, V) of a CTC output.
        lengths: (B,) real frames.
        blank_id: The blank's token id.
    """
    rows = [row for row, candidates in enumerate(hypotheses) for _ in candidates]
    flat = [hypothesis for candidates in hypotheses for hypothesis in candidates]
    aligned = forced_alignments(log_probs, lengths, rows, [hypothesis.tokens for hypothesis in flat], blank_id)
    values = log_probs.cpu().numpy()
    for row, hypothesis, spans in zip(rows, flat, aligned, strict=True):
        hypothesis.frames = tuple(first for first, _ in spans or ())
        hypothesis.ends = tuple(last for _, last in spans or ())
        if not hypothesis.log_probs:  # else the decoder has given its own
            hypothesis.log_probs = tuple(
                float(values[row, first : last + 1, token].max())
                for (first, last), token in zip(spans or (), hypothesis.tokens if spans else (), strict=True)
            )


@dataclass
class _Prefixes:
    """K prefixes of each of B utterances: everything is (B, K), the tokens are (B, K, U)."""

    by_blank: Tensor  # log probability of the paths that end with a blank
    by_token: Tensor  # and of those that end with the last token
    last: Tensor
    sizes: Tensor
    hashes: Tensor
    tokens: Tensor
    language: Tensor  # log probability of the language model, without the end

    def chosen(self, rows: Tensor) -> "_Prefixes":
        """Return the prefixes at the given indices (B, K) among those of each utterance."""
        parts = {}
        for name, part in vars(self).items():
            index = rows if part.dim() == 2 else rows.unsqueeze(2).expand(-1, -1, part.shape[2])
            parts[name] = part.gather(1, index)
        return _Prefixes(**parts)

    @property
    def acoustic(self) -> Tensor:
        """Log probability (B, K) of all paths."""
        return torch.logaddexp(self.by_blank, self.by_token)


class _Beams:
    """The search over a batch."""

    def __init__(self, settings: CTCSearch, log_probs: Tensor, tokenizer: Tokenizer) -> None:
        self.settings = settings
        self.log_probs = log_probs
        self.blank_id, self.eos_id = tokenizer.blank_id, tokenizer.eos_id
        shape = (len(log_probs), settings.beam)
        nothing = log_probs.new_full(shape, -math.inf)
        numbers = torch.zeros(shape, dtype=torch.int64, device=log_probs.device)
        sizes = torch.full_like(numbers, FILLER_SIZE)
        by_blank = nothing.clone()
        by_blank[:, 0], sizes[:, 0] = 0.0, 0  # the empty prefix
        tokens = numbers.unsqueeze(2)  # room for the first
        self.prefixes = _Prefixes(
            by_blank, nothing, numbers + self.blank_id, sizes, numbers, tokens, torch.zeros_like(nothing)
        )
        self.following: Tensor | None = None  # (B, K, V) of the language model
        self.state: State = ()  # (B · K, ...)
        if settings.language_model is not None:
            start = torch.full((len(log_probs),), self.eos_id, device=log_probs.device)
            following, state = settings.language_model.step(
                start, settings.language_model.initial_state(len(log_probs))
            )
            self.following = following.to(log_probs.dtype).unsqueeze(1).repeat(1, settings.beam, 1)
            self.state = tuple(part.repeat_interleave(settings.beam, dim=0) for part in state)

    def read(self, frame: int, active: Tensor) -> None:
        """Grow the prefixes of the utterances (B,) that have this frame."""
        old, beam = self.prefixes, self.settings.beam
        log_probs = self.log_probs[:, frame]  # (B, V)
        vocabulary = log_probs.shape[1]
        acoustic = old.acoustic
        by_blank = acoustic + log_probs[:, self.blank_id : self.blank_id + 1]
        repeated = log_probs.gather(1, old.last)
        by_token = torch.where(old.sizes > 0, old.by_token + repeated, -math.inf)
        grown = acoustic.unsqueeze(2) + log_probs.unsqueeze(1)  # (B, K, V)
        after_blank = (old.by_blank + repeated).unsqueeze(2)  # a token after itself needs a blank between
        grown = grown.scatter(2, old.last.unsqueeze(2), after_blank)
        grown[:, :, self.blank_id] = -math.inf

        # Where a prefix and a token spell another prefix of the beam, that one takes over the paths.
        pairs = self._hash(old.hashes.unsqueeze(2), old.last.unsqueeze(1)) == old.hashes.unsqueeze(1)
        pairs &= old.sizes.unsqueeze(2) + 1 == old.sizes.unsqueeze(1)  # (B, K, K)
        last = old.last.unsqueeze(1).expand(-1, beam, -1)
        shared = grown.gather(2, last).masked_fill(~pairs, -math.inf)
        by_token = torch.logaddexp(by_token, shared.logsumexp(dim=1))
        merged = torch.zeros_like(grown, dtype=torch.uint8).scatter_reduce(2, last, pairs.byte(), "amax")
        grown = grown.masked_fill(merged.bool(), -math.inf)

        unchanged = torch.logaddexp(by_blank, by_token) + self._bonus(old.language, old.sizes)
        extended = grown + self._bonus(old.language, old.sizes + 1).unsqueeze(2)
        if self.following is not None:
            extended = extended + self.settings.language_model_weight * self.following
        scores, indices = torch.cat([unchanged, extended.flatten(1)], dim=1).topk(beam, dim=1)
        extends = indices >= beam
        parents = torch.where(extends, (indices - beam) // vocabulary, indices)
        added = torch.where(extends, (indices - beam) % vocabulary, self.blank_id)

        identity = torch.arange(beam, device=parents.device)
        parents = torch.where(active.unsqueeze(1), parents, identity)
        extends = extends & active.unsqueeze(1)
        new = old.chosen(parents)
        new.by_blank = torch.where(
            extends, -math.inf, torch.where(active.unsqueeze(1), by_blank, old.by_blank).gather(1, parents)
        )
        inherited = torch.where(active.unsqueeze(1), by_token, old.by_token).gather(1, parents)
        new.by_token = torch.where(extends, grown.flatten(1).gather(1, parents * vocabulary + added), inherited)
        self._extend(new, extends, added, parents)
        new.sizes = new.sizes.masked_fill(active.unsqueeze(1) & scores.isneginf(), FILLER_SIZE)
        self.prefixes = new

    def _extend(self, new: _Prefixes, extends: Tensor, added: Tensor, parents: Tensor) -> None:
        """Append tokens to the prefixes that take one."""
        if not bool(extends.any()):
            self._follow(parents, None, added)
            return
        if self.following is not None:
            language = self.following.flatten(1).gather(1, parents * self.following.shape[2] + added)
            new.language = torch.where(extends, new.language + language, new.language)
        new.hashes = torch.where(extends, self._hash(new.hashes, added), new.hashes)
        new.last = torch.where(extends, added, new.last)
        positions = new.sizes.clamp(min=0).unsqueeze(2)
        if int((new.sizes + extends).max()) > new.tokens.shape[2]:
            new.tokens = torch.cat([new.tokens, torch.zeros_like(positions)], dim=2)
        positions = positions.clamp(max=new.tokens.shape[2] - 1)
        previous = new.tokens.gather(2, positions).squeeze(2)
        new.tokens.scatter_(2, positions, torch.where(extends, added, previous).unsqueeze(2))
        new.sizes = new.sizes + extends
        self._follow(parents, extends, added)

    def _follow(self, parents: Tensor, extends: Tensor | None, added: Tensor) -> None:
        """Pass the new tokens, and only those, to the language model."""
        model = self.settings.language_model
        if self.following is None or model is None:
            return
        count, beam = parents.shape
        rows = (torch.arange(count, device=parents.device).unsqueeze(1) * beam + parents).flatten()
        following = self.following.flatten(0, 1)[rows]
        state = tuple(part.index_select(0, rows) for part in self.state)
        if extends is not None:
            changed = extends.flatten().nonzero().squeeze(1)
            log_probs, new_state = model.step(added.flatten()[changed], tuple(part[changed] for part in state))
            following = following.index_copy(0, changed, log_probs.to(following.dtype))
            state = tuple(part.index_copy(0, changed, new) for part, new in zip(state, new_state, strict=True))
        self.following, self.state = following.view(count, beam, -1), state

    def hypotheses(self, lengths: Tensor) -> list[list[Hypothesis]]:
        """Return the hypotheses of each utterance of so many frames (B,), the best first."""
        prefixes = self.prefixes
        if self.following is not None:
            prefixes.language = prefixes.language + self.following[:, :, self.eos_id]
        acoustic = prefixes.acoustic
        scores = acoustic + self._bonus(prefixes.language, prefixes.sizes)
        results: list[list[Hypothesis]] = []
        for row in range(len(scores)):
            results.append([])
            for column in scores[row].argsort(descending=True, stable=True).tolist():
                size = int(prefixes.sizes[row, column])
                if size < 0:
                    continue
                parts = {"ctc": float(acoustic[row, column])}
                if self.following is not None:
                    parts["language_model"] = float(prefixes.language[row, column])
                tokens = tuple(prefixes.tokens[row, column, :size].tolist())
                results[-1].append(Hypothesis(tokens, float(scores[row, column]), parts=parts))
        results = list(map(without_impossible, results))
        add_alignments(results, self.log_probs, lengths, self.blank_id)
        return results

    def _bonus(self, language: Tensor, sizes: Tensor) -> Tensor:
        weight = self.settings.language_model_weight
        return (weight * language if weight else 0.0) + self.settings.length_bonus * sizes.clamp(min=0)

    @staticmethod
    def _hash(hashes: Tensor, tokens: Tensor) -> Tensor:
        return (hashes + tokens + 1) * HASH_FACTOR + HASH_STEP
