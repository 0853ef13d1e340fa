"""Error rates, word edits and significance of recognition results."""

from typing import Literal, get_args

Metric = Literal["wer", "cer", "ser", "swer", "unspaced_cer"]  # error rates: of words, characters, sentences
RATES: tuple[Metric, ...] = get_args(Metric)
COUNTS = ("utterances", "words")  # that the rates are of
