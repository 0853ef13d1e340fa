"""Sentences of the page: transcripts of two runs with their word edits, as many as the page has room for."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from asr_lightning.report.run_folders import Run
from asr_lightning.report.run_pairs import PairComparison, read_transcripts
from asr_lightning.scoring.word_edits import find_word_edits

SENTENCE_BYTES = 3_000_000  # of the page

Data = dict[str, Any]


def gather_sentences(runs: Mapping[str, Sequence[Run]], pairs: Sequence[PairComparison]) -> list[Data]:
    """Return the sentences of each comparison; those with the largest differences if there is no room for all.

    The texts are those of the first seed of each run.

    Args:
        runs: The seeds of each experiment, by its name.
        pairs: Comparisons whose transcripts have the same utterances in the same order.
    """
    return [_sentences(runs, pair, SENTENCE_BYTES // len(pairs)) for pair in pairs]


def _sentences(runs: Mapping[str, Sequence[Run]], pair: PairComparison, room: int) -> Data:
    first_run, first_baseline = (
        next(run for run in runs[name] if run.seed == seeds[0])
        for name, seeds in ((pair.run, pair.seeds), (pair.baseline, pair.baseline_seeds))
    )
    transcripts = zip(
        read_transcripts(first_run.transcripts(pair.subset)),
        read_transcripts(first_baseline.transcripts(pair.subset)),
        strict=True,
    )
    rows = [
        [
            utterance.id,
            utterance.speaker,
            run.reference,
            _edits(run.reference, baseline.hypothesis),
            _edits(run.reference, run.hypothesis),
            round(utterance.baseline_errors, 2),
            round(utterance.errors, 2),
        ]
        for utterance, (run, baseline) in zip(pair.utterances, transcripts, strict=True)
    ]
    chosen: list[int] = []
    remaining = room
    for index in sorted(range(len(rows)), key=lambda index: -abs(pair.utterances[index].difference)):
        size = len(json.dumps(rows[index], ensure_ascii=False).encode())
        if size > remaining and chosen:
            break
        chosen.append(index)
        remaining -= size
    note = "" if len(chosen) == len(rows) else (
        f"This page holds {len(chosen):,} of {len(rows):,} sentences: those whose numbers of errors differ most."
    )  # fmt: skip
    seeds = len(pair.seeds) > 1 or len(pair.baseline_seeds) > 1
    return {
        "run": pair.run,
        "baseline": pair.baseline,
        "subset": pair.subset,
        "seeds": [pair.baseline_seeds[0], pair.seeds[0]] if seeds else None,
        "note": note,
        "sentences": [rows[index] for index in sorted(chosen)],
    }


def _edits(reference: str, hypothesis: str) -> list[Any]:
    """Return `[[word index, recognized word or None], …]` and `[[word index, inserted words], …]`."""
    edits = find_word_edits(reference, hypothesis)
    pairs = zip(edits.reference, edits.recognized, strict=True)
    replaced = [[index, recognized] for index, (word, recognized) in enumerate(pairs) if word != recognized]
    inserted = [[index, " ".join(words)] for index, words in enumerate(edits.insertions) if words]
    return [replaced, inserted]
