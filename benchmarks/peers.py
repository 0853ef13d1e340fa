"""A training step of a Conformer transducer beside those of torchaudio and SpeechBrain, at the same shapes, as ratios.

    python -m pip install --target PEERS --no-deps speechbrain==1.1.2 hyperpyyaml ruamel.yaml joblib sentencepiece
    PYTHONPATH=PEERS python benchmarks/peers.py [--batch-seconds 30] [--utterance-seconds 5]

Shapes are those of `experiments/rnnt_random.yaml`, but without its CTC output: audio of 16 kHz, 80 mels, two strided
convolutions of 108 channels, 7 layers of 216, 4 heads, 864 inside, kernels of 31, an LSTM and a joint network of 256,
31 characters. Peers are put together from their own layers as their own recipes do it, with what they have besides.
SpeechBrain's transducer loss needs a GPU; on a CPU it is given torchaudio's, as torchaudio's own. A step is features,
network, loss, backward pass and AdamW, on noise of equal length. The contestants take turns, step by step.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchaudio
import yaml
from torch import Tensor, nn
from torchaudio.functional import rnnt_loss
from torchaudio.models import Conformer
from torchaudio.models.rnnt import _Joiner, _Predictor
from training_speed import random_batch

from asr_lightning.batch import Batch
from asr_lightning.models.checkpoints import build_recognizer

EXPERIMENT = Path("experiments/rnnt_random.yaml")
VOCABULARY, MELS, SUBSAMPLING, CHANNELS = 31, 80, 4, 108
DIMENSION, LAYERS, HEADS, INNER, KERNEL, JOINT = 216, 7, 4, 864, 31, 256

Loss = Callable[[Batch], Tensor]


class Torchaudio(nn.Module):
    """torchaudio's Conformer between its parts of a transducer, as its Conformer RNN-T recipe has them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torchaudio.transforms.MelSpectrogram(16_000, n_fft=400, hop_length=160, n_mels=MELS)
        self.front = nn.Sequential(  # it has none of its own
            nn.Conv2d(1, CHANNELS, 3, 2, 1), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1), nn.ReLU()
        )
        self.input = nn.Linear(CHANNELS * MELS // SUBSAMPLING, DIMENSION)
        self.encoder = Conformer(DIMENSION, HEADS, INNER, LAYERS, KERNEL, dropout=0.1)
        self.projection = nn.Linear(DIMENSION, JOINT)
        self.predictor = _Predictor(VOCABULARY, JOINT, JOINT, 1, JOINT, lstm_layer_norm=True, lstm_dropout=0.1)
        self.joiner = _Joiner(JOINT, VOCABULARY, activation="tanh")

    def forward(self, audio: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
        """Return the mean loss."""
        mels = self.features(audio).clamp(min=1e-10).log().transpose(1, 2)
        reduced = self.input(self.front(mels.unsqueeze(1)).transpose(1, 2).flatten(2))
        frames = torch.full((len(audio),), reduced.shape[1], device=audio.device)
        encoded, frames = self.encoder(reduced, frames)
        histories = nn.functional.pad(targets, (1, 0))
        predicted, *_ = self.predictor(histories, lengths + 1)
        logits, *_ = self.joiner(self.projection(encoded), frames, predicted, lengths + 1)
        return rnnt_loss(logits, targets.int(), frames.int(), lengths.int(), blank=0)


class SpeechBrain(nn.Module):
    """SpeechBrain's parts as its Conformer-transducer recipe of LibriSpeech puts them together."""

    def __init__(self) -> None:
        super().__init__()
        from speechbrain.lobes.features import Fbank
        from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
        from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
        from speechbrain.nnet.RNN import LSTM
        from speechbrain.nnet.transducer.transducer_joint import Transducer_joint

        self.features = Fbank(sample_rate=16_000, n_fft=400, n_mels=MELS)
        self.front = ConvolutionFrontEnd(
            (8, 10, MELS), num_blocks=2, num_layers_per_block=1, out_channels=[CHANNELS, CHANNELS], kernel_sizes=[3, 3],
            strides=[2, 2], residuals=[False, False],
        )  # fmt: skip
        self.encoder = TransformerASR(
            tgt_vocab=VOCABULARY, input_size=MELS // SUBSAMPLING * CHANNELS, d_model=DIMENSION, nhead=HEADS,
            num_encoder_layers=LAYERS, num_decoder_layers=0, d_ffn=INNER, dropout=0.1, kernel_size=KERNEL,
            encoder_module="conformer", attention_type="RelPosMHAXL", normalize_before=True, causal=False,
        )  # fmt: skip
        self.projection = nn.Linear(DIMENSION, JOINT)
        self.embedding = nn.Embedding(VOCABULARY, JOINT)
        self.predictor = LSTM(JOINT, input_size=JOINT)
        self.predicted = nn.Linear(JOINT, JOINT)
        self.joint = Transducer_joint(joint="sum", nonlinearity=nn.Tanh)
        self.output = nn.Linear(JOINT, VOCABULARY)

    def forward(self, audio: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
        """Return the mean loss."""
        whole = torch.ones(len(audio), device=audio.device)  # SpeechBrain's lengths are shares of the longest
        encoded = self.projection(self.encoder.encode(self.front(self.features(audio)), whole))
        predicted = self.predicted(self.predictor(self.embedding(nn.functional.pad(targets, (1, 0))))[0])
        logits = self.output(self.joint(encoded.unsqueeze(2), predicted.unsqueeze(1)))
        frames = torch.full((len(audio),), encoded.shape[1], dtype=torch.int32, device=audio.device)
        return rnnt_loss(logits, targets.int(), frames, lengths.int(), blank=0)


def ours() -> tuple[nn.Module, Loss]:
    """Return the experiment's recogniser without augmentation and CTC, and its loss."""
    content: dict[str, Any] = yaml.safe_load(EXPERIMENT.read_text())["model"]
    content["init_args"] |= {"augment": None, "ctc_weight": 0.0}
    recognizer = build_recognizer(content)
    return recognizer, lambda batch: recognizer.loss(batch).mean()


def peer(module: nn.Module) -> tuple[nn.Module, Loss]:
    """Return a peer and its loss of a batch."""

    def loss(batch: Batch) -> Tensor:
        rows = [torch.tensor([1 + ord(letter) % (VOCABULARY - 1) for letter in text]) for text in batch.texts]
        lengths = torch.tensor([len(row) for row in rows])
        return module(batch.audio, torch.stack(rows), lengths)

    return module, loss


def step_seconds(loss: Loss, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """Return how long a training step takes."""
    start = time.perf_counter()
    loss(batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    """Print a row per contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-seconds", type=float, default=30.0)
    parser.add_argument("--utterance-seconds", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=7, help="that are counted, after two that are not")
    options = parser.parse_args()
    torch.manual_seed(1)
    batch = random_batch(options.batch_seconds, options.utterance_seconds)
    contestants = {"asr_lightning": ours(), "torchaudio": peer(Torchaudio())}
    try:
        contestants["SpeechBrain"] = peer(SpeechBrain())
    except ImportError as error:
        print(f"SpeechBrain is not here ({error}): see --help")
    optimizers = {name: torch.optim.AdamW(module.train().parameters()) for name, (module, _) in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for step in range(options.steps + 2):
        for name, (_, loss) in contestants.items():
            spent = step_seconds(loss, optimizers[name], batch)
            if step >= 2:
                seconds[name].append(spent)
    print(f"{torch.get_num_threads()} threads, {len(batch)} utterances of {options.utterance_seconds} s")
    print("| | parameters | audio seconds per second: median (least to most) | ours is so many times as fast |")
    print("| --- | ---: | ---: | ---: |")
    best = statistics.median(seconds["asr_lightning"])
    for name, (module, _) in contestants.items():
        speeds = sorted(batch.seconds / one for one in seconds[name])
        print(
            f"| {name} | {sum(one.numel() for one in module.parameters()):,} | {statistics.median(speeds):.1f} "
            f"({speeds[0]:.1f} to {speeds[-1]:.1f}) | {statistics.median(seconds[name]) / best:.2f} |"
        )


if __name__ == "__main__":
    main()
