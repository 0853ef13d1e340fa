r"""The transducer's joint network and loss, forward and backward, beside torchaudio's: time and peak memory, as ratios.

    python benchmarks/transducer_loss.py [--vocabularies 32 500 2000 5000] [--device cuda] [--precision bf16]
    python benchmarks/transducer_loss.py --device cuda --precision bf16 --vocabularies 500 --shape 30 400 100 512 \
        --batches shape random sorted

    pip download fast_rnnt==1.3 --no-binary :all: --no-deps && tar xf fast_rnnt-1.3.tar.gz
    python benchmarks/transducer_loss.py --fast_rnnt fast_rnnt-1.3 --vocabularies 32 500 2000

In `losses/transducer`, `fused` is the exact loss of `joint.py` (on a GPU with its kernels, and `plain` is without),
`pruned` is `pruned.py` with `--width` positions per frame, and `logits` is `logits.py` on the logits of all frames and
tokens. `torchaudio` is `torchaudio.functional.rnnt_loss` on the same logits. Each measurement is a process of its own,
and they take turns. Memory is the most that the process has beyond its inputs after a first small loss; on a GPU, what
is allocated there beyond the inputs. There, a first round is not measured, since it compiles.

`fast_rnnt`, the peer of `pruned`, is measured where its unpacked sources are given, which are compiled with torch's
extension loader for a CPU, into a folder beside them. It is the pruned loss of Kuang et al. 2022 as its own
documentation calls it: two linear layers for the simple loss, its gradients, ranges, and the pruned loss, with the sum
of half the simple loss and the pruned one differentiated.

Besides batches of the shape given there are those of the public benchmark of transducer losses
[github.com/csukuangfj/transducer-loss-benchmarking]: utterances as long as LibriSpeech's, 30 at a time as they come
(`random`), or sorted by length, with at most 10,000 frames in total (`sorted`). Its own lengths are not at hand:
durations are drawn between the deciles of 628 utterances of train-clean-100, 25 frames a second, and tokens are 0.25 a
frame, give or take 0.03 (one standard deviation), about as many as 500 word pieces give. Seconds are those of a batch,
the mean over all.
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from timing import Row, peak_memory, print_table
from torch import Tensor

from asr_lightning.losses.transducer import joint, lattice
from asr_lightning.losses.transducer.joint import joint_transducer_loss
from asr_lightning.losses.transducer.logits import torchaudio_loss, transducer_loss
from asr_lightning.losses.transducer.pruned import pruned_transducer_loss

KINDS = ("fused", "plain", "pruned", "logits", "torchaudio", "fast_rnnt")
DECILES = [
    1.6,
    4.1,
    7.9,
    11.3,
    12.8,
    13.7,
    14.3,
    14.7,
    15.2,
    15.7,
    17.2,
]  # s, of utterances, with the least and the most
PROCESS_OPTIONS = (
    "shape",
    "shortest",
    "utterances",
    "frames",
    "device",
    "precision",
    "repeats",
    "width",
)  # to a process


def loss_of(kind: str, tensors: list[Tensor], targets: Tensor, lengths: tuple[Tensor, Tensor], width: int) -> Tensor:
    """Return the loss of each utterance by one of the kinds."""
    encoded, predicted, weight, bias = tensors[:4]
    if kind == "pruned":
        return pruned_transducer_loss(encoded, predicted, weight, bias, targets, *lengths, 0, width)
    if kind == "fast_rnnt":
        return fast_rnnt_loss(tensors, targets, lengths, width)
    if kind in ("fused", "plain"):
        return joint_transducer_loss(encoded, predicted, weight, bias, targets, *lengths, 0)
    logits = torch.nn.functional.linear(torch.tanh(encoded.unsqueeze(2) + predicted.unsqueeze(1)), weight, bias)
    return (transducer_loss if kind == "logits" else torchaudio_loss)(logits, targets, *lengths, 0)


def fast_rnnt_loss(tensors: list[Tensor], targets: Tensor, lengths: tuple[Tensor, Tensor], width: int) -> Tensor:
    """Return half the simple loss plus the pruned loss of fast_rnnt; the last two tensors are its simple joint's."""
    import fast_rnnt

    encoded, predicted, weight, bias, of_frames, of_histories = tensors
    boundary = torch.zeros(len(encoded), 4, dtype=torch.int64, device=encoded.device)
    boundary[:, 3], boundary[:, 2] = lengths
    simple, gradients = fast_rnnt.rnnt_loss_simple(
        predicted @ of_histories.T, encoded @ of_frames.T, targets, 0, boundary, reduction="none", return_grad=True
    )
    ranges = fast_rnnt.get_rnnt_prune_ranges(*gradients, boundary, width)
    frames, histories = fast_rnnt.do_rnnt_pruning(encoded, predicted, ranges)
    logits = torch.nn.functional.linear(torch.tanh(frames + histories), weight, bias)
    return 0.5 * simple + fast_rnnt.rnnt_loss_pruned(logits, targets, ranges, 0, boundary, reduction="none")


def load_fast_rnnt(folder: Path) -> None:
    """Compile the unpacked sources of fast_rnnt for a CPU, unless that is done, and let Python import it."""
    from torch.utils.cpp_extension import load  # slow to import, and needed for this peer only

    built = folder.resolve() / "built"
    built.mkdir(exist_ok=True)
    sources = []
    for name in ("python/csrc/fast_rnnt", "python/csrc/mutual_information", "csrc/mutual_information_cpu"):
        source = built / f"{name.replace('/', '_')}.cc"
        if not source.exists():
            shutil.copy(folder / "fast_rnnt" / f"{name}.cu", source)
        sources.append(str(source))
    options = {"extra_include_paths": [str(folder.resolve())], "build_directory": str(built)}
    sys.modules["_fast_rnnt"] = load("_fast_rnnt", sources, extra_cflags=["-O3"], **options)
    sys.path.append(str(folder.resolve() / "fast_rnnt" / "python"))


def lengths_of(options: argparse.Namespace) -> list[tuple[Tensor, Tensor]]:
    """Return the frames and the tokens, (B,) both, of each batch."""
    batches, (batch, frames, tokens, _) = options.batches[0], options.shape
    if batches == "shape":
        first = torch.tensor([0])  # has the full length
        return [
            (
                torch.randint(round(frames * options.shortest), frames + 1, (batch,)).index_fill(0, first, frames),
                torch.randint(round(tokens * options.shortest), tokens + 1, (batch,)).index_fill(0, first, tokens),
            )
        ]
    deciles = torch.tensor(DECILES)
    quantiles = (len(DECILES) - 1) * torch.rand(options.utterances)
    seconds = torch.lerp(deciles[quantiles.long()], deciles[quantiles.long() + 1], quantiles.frac())
    all_frames = (25 * seconds).long()
    all_tokens = (all_frames * (0.25 + 0.03 * torch.randn(options.utterances))).round().long().clamp(min=1)
    if batches == "random":
        return list(zip(all_frames.split(batch), all_tokens.split(batch), strict=True))
    order, groups = all_frames.argsort(descending=True), [[]]
    for utterance in order.tolist():
        if groups[-1] and int(all_frames[[*groups[-1], utterance]].sum()) > options.frames:
            groups.append([])
        groups[-1].append(utterance)
    return [(all_frames[group], all_tokens[group]) for group in groups]


def measure(kind: str, vocabulary: int, options: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of loss and gradient of a batch, and peak memory in MiB, in this process."""
    torch.manual_seed(1)
    device, dimension = options.device, options.shape[3]
    if kind == "plain":
        joint.operations_for = lambda _: lattice
    elif kind == "fused" and device == "cuda":
        warnings.simplefilter("error", RuntimeWarning)  # kernels that do not work are not measured as if they did
    warm = [torch.ones(size, device=device).requires_grad_() for size in ((2, 9, 64), (2, 4, 64), (32, 64), (32,))]
    lengths = torch.tensor([3, 2], device=device)
    extra = 2 if kind == "fast_rnnt" else 0  # linear layers of a simple joint network
    if options.fast_rnnt and kind == "fast_rnnt":
        load_fast_rnnt(options.fast_rnnt)
    warm += [torch.ones(32, 64, device=device).requires_grad_() for _ in range(extra)]
    loss_of(kind, warm, torch.ones(2, 3, dtype=torch.int64, device=device), (lengths, lengths), 2).sum().backward()
    weight = torch.randn(vocabulary, dimension, device=device) / dimension**0.5
    bias, batches = torch.randn(vocabulary, device=device), []
    for frames, tokens in lengths_of(options):
        sizes = [(len(frames), length, dimension) for length in (int(frames.max()), int(tokens.max()) + 1)]
        tensors = [*(torch.randn(size, device=device) for size in sizes), weight, bias]
        tensors += [torch.randn(vocabulary, dimension, device=device) / dimension**0.5 for _ in range(extra)]
        targets = torch.randint(1, vocabulary, (len(frames), int(tokens.max())), device=device)
        batches.append((tensors, targets, (frames.to(device), tokens.to(device))))
    if device == "cuda":
        take(kind, batches, options)
        torch.cuda.reset_peak_memory_stats()
    baseline = torch.cuda.memory_allocated() / 2**20 if device == "cuda" else peak_memory(device)
    seconds = [take(kind, batches, options) / len(batches) for _ in range(options.repeats)]
    return {"seconds": statistics.median(seconds), "MiB": peak_memory(device) - baseline}


def take(
    kind: str, batches: list[tuple[list[Tensor], Tensor, tuple[Tensor, Tensor]]], options: argparse.Namespace
) -> float:
    """Return the seconds of loss and gradient of all batches."""
    if options.device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for tensors, targets, lengths in batches:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            losses = loss_of(kind, leaves, targets, lengths, options.width)
        losses.sum().backward()
    if options.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each vocabulary, kind of batches, and loss beside its peer's."""
    unused = {"plain"} if options.device == "cpu" else set()  # on a CPU, that is the fused one
    kinds = [kind for kind in KINDS if kind not in unused | (set() if options.fast_rnnt else {"fast_rnnt"})]
    names = {"torchaudio": "torchaudio.functional.rnnt_loss", "fast_rnnt": "fast_rnnt, simple and pruned loss"}
    pairs = [(kind, "torchaudio") for kind in kinds if kind not in names]
    pairs += [("pruned", "fast_rnnt")] if options.fast_rnnt else []
    for vocabulary, batches in product(options.vocabularies, options.batches):
        results: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(options.rounds):
            for kind in kinds:
                results[kind].append(measure_apart(kind, vocabulary, batches, options))
        seconds = {kind: [result["seconds"] for result in measured] for kind, measured in results.items()}
        mebibytes = {kind: statistics.median(x["MiB"] for x in measured) for kind, measured in results.items()}
        shape = "B {} T {} U {} D {}".format(*options.shape) if batches == "shape" else f"{batches} batches"
        for kind, peer in pairs:
            label = f"{kind} to {options.width} positions" if kind == "pruned" else kind
            yield Row(
                f"transducer loss, {label}", f"V {vocabulary}, {shape}, {options.precision}", seconds[kind],
                names[peer], seconds[peer],
                memory=(mebibytes[kind], mebibytes[peer] or math.nan),  # a tiny batch needs no more than before
            )  # fmt: skip


def measure_apart(kind: str, vocabulary: int, batches: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure in a process of its own, since memory is the process's."""
    command = [sys.executable, __file__, "--kind", kind, "--vocabularies", str(vocabulary), "--batches", batches]
    for name in PROCESS_OPTIONS:
        value = getattr(options, name)
        command += [f"--{name}", *(str(x) for x in (value if isinstance(value, list) else [value]))]
    if options.fast_rnnt:
        command += ["--fast_rnnt", str(options.fast_rnnt)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[32, 500, 2000, 5000], help="sizes V")
    parser.add_argument("--shape", nargs=4, type=int, default=[4, 200, 40, 320], metavar=("B", "T", "U", "D"))
    parser.add_argument("--shortest", type=float, default=0.5, help="of the longest utterance, in frames and in tokens")
    parser.add_argument("--batches", nargs="+", default=["shape"], choices=["shape", "random", "sorted"])
    parser.add_argument("--utterances", type=int, default=600, help="of all random, and of all sorted batches")
    parser.add_argument("--frames", type=int, default=10000, help="of a sorted batch, at most")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=5, help="of the loss in a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    parser.add_argument("--width", type=int, default=5, help="positions per frame of the pruned losses")
    parser.add_argument("--fast_rnnt", type=Path, metavar="FOLDER", help="unpacked sources of fast_rnnt 1.3, for a CPU")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)  # what a process of its own is to measure
    return parser


def main() -> None:
    """Print a row per vocabulary, batches and kind."""
    options = make_parser().parse_args()
    if options.kind:
        print(json.dumps(measure(options.kind, options.vocabularies[0], options)))
    else:
        print_table(rows(options))


if __name__ == "__main__":
    main()
