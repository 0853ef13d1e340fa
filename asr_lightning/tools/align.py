"""Says when every phone and word of a corpus is spoken, by a hybrid: CTM files and TextGrids.

Example: python -m asr_lightning.tools.align --checkpoint runs/demo/hybrid/seed1/checkpoints/last.ckpt \
    --config experiments/demo/hybrid.yaml --subsets test-clean --output runs/demo/alignments
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import kaldi_hmm_gmm as kaldi
import numpy as np
import torch
from praatio import textgrid
from praatio.utilities.constants import Interval
from tqdm import tqdm

from asr_lightning.batch import Batch
from asr_lightning.errors import InputError
from asr_lightning.files import replacing
from asr_lightning.hmm import gmm
from asr_lightning.hmm.alignment import align, in_seconds, phone_runs, word_runs
from asr_lightning.hmm.graph import expand, sentence
from asr_lightning.hmm.model import STATES, HiddenMarkovModel, read_model
from asr_lightning.hmm.search import by_transition
from asr_lightning.hmm.store import AlignmentStore
from asr_lightning.models.blstm_hmm import ALIGNMENTS, BLSTMHMM
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.text.lexicon import capitals
from asr_lightning.text.phones import SILENCE, Segment
from asr_lightning.tools.subsets import open_corpus
from asr_lightning.tools.transcribe import prepare

ACOUSTIC_SCALE = 0.1
# Mean log posterior of an alignment's states without pauses. By the network of experiments/demo/hybrid.yaml (seed 1,
# five epochs), of the 304 utterances of the dev and test subsets none was below with its own transcript, and 303 were
# with another one of about the same length; of 418 of the training subset none, and 411 of 415.
LEAST_FIT = -6.0


@dataclass(frozen=True)
class Decodable:
    """What is known of an utterance's frames.

    Attributes:
        scores: Scaled log likelihoods, as Kaldi's searches ask for them.
        frames: T.
        log_posteriors: (T, pdfs) by a network; Gaussian mixtures give none.
    """

    scores: kaldi.DecodableInterface
    frames: int
    log_posteriors: np.ndarray | None = None


Decodables = Callable[[Batch], list[Decodable]]


@dataclass(frozen=True)
class Aligned:
    """An utterance and its transition ids, one a frame; or why there are none."""

    id: str
    words: tuple[str, ...] = ()
    transition_ids: tuple[int, ...] = ()
    seconds: float = 0.0
    problem: str = ""


def align_batches(
    model: HiddenMarkovModel, batches: Iterable[Batch], decodables: Decodables, least_fit: float = -math.inf
) -> Iterator[Aligned]:
    """Align utterances one by one; what cannot be aligned says why.

    There is a way of saying any transcript in almost any audio. Whether they belong together is asked of the network:
    how probable it holds, from its own frames alone, the states that were put to them.

    Args:
        model: Whose states.
        batches: Of utterances with transcripts.
        decodables: Tells of the frames of each utterance of a batch.
        least_fit: Mean log posterior of the states of an alignment without pauses, below which audio and transcript do
            not match; nothing is asked of Gaussian mixtures.
    """
    for batch in batches:
        if not len(batch):
            continue
        for number, decodable in enumerate(decodables(batch)):
            words = tuple(capitals(batch.texts[number]).split())
            seconds = int(batch.audio_lengths[number]) / batch.sample_rate
            yield _align(model, batch.ids[number], words, decodable, seconds, least_fit)


def _align(
    model: HiddenMarkovModel, id: str, words: tuple[str, ...], decodable: Decodable, seconds: float, least_fit: float
) -> Aligned:
    unknown = [word for word in words if word not in model.word_ids]
    if unknown or not words:
        return Aligned(id, problem=f"not in the lexicon: {', '.join(unknown)}" if unknown else "an empty transcript")
    shortest = STATES * sum(min(map(len, model.lexicon.pronunciations[word])) for word in words)
    if decodable.frames < shortest:
        return Aligned(id, problem=f"too short: {decodable.frames} frames, its words need {shortest}")
    ids = align(decodable.scores, expand(model, sentence(model, words)))
    if not ids:
        return Aligned(id, problem="audio and transcript do not match: no way through within the beam")
    if decodable.log_posteriors is not None and not (fit := _fit(model, ids, decodable.log_posteriors)) >= least_fit:
        found = f"a mean log posterior of {fit:.2f} without pauses, expected {least_fit:g} or more"
        return Aligned(id, problem=f"audio and transcript do not match: {found}")
    return Aligned(id, words, tuple(ids), seconds)


def _fit(model: HiddenMarkovModel, transition_ids: Sequence[int], log_posteriors: np.ndarray) -> float:
    """Return the mean log posterior of an alignment's states, pauses left out: they are in any audio."""
    ids = np.array(transition_ids)
    fits = log_posteriors[np.arange(len(ids)), model.pdf_of[ids]]
    return float(fits[model.phone_of[ids] != model.phone_ids[SILENCE]].mean())


def of_network(recognizer: BLSTMHMM, scale: float = ACOUSTIC_SCALE) -> Decodables:
    """Return what tells of frames by a network."""
    log_priors = recognizer.log_priors.cpu().numpy()

    def decodables(batch: Batch) -> list[Decodable]:
        return [
            Decodable(kaldi.DecodableCtc(by_transition(recognizer.states, scale * row)), len(row), row + log_priors)
            for row in likelihoods(recognizer, batch)
        ]

    return decodables


@torch.no_grad()
def likelihoods(recognizer: BLSTMHMM, batch: Batch) -> list[np.ndarray]:
    """Return the log likelihoods (T, pdfs) of each utterance."""
    batch = batch.to(recognizer.device)
    encoded, lengths = recognizer(batch.audio, batch.audio_lengths)
    rows = recognizer.log_likelihoods(encoded).cpu().numpy()
    return [row[:length] for row, length in zip(rows, lengths.tolist(), strict=True)]


def prepare_hybrid(checkpoint: Path, device: str) -> BLSTMHMM:
    """Return the hybrid of a checkpoint.

    Raises:
        InputError: It holds no hybrid, or cannot be used.
    """
    recognizer: Recognizer = prepare(checkpoint, device, None)
    if not isinstance(recognizer, BLSTMHMM):
        raise InputError(f"{checkpoint}: expected a BLSTMHMM, found a {type(recognizer).__name__}")
    return recognizer


def stored(store: AlignmentStore, batches: Iterable[Batch]) -> Iterator[Aligned]:
    """Give the alignments of utterances that were written once."""
    for batch in batches:
        for id, text, samples in zip(batch.ids, batch.texts, batch.audio_lengths.tolist(), strict=True):
            ids = store.get(id)
            if ids is None:
                yield Aligned(id, problem=f"no alignment in {store.path}")
            else:
                yield Aligned(id, tuple(capitals(text).split()), tuple(ids.tolist()), samples / batch.sample_rate)


def write_subset(
    model: HiddenMarkovModel, aligned: Iterable[Aligned], frames: tuple[float, float], subset: str, output: Path
) -> list[str]:
    """Write `SUBSET.phones.ctm`, `SUBSET.words.ctm` and a TextGrid per utterance.

    Args:
        model: Whose transition ids.
        aligned: The utterances.
        frames: Seconds from frame to frame, and of a frame.
        subset: Name of the files.
        output: Folder that they go to.

    Returns:
        Which utterances could not be aligned, and why.
    """
    problems = []
    with (
        replacing(output / f"{subset}.phones.ctm") as phones_path,
        replacing(output / f"{subset}.words.ctm") as words_path,
        phones_path.open("w", encoding="utf-8") as phones_file,
        words_path.open("w", encoding="utf-8") as words_file,
    ):
        for one in tqdm(aligned, desc=subset, unit="utterance", disable=not sys.stderr.isatty()):
            if one.problem:
                problems.append(f"{one.id}: {one.problem}")
                continue
            runs = phone_runs(model, one.transition_ids)
            phones = in_seconds(runs, *frames, one.seconds)
            words = in_seconds(word_runs(model, runs, one.words), *frames, one.seconds)
            phones_file.writelines(ctm_rows(one.id, phones))
            words_file.writelines(ctm_rows(one.id, words))
            write_textgrid(output / "TextGrid" / subset / f"{one.id}.TextGrid", words, phones)
    return problems


def ctm_rows(id: str, segments: Sequence[Segment]) -> Iterator[str]:
    """Give lines `UTTERANCE CHANNEL START DURATION LABEL`, in seconds."""
    for segment in segments:
        yield f"{id} 1 {segment.start:.7f} {segment.end - segment.start:.7f} {segment.label}\n"


def write_textgrid(path: Path, words: Sequence[Segment], phones: Sequence[Segment]) -> None:
    """Write Praat's TextGrid with the tiers `words` and `phones`, as the Montreal Forced Aligner has them."""
    grid = textgrid.Textgrid()
    for name, segments in (("words", words), ("phones", phones)):
        entries = [Interval(one.start, one.end, one.label) for one in segments if one.end > one.start]
        grid.addTier(textgrid.IntervalTier(name, entries, 0.0, phones[-1].end))
    with replacing(path) as half:
        grid.save(str(half), format="long_textgrid", includeBlankSpaces=True)


def aligner_of(
    options: argparse.Namespace,
) -> tuple[HiddenMarkovModel, tuple[float, float], Callable[[Iterable[Batch]], Iterator[Aligned]]]:
    """Return whose states there are, seconds from frame to frame and of a frame, and what aligns batches."""
    if options.states is not None:
        store = AlignmentStore(options.states / ALIGNMENTS)
        return read_model(options.states), (gmm.HOP_SECONDS, gmm.WINDOW_SECONDS), functools.partial(stored, store)
    recognizer = prepare_hybrid(options.checkpoint, options.device)
    features, decodables = recognizer.features, of_network(recognizer)
    frames = features.hop_seconds, features.window_samples / features.sample_rate
    return (
        recognizer.states,
        frames,
        lambda batches: align_batches(recognizer.states, batches, decodables, options.least_fit),
    )


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m asr_lightning.tools.align",
        description="Write when phones and words are spoken: SUBSET.phones.ctm, SUBSET.words.ctm and\n"
        "TextGrid/SUBSET/ID.TextGrid.",
        epilog="An utterance that cannot be aligned is named on stderr with the reason, and the rest goes on. Exit "
        "status: 0, 1 if there were such utterances, 2 if an option cannot be used.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--checkpoint", type=Path, help="of a BLSTMHMM that `lightning fit` has trained; it aligns anew"
    )
    source.add_argument(
        "--states",
        type=Path,
        metavar="FOLDER",
        help="of `tools.hybrid`: the alignments that it has written, as they are",
    )
    parser.add_argument("--config", type=Path, required=True, help="an experiment whose `data` is the corpus")
    parser.add_argument("--subsets", nargs="+", help="of the corpus (default: those that the experiment tests on)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument(
        "--least-fit", type=float, default=LEAST_FIT, metavar="X",
        help="mean log posterior of an utterance's states without pauses, below which audio and transcript do not "
        f"match (default: {LEAST_FIT:g}, between right and wrong transcripts of the embedded corpus; --least-fit=-inf "
        "takes all)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, a GPU where there is one"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = make_parser().parse_args(arguments)
    try:
        model, frames, aligner = aligner_of(options)
        problems = []
        for subset, batches in open_corpus(options.config, options.subsets).items():
            problems += write_subset(model, aligner(batches), frames, subset, options.output)
    except (InputError, OSError) as error:  # a full disk, or an output that is no folder
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; what is in {options.output.absolute()} is whole, but not all of it", file=sys.stderr)
        return 130
    print(f"Written to {options.output.absolute()}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
