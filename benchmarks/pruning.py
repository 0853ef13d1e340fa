"""What a pruned transducer loss leaves out: its loss and gradient beside the exact ones, on a trained network.

    python benchmarks/pruning.py CHECKPOINT SPEECH [--utterances 16] [--widths 2 3 5 10] [--left_out 0.5 0.1 0.01]

CHECKPOINT is that of a transducer, SPEECH a folder in LibriSpeech's layout. Of each kind of ranges there are: nodes of
the lattice that the joint network computes, in % of all; the mean difference of the losses of an utterance; the mean
and the highest probability of the alignments left out, 1 - exp(exact loss - pruned loss); and the angle in degrees
between the gradients of the sum of all losses with regard to the inputs and weights of the joint network. Beside the
ranges by the estimated lattice are ranges of the same width by the exact one, the best that could be had.

Without CHECKPOINT and SPEECH, inputs are random (B 4, T 200, U 40, D 320, V 500): a network before training.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor, nn

from asr_lightning.batch import Batch, Utterance
from asr_lightning.losses.transducer import pruned
from asr_lightning.losses.transducer.joint import ExactLoss, TransducerLoss, joint_transducer_loss
from asr_lightning.losses.transducer.pruned import pruned_transducer_loss
from asr_lightning.models.checkpoints import load_recognizer
from asr_lightning.models.rnn_transducer import RNNTransducer


class Recorder(TransducerLoss):
    """The exact loss, which keeps its arguments."""

    def __call__(self, encoded: Tensor, predicted: Tensor, output: nn.Linear, *rest: Any) -> Tensor:  # noqa: ANN401
        """Return the losses, (B,)."""
        self.inputs = [x.detach() for x in (encoded, predicted, output.weight, output.bias)]
        self.rest = rest
        return ExactLoss()(encoded, predicted, output, *rest)


def from_checkpoint(checkpoint: Path, speech: Path, utterances: int) -> tuple[list[Tensor], tuple[Any, ...]]:
    """Return the inputs of a recognizer's joint network for some utterances, and the other arguments of its loss."""
    recognizer = load_recognizer(checkpoint)
    assert isinstance(recognizer, RNNTransducer)
    texts = {}
    for path in sorted(speech.rglob("*.trans.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            texts[path.parent / f"{name}.flac"] = text
    if not texts:
        raise SystemExit(f"expected a folder in LibriSpeech's layout, found no *.trans.txt below {speech}")
    rows = []
    for path, text in list(texts.items())[:utterances]:
        audio, rate = soundfile.read(path, dtype="float32")
        rows.append(Utterance(path.stem, torch.from_numpy(audio), rate, text))
    recognizer.transducer_loss = recorder = Recorder()
    with torch.no_grad():
        recognizer.loss(Batch.collate(rows))
    return recorder.inputs, recorder.rest


def random_inputs() -> tuple[list[Tensor], tuple[Any, ...]]:
    """Return random inputs of a joint network, and the other arguments of a loss."""
    torch.manual_seed(1)
    inputs = [torch.randn(4, 200, 320), torch.randn(4, 41, 320), torch.randn(500, 320) / 320**0.5, torch.randn(500)]
    return inputs, (
        torch.randint(1, 500, (4, 40)),
        torch.tensor([200, 150, 120, 100]),
        torch.tensor([40, 30, 30, 20]),
        0,
    )


def main() -> None:
    """Print a line for each kind of ranges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="of a transducer")
    parser.add_argument("speech", type=Path, nargs="?", help="folder in LibriSpeech's layout")
    parser.add_argument("--utterances", type=int, default=16)
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 3, 5, 10], help="positions per frame")
    parser.add_argument("--left_out", type=float, nargs="+", default=[0.5, 0.1, 0.01], help="bounds on probability")
    options = parser.parse_args()
    if options.checkpoint and not options.speech:
        parser.error("expected SPEECH beside CHECKPOINT")
    inputs, rest = (
        from_checkpoint(options.checkpoint, options.speech, options.utterances)
        if options.checkpoint
        else random_inputs()
    )
    leaves, computed, original = [x.requires_grad_() for x in inputs], [], pruned._score
    (_, frames, tokens, _) = rest
    nodes = int((frames * (tokens + 1)).sum())

    def counting(*arguments: Any) -> Any:  # noqa: ANN401
        computed.append(int(arguments[6].sum()))
        return original(*arguments)

    def gradient_of(losses: Tensor) -> Tensor:
        return torch.cat([x.flatten() for x in torch.autograd.grad(losses.sum(), leaves)]).double()

    pruned._score = counting
    exact = joint_transducer_loss(*leaves, *rest)
    gradient = gradient_of(exact)
    print("| ranges | nodes | loss + | left out, mean | highest | angle of gradients |\n|---|---:|---:|---:|---:|---:|")

    def line(name: str, losses_of: Callable[[], Tensor]) -> None:
        computed.clear()
        losses = losses_of()
        approximate, share = gradient_of(losses), 1 - (exact - losses).exp().detach()
        angle = math.degrees(math.acos(min(1.0, float(gradient @ approximate / gradient.norm() / approximate.norm()))))
        print(
            f"| {name} | {100 * sum(computed) / nodes:.1f} % | {float((losses - exact).mean().detach()):.4f} "
            f"| {float(share.mean()):.4f} | {float(share.max()):.4f} | {angle:.2f}° |"
        )

    for width in options.widths:
        line(f"{width} positions", lambda width=width: pruned_transducer_loss(*leaves, *rest, width))
    estimate = pruned.estimated_scores
    pruned.estimated_scores = exact_scores
    for width in options.widths:
        line(f"{width}, by the exact lattice", lambda width=width: pruned_transducer_loss(*leaves, *rest, width))
    pruned.estimated_scores = estimate
    for bound in options.left_out:
        line(
            f"2 or more, at most {bound} left out", lambda bound=bound: pruned_transducer_loss(*leaves, *rest, 2, bound)
        )


score = pruned._score  # before its nodes are counted


def exact_scores(
    encoded: Tensor,
    predicted: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    *rest: Any,  # noqa: ANN401
) -> tuple[Tensor, Tensor]:
    """Return what `pruned.estimated_scores` estimates."""
    shape = (*encoded.shape[:2], predicted.shape[1])
    blank, label = torch.zeros(2, *shape).unbind()
    score(encoded, predicted, weight, bias, targets, rest[2], torch.ones(shape).bool(), blank, label, False)
    return blank, label


if __name__ == "__main__":
    main()
