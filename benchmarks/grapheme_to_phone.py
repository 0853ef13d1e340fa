"""Error rates of pronunciations of held-out words of CMUdict, over the size of graphones and the order of n-grams.

    python benchmarks/grapheme_to_phone.py [--orders 3 4 5 6] [--sizes 2x2 2x1 1x1] [--words 125000] [--seed 1]

2,000 words, drawn with the seed, are held out with all their pronunciations; of these the nearest counts. Rates are
those of stressed phones (AH0) and of phones without stress (AH), as is usual in papers. Seconds are those of the CPU.
"""

import argparse
import random
import re
import time
from collections.abc import Mapping

import jiwer

from asr_lightning.text.graphemes_to_phones import JointSequenceModel
from asr_lightning.text.lexicon import Lexicon, Phones, cmudict

HELD_OUT = 2_000
STRESS = re.compile("[012]")


def error_rates(references: Mapping[str, tuple[Phones, ...]], hypotheses: Mapping[str, Phones]) -> tuple[float, float]:
    """Return the phone and the word error rate in percent."""
    errors = total = wrong = 0
    for word, phones in hypotheses.items():
        results = [jiwer.process_words(" ".join(reference), " ".join(phones)) for reference in references[word]]
        distances = [
            (
                result.substitutions + result.deletions + result.insertions,
                result.hits + result.substitutions + result.deletions,
            )
            for result in results
        ]
        distance, length = min(distances)
        errors, total, wrong = errors + distance, total + length, wrong + (distance > 0)
    return 100 * errors / total, 100 * wrong / len(hypotheses)


def without_stress(phones: Phones) -> Phones:
    """Take the stress from phones."""
    return tuple(STRESS.sub("", phone) for phone in phones)


def main() -> None:
    """Print a line for every size and order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, nargs="+", default=[3, 4, 5, 6])
    parser.add_argument("--sizes", nargs="+", default=["2x2", "2x1", "1x1"], help="letters and phones of a graphone")
    parser.add_argument("--words", type=int, default=125_000, help="trained on, at most")
    parser.add_argument("--beam", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    pronunciations = cmudict().pronunciations
    words = sorted(pronunciations)
    random.Random(options.seed).shuffle(words)
    references = {word: pronunciations[word] for word in words[:HELD_OUT]}
    plain = {word: tuple(map(without_stress, variants)) for word, variants in references.items()}
    lexicon = Lexicon({word: pronunciations[word] for word in words[HELD_OUT:][: options.words]})
    print(
        f"seed {options.seed}, {len(lexicon):,} words to train with, {len(references):,} held out, beam {options.beam}"
    )
    print("| size | order | PER % | WER % | without stress: PER % | WER % | training s | words/s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for size in options.sizes:
        letters, phones = map(int, size.split("x"))
        for order in options.orders:
            start = time.process_time()
            model = JointSequenceModel.train(lexicon, order, letters, phones, beam=options.beam)
            trained = time.process_time()
            hypotheses = {word: model(word)[0] for word in references}
            end = time.process_time()
            stressed = error_rates(references, hypotheses)
            bare = error_rates(
                plain, {word: without_stress(pronunciation) for word, pronunciation in hypotheses.items()}
            )
            rates = " | ".join(f"{rate:.2f}" for rate in (*stressed, *bare))
            print(
                f"| {size} | {order} | {rates} | {trained - start:.1f} | {len(hypotheses) / (end - trained):.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
