import os
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from asr_lightning.errors import InputError
from asr_lightning.hmm.store import AlignmentStore, write_alignments

ALIGNMENTS = {"b": [3, 3, 1, 70_000], "a": [1], "é": [], "B": list(range(1, 5000))}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "100 % of what? #1" / "alignments.sqlite"  # marks that addresses of SQLite read as others


def test_what_was_written_is_read_in_the_order_of_names(path: Path) -> None:
    write_alignments(path, ((id, np.array(ids, dtype=np.int64)) for id, ids in ALIGNMENTS.items()))
    store = AlignmentStore(path)
    assert len(store) == 4
    assert [(id, ids.tolist()) for id, ids in store] == sorted(ALIGNMENTS.items())
    for id, ids in ALIGNMENTS.items():
        alignment = store.get(id)
        assert alignment is not None and alignment.dtype == np.int64 and alignment.tolist() == ids
    assert store.get("c") is None and store.get("A") is None and store.get("") is None
    assert os.listdir(path.parent) == ["alignments.sqlite"]


def test_more_than_are_read_at_once(path: Path) -> None:
    write_alignments(path, ((f"{number:05}", [number + 1]) for number in reversed(range(2345))))
    assert [(id, *ids) for id, ids in AlignmentStore(path)] == [(f"{n:05}", n + 1) for n in range(2345)]


def test_an_utterance_that_comes_twice_has_its_last_alignment(path: Path) -> None:
    write_alignments(path, [("a", [1]), ("b", [2]), ("a", [3, 4])])
    assert {id: ids.tolist() for id, ids in AlignmentStore(path)} == {"a": [3, 4], "b": [2]}


def test_no_utterances(path: Path) -> None:
    write_alignments(path, [])
    store = AlignmentStore(path)
    assert len(store) == 0 and list(store) == [] and store.get("a") is None


def test_a_writer_that_fails_leaves_the_old_file(path: Path) -> None:
    def failing() -> Iterator[tuple[str, list[int]]]:
        yield from [("new", [1])] * 3
        raise KeyboardInterrupt

    write_alignments(path, ALIGNMENTS.items())
    content = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_alignments(path, failing())
    assert path.read_bytes() == content and os.listdir(path.parent) == ["alignments.sqlite"]


def test_an_open_store_is_replaced_for_new_readers_only(path: Path) -> None:
    write_alignments(path, [("a", [1])])
    old = AlignmentStore(path)
    write_alignments(path, [("a", [2])])
    assert [store.get("a").tolist() for store in (old, AlignmentStore(path))] == [[1], [2]]


def test_a_forked_process_reads_on_its_own(path: Path) -> None:
    write_alignments(path, ALIGNMENTS.items())
    store = AlignmentStore(path)
    store.get("a")
    parent = store._connections[os.getpid()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks in processes with threads
        child = os.fork()
    if not child:
        right = store.get("b").tolist() == ALIGNMENTS["b"] and store._connections[os.getpid()] is not parent
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.get("b").tolist() == ALIGNMENTS["b"] and store._connections[os.getpid()] is parent


@pytest.mark.parametrize("content", [None, b"", b"no database, but long enough to look at" * 100])
def test_a_missing_or_damaged_file_is_named(path: Path, content: bytes | None) -> None:
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read alignments from .*alignments\.sqlite .* make them with"):
        AlignmentStore(path)


@pytest.mark.parametrize("packed", [b"\0damage", None, "text", b"x\x9cKLJ\x06\x00\x02M\x01'"])  # the last: three bytes
def test_a_damaged_alignment_is_named(path: Path, packed: bytes | str | None) -> None:
    write_alignments(path, ALIGNMENTS.items())
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("update alignments set transition_ids = ? where id = 'b'", [packed])
    connection.close()
    store = AlignmentStore(path)
    assert store.get("a").tolist() == [1]
    for read in (lambda: store.get("b"), lambda: list(store)):
        with pytest.raises(InputError, match=r"alignments\.sqlite \(b: "):
            read()


def test_a_file_that_was_cut_is_named(path: Path) -> None:
    random = np.random.default_rng(0)
    write_alignments(path, ((f"{n:03}", random.integers(1, 9999, 500)) for n in range(300)))
    data = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(InputError, match=r"alignments\.sqlite"):
            list(AlignmentStore(path))
