"""What is left of runs that are killed: `lightning fit` is stopped at random moments, resumed, and compared.

    python benchmarks/faults.py [--trials 21] [--seed 1] [--jobs 1] [--keep FOLDER]

A trial trains a tiny transducer on a minute of the embedded corpus, in one process or in two, and stops it: `kill -9`
of all processes as when a machine goes down, of one of two ranks, SIGTERM as at pre-emption, to the first process or
(as SLURM does it) to all that run, readers among them, or Ctrl-C. The moment is drawn over the whole training, also
while a checkpoint is written. Then the run is resumed with `--ckpt_path last`. Checkpoints are written every three
steps and every epoch.

Of every kind the table says how many trials were resumed and ended, which utterances were lost or repeated in the steps
that lead to the final weights, and how often the final weights and the optimizer are bit by bit those of a run that was
not disturbed. Whoever is left alive 60 s after the fault counts as hanging.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer

from data_modules.spoken import synthesize

EPOCHS = 2
MINUTES = 1.0
PATIENCE = 60  # seconds for the rest of a run to end after a fault
LIMIT = 900  # seconds for a run to end by itself
KINDS = {  # signal, to whom, and number of processes
    "kill -9, one process": (signal.SIGKILL, "all", 1),
    "kill -9, both of two": (signal.SIGKILL, "all", 2),
    "SIGTERM, one process": (signal.SIGTERM, "first", 1),
    "kill -9, one of two": (signal.SIGKILL, "any", 2),
    "Ctrl-C, one process": (signal.SIGINT, "all", 1),
    "SIGTERM, two processes": (signal.SIGTERM, "first", 2),
    "SIGTERM, all that run": (signal.SIGTERM, "session", 2),
}


class StepRecorder(Callback):
    """Writes down what every optimizer step of this rank is given, a line each: `given.<rank>` in the run's folder."""

    def _write(self, trainer: Trainer, row: dict[str, Any]) -> None:
        with open(Path(trainer.default_root_dir) / f"given.{trainer.global_rank}", "a") as file:
            file.write(json.dumps(row) + "\n")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A start goes on from some step; what was done after it is void."""
        self._write(trainer, {"process": os.getpid(), "from": trainer.global_step})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Every batch is an optimizer step."""
        self._write(trainer, {"step": trainer.global_step, "epoch": trainer.current_epoch, "ids": batch.ids,
                              "time": time.monotonic()})  # fmt: skip


def experiment(folder: Path) -> Path:
    """Write the experiment: the demo's parts, as small as they can be."""
    features = {
        "class_path": "asr_lightning.audio.features.LogMel",
        "init_args": {"mels": 40, "normalization": "asr_lightning.audio.normalization.UtteranceNormalization"},
    }
    encoder = {"input_dimension": 40, "hidden": 16, "layers": 1, "channels": 2, "dropout": 0.1}
    saving = "lightning.pytorch.callbacks.ModelCheckpoint"
    content = {
        "seed_everything": 1,
        "model": {
            "class_path": "asr_lightning.models.rnn_transducer.RNNTransducer",
            "init_args": {
                "tokenizer": {"class_path": "asr_lightning.text.tokenizers.CharacterTokenizer"},
                "features": features,
                "augment": {"class_path": "asr_lightning.audio.augment.SpecAugment"},
                "encoder": {"class_path": "asr_lightning.nn.recurrent.LSTMEncoder", "init_args": encoder},
                "predictor": {
                    "class_path": "asr_lightning.models.rnn_transducer.LSTMPredictor",
                    "init_args": {"dimension": 16, "dropout": 0.1},
                },
                "joint_dimension": 16,
                "ctc_weight": 0.3,
            },
        },
        "data": {
            "class_path": "data_modules.spoken.SpokenDataModule",
            "init_args": {
                "root": str(folder / "speech"), "minutes": MINUTES, "evaluation_minutes": 0.05,
                "train_subsets": ["train-clean-100"], "validation_subsets": ["dev-clean"],
                "batch_seconds": 8, "speed_factors": [0.9, 1.0, 1.1], "workers": 1,
            },
        },
        "trainer": {
            "max_epochs": EPOCHS, "accelerator": "cpu", "num_sanity_val_steps": 0, "logger": False,
            "enable_progress_bar": False, "gradient_clip_val": 5.0,
            "callbacks": [
                {"class_path": "faults.StepRecorder"},
                {"class_path": saving, "init_args": {"filename": "last", "every_n_epochs": 1,
                                                     "enable_version_counter": False}},
                {"class_path": saving, "init_args": {"filename": "last-step", "every_n_train_steps": 3,
                                                     "enable_version_counter": False}},
            ],
        },
    }  # fmt: skip
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(folder: Path, run: Path, processes: int) -> subprocess.Popen:
    """Begin or resume a run, in a process group of its own; what it says goes to `output.log`."""
    benchmarks = Path(__file__).resolve().parent
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ASR_LIGHTNING_CACHE": str(folder / "cache"),
        "PYTHONPATH": f"{benchmarks}:{benchmarks.parent}",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "asr_lightning", "fit", "--config", str(folder / "experiment.yaml"),
        "--trainer.default_root_dir", str(run), "--trainer.devices", str(processes), "--ckpt_path", "last",
        *(["--trainer.strategy", "ddp"] if processes > 1 else []),
    ]  # fmt: skip
    run.mkdir(parents=True, exist_ok=True)
    with (run / "output.log").open("a") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)


def rows(run: Path, rank: int) -> list[dict[str, Any]]:
    """The rows that a rank wrote down, of complete lines only."""
    path = run / f"given.{rank}"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def surviving(run: Path, processes: int) -> Counter[tuple[int, str]]:
    """How often each utterance was given in each epoch, in the steps that lead to the final weights."""
    counts: Counter[tuple[int, str]] = Counter()
    for rank in range(processes):
        steps: list[dict[str, Any]] = []
        for row in rows(run, rank):
            steps = [step for step in steps if step["step"] <= row["from"]] if "from" in row else [*steps, row]
        counts.update((step["epoch"], id) for step in steps for id in step["ids"])
    return counts


def alive(group: int) -> bool:
    """Whether any process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def stop_at_random(
    process: subprocess.Popen, run: Path, kind: str, when: random.Random, steps: int, seconds: float
) -> bool:
    """Stop a run at a random moment.

    Args:
        process: The first process.
        run: Its folder.
        kind: One of `KINDS`.
        when: Draws the moment and the victim.
        steps: Of the whole training.
        seconds: Of a step.

    Returns:
        Whether all of its processes ended in time; what is left is killed.
    """
    number, whom, processes = KINDS[kind]
    step, wait, victim = when.randrange(1, steps), when.uniform(0, 2 * seconds), when.randrange(processes)
    while process.poll() is None and sum("step" in row for row in rows(run, 0)) < step:
        time.sleep(0.01)
    time.sleep(wait)
    if whom == "all":
        os.killpg(process.pid, number)
    elif whom == "session":
        subprocess.run(["pkill", f"-{int(number)}", "-s", str(process.pid)], check=True)
    elif whom == "any":
        os.kill(next(row["process"] for row in rows(run, victim) if "process" in row), number)
    else:
        os.kill(process.pid, number)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and (process.poll() is None or alive(process.pid)):
        time.sleep(0.1)
    hangs = process.poll() is None or alive(process.pid)
    if hangs:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    elif number != signal.SIGKILL and process.returncode not in (128 + number, 0):  # 0 if it was about to end
        print(f"status {process.returncode} after {kind}: see {run}/output.log", flush=True)
    return not hangs


def state(run: Path) -> dict[str, Any]:
    """The weights and the optimizer's state at the end of a run."""
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return {
        "step": checkpoint["global_step"], "weights": checkpoint["state_dict"], "rest": checkpoint["optimizer_states"]
    }  # fmt: skip


def equal_bitwise(first: Any, second: Any) -> bool:  # noqa: ANN401 - whatever a checkpoint is made of
    """Whether two parts of checkpoints are the same, bit by bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal_bitwise(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal_bitwise, first, second))
    return first == second


@dataclass
class Outcome:
    """What became of a trial, or of several."""

    trials: int = 1
    hung: int = 0
    survived: int = 0
    lost: int = 0
    repeated: int = 0
    equal: int = 0
    redone: list[int] = field(default_factory=list)  # steps done again, in each trial

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def trial(folder: Path, number: int, kind: str, when: random.Random, pace: tuple[int, float]) -> Outcome:
    """Start, stop, resume and compare one run."""
    begun, run, processes = time.monotonic(), folder / f"trial{number}", KINDS[kind][2]
    outcome = Outcome(hung=not stop_at_random(start(folder, run, processes), run, kind, when, *pace))
    if start(folder, run, processes).wait(LIMIT) == 0:
        counts, expected = surviving(run, processes), surviving(folder / f"undisturbed{processes}", processes)
        outcome.survived = 1
        outcome.lost, outcome.repeated = (expected - counts).total(), (counts - expected).total()
        outcome.equal = int(equal_bitwise(state(run), state(folder / f"undisturbed{processes}")))
        outcome.redone = [sum("step" in row for row in rows(run, 0)) - pace[0]]
    print(f"{number} {kind}: {time.monotonic() - begun:.0f} s, {outcome}", flush=True)
    return outcome


def train_undisturbed(folder: Path, processes: int) -> tuple[int, float]:
    """Train without a fault, and return how many steps there are and how long one takes; check what it was given."""
    run = folder / f"undisturbed{processes}"
    if start(folder, run, processes).wait(LIMIT) != 0:
        raise SystemExit(f"the undisturbed run failed: see {run}/output.log")
    steps, counts = [row for row in rows(run, 0) if "step" in row], surviving(run, processes)
    texts = (folder / "speech/train-clean-100").glob("**/*.trans.txt")
    ids = {line.split()[0] for path in texts for line in path.read_text().splitlines()}
    assert counts == Counter({(epoch, id): 1 for epoch in range(EPOCHS) for id in ids}), "the undisturbed run is wrong"
    return len(steps), (steps[-1]["time"] - steps[0]["time"]) / (len(steps) - 1)


def measure(folder: Path, trials: int, seed: int, jobs: int) -> dict[str, Outcome]:
    """Run all trials, the kinds in turn."""
    synthesize(folder / "speech", minutes=MINUTES, evaluation_minutes=0.05, workers=1, progress=False)
    experiment(folder)
    kinds = [list(KINDS)[number % len(KINDS)] for number in range(trials)]
    table = {kind: Outcome(trials=0) for kind in kinds}
    with ThreadPoolExecutor(jobs) as pool:
        pace = dict(zip((1, 2), pool.map(lambda count: train_undisturbed(folder, count), (1, 2)), strict=True))
        print({count: f"{steps} steps of {seconds:.2f} s" for count, (steps, seconds) in pace.items()}, flush=True)
        outcomes = [
            pool.submit(trial, folder, number, kind, random.Random(f"{seed} {number}"), pace[KINDS[kind][2]])
            for number, kind in enumerate(kinds)
        ]
        for kind, outcome in zip(kinds, outcomes, strict=True):
            table[kind] += outcome.result()
    return table


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=21, help="in all kinds together")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    parser.add_argument("--keep", type=Path, help="a folder for the runs; a temporary one without it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        table = measure((arguments.keep or Path(temporary)).resolve(), arguments.trials, arguments.seed, arguments.jobs)
    print("| fault | trials | hung | survived | utterances lost | repeated | weights alike | steps done again |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for kind, row in table.items():
        print(f"| {kind} | {row.trials} | {row.hung} | {row.survived} | {row.lost} | {row.repeated} | {row.equal} | "
              f"{', '.join(map(str, row.redone))} |")  # fmt: skip


if __name__ == "__main__":
    main()
