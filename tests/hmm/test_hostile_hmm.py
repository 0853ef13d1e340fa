"""Damaged alignments, models of states and decoding graphs are refused with their file named."""

import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from random import Random

import kaldifst
import pytest
from hypothesis import given

from asr_lightning.errors import InputError
from asr_lightning.hmm.graph import decoding_graph
from asr_lightning.hmm.model import read_hmm
from asr_lightning.hmm.openfst import check_fst
from asr_lightning.hmm.store import AlignmentStore, write_alignments
from asr_lightning.text.smoothing import witten_bell
from tests.support.mutations import FUZZED, RANDOM, Refusing, mutated, spoiled
from tests.support.small_models import tied


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hmm")


@pytest.fixture(scope="module")
def store(folder: Path) -> bytes:
    write_alignments(folder / "good", [(f"a{number:03}", range(1, 3 * number + 2)) for number in range(40)])
    return (folder / "good").read_bytes()


@pytest.fixture(scope="module")
def states(folder: Path) -> list[Path]:
    tied().write(folder / "states")
    return sorted((folder / "states").iterdir())


@pytest.fixture(scope="module")
def graph(folder: Path) -> bytes:
    decoding_graph(tied(), witten_bell([["A", "BE"], ["BEE"]], 2)).write(str(folder / "good.fst"))
    return (folder / "good.fst").read_bytes()


@FUZZED
@given(random=RANDOM)
def test_alignments(random: Random, folder: Path, store: bytes) -> None:
    path = folder / "some.sqlite"
    path.unlink(missing_ok=True)  # SQLite identifies a file by its inode
    path.write_bytes(mutated(store, random))
    with Refusing("some.sqlite"):
        opened = AlignmentStore(path)
        opened.get("a003")
        assert all((ids.dtype.kind == "i") for _, ids in opened)


def test_alignments_that_lead_in_a_circle(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "some.sqlite")) as connection, connection:
        connection.execute("create table rows (id, transition_ids)")
        connection.execute("create view alignments as select case when id > 'b' then 'a' else id end as id, "
                           "transition_ids from rows")  # fmt: skip
        connection.executemany("insert into rows values (?, ?)", [(name, zlib.compress(b"1234")) for name in "abc"])
    with pytest.raises(InputError, match="some.sqlite.*not sorted"):
        list(AlignmentStore(tmp_path / "some.sqlite"))


@FUZZED
@given(random=RANDOM)
def test_models(random: Random, folder: Path, states: list[Path]) -> None:
    with spoiled(random.choice(states), random), Refusing("states"):
        model = read_hmm(folder / "states")
        assert len(model.pdf_of) == len(model.stays)


@FUZZED
@given(random=RANDOM)
def test_graphs_that_are_found_whole_are_read_by_openfst(random: Random, folder: Path, graph: bytes) -> None:
    (folder / "some.fst").write_bytes(content := mutated(graph, random))
    with Refusing(allowed=ValueError):
        check_fst(content)
        fst = kaldifst.StdVectorFst.read(str(folder / "some.fst"))
        arcs = [arc for state in range(fst.num_states) for arc in kaldifst.ArcIterator(fst, state)]
        assert all(0 <= arc.nextstate < fst.num_states for arc in arcs)


def test_a_graph_is_whole(graph: bytes) -> None:
    check_fst(graph)
    with pytest.raises(ValueError, match="states and the start state 0"):  # 50,000,000 states: gigabytes
        check_fst(graph.replace(graph[50:58], (50_000_000).to_bytes(8, "little"), 1))


def test_a_graph_of_another_version(graph: bytes) -> None:
    offset = graph.index(b"standard") + len(b"standard")
    with pytest.raises(ValueError, match="expected version 2, found 1"):  # OpenFst reads none of it
        check_fst(graph[:offset] + (1).to_bytes(4, "little") + graph[offset + 4 :])


def test_a_store_whose_schema_is_no_text(tmp_path: Path, store: bytes) -> None:
    (tmp_path / "some.sqlite").write_bytes(store.replace(b"without rowid", b"without r\xf3wid"))
    with pytest.raises(InputError, match="some.sqlite"):
        AlignmentStore(tmp_path / "some.sqlite").get("a003")
