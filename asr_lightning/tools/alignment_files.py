"""Times of phones and words: by the states of a hybrid or the path of a CTC output; as CTM and TextGrid."""

import argparse
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from praatio import textgrid
from praatio.utilities.constants import Interval
from tqdm import tqdm

from asr_lightning.analysis.token_times import token_spans
from asr_lightning.batch import Batch
from asr_lightning.callbacks.observation import observe
from asr_lightning.errors import InputError, printable
from asr_lightning.files import replacing
from asr_lightning.hmm import gmm
from asr_lightning.hmm.frame_alignment import in_seconds, phone_runs, word_runs
from asr_lightning.hmm.model import HiddenMarkovModel, read_hmm
from asr_lightning.hmm.store import AlignmentStore
from asr_lightning.models.blstm_hmm import ALIGNMENTS, BLSTMHMM
from asr_lightning.models.recognizer import CTCOutput, Recognizer
from asr_lightning.text.phones import Segment
from asr_lightning.tools.prepared_recognizer import prepare_recognizer
from asr_lightning.tools.state_alignment import StateAlignment, align_batches, read_alignments, score_by_network

BY_STATES = ("words", "phones")
SPACE, PIECE = "_", "▁"  # a character token of its own; what begins a sentence piece that begins a word


@dataclass(frozen=True)
class TimedUtterance:
    """An utterance and the times of its words, and maybe phones; or why there are none."""

    id: str
    seconds: float = 0.0
    tiers: Mapping[str, Sequence[Segment]] = field(default_factory=dict)
    problem: str = ""


def by_states(
    model: HiddenMarkovModel, aligned: Iterable[StateAlignment], hop: float, window: float
) -> Iterator[TimedUtterance]:
    """Give the times of words and phones whose states are known.

    Args:
        model: Whose transition ids.
        aligned: The utterances.
        hop: Seconds from frame to frame.
        window: Seconds of a frame.
    """
    for utterance in aligned:
        if utterance.problem:
            yield TimedUtterance(utterance.id, problem=utterance.problem)
            continue
        runs = phone_runs(model, utterance.transition_ids)
        words = in_seconds(word_runs(model.lexicon, runs, utterance.words), hop, window, utterance.seconds)
        yield TimedUtterance(
            utterance.id,
            utterance.seconds,
            {"words": words, "phones": in_seconds(runs, hop, window, utterance.seconds)},
        )


def by_ctc(recognizer: Recognizer, batches: Iterable[Batch]) -> Iterator[TimedUtterance]:
    """Give the times of words, by the most probable path of a CTC output for the transcript.

    A word begins with the first frame of its first token, and ends with the last one of its last: such an output peaks
    where it is sure of a token, and does not tell how long it lasts.
    """
    tokenizer = recognizer.tokenizer
    for batch in batches:
        if not len(batch):
            continue
        tokens = [tokenizer.encode(text) for text in batch.texts]
        observed = observe(recognizer, batch.to(recognizer.device), {}, tokens)
        assert observed.log_probs is not None, "no CTC output"
        begins, ends = observed.spans(observed.lengths)
        for row, (id, sequence) in enumerate(zip(batch.ids, tokens, strict=True)):
            seconds, frames = int(batch.audio_lengths[row]) / batch.sample_rate, int(observed.lengths[row])
            positions = token_spans(observed.log_probs[row, :frames], sequence, tokenizer.blank_id) if sequence else []
            if not positions:
                reason = f"too short: {frames} frames for {len(sequence)} tokens" if sequence else "an empty transcript"
                yield TimedUtterance(id, problem=reason)
                continue
            words = [
                Segment(max(0.0, begins[positions[first][0]]), min(seconds, ends[positions[last][1]]), word)
                for first, last, word in word_spans([tokenizer.tokens[token] for token in sequence])
            ]
            yield TimedUtterance(id, seconds, {"words": words})


def word_spans(tokens: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return the first and the last token of every word, and the word."""
    spans: list[tuple[int, int, str]] = []
    inside = False
    for index, token in enumerate(tokens):
        text = token.removeprefix(PIECE)
        if token == SPACE or not text:
            inside = False
        elif inside and not token.startswith(PIECE):
            first, _, word = spans[-1]
            spans[-1] = (first, index, word + text)
        else:
            spans.append((index, index, text))
            inside = True
    return spans


def write_alignments(
    timed: Iterable[TimedUtterance], tiers: Sequence[str], subset: str, output: Path
) -> tuple[list[str], int]:
    """Write `SUBSET.TIER.ctm` for every tier, and a TextGrid per utterance.

    Args:
        timed: The utterances.
        tiers: Names of the tiers that they have.
        subset: Name of the files.
        output: Folder that they go to.

    Returns:
        The utterances that could not be aligned, with the reasons; and the number of aligned ones.
    """
    problems, aligned = [], 0
    with ExitStack() as stack:
        files = {}
        for tier in tiers:
            path = stack.enter_context(replacing(output / f"{subset}.{tier}.ctm"))
            files[tier] = stack.enter_context(path.open("w", encoding="utf-8"))
        for utterance in tqdm(timed, desc=subset, unit="utterance", disable=not sys.stderr.isatty()):
            if utterance.problem:
                problems.append(f"{utterance.id}: {utterance.problem}")
                continue
            aligned += 1
            for tier, file in files.items():
                file.writelines(ctm_rows(utterance.id, utterance.tiers[tier]))
            write_textgrid(output / "TextGrid" / subset / f"{utterance.id}.TextGrid", utterance)
    return problems, aligned


def ctm_rows(id: str, segments: Sequence[Segment]) -> Iterator[str]:
    """Give lines `UTTERANCE CHANNEL START DURATION LABEL`, in seconds; spaces in names become underscores."""
    name = printable(id).replace(" ", "_")
    for segment in segments:
        yield f"{name} 1 {segment.start:.7f} {segment.end - segment.start:.7f} {printable(segment.label)}\n"


def write_textgrid(path: Path, utterance: TimedUtterance) -> None:
    """Write Praat's TextGrid, its tiers named as the Montreal Forced Aligner does: `words`, `phones`."""
    grid = textgrid.Textgrid()
    for name, segments in utterance.tiers.items():
        entries = [
            Interval(segment.start, segment.end, segment.label) for segment in segments if segment.end > segment.start
        ]
        grid.addTier(textgrid.IntervalTier(name, entries, 0.0, utterance.seconds))
    with replacing(path) as unfinished:
        grid.save(str(unfinished), format="long_textgrid", includeBlankSpaces=True)


def aligner_of(
    options: argparse.Namespace,
) -> tuple[Callable[[Iterable[Batch]], Iterator[TimedUtterance]], tuple[str, ...]]:
    """Return a function that aligns batches, and the names of the tiers that it finds.

    Raises:
        InputError: The checkpoint or the states cannot be used.
    """
    if options.states is not None:
        store, model = AlignmentStore(options.states / ALIGNMENTS), read_hmm(options.states)
        frames = gmm.HOP_SECONDS * model.subsampling, gmm.WINDOW_SECONDS
        return lambda batches: by_states(model, read_alignments(store, batches), *frames), BY_STATES
    recognizer = prepare_recognizer(options.checkpoint, options.device, None, options.config)
    if not isinstance(recognizer, BLSTMHMM):
        if not any(isinstance(child, CTCOutput) for child in recognizer.children()):
            kind = type(recognizer).__name__
            raise InputError(f"{options.checkpoint}: expected a BLSTMHMM or what has a CTC output, found a {kind}")
        return functools.partial(by_ctc, recognizer), ("words",)
    features, states, decodables = recognizer.features, recognizer.states, score_by_network(recognizer)
    frames = features.hop_seconds * states.subsampling, features.window_samples / features.sample_rate
    return lambda batches: by_states(
        states, align_batches(states, batches, decodables, options.least_fit), *frames
    ), BY_STATES
