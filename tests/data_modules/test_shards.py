"""Shards give what the files gave, lhotse reads them, and damage is named."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from lhotse import CutSet, MonoCut

from asr_lightning.asr import main
from asr_lightning.errors import InputError
from data_modules import sharding
from data_modules.corpus import CorpusDataModule
from data_modules.ksponspeech import KsponSpeechDataModule
from data_modules.librispeech import LibriSpeechDataModule
from data_modules.shards import ShardsDataModule
from tests.support import collecting_run, environment
from tests.support.small_corpora import make_subset, write_chapter

UTTERANCES = {"train": 40, "dev": 5}


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Of a corpus of files; noise up to full scale, where rounding would be heard first."""
    for seed, (subset, count) in enumerate(UTTERANCES.items()):
        make_subset(tmp_path / "corpus", subset, count, seed=seed)
    loud = next((tmp_path / "corpus").glob("train/**/*.flac"))
    soundfile.write(loud, np.array([-32768, 32767, -32767, 12345] * 4000, np.int16), 16_000)
    return describe(tmp_path, "librispeech.LibriSpeechDataModule", arguments(tmp_path / "corpus"))


def arguments(root: Path, **more: Any) -> dict[str, Any]:
    subsets = {"train_subsets": ["train"], "validation_subsets": ["dev"]}
    return {"root": str(root), **subsets, "batch_seconds": 3.0, "workers": 0, **more}


def describe(folder: Path, module: str, init_args: dict[str, Any]) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({"data": {"class_path": f"data_modules.{module}", "init_args": init_args}}))
    return path


def write(experiment: Path, *options: str) -> tuple[int, Path]:
    output = experiment.parent / "shards"
    command = ["--config", str(experiment), "--output", str(output), "--utterances-per-shard", "7", *options]
    return main(["shards", *command]), output


@pytest.fixture
def shards(experiment: Path) -> Path:
    status, output = write(experiment)
    assert status == 0
    return output


def ready(module: CorpusDataModule) -> CorpusDataModule:
    module.prepare_data()
    module.setup("fit")
    return module


def rows(module: CorpusDataModule, epoch: int) -> list[tuple[Any, ...]]:
    batches = ready(module).train_dataloader()
    batches.progress = lambda: (epoch, 0)
    return [
        (batch.ids, batch.texts, batch.speakers, batch.subsets, batch.audio.tolist(), batch.audio_lengths.tolist())
        for batch in [*batches, *module.val_dataloader()["dev"]]
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_to_the_bit_those_of_the_files(experiment: Path, shards: Path, workers: int) -> None:
    more = {"speed_factors": [0.9, 1.0], "train_utterances": 30}
    for epoch in (0, 2):
        files = rows(LibriSpeechDataModule(**arguments(experiment.parent / "corpus", **more)), epoch)
        assert rows(ShardsDataModule(**arguments(shards, workers=workers, **more)), epoch) == files


def test_lhotse_reads_them(experiment: Path, shards: Path) -> None:
    names = sorted(path.name for path in (shards / "train").iterdir())
    assert names == [f"{kind}" for kind in sorted(
        name for n in range(6) for name in (f"cuts.{n:06}.jsonl.gz", f"recording.{n:06}.tar"))]  # fmt: skip
    module = ready(LibriSpeechDataModule(**arguments(experiment.parent / "corpus")))
    manifest = module.manifests["train"]
    read = list(CutSet.from_shar(in_dir=shards / "train"))
    assert [cut.id for cut in read] == [manifest[n].id for n in range(UTTERANCES["train"])]
    for cut, n in zip(read, range(len(manifest)), strict=True):
        [supervision], [expected] = cut.supervisions, manifest[n].supervisions
        assert (supervision.text, supervision.speaker) == (expected.text, expected.speaker)
        np.testing.assert_array_equal(cut.load_audio()[0], module.read_audio(manifest[n]))
        assert cut.num_samples == manifest[n].recording.num_samples


def test_what_lhotse_wrote_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "corpus" / "train" / "1" / "2"
    write_chapter(folder, {f"1-2-{n}": f"TEXT {n}" for n in range(5)}, [0.5] * 5)
    module = ready(LibriSpeechDataModule(root=str(tmp_path / "corpus"), train_subsets=["train"]))
    cuts = CutSet.from_cuts(module.manifests["train"][n] for n in range(5))
    (tmp_path / "theirs" / "train").mkdir(parents=True)
    cuts.to_shar(tmp_path / "theirs" / "train", fields={"recording": "wav"}, shard_size=2)
    data = ready(ShardsDataModule(root=str(tmp_path / "theirs"), train_subsets=["train"], workers=0))
    utterances = {
        id: (text, speaker, audio[:length].numpy())
        for batch in data.train_dataloader()
        for id, text, speaker, audio, length in zip(
            batch.ids, batch.texts, batch.speakers, batch.audio, batch.audio_lengths, strict=True
        )
    }
    assert len(utterances) == 5
    for cut in cuts:
        text, speaker, audio = utterances[cut.id]
        assert (text, speaker) == (cut.supervisions[0].text, "1")
        np.testing.assert_allclose(audio, module.read_audio(cut), atol=1 / 32_000)  # lhotse's writer rounds


def test_headerless_audio_is_kept_to_the_bit(tmp_path: Path) -> None:
    folder = tmp_path / "kspon" / "KsponSpeech_01"
    folder.mkdir(parents=True)
    samples = np.random.default_rng(0).integers(-32_768, 32_768, (3, 4_000)).astype("<i2")
    for number, row in enumerate(samples):
        (folder / f"KsponSpeech_{number:06}.pcm").write_bytes(row.tobytes())
        (folder / f"KsponSpeech_{number:06}.txt").write_bytes("(3시)/(세 시)에 비가 온다".encode("cp949"))
    options = {"root": str(folder.parent), "train_subsets": ["KsponSpeech_01"]}
    status, output = write(describe(tmp_path, "ksponspeech.KsponSpeechDataModule", options))
    assert status == 0 and KsponSpeechDataModule(**options).read_audio is not ShardsDataModule.read_audio
    module = ready(ShardsDataModule(root=str(output), train_subsets=["KsponSpeech_01"]))
    manifest = module.manifests["KsponSpeech_01"]
    assert [manifest[n].supervisions[0].text for n in range(3)] == ["세 시에 비가 온다"] * 3
    for n, expected in enumerate(samples):
        np.testing.assert_array_equal(module.read_audio(manifest[n]), expected / np.float32(32_768))


# Running.


def start(**run: Any) -> subprocess.CompletedProcess:
    command = [sys.executable, collecting_run.__file__, json.dumps(run)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=250)


def test_a_run_on_files_is_resumed_in_mid_epoch_on_shards(experiment: Path, shards: Path, tmp_path: Path) -> None:
    saving = {"dirpath": str(tmp_path / "ckpt"), "every_n_train_steps": 5}
    trainer, files = {"max_epochs": 2}, arguments(experiment.parent / "corpus")
    expected = collecting_run.run(str(tmp_path / "files"), files, trainer, saving)
    repeated = collecting_run.run(str(tmp_path / "shards"), arguments(shards), trainer, shards=True)
    assert repeated == expected
    for steps in (5, 15):
        [checkpoint] = (tmp_path / "ckpt").glob(f"step={steps}-*.ckpt")
        log = str(tmp_path / f"from{steps}")
        rest = collecting_run.run(log, arguments(shards), trainer, resume=str(checkpoint), shards=True)
        assert rest == expected[steps:]


def test_two_processes_share_uneven_shards(shards: Path, tmp_path: Path) -> None:
    trainer = {"max_epochs": 2, "devices": 2, "strategy": "ddp", "limit_val_batches": 1.0}
    data = arguments(shards, workers=1, evaluation_batch_seconds=0.5)  # 40 utterances in 6 shards, 5 in 1
    result = start(log=str(tmp_path / "log"), data=data, trainer=trainer, shards=True)
    assert result.returncode == 0, result.stderr[-2000:]
    records = [row for rank in range(2) for row in collecting_run.rows(str(tmp_path / "log"), rank)]
    for epoch in range(2):
        for kind, count in (("train", UTTERANCES["train"]), ("validation dev", UTTERANCES["dev"])):
            ids = [id for row in records if (row["kind"], row["epoch"]) == (kind, epoch) for id in row["ids"]]
            assert len(ids) == len(set(ids)) == count


# Damage.


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def cut_at_a_member(path: Path) -> None:
    with tarfile.open(path) as tar:
        os.truncate(path, tar.getmembers()[4].offset)


def fill_with_zeros(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 // 512 * 512].ljust(len(content), b"\0"))


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "truncated tar": ("recording.000002.tar", cut_short),
    "tar that ends between members": ("recording.000002.tar", cut_at_a_member),
    "tar of zeros": ("recording.000002.tar", fill_with_zeros),
    "missing tar": ("recording.000002.tar", Path.unlink),
    "truncated cuts": ("cuts.000002.jsonl.gz", cut_short),
    "cuts of zeros": ("cuts.000002.jsonl.gz", fill_with_zeros),
    "exchanged tar": (
        "recording.000002.tar",
        lambda path: shutil.copyfile(path.with_name("recording.000001.tar"), path) and None,
    ),
}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named(shards: Path, damage: str, listed: bool) -> None:
    name, spoil = DAMAGES[damage]
    spoil(shards / "train" / name)
    if not listed:  # as in a folder that lhotse wrote
        (shards / "train.json").unlink()
    elif damage == "exchanged tar":
        pass  # of another size, most likely; the ids tell in any case
    with pytest.raises(InputError, match="damaged shard") as refusal:
        ready(ShardsDataModule(**arguments(shards)))
    assert ".000002." in str(refusal.value)
    with pytest.warns(UserWarning, match="damaged shard"):
        module = ready(ShardsDataModule(**arguments(shards, on_bad="skip")))
    names = [id for batch in module.train_dataloader() for id in batch.ids]
    assert len(names) == len(set(names)) == UTTERANCES["train"] - 7


def test_a_missing_pair_is_missed(shards: Path) -> None:
    for path in (shards / "train").glob("*.000005.*"):
        path.unlink()
    with pytest.raises(InputError, match=r"cuts\.000005\.jsonl\.gz.*No such file"):
        ready(ShardsDataModule(**arguments(shards)))


def test_damaged_audio_costs_itself_only(shards: Path) -> None:
    module = ready(ShardsDataModule(**arguments(shards)))
    manifest = module.manifests["train"]
    location = str(manifest[9].recording.sources[0].source)
    path, _, offset = location.partition("+")[0].rpartition("@")
    with open(path, "r+b") as file:
        file.seek(int(offset))
        file.write(b"\0" * 100)
    with pytest.warns(UserWarning, match="cannot be read.*recording.000001.tar@"):
        names = [id for batch in module.train_dataloader() for id in batch.ids]
    assert set(module.lost_utterances) == {manifest[9].id}
    assert Counter(names).most_common(1)[0][1] == 1 and len(names) == UTTERANCES["train"] - 1


def test_a_missing_subset_is_named_with_the_way_on(shards: Path) -> None:
    with pytest.raises(InputError, match="No shards of test: .*found subsets dev, train.*asr shards"):
        ShardsDataModule(root=str(shards), test_subsets=["test"]).prepare_data()


# Writing.


def test_a_second_writer_leaves_them_or_replaces_them(
    experiment: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def times() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in shards.rglob("*.*") if not path.name.startswith(".")}

    old = times()
    assert write(experiment)[0] == 0 and times() == old
    assert capsys.readouterr().out.count("there already") == 2
    next(experiment.parent.glob("corpus/dev/**/*.flac")).touch()
    assert write(experiment)[0] == 2 and times() == old
    assert f"{shards / 'dev'} holds something else" in capsys.readouterr().err
    assert write(experiment, "--replace")[0] == 0
    new = times()
    assert {path for path in old if new[path] != old[path]} == {path for path in old if "/dev" in path}
    cut_short(shards / "train" / "recording.000000.tar")
    assert write(experiment)[0] == 2 and "damaged shards" in capsys.readouterr().err
    assert write(experiment, "--replace")[0] == 0
    assert len(rows(ShardsDataModule(**arguments(shards)), 0)) > 1
    (shards / "dev" / "mine.wav").write_text("mine")
    next(experiment.parent.glob("corpus/dev/**/*.flac")).touch()
    assert write(experiment, "--replace")[0] == 2 and "no shards, as mine.wav" in capsys.readouterr().err
    assert (shards / "dev" / "mine.wav").read_text() == "mine"


def test_a_killed_writer_leaves_nothing(experiment: Path) -> None:
    output = experiment.parent / "shards"
    script = (
        "import os, pathlib, signal, sys\n"
        "from data_modules.librispeech import LibriSpeechDataModule as corpus\n"
        "from asr_lightning.asr import main\n"
        "read, written = corpus.read_audio, []\n"
        "def dying(cut):\n"
        f"    if pathlib.Path({str(output / '.train.partial')!r}).is_dir(): written.append(cut.id)\n"
        "    if len(written) == 32: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return read(cut)\n"
        "corpus.read_audio = staticmethod(dying)\n"
        "main(['shards', *sys.argv[1:]])\n"
    )
    options = ["--config", str(experiment), "--output", str(output), "--utterances-per-shard", "7"]
    killed = subprocess.run(
        [sys.executable, "-c", script, *options], env=environment(), capture_output=True, timeout=250
    )
    assert killed.returncode == -signal.SIGKILL
    assert (output / ".train.partial").is_dir() and not (output / "train").exists()
    with pytest.raises(InputError, match="No shards of train"):
        ready(ShardsDataModule(**arguments(output)))
    assert write(experiment)[0] == 0
    assert not list(output.glob(".*.partial")) and len(rows(ShardsDataModule(**arguments(output)), 0)) > 1


@pytest.mark.parametrize("last", ["write_atomically", "remove"])
def test_a_writer_that_is_stopped_at_its_end_is_no_obstacle(
    experiment: Path, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        if list(experiment.parent.glob("shards/*train*/recording.*")):  # they are written
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sharding, last, stop)
        assert write(experiment)[0] == 130
    assert write(experiment)[0] == 0


def test_space_is_looked_at_before(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(experiment)[0] == 0
    sizes = sum(path.stat().st_size for path in (experiment.parent / "shards" / "train").iterdir())
    usage = shutil.disk_usage(experiment.parent)
    for share, status in ((0.9, 2), (1.4, 0)):
        shutil.rmtree(experiment.parent / "shards")
        free = usage._replace(free=int(share * sizes))
        monkeypatch.setattr(sharding.shutil, "disk_usage", lambda path, free=free: free)
        assert write(experiment, "--subsets", "train")[0] == status
    assert "train needs about 0.00 GB" in capsys.readouterr().err


def test_a_full_disk_is_said_and_leaves_nothing(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*values: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharding.TarWriter, "write", full)
    status, output = write(experiment)
    assert status == 2 and "No space left on device" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == [".train.lock"]


@pytest.mark.parametrize("on_bad", ["error", "skip"])
def test_audio_that_breaks_while_it_is_written(
    experiment: Path, on_bad: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, broken = LibriSpeechDataModule.read_audio, "train-1-0010"

    def read_audio(cut: MonoCut) -> np.ndarray:
        if cut.id == broken:
            raise ValueError("lost sync")
        return original(cut)

    monkeypatch.setattr(LibriSpeechDataModule, "read_audio", staticmethod(read_audio))
    monkeypatch.setattr(LibriSpeechDataModule, "probes", False)  # else it is met before
    options = arguments(experiment.parent / "corpus", on_bad=on_bad)
    describe(experiment.parent, "librispeech.LibriSpeechDataModule", options)
    if on_bad == "error":
        status, output = write(experiment)
        assert status == 2 and not (output / "train").exists()
        assert f"{broken}.flac cannot be read: lost sync" in capsys.readouterr().err
        return
    with pytest.warns(UserWarning, match=broken):
        status, output = write(experiment)
    module = ready(ShardsDataModule(**arguments(output)))
    ids = {module.manifests["train"][n].id for n in range(len(module.manifests["train"]))}
    assert status == 0 and len(ids) == UTTERANCES["train"] - 1 and broken not in ids


def test_an_experiment_without_subsets_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = describe(tmp_path, "librispeech.LibriSpeechDataModule", {"root": str(tmp_path)})
    assert write(experiment)[0] == 2 and "give --subsets" in capsys.readouterr().err
