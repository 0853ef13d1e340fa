"""Size, speed, memory and errors of checkpoints in PyTorch, onnxruntime and sherpa-onnx, in float32 and int8.

    python benchmarks/deployment.py runs/demo/rnnt_export/seed1/checkpoints/last.ckpt \
        --root data/spoken_small --subset test-clean --utterances 50

Give teacher and student as two checkpoints. Every row is a process of its own with one thread, which recognizes the
utterances one by one, several times, after one that is not counted. The real-time factor is that of processor seconds,
features and search included, so that other work on the machine changes it little: median, least and most of the turns.
Memory is the most that the process ever held. In onnxruntime the encoder runs there, the search in PyTorch.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from timing import provenance

from asr_lightning.asr import main as asr
from asr_lightning.batch import Batch, Utterance
from asr_lightning.models.checkpoints import load_recognizer
from asr_lightning.nn.int8 import use_int8
from asr_lightning.scoring.error_rates import ErrorRates
from asr_lightning.tools.export import onnx_run
from asr_lightning.tools.exported_networks import CTC, StatelessTransducer, make_exported
from data_modules.librispeech import LibriSpeechDataModule

RUNTIMES = ("PyTorch", "PyTorch int8", "onnxruntime", "onnxruntime int8", "sherpa-onnx", "sherpa-onnx int8")


def main() -> None:
    """Print the table, or one row of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--root", type=Path, required=True, help="of a corpus in LibriSpeech's layout")
    parser.add_argument("--subset", required=True)
    parser.add_argument("--utterances", type=int, default=50, help="the first of the subset (default: 50)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--row", choices=RUNTIMES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options)))
        return
    print("| checkpoint | runtime | MB | real-time factor | peak memory, MB | WER, % |")
    print("|---|---|---|---|---|---|")
    for checkpoint in options.checkpoints:
        with tempfile.TemporaryDirectory() as folder:
            if asr(["export", str(checkpoint), "--output", folder, "--int8"]):
                sys.exit(f"{checkpoint} cannot be exported")
            for name in RUNTIMES:
                command = [sys.executable, __file__, str(checkpoint), "--row", name, "--folder", folder]
                for key in ("root", "subset", "utterances", "turns"):
                    command += [f"--{key}", str(getattr(options, key))]
                process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                row = json.loads(process.stdout.splitlines()[-1])
                factors = row["factors"]
                print(
                    f"| {checkpoint} | {name} | {row['megabytes']:.1f} | {statistics.median(factors):.4f} "
                    f"({min(factors):.4f} to {max(factors):.4f}) | {row['memory']:.0f} | {100 * row['wer']:.2f} |",
                    flush=True,
                )
    print(f"\n{provenance()}")


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Return the figures of one row."""
    torch.set_num_threads(1)
    utterances = read(options.root, options.subset, options.utterances)
    seconds = sum(len(utterance.audio) for utterance in utterances) / utterances[0].sample_rate
    transcribe, megabytes = prepare(options.checkpoints[0], options.folder, options.row)
    transcribe(utterances[0])
    factors = []
    for _ in range(options.turns):
        start = time.process_time()
        texts = [transcribe(utterance) for utterance in utterances]
        factors.append((time.process_time() - start) / seconds)
    rates = ErrorRates()
    rates.update([utterance.text for utterance in utterances], texts)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of kB, on Linux
    return {"megabytes": megabytes, "factors": factors, "memory": memory, "wer": float(rates.compute()["wer"])}


def read(root: Path, subset: str, count: int) -> list[Utterance]:
    """Return the first utterances of a subset."""
    data = LibriSpeechDataModule(str(root), train_subsets=[], validation_subsets=[], test_subsets=[subset])
    data.prepare_data()
    data.setup("test")
    loaders = data.test_dataloader()
    utterances: list[Utterance] = []
    for batch in loaders[subset]:
        for row, (name, text, samples) in enumerate(
            zip(batch.ids, batch.texts, batch.audio_lengths.tolist(), strict=True)
        ):
            utterances.append(Utterance(name, batch.audio[row, :samples].clone(), batch.sample_rate, text, ""))
        if len(utterances) >= count:
            break
    return utterances[:count]


def prepare(checkpoint: Path, folder: Path, runtime: str) -> tuple[Callable[[Utterance], str], float]:
    """Return a function that transcribes an utterance, and the size of its files in MB."""
    if runtime.startswith("sherpa"):
        return sherpa(checkpoint, folder, ".int8.onnx" if runtime.endswith("int8") else ".onnx")
    recognizer = load_recognizer(checkpoint)
    if runtime.startswith("PyTorch"):
        weights = sum(parameter.numel() for parameter in recognizer.parameters())
        if runtime.endswith("int8"):
            use_int8(recognizer)
        # What is no parameter any more are weights of one byte.
        size = (weights + 3 * sum(parameter.numel() for parameter in recognizer.parameters())) / 1e6
        return lambda utterance: recognizer.transcribe(Batch.collate([utterance], utterance.sample_rate))[0], size
    form = make_exported(recognizer)
    suffix = ".int8.onnx" if runtime.endswith("int8") else ".onnx"
    name = "model" if isinstance(form, CTC) else "encoder"
    run = onnx_run(folder / f"{name}{suffix}")
    recognizer.features.normalization = None  # it is in the encoder

    def transcribe(utterance: Utterance) -> str:
        features, lengths = recognizer.features(utterance.audio.unsqueeze(0), torch.tensor([len(utterance.audio)]))
        if name == "model":
            hypotheses = recognizer.search(*run(features, lengths), recognizer.tokenizer)
        else:
            time_last = not isinstance(form, StatelessTransducer)
            encoded, counts = run(features.transpose(1, 2) if time_last else features, lengths)
            encoded = encoded.transpose(1, 2) if time_last else encoded
            hypotheses = recognizer.search(
                encoded, counts, recognizer.prediction, recognizer.joint, recognizer.tokenizer
            )
        return recognizer.tokenizer.decode(hypotheses[0][0].tokens)

    return transcribe, (folder / f"{name}{suffix}").stat().st_size / 1e6


def sherpa(checkpoint: Path, folder: Path, suffix: str) -> tuple[Callable[[Utterance], str], float]:
    """Return a function that transcribes an utterance in sherpa-onnx, and the size of its files in MB."""
    import sherpa_onnx

    recognizer = load_recognizer(checkpoint)
    form = make_exported(recognizer)
    names = [name for name in form.graphs if name != "streaming_encoder"]
    files = {name: str(folder / f"{name}{suffix}") for name in names}
    shared = {
        "tokens": str(folder / "tokens.txt"), "num_threads": 1, "feature_dim": form.features.dimension,
        "sample_rate": form.features.sample_rate,
    }  # fmt: skip
    if isinstance(form, CTC):
        peer = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(**files, **shared)
    else:
        kind = "transducer" if isinstance(form, StatelessTransducer) else "nemo_transducer"
        peer = sherpa_onnx.OfflineRecognizer.from_transducer(**files, **shared, model_type=kind)

    def transcribe(utterance: Utterance) -> str:
        stream = peer.create_stream()
        stream.accept_waveform(utterance.sample_rate, utterance.audio.numpy())
        peer.decode_stream(stream)
        return " ".join(stream.result.text.split())

    return transcribe, sum(Path(file).stat().st_size for file in files.values()) / 1e6


if __name__ == "__main__":
    main()
