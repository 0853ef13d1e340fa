"""Lines are read as they are written, by an index that is made once."""

import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

from asr_lightning.errors import InputError
from data_modules import lines
from data_modules.lines import Lines, open_lines
from tests.support.small_texts import sentences, write_texts

ODD = [  # bytes of a line, and the text behind 0, 1 and 2 columns
    (b"one two three", "one two three", "two three", "three"),
    (b"  one\ttwo   three  \r", "one\ttwo   three", "two   three", "three"),
    (b"one", "one", None, None),
    (b"", None, None, None),
    (b" \t \r", None, None, None),
    ("\N{NO-BREAK SPACE}".encode(), None, None, None),
    ("é è ê".encode(), "é è ê", "è ê", "ê"),
    ("사람 이".encode(), "사람 이", "이", None),
    (b"a b", "a b", "b", None),
]


@pytest.mark.parametrize("columns", [0, 1, 2])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_are_what_is_written(tmp_path: Path, columns: int, mark: bytes) -> None:
    contents = [mark + b"\n".join(line for line, *_ in ODD), b"", b"\n", b"x y z\n"]
    files = [tmp_path / f"{number}.txt" for number in range(4)]
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(content)
    expected = {
        f"{files[0]}:{number}": texts[columns] for number, (_, *texts) in enumerate(ODD, start=1) if texts[columns]
    }
    expected[f"{files[3]}:1"] = ("x y z", "y z", "z")[columns]
    read = open_lines(files, columns)
    assert dict(read[number] for number in range(len(read))) == expected
    assert len(read) == len(expected) and read.left_out == len(ODD) + 2 - len(expected)
    assert read.characters.tolist() == sorted(map(len, expected.values()), reverse=True)
    assert [len(read[number][1]) for number in range(len(read))] == read.characters.tolist()


def test_english_is_normalized_where_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("It's 5 o'clock.\n...\nNOTHIN' NEW\n")
    assert [open_lines([tmp_path / "a.txt"])[number][1] for number in range(3)] == [
        "It's 5 o'clock.", "NOTHIN' NEW", "...",
    ]  # fmt: skip
    normalized = open_lines([tmp_path / "a.txt"], normalize=True)
    assert [normalized[number][1] for number in range(2)] == ["IT'S FIVE O'CLOCK", "NOTHIN' NEW"]
    assert normalized.characters.tolist() == [17, 11] and normalized.left_out == 1


def test_processes_share_the_index_instead_of_copying_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(sentences(5000)))
    read = open_lines([tmp_path / "a.txt"])
    copy = pickle.dumps(read)
    assert len(copy) < 2000 and pickle.loads(copy)[17] == read[17]


# The cache.


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows with every file list that is read through."""
    calls: list[Any] = []
    scan = lines._scan
    monkeypatch.setattr(lines, "_scan", lambda *arguments: calls.append(arguments) or scan(*arguments))
    return calls


def indices(cache: Path) -> int:
    return len(list(cache.glob("text/*/*/rows.npy")))


def contents(read: Lines) -> list[str]:
    return sorted(read[number][1] for number in range(len(read)))


def test_an_index_is_made_once_and_anew_when_anything_changes(tmp_path: Path, scans: list[Any], cache: Path) -> None:
    texts, files = write_texts(tmp_path), [tmp_path / "a.txt", tmp_path / "deeper/b.txt"]
    for _ in range(2):
        assert contents(open_lines(files)) == sorted(texts)
    assert len(scans) == 1 and indices(cache) == 1
    for options in ({"normalize": True}, {"skip_columns": 1}):
        assert len(open_lines(files, **options)) == len(texts)  # type: ignore[arg-type]
    assert len(scans) == 3 and indices(cache) == 3
    files[0].write_text(files[0].read_text().replace("A", "B"))  # as many bytes
    os.utime(files[0], ns=(1, 1))
    assert contents(open_lines(files)) == sorted([*(text.replace("A", "B") for text in texts[:90]), *texts[90:]])
    assert len(scans) == 4 and indices(cache) == 3  # the old one is gone
    assert contents(open_lines(files[1:])) == sorted(texts[90:])


@pytest.mark.parametrize("name", ["rows.npy", "about.json"])
def test_a_damaged_index_is_made_again(tmp_path: Path, cache: Path, name: str) -> None:
    texts = write_texts(tmp_path)
    open_lines([tmp_path / "a.txt"])
    [path] = cache.glob(f"text/*/*/{name}")
    os.truncate(path, path.stat().st_size // 2)
    assert contents(open_lines([tmp_path / "a.txt"])) == sorted(texts[:90])


def test_two_at_once_make_one_index(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_texts(tmp_path)
    meeting, write, opened = threading.Barrier(2), lines._write_index, []

    def write_together(*arguments: Any) -> None:
        write(*arguments)
        meeting.wait(timeout=20)  # both are done before either goes on

    monkeypatch.setattr(lines, "_write_index", write_together)
    threads = [threading.Thread(target=lambda: opened.append(open_lines([tmp_path / "a.txt"]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(text) for text in opened] == [90, 90] and opened[0][3] == opened[1][3]
    assert indices(cache) == 1 and not list(cache.glob("text/*/.*"))


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n\xff\n")
    with pytest.raises(InputError):
        open_lines([tmp_path / "a.txt"])
    assert not list(cache.glob("text/*/*"))
