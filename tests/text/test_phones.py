import numpy as np

from asr_lightning.text.phones import Segment, label_spans

SEGMENTS = [Segment(0.0, 0.10, "SIL"), Segment(0.10, 0.13, "B"), Segment(0.13, 0.30, "AA")]


def test_a_span_gets_the_phone_that_it_shares_most_time_with() -> None:
    starts = np.array([-0.02, 0.06, 0.08, 0.10, 0.28])
    assert label_spans(SEGMENTS, starts, starts + 0.04) == ["SIL", "SIL", "SIL", "B", "AA"]
    assert label_spans(SEGMENTS, np.array([0.09]), np.array([0.15])) == ["B"]


def test_of_equal_shares_the_first_counts() -> None:
    assert label_spans(SEGMENTS, np.array([0.08]), np.array([0.12])) == ["SIL"]


def test_nothing_is_known_outside() -> None:
    assert label_spans(SEGMENTS, np.array([0.30, 0.5]), np.array([0.34, 0.54])) == ["", ""]
    assert label_spans([], np.array([0.0]), np.array([1.0])) == [""]


def test_short_phones_within_a_long_frame_are_passed_over() -> None:
    assert label_spans(SEGMENTS, np.array([0.0]), np.array([0.3])) == ["AA"]
