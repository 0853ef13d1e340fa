"""Fixtures of all tests."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from asr_lightning.scoring import COUNTS, RATES
from asr_lightning.scoring.error_rates import ErrorRates
from data_modules.spoken import synthesize
from tests.support import ROOT

# As in worker processes and in runs that tests start: more threads round differently, and some results are compared
# bit by bit.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# Ignored in background jobs of a shell and below `nohup`; programs inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Files that take minutes: they begin first, so that the processes of a parallel run end together.
LONGEST = (
    "test_contract",
    "test_execution",
    "test_cluster",
    "test_plan",
    "test_page",
    "test_tune",
    "test_cli",
    "test_listen",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first; the order of all others stays."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(autouse=True)
def seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests begin alike, whatever ran before them: `seed_everything` leaves its seed in the environment."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Manifests go to a folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ASR_LIGHTNING_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def seconds_of_speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded corpus with 0.1 minutes for training and 0.05 of each other subset, to be copied: it takes long."""
    folder = tmp_path_factory.mktemp("speech") / "speech"
    synthesize(folder, minutes=0.1, evaluation_minutes=0.05, workers=1, progress=False)
    return folder


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """A device mesh of this process alone."""
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    destroy_process_group()


@pytest.fixture
def transcribed_run(tmp_path: Path) -> Callable[..., Path]:
    """Write the folder of a run that validated once: error rates and transcripts of each subset."""

    def write(name: str, seed: int, subsets: dict[str, list[tuple[str, str, str, str]]], epoch: int = 3) -> Path:
        """Write rows of id, speaker, reference and hypothesis by subset; return the folder of all runs."""
        folder = tmp_path / "runs" / name / f"seed{seed}"
        (folder / "transcripts").mkdir(parents=True)
        lines = []
        for subset, rows in subsets.items():
            rates = ErrorRates()
            rates.update([row[2] for row in rows], [row[3] for row in rows])
            results = rates.compute()
            values = [*(f"{float(results[name]):.6f}" for name in RATES), *(str(int(results[name])) for name in COUNTS)]
            lines.append(",".join([name, str(seed), str(epoch), subset, *values]))
            keys = ("id", "speaker", "reference", "hypothesis")
            text = "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows)
            (folder / "transcripts" / f"validation-epoch{epoch}-{subset}.jsonl").write_text(text)
        head = ",".join(["run", "seed", "epoch", "subset", *RATES, *COUNTS])
        (folder / "error_rates.csv").write_text("\n".join([head, *lines]) + "\n")
        return tmp_path / "runs"

    return write


@pytest.fixture
def outside_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written into the project, nothing is sent, and no key of the user's is found."""
    wandb.finish()  # of the test before: a process has one run at a time
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("sys.argv", ["lightning"])


@pytest.fixture
def unread(tmp_path: Path) -> Path:
    """The demo's student with a corpus that does not exist: for commands that end before they read it."""
    experiment = yaml.safe_load((ROOT / "experiments/demo/rnnt_random.yaml").read_text())
    experiment["data"]["init_args"] |= {
        "root": str(tmp_path / "speech"), "minutes": 0.1, "evaluation_minutes": 0.05, "words_per_class": None,
        "workers": 0, "batch_seconds": 60,
    }  # fmt: skip
    experiment["model"]["init_args"]["encoder"]["init_args"] |= {"hidden": 8, "layers": 1, "channels": 2}
    experiment["trainer"] |= {
        "default_root_dir": "runs/tiny",
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


@pytest.fixture
def tiny(unread: Path, tmp_path: Path, seconds_of_speech: Path) -> Path:
    """The same experiment with its corpus."""
    shutil.copytree(seconds_of_speech, tmp_path / "speech")
    return unread
