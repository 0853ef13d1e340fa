"""Says when every phone and word of a corpus is spoken, by a hybrid, or every word, by a CTC output: CTM and TextGrid.

Example: python -m asr_lightning.tools.align --checkpoint runs/demo/hybrid/seed1/checkpoints/last.ckpt \
    --config experiments/demo/hybrid.yaml --subsets test-clean --output runs/demo/alignments
"""

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
from asr_lightning.tools.state_alignment import LEAST_FIT, Aligned, align_batches, of_network, stored
from asr_lightning.tools.subsets import open_corpus
from asr_lightning.tools.transcribe import prepare

BY_STATES = ("words", "phones")
SPACE, PIECE = "_", "▁"  # a character token of its own; what begins a sentence piece that begins a word


@dataclass(frozen=True)
class Timed:
    """An utterance and when its words, and maybe phones, are spoken; or why nobody knows."""

    id: str
    seconds: float = 0.0
    tiers: Mapping[str, Sequence[Segment]] = field(default_factory=dict)
    problem: str = ""


def by_states(model: HiddenMarkovModel, aligned: Iterable[Aligned], hop: float, window: float) -> Iterator[Timed]:
    """Say when words and phones are spoken whose states are known.

    Args:
        model: Whose transition ids.
        aligned: The utterances.
        hop: Seconds from frame to frame.
        window: Seconds of a frame.
    """
    for one in aligned:
        if one.problem:
            yield Timed(one.id, problem=one.problem)
            continue
        runs = phone_runs(model, one.transition_ids)
        words = in_seconds(word_runs(model.lexicon, runs, one.words), hop, window, one.seconds)
        yield Timed(one.id, one.seconds, {"words": words, "phones": in_seconds(runs, hop, window, one.seconds)})


def by_ctc(recognizer: Recognizer, batches: Iterable[Batch]) -> Iterator[Timed]:
    """Say when words are spoken by the most probable path of a CTC output that says the transcript.

    A word begins with the first frame of its first token, and ends with the last one of its last: such an output peaks
    where it is sure of a token, and does not say how long it lasts.
    """
    tokenizer = recognizer.tokenizer
    for batch in batches:
        if not len(batch):
            continue
        tokens = [tokenizer.encode(text) for text in batch.texts]
        seen = observe(recognizer, batch.to(recognizer.device), {}, tokens)
        assert seen.log_probs is not None, "no CTC output"
        begins, ends = seen.spans(seen.lengths)
        for row, (id, said) in enumerate(zip(batch.ids, tokens, strict=True)):
            seconds, frames = int(batch.audio_lengths[row]) / batch.sample_rate, int(seen.lengths[row])
            places = token_spans(seen.log_probs[row, :frames], said, tokenizer.blank_id) if said else []
            if not places:
                reason = f"too short: {frames} frames for {len(said)} tokens" if said else "an empty transcript"
                yield Timed(id, problem=reason)
                continue
            words = [
                Segment(max(0.0, begins[places[first][0]]), min(seconds, ends[places[last][1]]), word)
                for first, last, word in word_spans([tokenizer.tokens[token] for token in said])
            ]
            yield Timed(id, seconds, {"words": words})


def word_spans(tokens: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return the first and the last token of every word, and the word."""
    spans: list[tuple[int, int, str]] = []
    inside = False
    for place, token in enumerate(tokens):
        text = token.removeprefix(PIECE)
        if token == SPACE or not text:
            inside = False
        elif inside and not token.startswith(PIECE):
            first, _, word = spans[-1]
            spans[-1] = (first, place, word + text)
        else:
            spans.append((place, place, text))
            inside = True
    return spans


def write_subset(timed: Iterable[Timed], tiers: Sequence[str], subset: str, output: Path) -> list[str]:
    """Write `SUBSET.TIER.ctm` for every tier, and a TextGrid per utterance.

    Args:
        timed: The utterances.
        tiers: Names of what is known of them.
        subset: Name of the files.
        output: Folder that they go to.

    Returns:
        Which utterances could not be aligned, and why.
    """
    problems = []
    with ExitStack() as stack:
        files = {}
        for tier in tiers:
            path = stack.enter_context(replacing(output / f"{subset}.{tier}.ctm"))
            files[tier] = stack.enter_context(path.open("w", encoding="utf-8"))
        for one in tqdm(timed, desc=subset, unit="utterance", disable=not sys.stderr.isatty()):
            if one.problem:
                problems.append(f"{one.id}: {one.problem}")
                continue
            for tier, file in files.items():
                file.writelines(ctm_rows(one.id, one.tiers[tier]))
            write_textgrid(output / "TextGrid" / subset / f"{one.id}.TextGrid", one)
    return problems


def ctm_rows(id: str, segments: Sequence[Segment]) -> Iterator[str]:
    """Give lines `UTTERANCE CHANNEL START DURATION LABEL`, in seconds; a space within a name would part columns."""
    name = printable(id).replace(" ", "_")
    for segment in segments:
        yield f"{name} 1 {segment.start:.7f} {segment.end - segment.start:.7f} {printable(segment.label)}\n"


def write_textgrid(path: Path, one: Timed) -> None:
    """Write Praat's TextGrid with a tier for each, called as the Montreal Forced Aligner does: `words`, `phones`."""
    grid = textgrid.Textgrid()
    for name, segments in one.tiers.items():
        entries = [Interval(each.start, each.end, each.label) for each in segments if each.end > each.start]
        grid.addTier(textgrid.IntervalTier(name, entries, 0.0, one.seconds))
    with replacing(path) as half:
        grid.save(str(half), format="long_textgrid", includeBlankSpaces=True)


def aligner_of(options: argparse.Namespace) -> tuple[Callable[[Iterable[Batch]], Iterator[Timed]], tuple[str, ...]]:
    """Return what aligns batches, and the names of what it finds.

    Raises:
        InputError: The checkpoint or the states cannot be used.
    """
    if options.states is not None:
        store, model = AlignmentStore(options.states / ALIGNMENTS), read_hmm(options.states)
        frames = gmm.HOP_SECONDS * model.subsampling, gmm.WINDOW_SECONDS
        return lambda batches: by_states(model, stored(store, batches), *frames), BY_STATES
    recognizer = prepare(options.checkpoint, options.device, None, options.config)
    if not isinstance(recognizer, BLSTMHMM):
        if not any(isinstance(child, CTCOutput) for child in recognizer.children()):
            found = type(recognizer).__name__
            raise InputError(f"{options.checkpoint}: expected a BLSTMHMM or what has a CTC output, found a {found}")
        return functools.partial(by_ctc, recognizer), ("words",)
    features, states, decodables = recognizer.features, recognizer.states, of_network(recognizer)
    frames = features.hop_seconds * states.subsampling, features.window_samples / features.sample_rate
    return lambda batches: by_states(
        states, align_batches(states, batches, decodables, options.least_fit), *frames
    ), BY_STATES


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m asr_lightning.tools.align",
        description="Write when phones and words are spoken: SUBSET.phones.ctm, SUBSET.words.ctm and\n"
        "TextGrid/SUBSET/ID.TextGrid; of a CTC output words only.",
        epilog="An utterance that cannot be aligned is named on stderr with the reason, and the rest goes on. Exit "
        "status: 0, 1 if there were such utterances, 2 if an option cannot be used.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--checkpoint",
        type=Path,
        help="that `lightning fit` has saved, of a BLSTMHMM, or of a recogniser with a CTC "
        "output, which knows no phones",
    )
    source.add_argument(
        "--states",
        type=Path,
        metavar="FOLDER",
        help="of `tools.hybrid`: the alignments that it has written, as they are",
    )
    parser.add_argument(
        "--config", type=Path, required=True,
        help="an experiment, whose `data` is the corpus, and whose `model`, if it has one, is that of the checkpoint",
    )  # fmt: skip
    parser.add_argument("--subsets", nargs="+", help="of the corpus (default: those that the experiment tests on)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument(
        "--least-fit", type=float, default=LEAST_FIT, metavar="X",
        help="of a BLSTMHMM: mean log posterior of an utterance's states without pauses, below which audio and "
        f"transcript do not match (default: {LEAST_FIT:g}, between right and wrong transcripts of the embedded corpus; "
        "--least-fit=-inf takes all)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU where there is one"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = make_parser().parse_args(arguments)
    try:
        aligner, tiers = aligner_of(options)
        problems = []
        for subset, batches in open_corpus(options.config, options.subsets).items():
            problems += write_subset(aligner(batches), tiers, subset, options.output)
    except (InputError, OSError) as error:  # a full disk, or an output that is no folder
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; what is in {options.output.absolute()} is whole, but not all of it", file=sys.stderr)
        return 130
    print(f"Written to {options.output.absolute()}")
    for problem in problems:
        print(printable(problem), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
