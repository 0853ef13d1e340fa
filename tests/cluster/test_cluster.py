"""The scripts of `experiments/cluster`: processes train as one does, share every epoch, and sum their errors."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from asr_lightning.models.checkpoints import load_recognizer
from asr_lightning.scoring.error_rates import ErrorRates
from tests.support import tones

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "experiments" / "cluster"
TEXTS = ["ABC AB", "BED AC", "CAB AD", "DAB BE", "EGG FA", "FAD BE", "GAD AB", "HE BAD"]  # of equal length
TRAINING = [*TEXTS, *(text[::-1] for text in TEXTS)]
SECONDS = len(TEXTS[0]) * 0.1

SRUN = """#!/bin/bash
# All tasks on one node.
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NODEID=0 "${@:2}" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do wait $task || exit 1; done
"""
SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "tones", "SLURM_JOB_NUM_NODES": "1", "SLURM_NNODES": "1",
    "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": "29617",
}  # fmt: skip


def describe(folder: Path) -> None:
    """Write an experiment on tones, with four utterances in a step."""
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 2e-4, "momentum": 0.9}}
    data = {
        "root": str(folder / "corpus"),
        "train_subsets": ["train"],
        "validation_subsets": ["dev"],
        "batch_seconds": 4 * SECONDS + 0.01,
        "sample_rate": tones.RATE,
        "workers": 0,
    }
    callbacks: list[dict[str, Any]] = [
        {"class_path": "tests.support.recording.Recorder"},
        {"class_path": "asr_lightning.callbacks.transcripts.Transcripts"},
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"filename": "last", "every_n_epochs": 1, "enable_version_counter": False},
        },
    ]
    experiment = {
        "seed_everything": 1,
        "model": tones.transducer(ctc_weight=0.3, optimizer=optimizer),
        "data": {"class_path": "data_modules.librispeech.LibriSpeechDataModule", "init_args": data},
        "trainer": {
            "default_root_dir": str(folder / "run"),
            "max_epochs": 1,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "num_sanity_val_steps": 0,
            "callbacks": callbacks,
        },
    }
    (folder / "tones.yaml").write_text(yaml.safe_dump(experiment))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus of tones and an experiment."""
    folder = tmp_path_factory.mktemp("cluster")
    tones.write_corpus(folder / "corpus", "train", TRAINING)
    tones.write_corpus(folder / "corpus", "dev", [*tones.TEXTS[:4], "A"])
    describe(folder)
    return folder


def start(command: list[str], folder: Path, **more: str) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        "PYTHONPATH": str(ROOT),
        "BIN": str(Path(sys.executable).parent),
        "ASR_LIGHTNING_CACHE": str(folder / "cache"),
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
        **more,
    }
    result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-3000:]


def rows(run: Path, rank: int, epoch: int = 0) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / f"rank{rank}.jsonl").read_text().splitlines()]
    return [row for row in lines if row["epoch"] == epoch]


@pytest.fixture(scope="module")
def alone(corpus: Path) -> list[list[dict[str, Any]]]:
    """What one process does in two epochs."""
    command = [sys.executable, "-m", "asr_lightning", "fit", "-c", str(corpus / "tones.yaml")]
    start([*command, "--trainer.max_epochs", "2"], corpus)
    return [rows(corpus / "run", 0, epoch) for epoch in range(2)]


def assert_shared(ranks: list[list[dict[str, Any]]], alone: list[dict[str, Any]]) -> None:
    """In every step of an epoch, processes train together on the batch of a single process, with the same loss."""
    for shares, step in zip(zip(*ranks, strict=True), alone, strict=True):
        ids = [id for share in shares for id in share["ids"]]
        assert sorted(ids) == sorted(step["ids"])  # so the comparison is of the same batches
        assert sum(share["loss"] for share in shares) / len(ranks) == pytest.approx(step["loss"], rel=1e-4)


@pytest.mark.parametrize(("launcher", "processes"), [("torchrun", 4), ("slurm", 2)])
def test_processes_train_as_one_with_the_global_batch(
    corpus: Path, alone: list[list[dict[str, Any]]], tmp_path: Path, launcher: str, processes: int
) -> None:
    run, variables = tmp_path / "run", {"GPUS": str(processes), "PORT": "29616"}
    if launcher == "slurm":
        variables = {**SLURM, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        (tmp_path / "srun").write_text(SRUN)
        (tmp_path / "srun").chmod(0o755)
    command = [str(SCRIPTS / f"{launcher}.sh"), "--trainer.default_root_dir", str(run)]
    start(command, corpus, CONFIG=str(corpus / "tones.yaml"), **variables)

    records = [rows(run, rank) for rank in range(processes)]
    *steps, expected_rates = alone[0]
    environments = {row["environment"] for record in records for row in record[:-1]}
    assert environments == {{"torchrun": "TorchElasticEnvironment", "slurm": "SLURMEnvironment"}[launcher]}
    assert all(len(record) - 1 == len(steps) == len(TRAINING) // 4 for record in records)
    assert_shared([record[:-1] for record in records], steps)
    assert len({row["loss"] for row in steps}) == len(steps)
    trained = [id for record in records for row in record[:-1] for id in row["ids"]]
    assert len(trained) == len(set(trained)) == len(TRAINING)

    assert all(record[-1] == records[0][-1] for record in records)
    assert records[0][-1]["rates"] == pytest.approx(expected_rates["rates"], rel=1e-4)
    [path] = (run / "transcripts").glob("*dev.jsonl")
    transcripts = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["id"] for line in transcripts) == [f"dev-{number}" for number in range(5)]
    summed = ErrorRates()
    summed.update([line["reference"] for line in transcripts], [line["hypothesis"] for line in transcripts])
    for name, value in summed.compute().items():
        assert records[0][-1]["rates"][f"dev/{name}"] == pytest.approx(float(value))
    assert (run / "checkpoints" / "last.ckpt").is_file()


def test_processes_share_weights_and_go_on_from_one_file(
    corpus: Path, alone: list[list[dict[str, Any]]], tmp_path: Path
) -> None:
    run, strategy = tmp_path / "run", "--trainer.strategy"
    sharing = {"data_parallel_size": "2", "tensor_parallel_size": "1", "save_distributed_checkpoint": "false"}
    command = [
        *[str(SCRIPTS / "torchrun.sh"), "--trainer.default_root_dir", str(run)],
        *[strategy, "lightning.pytorch.strategies.ModelParallelStrategy"],
        *[word for name, value in sharing.items() for word in (f"{strategy}.init_args.{name}", value)],
    ]
    for epoch in range(2):  # the second from the checkpoint of the first
        start(
            [*command, "--trainer.max_epochs", str(epoch + 1)],
            corpus, CONFIG=str(corpus / "tones.yaml"), GPUS="2", PORT="29618",
        )  # fmt: skip
        records = [rows(run, rank, epoch) for rank in range(2)]
        assert_shared([record[:-1] for record in records], alone[epoch][:-1])
        for record in records:
            assert record[-1]["rates"] == pytest.approx(alone[epoch][-1]["rates"], rel=1e-4)
        load_recognizer(run / "checkpoints" / "last.ckpt")


def test_a_job_whose_time_is_over_is_queued_again(tmp_path: Path) -> None:
    for name, script in {
        "srun": "echo $$ > started; exec sleep 60",
        "scontrol": 'echo "$@" > asked; kill $(cat started)',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, **SLURM, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = subprocess.Popen([SCRIPTS / "slurm.sh"], env=environment, cwd=tmp_path)
    try:
        while not (tmp_path / "started").is_file() or not (tmp_path / "started").read_text():
            assert job.poll() is None
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=30) != 0
    finally:
        job.kill()
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
