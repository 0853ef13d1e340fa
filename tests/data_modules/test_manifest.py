"""Manifests: whole or not there, cheap to hold, rebuilt when files change."""

import os
import pickle
import platform
import subprocess
import tracemalloc
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from asr_lightning.errors import InputError
from data_modules.librispeech import LibriSpeechDataModule
from data_modules.manifest import BadFile, Header, Listing, Manifest, hash_id, index_path, make_cut, write_manifest
from tests.support.small_corpora import make_subset


def write(path: Path, count: int, text: str = "한국어 TEXT") -> Manifest:
    cuts = (
        make_cut(Listing(f"id{n}", f"/audio/id{n}.flac", f"{text} {n}", "eve"), Header(16_000, 16_000 + n, 1), 16_000)
        for n in range(count)
    )
    return write_manifest(path, cuts, "fingerprint")


def test_an_utterance_is_read_back(tmp_path: Path) -> None:
    manifest = write(tmp_path / "dev.cuts.jsonl", 50)
    assert len(manifest) == 50
    cut = manifest[17]
    assert (cut.id, cut.duration, cut.recording.num_samples) == ("id17", 1 + 17 / 16_000, 16_017)
    assert (cut.supervisions[0].text, cut.supervisions[0].speaker) == ("한국어 TEXT 17", "eve")
    np.testing.assert_allclose(manifest.durations, 1 + np.arange(50) / 16_000, rtol=1e-6)
    with pytest.raises(IndexError):
        manifest[50]


def test_lhotse_reads_the_file_itself(tmp_path: Path) -> None:
    from lhotse import CutSet

    write(tmp_path / "dev.cuts.jsonl", 5)
    assert [cut.id for cut in CutSet.from_file(tmp_path / "dev.cuts.jsonl")] == [f"id{n}" for n in range(5)]


def read_ids(manifest: Manifest) -> list[str]:
    return [manifest[n].id for n in range(len(manifest))]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_manifest(tmp_path: Path, method: str) -> None:
    manifest = write(tmp_path / "dev.cuts.jsonl", 300)
    with get_context(method).Pool(2) as pool:
        assert pool.map(read_ids, [manifest] * 4) == [read_ids(manifest)] * 4


def test_a_run_keeps_the_manifest_it_began_with(tmp_path: Path) -> None:
    manifest = write(tmp_path / "dev.cuts.jsonl", 5)
    write(tmp_path / "dev.cuts.jsonl", 5, text="ANOTHER AND LONGER TEXT")
    assert manifest[4].supervisions[0].text == "한국어 TEXT 4"


def test_memory_does_not_grow_with_texts(tmp_path: Path) -> None:
    write(tmp_path / "dev.cuts.jsonl", 2000, text="WORD " * 200)
    tracemalloc.start()
    manifest = Manifest(tmp_path / "dev.cuts.jsonl")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(manifest) == 2000 and held < 2000 * 20 + 100_000  # the texts are 2 MB
    assert len(pickle.dumps(manifest)) < 2000 * 20


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated manifest": cut_short,
    "truncated index": lambda path: cut_short(index_path(path)),
    "no index": lambda path: index_path(path).unlink(),
    "empty index": lambda path: index_path(path).write_bytes(b""),
    "no manifest": lambda path: path.unlink(),
}


@pytest.fixture
def data(tmp_path: Path) -> LibriSpeechDataModule:
    make_subset(tmp_path / "corpus", "train", 6)
    return LibriSpeechDataModule(root=str(tmp_path / "corpus"), train_subsets=["train"])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_rebuilt(data: LibriSpeechDataModule, damage: str) -> None:
    expected = read_ids(data.build_manifest("train"))
    path = data.manifest_folder / "train.cuts.jsonl"
    DAMAGES[damage](path)
    with pytest.raises((OSError, ValueError)):
        Manifest(path)
    assert read_ids(data.build_manifest("train")) == expected
    assert not [name for name in os.listdir(path.parent) if name.startswith(".")]  # no temporary file is left


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["train.cuts.jsonl", "train.index.npz", "train.bad.tsv"])
def test_a_flipped_bit_is_never_believed(data: LibriSpeechDataModule, name: str) -> None:
    next(data.root.glob("**/*.flac")).unlink()  # so that there is a bad file
    manifest = data.build_manifest("train")
    cuts, bad, durations = [manifest[n] for n in range(5)], manifest.bad_files(), manifest.durations
    assert len(bad) == 1
    path = data.manifest_folder / name
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 1 + len(content) * 8 // 12):
        flip(path, bit)
        rebuilt = data.build_manifest("train")
        assert [rebuilt[n] for n in range(len(rebuilt))] == cuts and rebuilt.bad_files() == bad, bit
        np.testing.assert_array_equal(rebuilt.durations, durations)
        if name != "train.index.npz":  # of an archive, some bits mean nothing
            assert path.read_bytes() == content
        path.write_bytes(content)
        data.build_manifest("train")


def test_that_a_manifest_is_made_anew_is_said_in_a_sentence(
    data: LibriSpeechDataModule, caplog: pytest.LogCaptureFixture
) -> None:
    data.build_manifest("train")
    flip(data.manifest_folder / "train.cuts.jsonl", 1000)
    with caplog.at_level("INFO"):
        data.build_manifest("train")
    assert "The manifest is made anew" in caplog.text and "was changed after it was written" in caplog.text


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    host, path = platform.node(), tmp_path / "dev.cuts.jsonl"
    abandoned = [
        f".{path.name}.{host}.{dead.pid}",
        f".dev.index.npz.{host}.{dead.pid}.0123abcd",
        ".dev.bad.tsv.other.7",
    ]
    remaining = [
        f".{path.name}.{host}.{os.getppid()}",  # of a process that lives
        f".{path.name}.other.{dead.pid}",  # of another machine, a moment ago
        f".test.cuts.jsonl.{host}.{dead.pid}",  # of another file
        ".dev.cuts.jsonl.lock",
        ".dev.cuts.jsonl.swp",
    ]
    for name in abandoned + remaining:
        (tmp_path / name).write_text("half")
    for name in (".dev.bad.tsv.other.7", ".dev.cuts.jsonl.lock", ".dev.cuts.jsonl.swp"):
        os.utime(tmp_path / name, (1e9, 1e9))
    write(path, 3)
    assert sorted(os.listdir(tmp_path)) == sorted([*remaining, "dev.bad.tsv", "dev.cuts.jsonl", "dev.index.npz"])


def test_ids_are_hashed_alike_everywhere() -> None:
    assert hash_id("19-198-0000") == 1170986127
    assert len({hash_id(f"id{number}") for number in range(1_000)}) == 1_000


def change_text(root: Path) -> None:
    path = next(root.glob("**/*.trans.txt"))
    path.write_text(path.read_text().replace("TEXT", "TEXTS"))


CHANGES: dict[str, Callable[[Path], object]] = {
    "text": change_text,
    "touched": lambda root: os.utime(next(root.glob("**/*.flac"))),
    "renamed": lambda root: (root / "train" / "speaker0").rename(root / "train" / "speaker9"),
    "removed": lambda root: next(root.glob("**/*.flac")).unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_manifest_is_rebuilt_only_when_files_change(
    data: LibriSpeechDataModule, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    find = LibriSpeechDataModule.find_utterances
    monkeypatch.setattr(
        LibriSpeechDataModule, "find_utterances", lambda self, subset: built.append(subset) or find(self, subset)
    )
    data.build_manifest("train")
    (data.root / "train" / "notes.txt").write_text("not audio, not a transcript")
    data.build_manifest("train")
    assert built == ["train"]
    CHANGES[change](data.root)
    data.build_manifest("train")
    assert built == ["train"] * 2


def test_a_killed_writer_leaves_the_old_manifest(tmp_path: Path) -> None:
    path = tmp_path / "dev.cuts.jsonl"
    write(path, 3)

    def entries() -> object:
        yield make_cut(Listing("x", "x.flac", "X"), Header(16_000, 10, 1), 16_000)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(path, entries(), "other")  # type: ignore[arg-type]
    assert read_ids(Manifest(path)) == ["id0", "id1", "id2"]


def test_bad_files_are_listed_beside_it(tmp_path: Path) -> None:
    bad = [BadFile("/a b/\udce9.flac", "unreadable audio", "tab\there"), BadFile("/c", "empty audio")]
    manifest = write_manifest(tmp_path / "dev.cuts.jsonl", bad, "fingerprint")
    assert manifest.bad_files() == bad and len(manifest) == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="ASR_LIGHTNING_CACHE"):
        write(tmp_path / "file" / "dev.cuts.jsonl", 1)
