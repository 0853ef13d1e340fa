"""Sentences, and files of them."""

import random
from pathlib import Path

import numpy as np


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of 3 to 14 words, all different."""
    generator = np.random.default_rng(seed)
    words = [chr(65 + first) + chr(65 + second) for first in range(26) for second in range(26)]
    return [
        f"{' '.join(generator.choice(words, generator.integers(1, 13)))} {words[number % 676]}{words[number // 676]}"
        for number in range(count)
    ]


def write_texts(folder: Path) -> list[str]:
    """Two files below a folder, `a.txt` without a newline at its end; returns the sentences, 90 of them from there."""
    all_sentences = sentences(203)
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.txt").write_text("\n".join(all_sentences[:90]))
    (folder / "deeper" / "b.txt").write_text("\n".join(all_sentences[90:]) + "\n\n")
    return all_sentences


def zipf_text(words: int, sentences: int, seed: int = 0) -> list[list[str]]:
    """Sentences in which a word depends on the one before."""
    generator = random.Random(seed)
    text = []
    for _ in range(sentences):
        sentence, last = [], 0
        while generator.random() < 0.85:
            last = int((last * 7 + generator.paretovariate(0.7)) % words)
            sentence.append(f"W{last}")
        text.append(sentence)
    return text
