"""What is not a file, or a YAML far larger than it looks, is refused at once, in one line."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from asr_lightning import cli
from asr_lightning.ablations.tuning import read_space
from asr_lightning.audio.reading import read_audio
from asr_lightning.errors import InputError
from asr_lightning.files import load_yaml, regular
from asr_lightning.models.experiment import read_part
from asr_lightning.text.lexicon import read_lexicon
from data_modules.librispeech import LibriSpeechDataModule
from data_modules.text import TextDataModule
from tests.support.mutations import Refusing, in_the_place_of_a_file

NINE = range(1, 10)
BOMBS = {
    "lists": "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in NINE),
    "mappings": "a0: &a0 {x: y}\n"
    + "".join(f"a{n}: &a{n} {{{', '.join(f'k{k}: *a{n - 1}' for k in NINE)}}}\n" for n in NINE),
    "merged": "a0: &a0 {x: y}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)),
    "within itself": "a: &a [*a]\n",
}


def test_aliases_that_are_meant_are_read() -> None:
    text = "a: &a {x: [1, 2]}\nb: {<<: *a, y: *a}\nc: '*&'\n"
    assert load_yaml(text) == {"a": {"x": [1, 2]}, "b": {"x": [1, 2], "y": {"x": [1, 2]}}, "c": "*&"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("read", [read_part, read_space], ids=lambda reader: reader.__name__)
def test_aliases_without_end_are_refused(read: Callable[[Path], object], bomb: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(BOMBS[bomb] + "model: *a0\n" * ("a0" in BOMBS[bomb]))
    with pytest.raises(InputError, match="aliases") as refusal, Refusing(megabytes=100, allowed=AssertionError):
        read(tmp_path / "x.yaml")
    assert "\n" not in str(refusal.value)


def test_the_command_line_refuses_aliases_without_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for bomb in BOMBS.values():
        (tmp_path / "x.yaml").write_text(bomb)
        with pytest.raises(SystemExit) as ended, Refusing(megabytes=100, allowed=AssertionError):
            cli.main(["fit", "--config", str(tmp_path / "x.yaml")])
        lines = capsys.readouterr().err.strip().splitlines()
        assert ended.value.code == 2 and len(lines) == 2 and "aliases expand to more than" in lines[0]


@pytest.mark.timeout(60)
def test_a_pipe_is_no_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_the_place_of_a_file(tmp_path / "x.yaml")["a pipe"]()
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", str(tmp_path / "x.yaml")])
    assert "x.yaml: expected a file, found a pipe" in capsys.readouterr().err


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "read",
    [read_part, read_space, lambda path: read_audio(str(path))],
    ids=["experiment", "space", "audio"],
)
def test_a_pipe_is_no_file(read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "given")
    with pytest.raises(InputError, match="expected a file, found a pipe"):
        read(tmp_path / "given")


@pytest.mark.timeout(60)
def test_pipes_in_a_corpus_are_bad_files(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "1" / "2"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "1-2-0000.flac")
    (folder / "1-2.trans.txt").write_text("1-2-0000 A\n")
    with pytest.raises(InputError, match="unreadable audio .*expected a file"):
        LibriSpeechDataModule(root=str(tmp_path), train_subsets=["train"]).prepare_data()
    (folder / "1-2.trans.txt").unlink()
    os.mkfifo(folder / "1-2.trans.txt")
    with pytest.raises(InputError, match="unreadable transcript .*expected a file"):
        LibriSpeechDataModule(root=str(tmp_path), train_subsets=["train"]).prepare_data()
    with pytest.raises(InputError, match="1-2.trans.txt"):
        TextDataModule(train_files=[str(folder / "1-2.trans.txt")]).prepare_data()


def test_devices_and_sockets_are_no_files_and_streams_of_a_shell_are(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix_socket, pytest.raises(OSError, match="expected a file"):
        unix_socket.bind(str(tmp_path / "socket"))
        regular(tmp_path / "socket")
    with pytest.raises(InputError, match="/dev/zero .*expected a file"):
        read_lexicon("/dev/zero")
    reading, writing = os.pipe()  # as `<(…)`
    writer = threading.Thread(target=lambda: (os.write(writing, b"READ  R IY1 D\n"), os.close(writing)))
    writer.start()
    assert list(read_lexicon(f"/dev/fd/{reading}").pronunciations) == ["READ"]
    writer.join()
    os.close(reading)
