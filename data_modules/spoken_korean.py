"""The embedded Korean corpus: espeak-ng reads sentences of a small grammar, written as KsponSpeech is distributed.

Layout, encodings, lists and annotation are those of `data_modules.ksponspeech`: dual transcriptions, fillers,
repetitions, unclear words and noise marks, PCM without header, evaluation files of an odd number of bytes. Beside them
lie the exact times of phones, `KsponSpeech_0001.phones.ctm` in every folder, as `data_modules.spoken` has them.

Training and evaluation share words, but neither sentences nor voices. `eval_other` is faster, reverberant and noisy.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from data_modules import synthesis
from data_modules.korean_grammar import KoreanLine, plan_korean
from data_modules.ksponspeech import KsponSpeechDataModule

_FORMAT = 1  # raise it when the same parameters come to mean other bytes


class SpokenKoreanDataModule(KsponSpeechDataModule):
    """The embedded Korean corpus: made by espeak-ng when it is not there yet, read as KsponSpeech is.

    Args:
        root: Where the corpus is, or is to be made.
        minutes: Of audio in `train`.
        evaluation_minutes: Of audio in each of `dev`, `eval_clean` and `eval_other`.
        synthesis_seed: Of sentences and voices.
        **corpus: Arguments of `KsponSpeechDataModule`.
    """

    def __init__(
        self,
        root: str = "data/spoken_korean",
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
        synthesize(self.root, self.minutes, self.evaluation_minutes, self.synthesis_seed)
        super().prepare_data()


def synthesize(
    root: Path,
    minutes: float = 50,
    evaluation_minutes: float = 3,
    seed: int = 1,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Make the corpus at `root`, unless it is there already; the same parameters give the same bytes.

    Args:
        root: The folder to be.
        minutes: Of audio in `train`, within a tenth.
        evaluation_minutes: Of audio in each of `dev`, `eval_clean` and `eval_other`.
        seed: Of sentences, order and sound.
        workers: Threads, each with a process of espeak-ng; one per processor by default.
        progress: Draw a progress bar.

    Raises:
        InputError: `root` holds something else, cannot be written, or espeak-ng does not work.
    """

    def write(folder: Path) -> None:
        _write(folder, plan_korean(minutes, evaluation_minutes, seed), workers, progress)

    parameters = dict(format=_FORMAT, minutes=minutes, evaluation_minutes=evaluation_minutes, seed=seed)
    synthesis.make_once(Path(root), parameters, write)


def _write(folder: Path, lines: list[KoreanLine], workers: int | None, progress: bool) -> None:
    lists: dict[str, list[str]] = defaultdict(list)
    times: dict[Path, list[str]] = defaultdict(list)
    for line, spoken in zip(lines, synthesis.speak(lines, workers, progress), strict=True):
        path = folder / line.folder / line.id
        path.parent.mkdir(parents=True, exist_ok=True)
        odd = b"\0" if line.subset.startswith("eval") else b""
        path.with_suffix(".pcm").write_bytes(spoken.audio.astype("<i2").tobytes() + odd)
        path.with_suffix(".txt").write_bytes(line.annotation.encode("cp949"))
        lists[line.subset].append(f"{line.folder}/{line.id}.pcm :: {line.annotation}\n")
        times[path.parent / f"{path.parent.name}.phones.ctm"] += synthesis.ctm_rows(spoken)
    (folder / "scripts").mkdir()
    for subset, rows in lists.items():
        (folder / "scripts" / f"{subset}.trn").write_text("".join(rows), encoding="utf-8")
    for path, rows in times.items():
        path.write_text("".join(rows), "utf-8")
