"""The layout, its formats, and the faults that a copy of it may have."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr_lightning.errors import InputError
from data_modules.librispeech import LibriSpeechDataModule
from tests.support.small_corpora import make_subset, write_chapter


def module(root: Path, subset: str = "dev-clean", **more: Any) -> LibriSpeechDataModule:
    return LibriSpeechDataModule(root=str(root), validation_subsets=[subset], workers=0, batch_seconds=5.0, **more)


def read(data: LibriSpeechDataModule) -> dict[str, Any]:
    data.prepare_data()
    data.setup("validate")
    (loader,) = data.val_dataloader().values()
    return {
        id: (batch.audio[row, : batch.audio_lengths[row]], batch.texts[row], batch.speakers[row], batch.subsets[row])
        for batch in loader
        for row, id in enumerate(batch.ids)
    }


@pytest.mark.parametrize("suffix", [".flac", ".wav", ".mp3", ".ogg", ".FLAC"])
@pytest.mark.parametrize("below", ["", "LibriSpeech"])
def test_the_layout_is_read(tmp_path: Path, suffix: str, below: str) -> None:
    texts = {"7-1-0": "HELLO WORLD", "7-1-1": "에스파냐"}
    write_chapter(tmp_path / below / "dev-clean" / "7" / "1", texts, [0.5, 0.8], suffix)
    items = read(module(tmp_path))
    assert {id: item[1] for id, item in items.items()} == texts
    assert items["7-1-0"][2:] == ("7", "dev-clean")
    for id, samples in (("7-1-0", 8_000), ("7-1-1", 12_800)):
        expected, _ = soundfile.read(tmp_path / below / f"dev-clean/7/1/{id}{suffix}", dtype="float32")
        assert abs(len(items[id][0]) - samples) < 2_000  # MP3 pads
        np.testing.assert_allclose(items[id][0], expected[: len(items[id][0])], atol=1e-4)


def test_stereo_is_mixed_down(tmp_path: Path) -> None:
    write_chapter(tmp_path / "dev-clean/7/1", {"a": "A"}, [0.5])
    channels = np.random.default_rng(0).uniform(-0.3, 0.3, (8_000, 2))
    soundfile.write(tmp_path / "dev-clean/7/1/a.flac", channels, 16_000, subtype="PCM_24")
    np.testing.assert_allclose(read(module(tmp_path))["a"][0], channels.mean(axis=1), atol=1 / 32_768)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def append(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


def write_audio(path: Path, samples: int, sample_rate: int = 16_000) -> None:
    soundfile.write(path, np.zeros(samples), sample_rate)


def empty(folder: Path) -> None:
    (folder / "a.flac").unlink()
    write_audio(folder / "a.wav", 0)  # libsndfile cannot write such a FLAC


def replace_line(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


# What is done to a chapter with a.flac to e.flac, the kind that is reported, and the utterances that are left.
SPOILED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "truncated": (lambda folder: truncate(folder / "a.flac"), "unreadable audio", "bcde"),
    "not audio": (lambda folder: (folder / "a.flac").write_bytes(b"<html>404"), "unreadable audio", "bcde"),
    "no bytes": (lambda folder: (folder / "a.flac").write_bytes(b""), "unreadable audio", "bcde"),
    "no samples": (
        lambda folder: (folder / "a.flac").unlink() or write_audio(folder / "a.wav", 0),
        "empty audio",
        "bcde",
    ),
    "rate": (lambda folder: write_audio(folder / "a.flac", 4_000, 500), "wrong sample rate", "bcde"),
    "more audio": (lambda folder: write_audio(folder / "z.flac", 4_000), "audio without transcript", "abcde"),
    "less audio": (lambda folder: (folder / "a.flac").unlink(), "transcript without audio", "bcde"),
    "cp949": (
        lambda folder: replace_line(folder / "7-1.trans.txt", b"a TEXT A", "a 한국".encode("cp949")),
        "transcript not UTF-8",
        "bcde",
    ),
    "same id in a transcript": (
        lambda folder: append(folder / "7-1.trans.txt", b"a ANOTHER TEXT\n"),
        "duplicate id",
        "abcde",
    ),
    "same id in two formats": (lambda folder: write_audio(folder / "a.wav", 16_000), "duplicate id", "abcde"),
    "a broken link": (
        lambda folder: (folder / "a.flac").unlink() or (folder / "a.flac").symlink_to("nowhere"),
        "unreadable audio",
        "bcde",
    ),
    "a link to itself": (
        lambda folder: (folder / "a.flac").unlink() or (folder / "a.flac").symlink_to("a.flac"),
        "unreadable audio",
        "bcde",
    ),
    "cut off by a quarter": (
        lambda folder: (
            write_audio(folder / "a.wav", 4_000) or (folder / "a.flac").unlink() or os.truncate(folder / "a.wav", 6_000)
        ),
        "unreadable audio",
        "bcde",
    ),
    "a folder in the place of audio": (
        lambda folder: (folder / "a.flac").unlink() or (folder / "a.flac").mkdir(),
        "transcript without audio",
        "bcde",
    ),
    "a name with a tab": (
        lambda folder: (
            (folder / "a.flac").rename(folder / "a\tb.flac")
            and replace_line(folder / "7-1.trans.txt", b"a TEXT A", b"")
        ),
        "audio without transcript",
        "bcde",
    ),
    "a name that is no UTF-8": (
        lambda folder: (
            (folder / "a.flac").rename(folder / os.fsdecode(b"\xe9.flac"))
            and replace_line(folder / "7-1.trans.txt", b"a TEXT", b"\xe9 TEXT")
        ),
        "unusable id",
        "bcde",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_wrong_is_named_and_can_be_left_out(tmp_path: Path, name: str) -> None:
    spoil, kind, left = SPOILED[name]
    folder = tmp_path / "dev-clean" / "7" / "1"
    write_chapter(folder, {id: f"TEXT {id.upper()}" for id in "abcde"}, [0.4] * 5)
    spoil(folder)
    with pytest.raises(InputError, match=f"1 files of dev-clean cannot be used:\n  1 {kind}") as error:
        module(tmp_path).prepare_data()
    assert str(folder.parent) in str(error.value)
    with pytest.warns(UserWarning, match=kind):
        items = read(module(tmp_path, on_bad="skip"))
    assert "".join(sorted(items)) == left
    assert "a" not in items or items["a"][1] == "TEXT A"  # the first is kept


def test_files_of_one_name_in_several_folders_are_called_by_their_paths(tmp_path: Path) -> None:
    for speaker, chapter in (("7", "1"), ("7", "2"), ("8", "1")):
        texts = {"0001": f"SPOKEN BY {speaker} IN {chapter}", f"own{speaker}{chapter}": "OWN"}
        write_chapter(tmp_path / "dev-clean" / speaker / chapter, texts, [0.4, 0.3])
    items = read(module(tmp_path, normalize=False))
    assert sorted(items) == ["7-1-0001", "7-2-0001", "8-1-0001", "own71", "own72", "own81"]
    for speaker, chapter in (("7", "1"), ("7", "2"), ("8", "1")):
        assert items[f"{speaker}-{chapter}-0001"][1:3] == (f"SPOKEN BY {speaker} IN {chapter}", speaker)


def test_loops_of_links_come_to_an_end(tmp_path: Path) -> None:
    folder = tmp_path / "dev-clean" / "7" / "1"
    write_chapter(folder, {"a": "A", "b": "B"}, [0.4, 0.3])
    (folder / "up").symlink_to(tmp_path / "dev-clean")
    (folder / "self").symlink_to("self")
    (tmp_path / "dev-clean" / "over").symlink_to("..")
    write_chapter(tmp_path / "train" / "8" / "1", {"c": "C"}, [0.3])  # which `over` leads to
    assert sorted(read(module(tmp_path))) == ["a", "b"]
    (tmp_path / "dev-clean" / "6").symlink_to("7")
    with pytest.raises(InputError, match=r"dev-clean/6: folder twice \(it is also \S+dev-clean/7, which is kept\)"):
        read(module(tmp_path))


def test_transcripts_in_utf_16_that_name_files_with_their_suffixes(tmp_path: Path) -> None:
    folder = tmp_path / "dev-clean" / "7" / "1"
    write_chapter(folder, {"a": "A", "b": "B"}, [0.4, 0.3])
    (folder / "7-1.trans.txt").write_text("a.flac SAY A\r\nb SAY B\n", encoding="utf-16", newline="")
    assert {id: item[1] for id, item in read(module(tmp_path)).items()} == {"a": "SAY A", "b": "SAY B"}


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_chapter(tmp_path / "dev-clean" / "7" / "1", {"a": "A"}, [0.4])
    write_chapter(tmp_path / "dev-clean" / "8" / "1", {"b": "B"}, [0.4])
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("/8"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"1 unreadable folder\n.*/8: unreadable folder \(Permission denied\)"):
        module(tmp_path).prepare_data()
    with pytest.warns(UserWarning, match="unreadable folder"):
        assert sorted(read(module(tmp_path, on_bad="skip"))) == ["a"]
    monkeypatch.setattr(os, "scandir", scan)
    assert sorted(read(module(tmp_path))) == ["a", "b"]  # the manifest knows that this is another corpus


def test_one_report_for_all(tmp_path: Path) -> None:
    for subset in ("dev-clean", "mine"):
        make_subset(tmp_path, subset, 30)
        for path in sorted((tmp_path / subset).glob("**/*.flac"))[:15]:
            truncate(path)
    data = LibriSpeechDataModule(root=str(tmp_path), train_subsets=["mine"], test_subsets=["dev-clean"])
    with pytest.raises(InputError) as error:
        data.prepare_data()
    lines = str(error.value).splitlines()
    assert lines[:2] == ["30 files of mine, dev-clean cannot be used:", "  30 unreadable audio"]
    assert sum(line.startswith(str(tmp_path)) and ".flac: " in line for line in lines) == 20
    assert "... and 10 more" in lines
    reports = [Path(word.strip(",")) for word in lines[-2].split() if word.strip(",").endswith(".tsv")]
    assert sum(len(path.read_text().splitlines()) for path in reports) == 30
    assert "--data.init_args.on_bad skip" in lines[-1]


def test_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    folder = tmp_path / "dev-clean" / "7" / "1"
    write_chapter(folder, {"a": "A", "b": "B"}, [0.3, 0.3])
    (folder / "7-1.trans.txt").write_bytes(b"\xef\xbb\xbfa ONE  TWO\r\n\r\nb\tTHREE\r\n")
    (folder / "._a.flac").write_bytes(b"what a Mac leaves behind")
    assert {id: item[1] for id, item in read(module(tmp_path)).items()} == {"a": "ONE  TWO", "b": "THREE"}


@pytest.mark.parametrize("on_bad", ["error", "skip"])
def test_nothing_that_can_be_used(tmp_path: Path, on_bad: str) -> None:
    (tmp_path / "dev-clean" / "7").mkdir(parents=True)
    with pytest.raises(InputError, match="No utterance can be used in dev-clean"):
        module(tmp_path, on_bad=on_bad).prepare_data()


def test_a_missing_subset_says_the_ways_on(tmp_path: Path) -> None:
    make_subset(tmp_path, "dev-other", 3)
    with pytest.raises(InputError) as error:
        module(tmp_path).prepare_data()
    for part in (
        f"{tmp_path}/dev-clean",
        f"{tmp_path}/LibriSpeech/dev-clean",
        f"{tmp_path} has LibriSpeech's layout, with the subsets dev-other",
        "--data.init_args.root",
        "--data.init_args.download true",
        "--config experiments/demo/rnnt_ws.yaml",
    ):
        assert part in str(error.value)
    with pytest.raises(InputError, match=f"{tmp_path}/nowhere: there is no such folder"):
        module(tmp_path / "nowhere").prepare_data()


def test_a_download_is_moved_when_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(target: Path, dataset_parts: list[str]) -> None:
        fetched.append(dataset_parts)
        make_subset(Path(target) / "LibriSpeech", dataset_parts[0], 6)
        if len(fetched) == 1:
            raise OSError("connection lost while unpacking")

    monkeypatch.setattr("data_modules.librispeech.download_librispeech", fetch)
    root = tmp_path / "root"
    with pytest.raises(InputError, match="connection lost"):
        module(root, download=True).prepare_data()
    with pytest.raises(InputError, match="Subset not found"):  # half a subset is none
        module(root).prepare_data()
    assert len(read(module(root, download=True))) == 6
    assert len(read(module(root, download=True))) == 6
    assert fetched == [["dev-clean"]] * 2
    assert sorted(os.listdir(root)) == ["LibriSpeech"]
    with pytest.raises(InputError, match="Cannot download mine: openslr.org has dev-clean"):
        module(root, "mine", download=True).prepare_data()


def test_a_strangers_transcripts_are_written_in_librispeechs_alphabet(tmp_path: Path) -> None:
    write_chapter(tmp_path / "dev-clean/7/1", {"a": "Well, it's 3 o'clock.", "b": "NOTHIN' ELSE"}, [0.5, 0.5])
    assert {id: item[1] for id, item in read(module(tmp_path)).items()} == {
        "a": "WELL IT'S THREE O'CLOCK",
        "b": "NOTHIN' ELSE",
    }
    texts = {id: item[1] for id, item in read(module(tmp_path, normalize=False)).items()}
    assert texts["a"] == "Well, it's 3 o'clock."


def test_an_empty_transcript_is_scored_but_not_learned_from(tmp_path: Path) -> None:
    write_chapter(tmp_path / "dev-clean/7/1", {"a": "...", "b": "B", "c": "—", "d": ""}, [0.5, 0.5, 0.5, 0.5])
    assert {id: item[1] for id, item in read(module(tmp_path)).items()} == {"a": "", "b": "B", "c": "", "d": ""}
    training = {"root": str(tmp_path), "train_subsets": ["dev-clean"], "workers": 0}
    with pytest.raises(InputError, match=r"3 empty transcript\n.*a\.flac: empty transcript(.|\n)*on_bad skip"):
        LibriSpeechDataModule(**training).prepare_data()
    data = LibriSpeechDataModule(**training, on_bad="skip")
    with pytest.warns(UserWarning, match="3 empty transcript"):
        data.prepare_data()
    data.setup("fit")
    assert [id for batch in data.train_dataloader() for id in batch.ids] == ["b"]


def test_the_characters_of_transcripts_are_counted_once(tmp_path: Path) -> None:
    write_chapter(tmp_path / "dev-clean/7/1", {"a": "CAFE\u0301 A", "b": "가"}, [0.5, 0.5])
    data = module(tmp_path)
    for _ in range(2):  # made, and from the cache
        data.prepare_data()
        data.setup("validate")
        counts = data.characters("validate")
        assert counts == {"dev-clean": {"C": 1, "A": 2, "F": 1, "É": 1, " ": 1, "가": 1}}
    assert data.characters("predict") == {}
