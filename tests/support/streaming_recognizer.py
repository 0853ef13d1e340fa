"""A small transducer that streams, with random weights, which writes words whose letters depend on what it hears."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from asr_lightning.batch import Batch, Utterance
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.rnn_transducer import RNNTransducer

EMFORMER = {"input_dimension": 20, "projection": 8, "layers": 2, "heads": 2, "feed_forward": 16,
            "segment": 2, "left_context": 6, "right_context": 1, "dropout": 0.0}  # fmt: skip
CONFIG: dict[str, Any] = {
    "class_path": "asr_lightning.models.rnn_transducer.RNNTransducer",
    "init_args": {
        "tokenizer": {"class_path": "asr_lightning.text.tokenizers.CharacterTokenizer"},
        "features": {"class_path": "asr_lightning.audio.features.LogMel", "init_args": {"mels": 20}},
        "encoder": {"class_path": "asr_lightning.nn.emformer.Emformer", "init_args": EMFORMER},
        "predictor": {"class_path": "asr_lightning.models.rnn_transducer.LSTMPredictor", "init_args": {"dimension": 8}},
        "joint_dimension": 8,
        "search": {"class_path": "asr_lightning.decoding.transducer.TransducerSearch", "init_args": {"max_symbols": 2}},
    },
}


def streaming_recognizer(config: dict[str, Any] = CONFIG, bias: float = 2.0) -> RNNTransducer:
    """Return a recognizer that is silent where nothing is heard.

    Args:
        config: A transducer of characters.
        bias: Of the blank, in standard deviations of a token's score.
    """
    torch.manual_seed(3)
    recognizer = build_recognizer(config)
    assert isinstance(recognizer, RNNTransducer)
    recognizer.eval().search.max_symbols = 2
    rate = recognizer.features.sample_rate
    audio = torch.from_numpy(babble(30.0, seed=99, rate=rate)).unsqueeze(0)
    with torch.no_grad():
        recognizer.encoder_projection.weight.mul_(3)
        encoded, _ = recognizer(audio, torch.tensor([audio.shape[1]]))
        predicted = recognizer.predict(torch.randint(3, len(recognizer.tokenizer), (1, 50)))
        scores = recognizer.joint(recognizer.project(encoded).unsqueeze(2), predicted.unsqueeze(1)).flatten(0, 2)
        output = output_with_bias(recognizer)  # all tokens alike in mean and spread
        output.weight.div_(scores.std(dim=0).unsqueeze(1))
        output.bias.copy_((output.bias - scores.mean(dim=0)) / scores.std(dim=0))
        quiet, _ = recognizer(torch.zeros(1, rate), torch.tensor([rate]))
        silence, sound = (torch.tanh(recognizer.project(frames)).mean(dim=(0, 1)) for frames in (quiet, encoded))
        output.weight[0] = 8.0 * (silence - sound) / (silence - sound).square().sum()
        output.bias[0] = bias - output.weight[0] @ sound
        output.bias[3] += 1.0  # the space
        output.bias[1] = output.bias[2] = -10.0  # unknown and end
    return recognizer


def output_with_bias(recognizer: RNNTransducer) -> torch.nn.Linear:
    """The joint network's output; one without a bias gets zeros, so that tests can set how much is written."""
    output = recognizer.joint.output
    if output.bias is None:
        output.bias = torch.nn.Parameter(torch.zeros(output.out_features))
    return output


def save(recognizer: Recognizer, path: Path) -> Path:
    content = {
        "state_dict": recognizer.state_dict(),
        "hyper_parameters": dict(recognizer.hparams),
        "pytorch-lightning_version": lightning.__version__,
    }
    torch.save(content, path)
    return path


def babble(seconds: float, seed: int, rate: int = 16_000) -> np.ndarray:
    """Tones (S,) that change every fifth of a second, in 16-bit steps."""
    random = np.random.default_rng(seed)
    count = round(seconds * rate)
    pitch = np.repeat(random.uniform(100, 3000, size=count * 5 // rate + 1), rate // 5)[:count]
    loudness = np.repeat(random.uniform(0.0, 0.5, size=count * 5 // rate + 1), rate // 5)[:count]
    audio = loudness * np.sin(2 * np.pi * np.cumsum(pitch) / rate) + 0.01 * random.standard_normal(count)
    return (np.round(audio * 32768) / 32768).astype(np.float32)


def text_at_once(recognizer: RNNTransducer, audio: np.ndarray) -> str:
    """Return the transcript of audio (S,) that is not cut into pieces."""
    return recognizer.transcribe(Batch.collate([Utterance("x", torch.from_numpy(audio), 16_000)]))[0]


def as_pcm(audio: np.ndarray, kind: str = "<i2") -> bytes:
    """Return audio (S,) as raw samples."""
    scale = 1.0 if kind == "<f4" else 32_768.0
    return (audio * scale).astype(kind).tobytes()


def start_listening(checkpoint: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `asr listen` with pipes."""
    command = [sys.executable, "-m", "asr_lightning.asr", "listen", str(checkpoint), "--device", "cpu", *arguments]
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
