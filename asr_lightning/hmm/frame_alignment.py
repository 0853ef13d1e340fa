"""Frame alignments: transition ids per frame, and the phones and words in time that follow from them."""

from collections.abc import Sequence

import kaldi_hmm_gmm as kaldi
import kaldifst
import numpy as np

from asr_lightning.hmm.model import HiddenMarkovModel
from asr_lightning.text.lexicon import Lexicon
from asr_lightning.text.phones import SILENCE, Segment

Run = tuple[float, float, str]  # first frame, frame after the last, phone; or seconds instead of frames
Runs = list[tuple[int, int, str]]


def align_frames(
    decodable: kaldi.DecodableInterface, graph: kaldifst.StdVectorFst, beam: float = 10.0, retry_beam: float = 40.0
) -> list[int]:
    """Return the most probable transition ids, one a frame; an empty list if no path survives the beams.

    Args:
        decodable: The log likelihoods of an utterance's frames.
        graph: From transition ids to word ids, of its transcript.
        beam: Of log probabilities, below the best at each frame.
        retry_beam: The same, of a second attempt; the wider one.
    """
    config = kaldi.AlignConfig(beam, retry_beam, False)
    *_, alignment, _ = kaldi.align_utterance_wrapper(config, "", 1.0, graph, decodable, 0, 0, 0, 0.0, 0)
    return list(alignment)


def phone_runs(model: HiddenMarkovModel, alignment: Sequence[int] | np.ndarray) -> Runs:
    """Return first frame, end frame and label of each phone."""
    ids = np.asarray(alignment, dtype=np.int64)
    ends = (np.flatnonzero(model.ends_phone[ids]) + 1).tolist()
    return [
        (start, end, model.phones[model.phone_of[ids[start]] - 1]) for start, end in zip([0, *ends], ends, strict=False)
    ]


def subsample(lengths: Sequence[int], step: int) -> list[int]:
    """Return the numbers of frames of phones when every step-th frame is kept, the first among them.

    Kept frame i is the old frame i * step, and of its phone. A phone that would lose all frames gets one of
    its neighbours'.

    Args:
        lengths: Frames of each of N phones, one after the other.
        step: From one frame that is kept to the next.

    Returns:
        N lengths, each at least 1; none where fewer than N frames are kept.
    """
    total = -(-sum(lengths) // step)
    if total < len(lengths):
        return []
    ends = -(-np.cumsum(lengths) // step)
    indices = np.arange(len(ends))
    ends = np.maximum.accumulate(ends - indices) + indices  # at least one frame after the end of the phone before
    ends = np.minimum(ends, total - indices[::-1])  # and one for each that follows
    return np.diff(ends, prepend=0).tolist()


def in_seconds(runs: Sequence[Run], hop: float, window: float, seconds: float) -> list[Segment]:
    """Return segments that tile an utterance: the border of two frames is where the later one's share of time begins.

    A frame stands for as much time as lies between frames, around the middle of the window that it was computed from;
    the first phone begins with the utterance, and the last one ends with it.

    Args:
        runs: Of phones or words, one after the other.
        hop: Seconds from frame to frame.
        window: Seconds of a frame.
        seconds: Of the utterance.
    """
    borders = [0.0, *(min(seconds, start * hop + (window - hop) / 2) for start, *_ in runs[1:]), seconds]
    return [Segment(start, end, label) for start, end, (*_, label) in zip(borders, borders[1:], runs, strict=False)]


def word_runs(lexicon: Lexicon, runs: Sequence[Run], words: Sequence[str]) -> list[Run]:
    """Return start, end and label of each word and of the pauses between them.

    If phones can be divided among words in several ways, the later words are as long as possible.

    Args:
        lexicon: Pronunciations.
        runs: Of phones.
        words: Of the transcript.

    Raises:
        ValueError: The phones are no pronunciation of the words.
    """
    speech = [index for index, (*_, phone) in enumerate(runs) if phone != SILENCE]
    phones = [runs[index][2] for index in speech]
    # The numbers of words that may end before each phone, each with the first phone of the last word.
    starts: list[dict[int, int]] = [{} for _ in range(len(phones) + 1)]
    starts[0][0] = 0
    for start_phone in range(len(phones)):
        for count in starts[start_phone]:
            for pronunciation in lexicon.pronunciations.get(words[count], ()) if count < len(words) else ():
                end = start_phone + len(pronunciation)
                matches = tuple(phones[start_phone:end]) == pronunciation
                if (
                    matches and speech[end - 1] - speech[start_phone] == end - 1 - start_phone
                ):  # words have no pauses in them
                    starts[end].setdefault(count + 1, start_phone)
    if len(words) not in starts[-1]:
        raise ValueError(f"expected phones of {' '.join(words)!r}, got {' '.join(phones)!r}")
    words_in_time: list[Run] = []
    end = len(phones)
    for count in range(len(words), 0, -1):
        start = starts[end][count]
        words_in_time.insert(0, (runs[speech[start]][0], runs[speech[end - 1]][1], words[count - 1]))
        end = start
    pauses = [run for run in runs if run[2] == SILENCE]
    return sorted([*words_in_time, *pauses])
