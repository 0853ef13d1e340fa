"""The embedded corpus: espeak-ng reads sentences of a small grammar, written in LibriSpeech's own layout.

```
ROOT/SPEAKERS.TXT
ROOT/corpus.json                                             the parameters; written last
ROOT/<subset>/<speaker>/<chapter>/<speaker>-<chapter>-0000.flac    16 kHz, mono, 16 bits
                                  <speaker>-<chapter>.trans.txt    ID THE TEXT IN CAPITALS
                                  <speaker>-<chapter>.phones.ctm   ID 1 START DURATION PHONE
```

Times in a CTM are seconds with seven decimals, which name samples exactly; the segments of an utterance tile it from
0 to its end. PHONE is the mnemonic of espeak-ng without stress marks, `SIL` for pauses. A plosive begins with its
closure. espeak-ng melts the `l` of `old` into the vowel: where no sound of its own is left, there is no segment either.

Training and evaluation share words, but neither sentences nor speakers. The `other` subsets are faster, reverberant and
noisy.
"""

import fcntl
import io
import json
import os
import queue
import shutil
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
from tqdm import tqdm

from asr_lightning.errors import InputError
from data_modules import espeak
from data_modules.librispeech import LibriSpeechDataModule
from data_modules.spoken_grammar import SPEAKERS, WORDS, Line, Speaker, plan, transcript

__all__ = ["SAMPLE_RATE", "SPEAKERS", "WORDS", "Line", "Speaker", "SpokenDataModule", "plan", "synthesize"]

SAMPLE_RATE = 16_000  # Hz
_FORMAT = 1  # raise it when the same parameters come to mean other bytes
_PLOSIVES = ("p", "b", "t", "d", "k", "g", "tS", "dZ")  # beginnings of mnemonics; espeak has t2, d#, ...
_QUIET = 300  # of 32,768: espeak's pauses, with the faint echo that espeak.py asks for


def synthesize(
    root: Path,
    minutes: float = 50,
    evaluation_minutes: float = 3,
    seed: int = 1,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Make the corpus at `root`, unless it is there already.

    It is made beside `root` and renamed when complete, so that a killed run leaves nothing at `root`; a second process
    waits for the first. The same parameters give the same bytes, whatever the workers.

    Args:
        root: The folder to be.
        minutes: Of audio in train-clean-100, within a few percent.
        evaluation_minutes: Of audio in each of dev-clean, dev-other, test-clean and test-other.
        seed: Of sentences, order and sound.
        workers: Threads, each with a process of espeak-ng; one per processor by default.
        progress: Draw a progress bar.

    Raises:
        InputError: `root` holds something else, cannot be written, or espeak-ng does not work.
    """
    if min(minutes, evaluation_minutes) <= 0:
        raise InputError(f"minutes must be positive, got {minutes} for training and {evaluation_minutes} elsewhere")
    root = Path(root).absolute()
    parameters = dict(format=_FORMAT, minutes=minutes, evaluation_minutes=evaluation_minutes, seed=seed)
    if _is_made(root, parameters):
        return
    try:
        with _lock(root):
            if _is_made(root, parameters):  # by the process that held the lock
                return
            partial = root.with_name(f".{root.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed: we hold the lock
            try:
                _write(partial, plan(minutes, evaluation_minutes, seed), workers or os.cpu_count() or 1, progress)
                (partial / "corpus.json").write_text(json.dumps(parameters, indent=2) + "\n")
                partial.rename(root)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"the embedded corpus cannot be written to {root}: {error}. "
            f"Full size takes about 75 MB; free some space, or give another folder."
        ) from error


def _is_made(root: Path, parameters: dict) -> bool:
    """Whether the corpus is there; an empty folder counts as absent, anything else is an error."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    marker = root / "corpus.json"
    try:
        found = json.loads(marker.read_text())
    except (OSError, ValueError):
        raise InputError(
            f"{root} exists but is no embedded corpus (no readable {marker.name} in it): give a folder that does not "
            "exist yet, or move this one away"
        ) from None
    if found != parameters:
        raise InputError(
            f"{root} holds an embedded corpus made with {found}, but {parameters} was asked for: "
            "give another folder, or delete this one"
        )
    return True


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Hold `.NAME.lock` beside the root; the system drops the lock when its process dies. The empty file stays."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with open(root.with_name(f".{root.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(folder: Path, lines: list[Line], workers: int, progress: bool) -> None:
    for line in lines:
        (folder / line.folder).mkdir(parents=True, exist_ok=True)
    idle: queue.SimpleQueue[espeak.Espeak] = queue.SimpleQueue()

    def speak(line: Line) -> tuple[int, list[tuple[int, str]]]:
        voice = idle.get()
        try:
            audio, segments = _speak(voice, line)
        finally:
            idle.put(voice)
        file = io.BytesIO()  # so that a full disk is an OSError of ours, not an error code of libsndfile
        soundfile.write(file, audio, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        (folder / line.folder / f"{line.id}.flac").write_bytes(file.getvalue())
        return len(audio), segments

    transcripts: dict[str, list[str]] = defaultdict(list)
    times: dict[str, list[str]] = defaultdict(list)
    samples: dict[int, int] = defaultdict(int)
    with ExitStack() as stack:
        for _ in range(workers):
            idle.put(stack.enter_context(espeak.Espeak()))
        results = stack.enter_context(ThreadPoolExecutor(workers)).map(speak, lines)
        bar = tqdm(results, "embedded corpus", len(lines), unit="utterance", disable=not progress)
        for line, (length, segments) in zip(lines, bar, strict=True):
            chapter = folder / line.folder / "-".join(line.id.split("-")[:2])
            transcripts[f"{chapter}.trans.txt"].append(f"{line.id} {transcript(line.sentence)}\n")
            times[f"{chapter}.phones.ctm"] += _ctm(line.id, length, segments)
            samples[line.speaker.id] += length
    for path, rows in [*transcripts.items(), *times.items()]:
        Path(path).write_text("".join(rows))
    (folder / "SPEAKERS.TXT").write_text(_speaker_table(samples))


def _ctm(name: str, length: int, segments: list[tuple[int, str]]) -> list[str]:
    ends = [start for start, _ in segments[1:]] + [length]
    return [
        f"{name} 1 {start / SAMPLE_RATE:.7f} {(end - start) / SAMPLE_RATE:.7f} {phone}\n"
        for (start, phone), end in zip(segments, ends, strict=True)
    ]


def _speaker_table(samples: dict[int, int]) -> str:
    rows = ["; Voices of espeak-ng, in the format of LibriSpeech\n", ";ID  |SEX| SUBSET           |MINUTES| NAME\n"]
    for subset, speakers in SPEAKERS.items():
        for speaker in speakers:
            minutes = samples.get(speaker.id, 0) / SAMPLE_RATE / 60
            rows.append(f"{speaker.id:<4} | {speaker.sex} | {subset:<16} | {minutes:5.2f} | {speaker.voice}\n")
    return "".join(rows)


def _speak(voice: espeak.Espeak, line: Line) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """One finished utterance.

    Returns:
        (S,) int16 at 16 kHz, and the start sample and name of its segments, the first at 0.
    """
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
    before, after = random.integers(SAMPLE_RATE // 10, 3 * SAMPLE_RATE // 10, size=2)  # 0.1 to 0.3 s of silence
    resampled = _resampler()(torch.from_numpy(samples / 32768)).numpy()
    audio = np.pad(resampled, (before, after))
    ratio = SAMPLE_RATE / espeak.SAMPLE_RATE
    moved = [(int(before) + round(start * ratio), phone) for start, phone in segments]
    audio = (
        _degrade(audio, random) if line.subset.endswith("other") else _add_noise(audio, random.uniform(40, 50), random)
    )
    level = 10 ** (random.uniform(-27, -21) / 20)  # root mean square, in dB of full scale
    audio = audio * min(level / np.sqrt(np.mean(audio**2)), 0.98 / np.abs(audio).max())
    return np.round(audio * 32767).astype(np.int16), _merge([(0, "SIL"), *moved, (int(before) + len(resampled), "SIL")])


def _trim(speech: espeak.Speech) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Cut the pauses at both ends, take out every `l` without sound, and give plosives their closures."""
    quiet = np.abs(speech.samples.astype(int)) <= _QUIET
    segments: list[tuple[int, str]] = []
    for start, mnemonic in speech.marks:
        phone = mnemonic.strip("',%=")
        phone = "SIL" if phone.startswith("_") or not phone else phone
        if segments and segments[-1][1] == "l" and quiet[segments[-1][0] : start].all():
            silence, _ = segments.pop()
            start = silence if phone == "SIL" else start
        if phone.startswith(_PLOSIVES) and segments and segments[-1][1] != "SIL":
            # espeak-ng marks the burst, and would count the closure before it as the phone before
            loud = np.flatnonzero(~quiet[segments[-1][0] : start])
            start = segments[-1][0] + int(loud[-1]) + 1 if len(loud) else start
        segments.append((start, phone))
    while segments[-1][1] == "SIL":
        end, _ = segments.pop()
    first = segments[0][0]
    return speech.samples[first:end], [(start - first, phone) for start, phone in segments]


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


class SpokenDataModule(LibriSpeechDataModule):
    """The embedded corpus: made by espeak-ng when it is not there yet, read as LibriSpeech is.

    Args:
        root: Where the corpus is, or is to be made.
        minutes: Of audio in train-clean-100.
        evaluation_minutes: Of audio in each of dev-clean, dev-other, test-clean and test-other.
        synthesis_seed: Of sentences and voices.
        **corpus: Arguments of `CorpusDataModule`.
    """

    def __init__(
        self,
        root: str = "data/spoken",
        minutes: float = 50.0,
        evaluation_minutes: float = 3.0,
        synthesis_seed: int = 1,
        **corpus: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(root=root, **corpus)
        self.minutes = minutes
        self.evaluation_minutes = evaluation_minutes
        self.synthesis_seed = synthesis_seed

    def prepare_data(self) -> None:
        """Make the corpus once, then its manifests."""
        synthesize(Path(self.root), self.minutes, self.evaluation_minutes, self.synthesis_seed)
        super().prepare_data()
