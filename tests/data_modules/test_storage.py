"""Shards in object storage give what those on a disk gave; what is damaged, missing or gone is named, nothing hangs."""

import importlib.util
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from asr_lightning.errors import InputError
from data_modules import corpus, shards, storage
from data_modules.librispeech import LibriSpeechDataModule
from data_modules.sharding import write_subset
from data_modules.shards import ShardsDataModule
from tests.support import SUPPORT, collecting_run
from tests.support.small_corpora import make_subset

UTTERANCES, PER_SHARD = 40, 7


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASR_LIGHTNING_CACHE", str(folder / "cache"))
        for seed, (subset, count) in enumerate({"train": UTTERANCES, "dev": 5}.items()):
            make_subset(folder / "corpus", subset, count, seed=seed)
            files = LibriSpeechDataModule(root=str(folder / "corpus"), train_subsets=[subset])
            files.prepare_data()
            files.setup("fit")
            write_subset(files, subset, folder / "shards", PER_SHARD)
    return folder / "shards"


@pytest.fixture
def local(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "served" / "shards")
    return tmp_path / "served" / "shards"


class Server:
    """The web server, its address and its requests."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder, self.log = folder, folder.parent / "server.log"
        command = [sys.executable, str(SUPPORT / "range_server.py"), str(folder), str(self.log)]
        self.process = subprocess.Popen([*command, str(port)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.root = f"http://127.0.0.1:{self.port}/shards"

    def requests(self) -> list[tuple[str, str, int]]:
        """Method, path and bytes of all that were answered."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(line.split()[0], line.split()[1], int(line.split()[3])) for line in lines]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


@pytest.fixture
def server(local: Path) -> Iterator[Server]:
    server = Server(local.parent)
    yield server
    server.end()


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "WAITS", (0.05, 0.1))


def arguments(root: object, **more: Any) -> dict[str, Any]:
    subsets = {"train_subsets": ["train"], "validation_subsets": ["dev"]}
    return {"root": str(root), **subsets, "batch_seconds": 3.0, "workers": 0, **more}


def ready(root: object, **more: Any) -> ShardsDataModule:
    module = ShardsDataModule(**arguments(root, **more))
    module.prepare_data()
    module.setup("fit")
    return module


def rows(module: ShardsDataModule, epoch: int = 1) -> list[tuple[Any, ...]]:
    batches = module.train_dataloader()
    batches.progress = lambda: (epoch, 0)
    return [
        (batch.ids, batch.texts, batch.speakers, batch.audio.tolist())
        for batch in [*batches, *module.val_dataloader()["dev"]]
    ]


# What is read.


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_over_http_are_those_of_the_disk(server: Server, local: Path, workers: int) -> None:
    assert rows(ready(server.root, workers=workers)) == rows(ready(local))


def test_processes_that_are_spawned_find_the_storage(server: Server, local: Path) -> None:
    name = "train/recording.000001.tar"
    expected = (local / name).read_bytes()[512:2000]
    assert storage.read_range(f"{server.root}/{name}", 512, 1488) == expected
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(storage.read_range, (f"{server.root}/{name}", 512, 1488)) == expected


def test_memory_and_file_are_addresses_too(local: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(local), "/corpora/shards", recursive=True)
    try:
        assert rows(ready("memory://corpora/shards/")) == rows(ready(local))
        assert ShardsDataModule(**arguments(f"file://{local}")).source == str(local)
    finally:
        memory.rm("/corpora", recursive=True)


def test_a_run_on_the_disk_is_resumed_from_http(server: Server, local: Path, tmp_path: Path) -> None:
    saving = {"dirpath": str(tmp_path / "ckpt"), "every_n_train_steps": 5}
    trainer = {"max_epochs": 2}
    expected = collecting_run.run(str(tmp_path / "disk"), arguments(local), trainer, saving, shards=True)
    [checkpoint] = (tmp_path / "ckpt").glob("step=5-*.ckpt")
    data = arguments(server.root, workers=1)
    rest = collecting_run.run(str(tmp_path / "http"), data, trainer, resume=str(checkpoint), shards=True)
    assert rest == expected[5:]


@pytest.mark.parametrize("listed", [True, False])
def test_the_audio_is_passed_over(server: Server, local: Path, listed: bool) -> None:
    if not listed:  # as lhotse writes them
        content = json.loads((local / "train.json").read_text())
        del content["places"]
        (local / "train.json").write_text(json.dumps(content))
    ready(server.root, validation_subsets=[])
    sizes = [size for method, path, size in server.requests() if method == "GET" and path.endswith(".tar")]
    tars = sum(path.stat().st_size for path in (local / "train").glob("*.tar"))
    assert len(sizes) <= (6 if listed else UTTERANCES + 6)
    assert max(sizes) <= storage.READ_AHEAD and sum(sizes) < tars / 2
    count = len(server.requests())
    ready(server.root, validation_subsets=[])  # the manifest is there: files are asked for their versions only
    assert [path for method, path, _ in server.requests()[count:] if method != "HEAD"] == ["/shards/train.json"]


def test_the_manifest_is_made_anew_when_an_object_is(server: Server, local: Path) -> None:
    first = ready(server.root).manifests["train"].fingerprint
    assert ready(server.root).manifests["train"].fingerprint == first
    path = local / "train" / "recording.000003.tar"
    os.utime(path, ns=(1, 1))  # the ETag of this server; the size is the same
    assert ready(server.root).manifests["train"].fingerprint != first


# What is not.


def test_a_damaged_object_is_named(server: Server, local: Path) -> None:
    os.truncate(local / "train" / "recording.000002.tar", 5_000)
    with pytest.raises(InputError, match=rf"{server.root}/train/recording.000002.tar: damaged shard .*found: 5000 by"):
        ready(server.root)
    (local / "dev" / "recording.000000.tar").unlink()
    with pytest.warns(UserWarning, match=r"000002.tar(.|\n)*dev/recording.000000.tar"), pytest.raises(InputError):
        ready(server.root, on_bad="skip")


def test_a_truncated_object_without_a_list_is_named(local: Path) -> None:
    memory = fsspec.filesystem("memory")
    (local / "train.json").unlink()
    os.truncate(local / "train" / "recording.000002.tar", 5_000)
    memory.put(str(local), "/truncated", recursive=True)
    try:
        with pytest.raises(InputError, match="memory://truncated/train/recording.000002.tar: damaged shard"):
            ready("memory://truncated")
    finally:
        memory.rm("/truncated", recursive=True)


def test_an_object_that_was_exchanged_is_named(server: Server, local: Path) -> None:
    content = json.loads((local / "train.json").read_text())
    first, second = "recording.000000.tar", "recording.000001.tar"
    shutil.copyfile(local / "train" / first, local / "train" / second)
    content["files"][second] = content["files"][first]
    (local / "train.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="recording.000001.tar: damaged shard"):
        ready(server.root)


def test_an_object_that_is_cut_short_later_costs_its_utterances(server: Server, local: Path) -> None:
    module = ready(server.root)
    location = str(module.manifests["train"][9].recording.sources[0].source)
    _, offset, _ = shards.parse_span(location)
    os.truncate(local / "train" / "recording.000001.tar", offset + 10)
    with pytest.warns(UserWarning, match="recording.000001.tar@.*(ends after 10 of|416)"):
        names = [id for batch in module.train_dataloader() for id in batch.ids]
    assert len(names) == UTTERANCES - 5 and sum(module.lost_utterances.values()) == 5


def test_what_is_missing_is_named(server: Server) -> None:
    with pytest.raises(InputError, match=rf"No shards of test: expected {server.root}/test.json and {server.root}/tes"):
        ready(server.root, train_subsets=["test"])
    with pytest.raises(InputError, match="memory://nobody/train/cuts.000000.jsonl.gz"):
        ready("memory://nobody")
    with pytest.raises(InputError, match="nonesuch://here/train cannot be read: .*nonesuch.*Expected a folder, s3://"):
        ready("nonesuch://here")


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(InputError, match=r"s3://bucket/shards/train cannot be read: .*s3fs.*pip install '\.\[s3\]'"):
        ready("s3://bucket/shards")


def test_a_server_without_ranges_is_refused(server: Server) -> None:
    server.log.with_suffix(".whole").touch()
    with pytest.raises(InputError, match="gives whole files where parts are asked for"):
        ready(server.root)


def test_a_server_that_cannot_be_reached_is_said_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # no server listens
        with pytest.raises(InputError, match=r"127.0.0.1.* cannot be read: .*is the server up\?"):
            ready(f"http://127.0.0.1:{free.getsockname()[1]}/shards")


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        with pytest.raises(InputError, match=r"cannot be read: .*is the server up\?"):
            ready(f"http://127.0.0.1:{silent.getsockname()[1]}/shards")
    assert time.monotonic() - begin < 10


def test_a_busy_server_does_not_spoil_the_manifest(server: Server, local: Path) -> None:
    module = ShardsDataModule(**arguments(server.root, on_bad="skip"))
    module.require(["train"])
    busy = server.log.with_suffix(".busy")
    busy.touch()
    with pytest.raises(InputError, match="503"):
        module.build_manifest("train")
    busy.unlink()
    assert len(module.build_manifest("train")) == UTTERANCES


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_busy_server_refused_is_asked_for_again(
    server: Server, local: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "WAITS", (0.2,) * 40)
    module = ready(server.root, workers=workers)
    server.log.with_suffix(".busy").touch()
    again = subprocess.Popen(["sh", "-c", f"sleep 1; rm '{server.log.with_suffix('.busy')}'"])
    assert rows(module) == rows(ready(local)) and not module.lost_utterances
    again.wait()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_goes_away_ends_the_run(server: Server, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LOST_IN_A_ROW", 8)
    module = ready(server.root, workers=workers, batch_seconds=1.0)
    batches = iter(module.train_dataloader())
    assert len(next(batches))
    server.end()
    with (
        pytest.warns(UserWarning, match=f"{server.root}/train/.*cannot be read"),
        pytest.raises(InputError, match=f"The last .* could not be read. Is {server.root} still there"),
    ):
        for _ in batches:
            pass


def test_a_server_that_comes_back_is_taken_again(server: Server, local: Path) -> None:
    module = ready(server.root)
    expected = [id for batch in ready(local).train_dataloader() for id in batch.ids]
    batches = iter(module.train_dataloader())
    names = list(next(batches).ids)
    server.end()
    with pytest.warns(UserWarning, match="cannot be read"):
        next(batches)
    restarted = Server(server.folder, server.port)
    try:
        names += [id for batch in batches for id in batch.ids]
    finally:
        restarted.end()
    assert Counter(names) + Counter(module.lost_utterances) == Counter(expected) and names[-1] == expected[-1]


# A server of S3, where moto and s3fs are: `uv pip install --target DIR 'moto[server]' s3fs`, and DIR in PYTHONPATH.


@pytest.fixture(scope="module")
def bucket(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    s3fs = pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    log = (tmp_path_factory.mktemp("moto") / "log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**keys, "AWS_ENDPOINT_URL": address}.items():
            patch.setenv(name, value)
        for _ in range(300):
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        s3 = s3fs.S3FileSystem()
        s3.mkdir("speech")
        s3.put(str(written), "speech/shards", recursive=True)
        yield "s3://speech/shards", process
        process.kill()
        process.wait()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_s3_are_those_of_the_disk(bucket: tuple[str, Any], written: Path, workers: int) -> None:
    assert rows(ready(bucket[0], workers=workers)) == rows(ready(written))


def test_s3_is_listed_anew(bucket: tuple[str, Any], written: Path) -> None:
    first = ready(bucket[0]).manifests["train"].fingerprint
    s3 = fsspec.filesystem("s3", skip_instance_cache=True)  # as another process
    path = "speech/shards/train/recording.000001.tar"
    content = bytearray(s3.cat_file(path))
    content[-1] ^= 1
    s3.pipe_file(path, bytes(content))
    changed = ready(bucket[0]).manifests["train"].fingerprint
    s3.pipe_file(path, (written / "train" / "recording.000001.tar").read_bytes())
    assert changed != first


def test_what_s3_lacks_is_named(bucket: tuple[str, Any]) -> None:
    with pytest.raises(InputError, match="No shards of test: .*s3://speech/shards/test/cuts.*found subsets dev, train"):
        ready(bucket[0], train_subsets=["test"])
    with pytest.raises(InputError, match="s3://nobodys/shards/train"):
        ready("s3://nobodys/shards")


def test_an_s3_that_goes_away_ends_the_run(bucket: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LOST_IN_A_ROW", 4)
    module = ready(bucket[0], workers=2, batch_seconds=1.0)
    batches = iter(module.train_dataloader())
    assert len(next(batches))
    bucket[1].kill()
    bucket[1].wait()
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(InputError, match="Is s3://speech/shards"):
        for _ in batches:
            pass
