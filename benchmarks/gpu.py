"""All that only a GPU can show: kernels checked and measured, training in bfloat16, batches, searches, memory.

    python benchmarks/gpu.py --output runs/gpu --seconds 540     # again, to go on with what is left
    python benchmarks/gpu.py --list
    python benchmarks/gpu.py --only kernels losses

Each step is a process, whose output is <output>/<step>.log. A step that fails does not stop the others. Steps that have
ended well are left alone by the next call, which begins those that the time did not reach. summary.md has a line for
each step.

What each step answers:
    kernels     do the Triton kernels compile, and give the numbers of plain operations?
    losses      is the transducer's loss faster and smaller than torchaudio's, in bfloat16, at four vocabularies?
    shapes      the same on the batches of the public benchmark of transducer losses
    training    seconds of audio per second, and memory, of every network of full size
    growth      how time and memory of the teacher's step grow with batch and length
    fit         does the demo train, validate, save and test on a GPU, in bfloat16?
    batches     into how many parts must a step of the full-size teacher be cut?
    transcribe  is what the trained network writes on the GPU what it writes on the processor?
    peers       training steps beside torchaudio's and SpeechBrain's
    searches    searches beside torchaudio's and SpeechBrain's
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from timing import provenance

ROOT = Path(__file__).parents[1]
FULL = "rnnt_teacher rnnt_ws rnnt_streaming_teacher las e2e_a ds2 jasper conformer_ctc speech_transformer".split()
ON_GPU = "--trainer.accelerator gpu --trainer.devices 1 --trainer.precision bf16-mixed"
FIT = f"python -m asr_lightning fit --config experiments/demo/rnnt_teacher.yaml {ON_GPU} --data.init_args.workers 4"


def steps(output: Path) -> dict[str, list[str]]:
    """Return the commands of each step, in the order of their worth."""
    run = output / "demo"
    measured = f"python benchmarks/training_speed.py {' '.join(f'experiments/{name}.yaml' for name in FULL)}"
    teacher = "python benchmarks/training_speed.py experiments/rnnt_teacher.yaml"
    losses = "python benchmarks/transducer_loss.py --device cuda --precision bf16"
    speech = "data/spoken_small/test-clean"
    transcribe = f"python -m asr_lightning.asr transcribe {speech} --checkpoint {run}/checkpoints/last.ckpt --device"
    return {
        "kernels": [
            "python -m pytest -q tests/losses/test_transducer_kernels.py tests/losses/test_joint_transducer_loss.py "
            "tests/losses/test_lattice_free_mmi.py tests/models/test_waiting.py "
            "tests/decoding/test_ngram_language_model.py"
        ],
        "losses": [f"{losses} --vocabularies 32 500 2000 5000"],
        "shapes": [f"{losses} --vocabularies 500 --shape 30 400 100 512 --batches shape random sorted"],
        "training": [f"{measured} --device cuda --precision bf16-mixed --batch-seconds 120 --utterance-seconds 12"],
        "fit": [
            f"{FIT} --trainer.max_epochs 2 --trainer.default_root_dir {run}",
            f"python -m asr_lightning test --config experiments/demo/rnnt_teacher.yaml {ON_GPU} "
            f"--trainer.default_root_dir {run} --ckpt_path {run}/checkpoints/last.ckpt",
        ],
        "transcribe": [
            f"{transcribe} cuda --output {output}/cuda.txt",
            f"{transcribe} cpu --output {output}/cpu.txt",
            f"cmp {output}/cuda.txt {output}/cpu.txt",
        ],
        "batches": [
            f"python -m asr_lightning fit --config experiments/rnnt_teacher.yaml {ON_GPU} --trainer.max_steps 3 "
            f"--trainer.default_root_dir {output}/batches --trainer.limit_val_batches 0 "
            "--data data_modules.spoken.SpokenDataModule --data.init_args.root data/spoken_small "
            "--data.init_args.minutes 40 --data.init_args.evaluation_minutes 2 --data.init_args.words_per_class 4 "
            "--data.init_args.train_subsets [train-clean-100] --data.init_args.batch_seconds 1200 "
            "--trainer.callbacks+=asr_lightning.callbacks.largest_batch.LargestBatch"
        ],
        "growth": [
            f"{teacher} --device cuda --precision bf16-mixed --batch-seconds 60 120 240 480 --utterance-seconds 12",
            f"{teacher} --device cuda --precision bf16-mixed --batch-seconds 120 --utterance-seconds 3 6 12 24",
        ],
        "peers": ["python benchmarks/peers.py --device cuda"],
        "searches": ["python benchmarks/searching.py --device cuda"],
    }  # fmt: skip


def execute(commands: list[str], log: Path, seconds: float) -> str:
    """Run commands one after another; return `ended well`, or what happened."""
    peers = os.pathsep.join([str(ROOT), str(ROOT / "runs" / "peers"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": peers, "WANDB_MODE": "offline", "PYTHONUNBUFFERED": "1"}
    deadline = time.monotonic() + seconds
    with log.open("w", encoding="utf-8") as file:
        for command in commands:
            print(f"$ {command}", file=file, flush=True)
            program, *words = shlex.split(command)
            process = subprocess.Popen(
                [sys.executable if program == "python" else program, *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
            )
            try:
                status = process.wait(max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
                return "stopped: no time was left"
            if status:
                return f"exit status {status}"
    return "ended well"


def main() -> int:
    """Run the steps that are left; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), metavar="FOLDER", help="default: runs/gpu")
    parser.add_argument("--seconds", type=float, default=3600, help="for all steps of this call (default: 3600)")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", help="these, again if they have ended well")
    parser.add_argument("--list", action="store_true", help="print the commands, and run nothing")
    options = parser.parse_args()
    folder = options.output.absolute()
    planned = steps(folder)
    if unknown := sorted(set(options.only) - set(planned)):
        parser.error(f"--only: no step {', '.join(unknown)}; expected some of {', '.join(planned)}")
    if options.list:
        print("\n".join(f"{name}: {command}" for name, commands in planned.items() for command in commands))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "steps.json"
    results: dict[str, list[object]] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    begun = time.monotonic()
    for name, commands in planned.items():
        remaining = options.seconds - (time.monotonic() - begun)
        if remaining < 10 or (name not in options.only if options.only else results.get(name, [""])[0] == "ended well"):
            continue
        started = time.monotonic()
        results[name] = [execute(commands, folder / f"{name}.log", remaining), round(time.monotonic() - started, 1)]
        path.write_text(json.dumps(results, indent=1), "utf-8")
        print(f"{name}: {results[name][0]}, {results[name][1]} s", flush=True)
    lines = [provenance(), "", "| step | what happened | seconds | commands |", "|---|---|---:|---|"]
    for name, commands in planned.items():
        status, seconds = results.get(name, ["not begun", "–"])
        lines.append(f"| {name} | {status} | {seconds} | {'; '.join(f'`{command}`' for command in commands)} |")
    (folder / "summary.md").write_text("\n".join(lines) + "\n", "utf-8")
    print(f"Written to {folder}: summary.md, a log of each step")
    return int(any(results.get(name, [""])[0] != "ended well" for name in options.only or planned))


if __name__ == "__main__":
    sys.exit(main())
