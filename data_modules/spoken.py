"""The embedded corpus: espeak-ng reads sentences of a small grammar, written in LibriSpeech's own layout.

```
ROOT/SPEAKERS.TXT
ROOT/corpus.json                                             the parameters; written last
ROOT/lexicon.txt                                             WORD PROBABILITY PHONE PHONE …, as in train-clean-100
ROOT/<subset>/<speaker>/<chapter>/<speaker>-<chapter>-0000.flac    16 kHz, mono, 16 bits
                                  <speaker>-<chapter>.trans.txt    ID THE TEXT IN CAPITALS
                                  <speaker>-<chapter>.phones.ctm   ID 1 START DURATION PHONE
```

Times in a CTM are seconds with seven decimals, which name samples exactly; the segments of an utterance tile it from
0 to its end. PHONE is the mnemonic of espeak-ng without stress marks, `SIL` for pauses. A plosive begins with its
closure. espeak-ng melts the `l` of `old` into the vowel: where no sound of its own is left, there is no segment either.
A word has a line in the lexicon for every way of saying it that makes up a fiftieth of its occurrences, the most usual
first.

Training and evaluation share words, but neither sentences nor speakers. The `other` subsets are faster, reverberant and
noisy.
"""

import io
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import soundfile

from asr_lightning.errors import InputError
from data_modules import synthesis
from data_modules.librispeech import LibriSpeechDataModule
from data_modules.spoken_grammar import SPEAKERS, WORDS, plan_english, transcript
from data_modules.synthesis import SAMPLE_RATE, ScriptLine, Speaker

__all__ = [
    "SAMPLE_RATE",
    "SPEAKERS",
    "WORDS",
    "ScriptLine",
    "Speaker",
    "SpokenDataModule",
    "plan_english",
    "synthesize",
]

RARE = 50  # a way of saying a word that comes less often than once in so many is no pronunciation of it
_FORMAT = 2  # raise it when the same parameters come to mean other bytes


def synthesize(
    root: Path,
    minutes: float = 50,
    evaluation_minutes: float = 3,
    seed: int = 1,
    words_per_class: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Make the corpus at `root`, unless it is there already; the same parameters give the same bytes.

    Args:
        root: The folder to be.
        minutes: Of audio in train-clean-100, within a few percent.
        evaluation_minutes: Of audio in each of dev-clean, dev-other, test-clean and test-other.
        seed: Of sentences, order and sound.
        words_per_class: Only the first words of each class of the grammar are used: 4 make an easier corpus of some
            130 words; all if None.
        workers: Threads, each with a process of espeak-ng; one per processor by default.
        progress: Draw a progress bar.

    Raises:
        InputError: `root` holds something else, cannot be written, a class would have no words, or espeak-ng does not
            work.
    """
    if words_per_class is not None and words_per_class < 1:
        raise InputError(f"words_per_class must be at least 1, or null for all words, got {words_per_class}")

    def write(folder: Path) -> None:
        _write(folder, plan_english(minutes, evaluation_minutes, seed, words_per_class), workers, progress)

    parameters: dict[str, float] = dict(
        format=_FORMAT, minutes=minutes, evaluation_minutes=evaluation_minutes, seed=seed
    )
    if words_per_class is not None:
        parameters["words_per_class"] = words_per_class
    synthesis.make_once(Path(root), parameters, write)


def _write(folder: Path, lines: list[ScriptLine], workers: int | None, progress: bool) -> None:
    transcripts: dict[Path, list[str]] = defaultdict(list)
    times: dict[Path, list[str]] = defaultdict(list)
    samples: dict[int, int] = defaultdict(int)
    pronunciations: dict[str, Counter[str]] = defaultdict(Counter)
    vocabulary: set[str] = set()
    for spoken in synthesis.speak(lines, workers, progress):
        line = spoken.line
        speaker, chapter, _ = line.id.split("-")
        directory = folder / line.subset / speaker / chapter
        directory.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()  # so that a full disk is an OSError of ours, not an error code of libsndfile
        soundfile.write(file, spoken.audio, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        (directory / f"{line.id}.flac").write_bytes(file.getvalue())
        transcripts[directory / f"{speaker}-{chapter}.trans.txt"].append(f"{line.id} {transcript(line.sentence)}\n")
        times[directory / f"{speaker}-{chapter}.phones.ctm"] += synthesis.ctm_rows(spoken)
        samples[line.speaker.id] += len(spoken.audio)
        words = transcript(line.sentence).split()
        vocabulary.update(words)
        if line.subset.startswith("train") and len(words) == len(spoken.words):
            for word, phones in zip(words, spoken.words, strict=True):
                pronunciations[word][" ".join(phones)] += 1
    for path, rows in [*transcripts.items(), *times.items()]:
        path.write_text("".join(rows), "utf-8")
    (folder / "SPEAKERS.TXT").write_text(_speaker_table(samples), "utf-8")
    for spoken in synthesis.speak(
        list(_single_word_lines(vocabulary - pronunciations.keys())), workers, progress=False
    ):
        pronunciations[transcript(spoken.line.sentence)][" ".join(sum(spoken.words, []))] += 1
    (folder / "lexicon.txt").write_text("".join(_lexicon(pronunciations)), "utf-8")


def _single_word_lines(words: set[str]) -> Iterator[ScriptLine]:
    """Yield lines of one word each, said by some voices: words that were always joined to others, as `there were`."""
    for word in sorted(words):
        for speaker in SPEAKERS["train-clean-100"][::10]:
            yield ScriptLine(
                f"{speaker.id}-{word}", "train-clean-100", speaker, word.lower(), seed=zlib.crc32(word.encode())
            )


def _lexicon(pronunciations: dict[str, Counter[str]]) -> Iterator[str]:
    for word, counts in sorted(pronunciations.items()):
        for phones, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            if RARE * count >= counts.total():
                yield f"{word}\t{count / max(counts.values()):.2f}\t{phones}\n"


def _speaker_table(samples: dict[int, int]) -> str:
    rows = ["; Voices of espeak-ng, in the format of LibriSpeech\n", ";ID  |SEX| SUBSET           |MINUTES| NAME\n"]
    for subset, speakers in SPEAKERS.items():
        for speaker in speakers:
            minutes = samples.get(speaker.id, 0) / SAMPLE_RATE / 60
            rows.append(f"{speaker.id:<4} | {speaker.sex} | {subset:<16} | {minutes:5.2f} | {speaker.voice}\n")
    return "".join(rows)


class SpokenDataModule(LibriSpeechDataModule):
    """The embedded corpus: made by espeak-ng when it is not there yet, read as LibriSpeech is.

    Args:
        root: Where the corpus is, or is to be made.
        minutes: Of audio in train-clean-100.
        evaluation_minutes: Of audio in each of dev-clean, dev-other, test-clean and test-other.
        synthesis_seed: Of sentences and voices.
        words_per_class: Only the first words of each class of the grammar are used: 4 make an easier corpus of some
            130 words; all if None.
        **corpus: Arguments of `CorpusDataModule`.
    """

    def __init__(
        self,
        root: str = "data/spoken",
        minutes: float = 50.0,
        evaluation_minutes: float = 3.0,
        synthesis_seed: int = 1,
        words_per_class: int | None = None,
        **corpus: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(root=root, **corpus)
        self.minutes = minutes
        self.evaluation_minutes = evaluation_minutes
        self.synthesis_seed = synthesis_seed
        self.words_per_class = words_per_class

    def prepare_data(self) -> None:
        """Make the corpus once, then its manifests."""
        synthesize(Path(self.root), self.minutes, self.evaluation_minutes, self.synthesis_seed, self.words_per_class)
        super().prepare_data()
