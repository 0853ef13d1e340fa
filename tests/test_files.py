"""Files that others can see while they are written: in a shared folder anybody may have put a link there first."""

import ast
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from asr_lightning import files
from asr_lightning.errors import InputError
from asr_lightning.files import append_to, locked, replacing, replacing_files, write_atomically
from data_modules.synthesis import make_once


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


def test_a_link_with_the_guessed_name_of_a_half_file_leads_nowhere(tmp_path: Path, victim: Path) -> None:
    planted = tmp_path / "shared" / f".rates.csv.{files._process_name()}"
    planted.parent.mkdir()
    planted.symlink_to(victim)
    write_atomically(planted.with_name("rates.csv"), "new")
    assert (victim.read_text(), planted.with_name("rates.csv").read_text()) == ("precious", "new")
    assert sorted(path.name for path in planted.parent.iterdir()) == sorted([planted.name, "rates.csv"])


def test_a_half_file_is_never_one_that_is_there(tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    (tmp_path / f".a.{files._process_name()}.guessed").symlink_to(victim)
    with pytest.raises(FileExistsError), replacing(tmp_path / "a"):
        raise AssertionError("it was opened")
    assert victim.read_text() == "precious"


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "link").symlink_to(victim)
    write_atomically(tmp_path / "link", "new")
    assert victim.read_text() == "precious" and not (tmp_path / "link").is_symlink()


def test_files_have_the_rights_that_others_are_to_have(tmp_path: Path) -> None:
    umask = os.umask(0o002)
    try:
        write_atomically(tmp_path / "a", "")
        with replacing_files(tmp_path) as half:
            (half / "b").write_text("")
    finally:
        os.umask(umask)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"} == {0o664}


def test_a_link_with_the_guessed_name_of_a_half_folder_leads_nowhere(tmp_path: Path) -> None:
    other, shared = tmp_path / "other", tmp_path / "shared"
    other.mkdir()
    shared.mkdir()
    (shared / f".{files._process_name()}").symlink_to(other)
    with replacing_files(shared) as half:
        (half / "graph").write_text("new")
    assert (shared / "graph").read_text() == "new" and not list(other.iterdir())
    assert len(list(shared.iterdir())) == 2


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replacing(tmp_path / "a") as half:
        half.write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '.*/a'"), replacing(tmp_path / "a"):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("plant", ["link", "dangling", "pipe", "folder"])
def test_a_lock_is_a_file_and_nothing_else(tmp_path: Path, victim: Path, plant: str) -> None:
    lock = tmp_path / ".corpus.lock"
    if plant == "pipe":
        os.mkfifo(lock)
    elif plant == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(victim if plant == "link" else tmp_path / "nowhere")
    with (
        pytest.raises(InputError, match=r"\.corpus\.lock: expected a regular file .* Remove it"),
        locked(tmp_path / "corpus"),
    ):
        raise AssertionError("it was held")
    assert victim.read_text() == "precious" and not (tmp_path / "nowhere").exists()


def test_a_lock_is_held_and_its_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".a.lock").write_text("somebody's")
    with locked(tmp_path / "a"), (tmp_path / ".a.lock").open() as file, pytest.raises(BlockingIOError):
        files.fcntl.flock(file, files.fcntl.LOCK_EX | files.fcntl.LOCK_NB)
    with locked(tmp_path / "a"):
        assert (tmp_path / ".a.lock").read_text() == "somebody's"


def test_text_is_appended_to_files_but_not_through_links(tmp_path: Path, victim: Path) -> None:
    for text in ("é", "b"):
        with append_to(tmp_path / "part") as file:
            file.write(text)
    assert (tmp_path / "part").read_text("utf-8") == "éb"
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(InputError, match="found a link"):
        append_to(tmp_path / "link")
    assert victim.read_text() == "precious"


def test_a_planted_link_in_the_place_of_a_half_corpus_leads_nowhere(tmp_path: Path) -> None:
    other, root = tmp_path / "other", tmp_path / "corpus"
    other.mkdir()
    (tmp_path / ".corpus.partial").symlink_to(other)
    make_once(root, {"minutes": 1, "evaluation_minutes": 1}, lambda folder: (folder / "a.flac").touch())
    assert sorted(path.name for path in root.iterdir()) == ["a.flac", "corpus.json"] and not root.is_symlink()
    assert not list(other.iterdir())


def texts_in_the_encoding_of_the_country(source: str) -> Iterator[int]:
    """Lines that open a text file without an encoding, which is another one on every machine."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        text = name == "open" and any(re.fullmatch("[rwax]t?", str(value)) for value in values)
        with_encoding = "utf-8" in values or any(keyword.arg == "encoding" for keyword in node.keywords)
        if (text or name in ("read_text", "write_text")) and not with_encoding:
            yield node.lineno


def test_texts_are_read_and_written_in_utf_8() -> None:
    root = Path(files.__file__).parents[1]
    sources = [path for part in ("asr_lightning", "data_modules") for path in (root / part).rglob("*.py")]
    found = {path.name: [*texts_in_the_encoding_of_the_country(path.read_text("utf-8"))] for path in sources}
    assert len(sources) > 200 and {name: lines for name, lines in found.items() if lines} == {}
    assert [*texts_in_the_encoding_of_the_country("a.read_text()\nopen(b, 'w')\nopen(c, 'rb')")] == [1, 2]
