import os
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from asr_lightning.errors import InputError
from asr_lightning.hmm.model import STATES, HiddenMarkovModel, read_hmm
from asr_lightning.text.lexicon import Lexicon
from tests.support.small_models import LEXICON, SIL, asking_trees, monophone, tied, transition_log_probs, walk

both = pytest.mark.parametrize("make", [monophone, tied])
FILES = ["lexicon.txt", "phones.txt", "topology.json", "transitions.npy", "tree"]


def contexts(model: HiddenMarkovModel) -> product:
    around = range(len(model.phones) + 1)
    return product(around, range(1, len(model.phones) + 1), around, range(STATES))


def test_phones_and_words_are_numbered_from_one() -> None:
    model = monophone()
    assert model.phone_ids == {"SIL": 1, "SPN": 2, "a": 3, "b": 4, "s": 5}
    assert model.words == ("A", "BE", "BEE", "SAY") and model.word_ids["SAY"] == 4
    assert model.pdfs == STATES * 5 and tied().pdfs == STATES * 2 + 3 * (3 + 1 + 3)


def test_marks_of_noise_are_written_in_capitals() -> None:
    model = HiddenMarkovModel.monophone(Lexicon({"A": (("a",),), "[LAUGHTER]": (("spn",), ("a", "sil"))}))
    assert model.phones == ("SIL", "SPN", "a")
    assert model.lexicon.pronunciations["[LAUGHTER]"] == (("SPN",), ("a", "SIL"))


@both
def test_a_transition_id_names_what_it_is_asked_for(make: Callable[[], HiddenMarkovModel]) -> None:
    model = make()
    named = set()
    for *triphone, state in contexts(model):
        for stays in (False, True):
            id = model.transition_id([*triphone, state], stays)
            assert model.phone_of[id] == triphone[1] and model.stays[id] == stays
            assert model.ends_phone[id] == (state == STATES - 1 and not stays)
            named.add((id, triphone[1], state, model.pdf_of[id]))
    # Every id is met, and is of one state of one phone with one pdf.
    assert sorted(id for id, *_ in named) == list(range(1, len(model.pdf_of)))
    assert len({(phone, state, pdf) for _, phone, state, pdf in named}) == model.pdfs == (len(model.pdf_of) - 1) / 2


def test_pdfs_are_those_of_the_tree() -> None:
    model = tied()
    roots = asking_trees(len(model.phones))
    for *triphone, state in contexts(model):
        assert model.pdf_of[model.transition_id([*triphone, state], True)] == walk(roots[triphone[1], state], triphone)


@both
def test_transitions_are_as_probable_as_they_were_frequent(make: Callable[[], HiddenMarkovModel]) -> None:
    model = make()
    expected = transition_log_probs(model)
    assert np.allclose(model.transitions.log_probs[1:], expected[1:], atol=1e-5)
    assert np.allclose(model.with_counts(0 * model.transition_counts).transitions.log_probs[1::2], np.log(0.75))
    assert len({*np.round(expected, 4)}) > 20


@both
def test_what_was_written_is_read(make: Callable[[], HiddenMarkovModel], tmp_path: Path) -> None:
    model = make()
    model.write(tmp_path)
    read = read_hmm(tmp_path)
    assert sorted(os.listdir(tmp_path)) == FILES
    assert read.lexicon == model.lexicon and read.phones == model.phones
    assert read.tree.context_width == model.tree.context_width and read.pdfs == model.pdfs
    assert np.array_equal(read.transition_counts, model.transition_counts)
    for *triphone, state in contexts(model):
        for stays in (False, True):
            assert read.transition_id([*triphone, state], stays) == model.transition_id([*triphone, state], stays)


@both
@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_empty_file_is_named(make: Callable[[], HiddenMarkovModel], name: str, tmp_path: Path) -> None:
    make().write(tmp_path)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=name):
        read_hmm(tmp_path)
    (tmp_path / name).unlink()
    if name == "topology.json":  # of a folder from before it was written
        assert (read_hmm(tmp_path).states, read_hmm(tmp_path).subsampling) == (3, 1)
        return
    with pytest.raises(InputError, match=name):
        read_hmm(tmp_path)


def test_a_chain_model_is_read_as_it_was_written(tmp_path: Path) -> None:
    model = HiddenMarkovModel.monophone(LEXICON, states=1, subsampling=3)
    model.write(tmp_path)
    read = read_hmm(tmp_path)
    assert (read.states, read.subsampling, read.pdfs) == (1, 3, 5)
    assert np.array_equal(read.pdf_of, model.pdf_of)
    assert np.array_equal(read.ends_phone[1:], ~read.stays[1:])  # its one state is the last one
    (tmp_path / "topology.json").write_text('{"states": 3, "subsampling": 3}')
    with pytest.raises(InputError, match="tree"):
        read_hmm(tmp_path)
    for content in ("[]", '{"states": 1}', '{"states": 0, "subsampling": 3}', '{"states": "1", "subsampling": 3}'):
        (tmp_path / "topology.json").write_text(content)
        with pytest.raises(InputError, match=r"topology\.json"):
            read_hmm(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("phones.txt", b"SIL 1\nSPN 2\na 3\nb 4\n"),
        ("phones.txt", b"SIL 1\nSPN 2\na 3\nb 4\ns 5\nt 6\n"),
        ("phones.txt", b"SIL 1\nSPN 2\na 3\nb 5\ns 4\n"),
        ("phones.txt", b"SIL 1\nSPN 2\na 3\nb 4\ns 5"),
        ("phones.txt", b"SIL\nSPN\na\nb\ns\n"),
        ("phones.txt", b"\xff\xfe"),
        ("lexicon.txt", b"A\ta\nOH\to\n"),
        ("transitions.npy", b"PK\x03\x04"),
        ("transitions.npy", b"junk"),
    ],
)
def test_a_damaged_or_misfitting_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    monophone().write(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"(phones\.txt|tree)" if name != "transitions.npy" else name):
        read_hmm(tmp_path)


@pytest.mark.parametrize(
    "counts", [np.zeros(30), np.zeros((31, 1)), np.full(31, np.nan), np.full(31, -1.0), np.full(31, np.inf), ["a"] * 31]
)
def test_counts_that_cannot_be_are_refused(counts: np.ndarray, tmp_path: Path) -> None:
    model = monophone()
    model.write(tmp_path)
    assert model.transition_counts.shape == (31,)
    np.save(tmp_path / "transitions.npy", counts)
    with pytest.raises(InputError, match=r"transitions.npy .*\(31,\)"):
        read_hmm(tmp_path)


def test_the_files_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    monophone().write(tmp_path / "monophone")
    tied().write(tmp_path / "tied")
    (tmp_path / "tied" / "tree").replace(tmp_path / "monophone" / "tree")
    with pytest.raises(InputError, match="transitions.npy"):
        read_hmm(tmp_path / "monophone")
    HiddenMarkovModel.monophone(Lexicon({"A": (("a",),)})).write(tmp_path / "small")
    (tmp_path / "small" / "tree").replace(tmp_path / "tied" / "tree")
    with pytest.raises(InputError, match="tree"):
        read_hmm(tmp_path / "tied")


def test_damage_to_counts_is_refused_or_leaves_counts(tmp_path: Path) -> None:
    monophone().write(tmp_path)
    path = tmp_path / "transitions.npy"
    data = path.read_bytes()
    refused = 0
    for offset in range(0, len(data), 2):
        for bit in (1, 16, 64):
            path.write_bytes(bytes([*data[:offset], data[offset] ^ bit, *data[offset + 1 :]]))
            try:
                assert read_hmm(tmp_path).transition_counts.shape == (31,)
            except InputError as error:
                assert "transitions.npy" in str(error)
                refused += 1
    assert refused > 60


def test_a_word_may_be_said_as_noise(tmp_path: Path) -> None:
    model = HiddenMarkovModel.monophone(Lexicon({**LEXICON.pronunciations, "HM": (("spn",),)}))
    model.write(tmp_path)
    assert read_hmm(tmp_path).phones == model.phones and model.phone_ids["SIL"] == SIL
