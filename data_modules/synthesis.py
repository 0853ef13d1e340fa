"""Speech of espeak-ng for the embedded corpora: rooms and noise, exact phone times, the same bytes every time."""

import json
import os
import queue
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torchaudio
from tqdm import tqdm

from asr_lightning.errors import InputError
from asr_lightning.files import locked, remove
from data_modules import espeak
from data_modules.workers import threads

SAMPLE_RATE = 16_000  # Hz
_PLOSIVES = ("p", "b", "t", "d", "k", "g", "tS", "dZ")  # beginnings of mnemonics; espeak has t2, d#, ...
_QUIET = 300  # of 32,768: espeak's pauses, with the faint echo that espeak.py asks for


@dataclass(frozen=True)
class Speaker:
    """A voice.

    Attributes:
        id: A number.
        sex: F or M.
        voice: Language and variant of espeak-ng.
        pitch: 0 to 99, 50 is the voice's own.
        rate: Words per minute.
    """

    id: int
    sex: str
    voice: str
    pitch: int
    rate: int


@dataclass(frozen=True)
class ScriptLine:
    """An utterance to speak: its name, part of the corpus, voice, sentence, and a seed of its own.

    Those of subsets whose name ends in `other` are spoken in noisy rooms.
    """

    id: str
    subset: str
    speaker: Speaker
    sentence: str
    seed: int


@dataclass(frozen=True)
class SpokenLine:
    """A line that was spoken.

    Attributes:
        line: What was asked for.
        audio: (S,) int16 at 16 kHz.
        segments: Start sample and phone, the first at 0, each until the next one starts.
        words: The phones of each; espeak-ng takes some words together.
    """

    line: ScriptLine
    audio: np.ndarray
    segments: list[tuple[int, str]]
    words: list[list[str]]


def make_once(root: Path, parameters: Mapping[str, float], write: Callable[[Path], None]) -> None:
    """Make a corpus at `root`, unless it is there already.

    It is made beside `root` and renamed when complete, so that a killed run leaves nothing at `root`; a second process
    waits for the first.

    Args:
        root: The folder to be.
        parameters: What it is made from, `minutes` and `evaluation_minutes` among them; kept in its `corpus.json`.
        write: Writes the corpus into an empty folder.

    Raises:
        InputError: `root` holds something else, or cannot be written, or some minutes are not positive.
    """
    minutes, evaluation_minutes = parameters["minutes"], parameters["evaluation_minutes"]
    if min(minutes, evaluation_minutes) <= 0:
        raise InputError(f"minutes must be positive, got {minutes} for training and {evaluation_minutes} elsewhere")
    root = root.absolute()
    if _is_made(root, parameters):
        return
    try:
        with locked(root):
            if _is_made(root, parameters):  # by the process that held the lock
                return
            partial = root.with_name(f".{root.name}.partial")
            remove(partial)  # of a run that was killed: we hold the lock
            partial.mkdir()
            try:
                write(partial)
                (partial / "corpus.json").write_text(json.dumps(parameters, indent=2) + "\n", "utf-8")
                partial.rename(root)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"the embedded corpus cannot be written to {root}: {error}. "
            f"An hour of it takes about 60 MB as FLAC, 115 MB as PCM; free some space, or give another folder."
        ) from error


def _is_made(root: Path, parameters: Mapping[str, float]) -> bool:
    """Whether the corpus is there; an empty folder counts as absent, anything else is an error."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    marker = root / "corpus.json"
    try:
        existing = json.loads(marker.read_text("utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"{root} exists but is no embedded corpus (no readable {marker.name} in it): give a folder that does not "
            "exist yet, or move this one away"
        ) from None
    if existing != parameters:
        raise InputError(
            f"{root} holds an embedded corpus made with {existing}, but {parameters} was asked for: "
            "give another folder, or delete this one"
        )
    return True


def speak(lines: Sequence[ScriptLine], workers: int | None = None, progress: bool = True) -> Iterator[SpokenLine]:
    """Speak lines, in their order; each depends on nothing but itself, whatever the workers.

    Args:
        lines: To be spoken.
        workers: Threads, each with a process of espeak-ng; one per processor by default.
        progress: Draw a progress bar.

    Raises:
        InputError: espeak-ng does not work.
    """
    idle: queue.SimpleQueue[espeak.Espeak] = queue.SimpleQueue()
    count = workers or os.cpu_count() or 1

    def take_turns(line: ScriptLine) -> SpokenLine:
        voice = idle.get()
        try:
            return _speak(voice, line)
        finally:
            idle.put(voice)

    with ExitStack() as stack:
        for _ in range(count):
            idle.put(stack.enter_context(espeak.Espeak()))
        results = stack.enter_context(threads(count)).map(take_turns, lines)
        yield from tqdm(results, "embedded corpus", len(lines), unit="utterance", disable=not progress)


def ctm_rows(spoken: SpokenLine) -> Iterable[str]:
    """Write the segments as lines of a CTM: ID 1 START DURATION PHONE, in seconds."""
    ends = [start for start, _ in spoken.segments[1:]] + [len(spoken.audio)]
    return [
        f"{spoken.line.id} 1 {start / SAMPLE_RATE:.7f} {(end - start) / SAMPLE_RATE:.7f} {phone}\n"
        for (start, phone), end in zip(spoken.segments, ends, strict=True)
    ]


def _speak(voice: espeak.Espeak, line: ScriptLine) -> SpokenLine:
    """Return an utterance with its pauses, room and noise, and with its segments."""
    random = np.random.default_rng(line.seed)
    speech = voice.speak(
        line.sentence,
        voice=line.speaker.voice,
        rate=line.speaker.rate + int(random.integers(-8, 9)),
        pitch=line.speaker.pitch + int(random.integers(-4, 5)),
        pitch_range=int(random.integers(40, 61)),
        seed=line.seed % 2**31,
    )
    samples, segments = _trim(speech)
    words: dict[int, list[str]] = defaultdict(list)
    for _, phone, word in segments:
        if phone != "SIL":
            words[word].append(phone)
    leading, trailing = random.integers(SAMPLE_RATE // 10, 3 * SAMPLE_RATE // 10, size=2)  # 0.1 to 0.3 s of silence
    resampled = _resampler()(torch.from_numpy(samples / 32768)).numpy()
    audio = np.pad(resampled, (leading, trailing))
    ratio = SAMPLE_RATE / espeak.SAMPLE_RATE
    moved = [(int(leading) + round(start * ratio), phone) for start, phone, _ in segments]
    audio = (
        _degrade(audio, random) if line.subset.endswith("other") else _add_noise(audio, random.uniform(40, 50), random)
    )
    level = 10 ** (random.uniform(-27, -21) / 20)  # root mean square, in dB of full scale
    audio = audio * min(level / np.sqrt(np.mean(audio**2)), 0.98 / np.abs(audio).max())
    merged = _merge([(0, "SIL"), *moved, (int(leading) + len(resampled), "SIL")])
    return SpokenLine(line, np.round(audio * 32767).astype(np.int16), merged, list(words.values()))


def _trim(speech: espeak.Speech) -> tuple[np.ndarray, list[tuple[int, str, int]]]:
    """Cut the pauses at both ends, take out every `l` without sound, and give plosives their closures."""
    quiet = np.abs(speech.samples.astype(int)) <= _QUIET
    segments: list[tuple[int, str, int]] = []
    for start, mnemonic, word in speech.marks:
        phone = mnemonic.strip("',%=")
        phone = "SIL" if phone.startswith("_") or not phone else phone
        if segments and segments[-1][1] == "l" and quiet[segments[-1][0] : start].all():
            silence, *_ = segments.pop()
            start = silence if phone == "SIL" else start
        if phone.startswith(_PLOSIVES) and segments and segments[-1][1] != "SIL":
            # espeak-ng marks the burst, and would count the closure before it as the phone before
            loud = np.flatnonzero(~quiet[segments[-1][0] : start])
            start = segments[-1][0] + int(loud[-1]) + 1 if len(loud) else start
        segments.append((start, phone, word))
    while segments[-1][1] == "SIL":
        end, *_ = segments.pop()
    begin = segments[0][0]
    return speech.samples[begin:end], [(start - begin, phone, word) for start, phone, word in segments]


def _merge(segments: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Join neighbouring pauses, and drop what has no duration."""
    merged: list[tuple[int, str]] = []
    for start, phone in segments:
        if merged and merged[-1][0] == start:
            merged.pop()
        if not (phone == "SIL" and merged and merged[-1][1] == "SIL"):
            merged.append((start, phone))
    return merged


@cache
def _resampler() -> torchaudio.transforms.Resample:
    # Double precision: the sums of single precision depend on the number of threads, and then so would the bytes.
    return torchaudio.transforms.Resample(
        espeak.SAMPLE_RATE, SAMPLE_RATE, lowpass_filter_width=32, rolloff=0.96, dtype=torch.float64
    )


def _degrade(audio: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A room and its noise: (S,) to (S,). The direct path comes first, so phone times stay exact."""
    decay = random.uniform(0.15, 0.4)  # seconds to -60 dB
    time = np.arange(int(decay * SAMPLE_RATE)) / SAMPLE_RATE
    tail = random.standard_normal(len(time)) * 10 ** (-3 * time / decay)
    tail *= 10 ** (-random.uniform(3, 10) / 20) / np.sqrt(np.sum(tail**2))  # direct to reverberant, 3 to 10 dB
    tail[: SAMPLE_RATE // 500] = 0  # the first reflection comes after 2 ms
    tail[0] = 1
    size = len(audio) + len(tail)
    wet = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(tail, size), size)[: len(audio)]
    return _add_noise(wet, random.uniform(8, 18), random)


def _add_noise(audio: np.ndarray, ratio: float, random: np.random.Generator) -> np.ndarray:
    """Noise with a spectrum between white and pink to brown, `ratio` decibels below the utterance: (S,) to (S,)."""
    spectrum = np.fft.rfft(random.standard_normal(len(audio)))
    frequencies = np.maximum(np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE), 50)
    noise = np.fft.irfft(spectrum * frequencies ** -random.uniform(0, 1), len(audio))
    return audio + noise * np.sqrt(np.mean(audio**2) / np.mean(noise**2)) * 10 ** (-ratio / 20)
