import math
from pathlib import Path

import numpy as np
import pytest

from asr_lightning.errors import InputError
from asr_lightning.hmm.lattice import best_sentences, compact, nothing
from asr_lightning.hmm.slf import read_slf, write_slf
from tests.support.small_models import FOREIGN


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    words = ["'CAUSE", '"', "\\BACK", "학교", "A=B", "", "A"]
    arcs = [(place % 3, place % 3 + 1 + place // 3, word, (place / 3, -place / 7)) for place, word in enumerate(words)]
    lattice = compact([0, 13, 14, 201, 999, 1000], [*arcs, (3, 5, "Z", (0.0, 1e-9)), (4, 5, "", (1e5, 0.25))])
    write_slf(lattice, tmp_path / "some" / "where.slf", hop=0.0125, utterance="one two")
    again = read_slf(tmp_path / "some" / "where.slf", hop=0.0125)
    assert set(words) - {""} <= set(again.words) and again.words == lattice.words
    for name in ("frames", "sources", "targets"):
        assert getattr(again, name).tolist() == getattr(lattice, name).tolist()
    for name in ("graph_costs", "acoustic_costs"):
        assert getattr(again, name) == pytest.approx(getattr(lattice, name), rel=1e-9)


def test_the_text_is_htks(tmp_path: Path) -> None:
    write_slf(compact([0, 4, 9], [(0, 1, "A", (1.0, 2.0)), (1, 2, "'N", (0.5, -3.0))]), tmp_path / "a", 0.01, "u1")
    assert (tmp_path / "a").read_text().splitlines() == [
        "VERSION=1.0", "UTTERANCE=u1", "base=2.718281828459045", "lmscale=1.0", "wdpenalty=0.0", "acscale=1.0",
        "start=0 end=2", "N=3 L=2", "I=0 t=0", "I=1 t=0.04", "I=2 t=0.09", "J=0 S=0 E=1 W=A a=-2 l=-1",
        r"J=1 S=1 E=2 W=\'N a=3 l=-0.5",
    ]  # fmt: skip


def test_a_lattice_without_a_way(tmp_path: Path) -> None:
    write_slf(nothing(30), tmp_path / "none", hop=0.01)
    again = read_slf(tmp_path / "none", hop=0.01)
    assert again.frames.tolist() == [0, 30] and again.words == ()


def test_what_other_tools_write(tmp_path: Path) -> None:
    (tmp_path / "foreign").write_text(FOREIGN)
    lattice = read_slf(tmp_path / "foreign", hop=0.01)
    assert lattice.frames.tolist() == [0, 20, 25, 50]
    log = math.log(10)
    short = log * (0.1 * 40 + 2 * 0.25) + 0.5 + log * 0.1 * 20 + 0.5
    long = log * (0.1 * 30 + 2 * 0.5) + 0.5 + log * (0.1 * 10 + 2 * 1) + 0.5 + log * 0.1 * 20 + 0.5
    (first, low), (second, high) = best_sentences(lattice, 5)
    assert first == ("SO", "INDEED") and second == ('"TIS', "SO", "INDEED")
    assert [low, high] == pytest.approx([short, long], abs=1e-4)
    assert lattice.acoustic_costs.sum() == pytest.approx(log * 0.1 * 100)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("LINKS=4", "LINKS=5", "4 nodes and 4 links where it says N=4 L=5"),
        ("NODES=4 LINKS=4", "", "found no 'N'"),
        ("S=3 E=0", "S=3 E=9", "found no '9'"),
        ("S=3 E=0", "S=3 E=2", r"starts at nodes \[0, 7\] and ends at \[0\]"),
        ("J=1 S=7 E=3", "J=1 S=3 E=2", "cycle"),
        ("a=-20", "a=loud", "'loud'"),
        ("base=10.0", "base=0.0", "no logarithms, but base=0"),
        (FOREIGN, "not at all", "found no 'N'"),
    ],
)
def test_what_is_no_lattice_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "bad").write_text(FOREIGN.replace(old, new))
    with pytest.raises(InputError, match=message):
        read_slf(tmp_path / "bad", hop=0.01)


def test_a_file_that_is_missing_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(np.arange(128, 256, dtype=np.uint8).tobytes())
    for name in ("bytes", "none"):
        with pytest.raises(InputError, match=f"cannot read a lattice from .*{name}"):
            read_slf(tmp_path / name, hop=0.01)
