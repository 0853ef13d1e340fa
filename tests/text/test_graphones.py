import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from asr_lightning.errors import InputError
from asr_lightning.text.graphones import (
    LONGEST,
    Entry,
    Graphone,
    GraphoneModel,
    parse_graphone,
    write_graphone,
)

ENTRIES: list[Entry] = [
    ("AB", ("a", "b")),
    ("AB", ("b",)),
    ("BA", ("b", "a")),
    ("BAB", ("b", "a", "b", "b")),
    ("A", ("a", "b", "a")),
    ("CABB", ("k", "a")),
]


def ways(word: str, phones: tuple[str, ...], letters: int = 2, longest: int = 2) -> Iterator[list[Graphone]]:
    """All ways to cut an entry into graphones."""
    if not word and not phones:
        yield []
    for m in range(min(letters, len(word)) + 1):
        for n in range(min(longest, len(phones)) + 1):
            if m or n:
                for rest in ways(word[m:], phones[n:], letters, longest):
                    yield [(word[:m], phones[:n]), *rest]


def counted_by_hand(model: GraphoneModel, letters: int, phones: int) -> tuple[Counter[Graphone], float]:
    counts: Counter[Graphone] = Counter()
    log_likelihood = 0.0
    for word, pronunciation in model.entries:
        cuts = list(ways(word, pronunciation, letters, phones))
        probabilities = [math.prod(map(model, cut)) for cut in cuts]
        log_likelihood += math.log(sum(probabilities))
        for cut, probability in zip(cuts, probabilities, strict=True):
            for graphone in cut:
                counts[graphone] += probability / sum(probabilities)
    return counts, log_likelihood


@pytest.mark.parametrize(("letters", "phones"), [(2, 2), (1, 1), (2, 1), (1, 3)])
def test_expected_counts_are_those_of_all_ways(letters: int, phones: int) -> None:
    model = GraphoneModel(ENTRIES, letters, phones)
    for _ in range(3):
        expected, expected_log_likelihood = counted_by_hand(model, letters, phones)
        counts, log_likelihood = model.expected_counts()
        by_graphone = dict(model.graphones(counts))
        assert by_graphone.keys() == {graphone for graphone, count in expected.items() if count}
        for graphone, count in by_graphone.items():
            assert count == pytest.approx(expected[graphone], rel=1e-9)
        assert log_likelihood == pytest.approx(expected_log_likelihood, rel=1e-9)
        assert model.improve() == log_likelihood
        total = sum(expected.values())
        for graphone, count in expected.items():
            assert model(graphone) == pytest.approx(count / total, rel=1e-9)


def test_at_first_all_graphones_of_all_ways_are_equally_probable() -> None:
    model = GraphoneModel(ENTRIES)
    graphones = {graphone for entry in ENTRIES for cut in ways(*entry) for graphone in cut}
    assert {round(model(graphone) * len(graphones), 9) for graphone in graphones} == {1.0}
    assert model(("AA", ("k",))) == 0.0
    assert model(("Z", ())) == 0.0
    assert model.probabilities.sum() == pytest.approx(1)


def test_every_pass_raises_the_likelihood() -> None:
    generator = np.random.default_rng(1)
    entries = [
        ("".join(generator.choice(list("ABCD"), generator.integers(1, 7))), tuple(generator.choice(list("xyz"), 4)))
        for _ in range(60)
    ]
    model = GraphoneModel(entries)
    likelihoods = [model.improve() for _ in range(12)]
    assert all(current > previous for previous, current in zip(likelihoods, likelihoods[1:], strict=False))


def test_segmentations_are_the_most_probable_ways() -> None:
    model = GraphoneModel(ENTRIES)
    for _ in range(2):
        model.improve()
    for entry, cut in zip(ENTRIES, model.segmentations(), strict=True):
        best = max(math.prod(map(model, way)) for way in ways(*entry))
        assert math.prod(map(model, cut)) == pytest.approx(best, rel=1e-9)
        assert "".join(letters for letters, _ in cut) == entry[0]
        assert tuple(phone for _, phones in cut for phone in phones) == entry[1]


def test_many_entries_are_weighed_like_few(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = GraphoneModel(ENTRIES * 5)
    monkeypatch.setattr("asr_lightning.text.graphones.ROWS", 3)
    parts = GraphoneModel(ENTRIES * 5)
    assert parts.improve() == pytest.approx(whole.improve())
    np.testing.assert_allclose(parts.probabilities, whole.probabilities, rtol=1e-12)
    assert parts.segmentations() == whole.segmentations()


def test_long_entries_are_no_trouble() -> None:
    generator = np.random.default_rng(1)
    alphabet = [chr(0x4E00 + number) for number in range(1000)]
    entries = [("".join(generator.choice(alphabet, LONGEST)), tuple(generator.choice(alphabet, LONGEST)))] * 2
    model = GraphoneModel(entries)
    assert -math.inf < model.improve() < model.improve()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "expected words with pronunciations"),
        ([("A", ())], "'A': expected 1 to 64 letters and phones, found 1 and 0"),
        ([("", ("a",))], "found 0 and 1"),
        ([("A" * 65, ("a",))], "found 65 and 1; leave the word out"),
    ],
)
def test_what_cannot_be_cut_is_told(entries: list[Entry], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GraphoneModel(entries)
    with pytest.raises(InputError, match="graphones of 1 or more letters and phones, got 0 and 2"):
        GraphoneModel(ENTRIES, 0)


@pytest.mark.parametrize("graphone", [("PH", ("F",)), ("X", ("K", "S")), ("E", ()), ("", ("AH0",)), ("'", ("kʰ", "ɪ"))])
def test_graphones_are_written_as_tokens(graphone: Graphone) -> None:
    assert parse_graphone(write_graphone(graphone)) == graphone
