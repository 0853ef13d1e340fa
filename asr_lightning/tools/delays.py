"""Delays of words and costs of recognition, measured on a corpus with exact times; table and figure."""

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from asr_lightning.analysis.latency import EmittedWords, Latency
from asr_lightning.batch import Batch
from asr_lightning.decoding.words import word_tokens
from asr_lightning.errors import InputError
from asr_lightning.files import name_of_run
from asr_lightning.hmm.frame_alignment import word_runs
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.rnn_transducer import RNNTransducer
from asr_lightning.nn.streaming import ChunkedEncoder, StreamingEncoder
from asr_lightning.report.latency_figure import Point, plot_latency
from asr_lightning.report.tables import MISSING, Section, number, summarize
from asr_lightning.text.lexicon import Lexicon, read_lexicon
from asr_lightning.text.phones import SILENCE, Segment
from asr_lightning.tools.prepared_recognizer import prepare_recognizer
from asr_lightning.tools.subsets import open_corpus, read_corpus
from data_modules.phone_labels import CTMLabels

WHOLE = "utterance"  # the look-ahead of a network that does not stream
HEAD = ["run", "seed", "subset", "look-ahead ms", "WER %", "delay ms, median", "90 %", "95 %", "timed words",
        "at the end %", "first token ms, median", "90 %", "95 %", "real-time factor", "state kB",
        "parameters"]  # fmt: skip


class Measurement(NamedTuple):
    """A network on a subset, with one look-ahead.

    Attributes:
        run: Name of the experiment.
        seed: Of the run; empty where unknown.
        subset: Of the corpus.
        look_ahead: Seconds of features until the first is encoded; None for the whole utterance.
        parameters: Of the network.
        latency: What was measured.
    """

    run: str
    seed: str
    subset: str
    look_ahead: float | None
    parameters: int
    latency: Latency


class ExactWords:
    """Times of the words of utterances, from those of phones or words in a CTM.

    Args:
        truth: A file, or a folder with `*.phones.ctm` or `*.ctm`.
        lexicon: Pronunciations, where the CTM has phones.

    Raises:
        InputError: A file is missing or cannot be read.
    """

    def __init__(self, truth: Path, lexicon: Path | None) -> None:
        self.labels = CTMLabels(str(truth))
        self.labels.require()
        self.lexicon: Lexicon | None = None if lexicon is None else read_lexicon(lexicon)

    def __call__(self, id: str, words: Sequence[str]) -> list[Segment] | None:
        """Return the times of the words of a transcript; None where the labels are not of these words."""
        segments = self.labels.segments(id)
        if self.lexicon is not None:
            try:
                segments = [Segment(*run) for run in word_runs(self.lexicon, list(map(astuple, segments)), words)]
            except ValueError:  # spoken in another way than any in the lexicon
                return None
        spoken = [segment for segment in segments if segment.label != SILENCE]
        return spoken if [segment.label for segment in spoken] == list(words) else None


def streams(recognizer: Recognizer) -> bool:
    """Whether a recognizer writes while audio is still coming."""
    return (
        isinstance(recognizer, RNNTransducer)
        and isinstance(recognizer.encoder, StreamingEncoder)
        and not recognizer.features.whole_utterance()
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Set torch to one thread within the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write_in_pieces(recognizer: RNNTransducer, audio: Tensor, piece: int) -> EmittedWords:
    """Recognize audio (S,) that comes in pieces of `piece` samples."""
    tokens: list[int] = []
    seconds: list[float] = []
    state_bytes, rate, began = 0, recognizer.features.sample_rate, time.process_time()
    state = recognizer.initial_stream(1)
    for start in range(0, max(1, len(audio)), piece):
        stop = min(start + piece, len(audio))
        [added], state = recognizer.stream(audio[None, start:stop], state, last=stop == len(audio))
        tokens += added.tokens
        seconds += [stop / rate] * len(added.tokens)
        state_bytes = max(state_bytes, sum(part.numel() * part.element_size() for part in state.tensors()))
    compute = time.process_time() - began
    return _timed_words(recognizer, tokens, seconds, len(audio) / rate, compute, state_bytes)


def write_at_the_end(recognizer: Recognizer, batch: Batch) -> EmittedWords:
    """Recognize an utterance after its end."""
    began = time.process_time()
    [[best, *_]] = recognizer.recognize(batch)
    compute = time.process_time() - began
    return _timed_words(recognizer, best.tokens, [batch.seconds] * len(best.tokens), batch.seconds, compute, 0)


def _timed_words(
    recognizer: Recognizer, tokens: Sequence[int], seconds: Sequence[float], audio: float, compute: float, state: int
) -> EmittedWords:
    groups = word_tokens(tokens, recognizer.tokenizer)
    words = tuple(recognizer.tokenizer.decode(tokens).split())
    complete = tuple(seconds[group[-1]] for group in groups)
    return EmittedWords(words, complete, seconds[groups[0][0]] if groups else None, audio, compute, state)


def measure(recognizer: Recognizer, utterances: Sequence[Batch], truth: ExactWords, piece: float) -> Latency:
    """Measure a recognizer on utterances, one at a time in one thread.

    Args:
        recognizer: On the CPU.
        utterances: Batches of one.
        truth: Exact times of words.
        piece: Seconds of audio that are read at once.

    Raises:
        InputError: The audio has another sample rate than the features.
    """
    latency, rate = Latency(), recognizer.features.sample_rate
    tokenizer, streaming = recognizer.tokenizer, streams(recognizer)
    with one_thread():
        for utterance in utterances:
            if utterance.sample_rate != rate:
                raise InputError(f"the features are made for audio of {rate} Hz, got {utterance.sample_rate} Hz")
            if streaming:
                assert isinstance(recognizer, RNNTransducer)
                written = write_in_pieces(recognizer, utterance.audio[0], max(1, round(piece * rate)))
            else:
                written = write_at_the_end(recognizer, utterance)
            reference = tokenizer.fold(utterance.texts[0]).split()
            spoken = truth(utterance.ids[0], utterance.texts[0].split())
            latency.add(reference, written, spoken if spoken and len(spoken) == len(reference) else None)
    return latency


def read_utterances(config: Path, subsets: Sequence[str] | None, limit: int) -> dict[str, list[Batch]]:
    """Return the utterances of subsets of an experiment, each as a batch of one.

    Args:
        config: The experiment.
        subsets: Of its data; those that it tests on if None.
        limit: Of each subset; 0 for all.

    Raises:
        InputError: The experiment or its data cannot be used, or a subset is empty.
    """
    utterances: dict[str, list[Batch]] = {}
    for subset, batches in open_corpus(config, subsets).items():
        count = limit or len(batches.durations)
        plan = [[number] for number in range(min(count, len(batches.durations)))]
        utterances[subset] = [batch for batch in batches.load(plan, 0) if len(batch)]
        if not utterances[subset]:
            raise InputError(f"{config}: {subset}: expected utterances to measure with, but none could be read")
    return utterances


def exact_words(config: Path, subset: str, truth: Path | None, lexicon: Path | None) -> ExactWords:
    """Return the times of the words of a subset, by default those of the embedded corpus.

    Raises:
        InputError: There are none.
    """
    if truth is not None:
        return ExactWords(truth, lexicon)
    root = Path(getattr(read_corpus(config), "root", ""))
    folder, default_lexicon = root / subset, root / "lexicon.txt"
    if not default_lexicon.is_file() or next(folder.rglob("*.phones.ctm"), None) is None:
        raise InputError(
            f"{subset}: expected exact times, *.phones.ctm in {folder.absolute()} and a lexicon.txt above it as the "
            "embedded corpus has them, found none: give --truth SUBSET.words.ctm, which `asr align` writes"
        )
    return ExactWords(folder, lexicon or default_lexicon)


def compare(
    checkpoints: Sequence[Path],
    config: Path,
    subsets: Sequence[str] | None,
    chunks: Sequence[int] | None,
    truth: tuple[Path | None, Path | None],
    piece: float,
    limit: int,
) -> Section:
    """Measure networks, and return the table and figure.

    Args:
        checkpoints: Of the networks.
        config: An experiment, whose data are read.
        subsets: Of the data; those that the experiment tests on if None.
        chunks: Sizes of chunks that are measured, where an encoder has chunks; its own if None.
        truth: CTM and lexicon; those of the embedded corpus if None.
        piece: Seconds of audio that are read at once.
        limit: Utterances of each subset; 0 for all.

    Raises:
        InputError: A file cannot be used; no network has chunks, or no utterance has times.
    """
    utterances = read_utterances(config, subsets, limit)
    words = {subset: exact_words(config, subset, *truth) for subset in utterances}
    rows: list[Measurement] = []
    chunked = False
    for checkpoint in checkpoints:
        recognizer = prepare_recognizer(checkpoint, "cpu", None).eval()
        in_run = checkpoint.parent.name == "checkpoints"
        name, seed = name_of_run(checkpoint.absolute().parent.parent) if in_run else (checkpoint.stem, "")
        parameters = sum(parameter.numel() for parameter in recognizer.parameters())
        encoder = recognizer.encoder
        sizes: list[int | None] = [None]
        if isinstance(encoder, ChunkedEncoder) and streams(recognizer):
            chunked = True
            sizes = list(chunks or [encoder.chunk])
        for size in sizes:
            look_ahead = None
            if isinstance(encoder, ChunkedEncoder) and size is not None:
                encoder.use_chunk(size)
            if isinstance(encoder, StreamingEncoder) and streams(recognizer):
                look_ahead = encoder.look_ahead * recognizer.features.hop_seconds
            for subset, batches in utterances.items():
                title = f"{name} {seed} {subset} {'' if look_ahead is None else f'{1000 * look_ahead:.0f} ms'}"
                bar = tqdm(batches, title, unit="utterance", disable=not sys.stderr.isatty())
                latency = measure(recognizer, list(bar), words[subset], piece)
                rows.append(Measurement(name, seed, subset, look_ahead, parameters, latency))
    if chunks and not chunked:
        raise InputError(
            "--chunks: expected a network with chunks, as a StreamingConformer has, found none: leave the option out"
        )
    for row in rows:
        if row.latency.untimed == row.latency.utterances:
            raise InputError(
                f"{row.subset}: expected times of the words of its {row.latency.utterances} utterances, found those of "
                "other words: give the --truth and the --lexicon of this corpus"
            )
    return section(rows, piece)


def section(rows: Sequence[Measurement], piece: float) -> Section:
    """Return the table, with notes and the figure: means over the seeds of a run; the CSV has a row for each seed."""
    groups: dict[tuple[str, str, float | None], list[Measurement]] = {}
    for row in rows:
        groups.setdefault((row.subset, row.run, row.look_ahead), []).append(row)
    panels: dict[str, dict[str, list[Point]]] = {}
    for (subset, run, look_ahead), of_seeds in groups.items():
        latencies = [row.latency for row in of_seeds]
        label = WHOLE if look_ahead is None else f"{1000 * look_ahead:.0f} ms"
        means = (
            statistics.fmean(values)
            for values in zip(
                *((latency.delay(50), latency.delay(90), latency.wer) for latency in latencies), strict=True
            )
        )
        panels.setdefault(subset, {}).setdefault(run, []).append(Point(label, *means))
    notes = [
        f"Delay: audio read, in pieces of {1000 * piece:.0f} ms, when the last token of a correct word was written, "
        "less the exact end of the word. Look-ahead: features that an encoder reads until it encodes the first.",
        "At the end: correct words that were written only when the audio had ended, whose delay a longer silence would "
        "not have kept as short.",
        "First token: from the start of the first word. Real-time factor: processor time for a second of audio, in one "
        "thread, one utterance at a time. State: the most that is kept between two pieces.",
    ]
    untimed = {row.subset: row.latency for row in rows if row.latency.untimed}
    notes += [
        f"{subset}: {latency.untimed} of {latency.utterances} utterances have no times that fit their words; their "
        "words count for WER and cost only."
        for subset, latency in untimed.items()
    ]
    figure = {"latency.png": lambda path: plot_latency(panels, path)} if any(row.latency.delays for row in rows) else {}
    if not figure:
        notes.append("No figure: no word is recognized right.")
    table = [["run", "seeds", *HEAD[2:]], *map(_line, groups.values())]
    singles = [HEAD, *([row.run, row.seed, *_line([row])[2:]] for row in rows)]
    return Section("latency", table, notes, rows=singles, files=figure)


def _line(rows: Sequence[Measurement]) -> list[str]:
    """Return the line of a network with one look-ahead: means over its seeds."""
    latencies = [row.latency for row in rows]

    def mean(value: Callable[[Latency], float], form: str) -> str:
        return number(statistics.fmean(map(value, latencies)), form)

    def percentiles(percentile: Callable[[Latency, float], float]) -> list[str]:
        of_seeds = [[1000 * percentile(latency, percent) for latency in latencies] for percent in (50, 90, 95)]
        return [number(statistics.fmean(values), ".0f") for values in of_seeds]

    return [
        rows[0].run,
        str(len(rows)),
        rows[0].subset,
        WHOLE if rows[0].look_ahead is None else f"{1000 * rows[0].look_ahead:.0f}",
        summarize([latency.wer for latency in latencies]),
        *percentiles(Latency.delay),
        mean(lambda latency: len(latency.delays), ",.0f"),
        mean(lambda latency: 100 * latency.at_end / len(latency.delays) if latency.delays else math.nan, ".1f"),
        *percentiles(Latency.first_delay),
        mean(lambda latency: latency.real_time_factor, ".3f"),
        MISSING if rows[0].look_ahead is None else mean(lambda latency: latency.state / 1000, ",.0f"),
        f"{rows[0].parameters:,}",
    ]
