"""What language models change in a search: word errors and time beside the same search without them, one network.

    python benchmarks/fusion.py runs/demo/rnnt_export/seed1/checkpoints/last.ckpt \
        --searches searches.yaml --root data/spoken_small --subsets test-clean test-other

`searches.yaml` has a class path with arguments for each search by its name; the first is the one without. They take
turns at the encoded utterances of every batch of a test. The encoder is not timed, and seconds are those of the
processor, so that other work on the machine changes them little; their sum is compared with the first's, and in
brackets least and most of the batches. A search whose weights are 0 must find the same hypotheses with the same scores:
`equal` counts the utterances where that is so. The interval of the difference of word error rates is a bootstrap over
utterances, or over speakers where there are at least five.
"""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timing import provenance
from torch import Tensor

from asr_lightning.batch import Batch
from asr_lightning.decoding.hypothesis import Hypothesis
from asr_lightning.files import read_yaml
from asr_lightning.models.checkpoints import load_recognizer
from asr_lightning.models.instantiation import instantiate
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.scoring.significance import bootstrap
from asr_lightning.scoring.word_edits import find_word_edits
from data_modules.librispeech import LibriSpeechDataModule

Encoded = tuple[Batch, Tensor, Tensor]
HEAD = (
    "| subset | search | WER, % | difference (95 %) | equal | processor seconds | beside the first |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
)


@torch.no_grad()
def encode(recognizer: Recognizer, root: Path, subset: str, batch_seconds: float) -> list[Encoded]:
    """Return the batches of a subset, each with its encoded utterances (B, T, D) and their frames (B,)."""
    data = LibriSpeechDataModule(
        str(root), train_subsets=[], validation_subsets=[], test_subsets=[subset], workers=0,
        evaluation_batch_seconds=batch_seconds,
    )  # fmt: skip
    data.prepare_data()
    data.setup("test")
    return [(batch, *recognizer(batch.audio, batch.audio_lengths)) for batch in data.test_dataloader()[subset]]


@dataclass
class Outcome:
    """What a search has found in a subset, and processor seconds of each turn at each batch."""

    hypotheses: list[list[Hypothesis]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def search_in_turns(
    recognizer: Recognizer, searches: dict[str, Any], encoded: list[Encoded], turns: int
) -> dict[str, Outcome]:
    """Let the searches take turns at every batch, each time in another order."""
    names = list(searches)
    outcomes = {name: Outcome() for name in names}
    for count, (_, frames, lengths) in enumerate(encoded):
        for turn in range(turns):
            shift = (count + turn) % len(names)
            for name in names[shift:] + names[:shift]:
                recognizer.search = searches[name]
                start = time.process_time()
                hypotheses = recognizer.decode(frames, lengths)
                outcomes[name].seconds.append(time.process_time() - start)
                outcomes[name].hypotheses += [] if turn else hypotheses
    return outcomes


def compare(recognizer: Recognizer, searches: dict[str, Any], subset: str, encoded: list[Encoded], turns: int) -> None:
    """Print a row for each search of a subset."""
    texts = [text for batch, _, _ in encoded for text in batch.texts]
    speakers = [speaker for batch, _, _ in encoded for speaker in batch.speakers]
    words = [len(text.split()) for text in texts]
    outcomes = search_in_turns(recognizer, searches, encoded, turns)
    first = next(iter(searches))
    errors = {
        name: [
            find_word_edits(text, recognizer.tokenizer.decode(hypotheses[0].tokens)).errors
            for text, hypotheses in zip(texts, outcome.hypotheses, strict=True)
        ]
        for name, outcome in outcomes.items()
    }
    for name, outcome in outcomes.items():
        differences = [now - before for now, before in zip(errors[name], errors[first], strict=True)]
        interval = bootstrap(differences, words, speakers)
        equal = sum(
            [(hypothesis.tokens, hypothesis.score) for hypothesis in candidates]
            == [(hypothesis.tokens, hypothesis.score) for hypothesis in others]
            for candidates, others in zip(outcome.hypotheses, outcomes[first].hypotheses, strict=True)
        )
        ratios = [now / before for now, before in zip(outcome.seconds, outcomes[first].seconds, strict=True)]
        change, ratio = "–", "–"
        if name != first and interval.low is not None and interval.high is not None:
            change = f"{100 * interval.difference:+.2f} ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"
            total = sum(outcome.seconds) / sum(outcomes[first].seconds)
            ratio = f"{total:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"| {subset} | {name} | {100 * sum(errors[name]) / sum(words):.2f} | {change} | {equal} of {len(texts)} | "
            f"{sum(outcome.seconds) / turns:.2f} | {ratio} |",
            flush=True,
        )


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="of a recognizer")
    parser.add_argument(
        "--searches", type=Path, required=True, help="YAML of searches by name, the first without models"
    )
    parser.add_argument("--root", type=Path, required=True, help="of a corpus in LibriSpeech's layout")
    parser.add_argument("--subsets", nargs="+", required=True)
    parser.add_argument("--batch-seconds", type=float, default=100.0)
    parser.add_argument("--turns", type=int, default=1, help="of each search at each batch (default: 1)")
    return parser


def main() -> None:
    """Print the table."""
    options = make_parser().parse_args()
    torch.set_num_threads(1)
    recognizer = load_recognizer(options.checkpoint).eval()
    kind = type(recognizer.search)
    searches = {
        name: instantiate(value, kind, f"a {kind.__name__}")[0]
        for name, value in read_yaml(options.searches, "the searches").items()
    }
    print(HEAD)
    for subset in options.subsets:
        encoded = encode(recognizer, options.root, subset, options.batch_seconds)
        compare(recognizer, searches, subset, encoded, options.turns)
    print(f"\n{provenance()}")


if __name__ == "__main__":
    main()
