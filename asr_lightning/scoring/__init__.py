"""What a recognition result is worth."""

from typing import Literal, get_args

Metric = Literal["wer", "cer", "ser", "swer", "unspaced_cer"]  # error rates: of words, characters, sentences
RATES: tuple[Metric, ...] = get_args(Metric)
COUNTS = ("utterances", "words")  # that the rates are of
