"""A teacher of some width in a checkpoint."""

from pathlib import Path
from typing import Any

import lightning
import torch
from torch import nn

from asr_lightning.models.checkpoints import build_recognizer
from tests.support.planted_teachers import MELS, RATE


def configuration(width: int, features: str = "LogMel", **options: Any) -> dict[str, Any]:
    parts = {"LogMel": {"mels": MELS}, "MFCC": {"coefficients": MELS, "mels": 16}, "KaldiFilterBank": {"mels": MELS}}
    nn_path, rnnt = "asr_lightning.nn.recurrent", "asr_lightning.models.rnn_transducer"
    encoder = {"input_dimension": MELS, "hidden": width, "layers": 1, "channels": width, "dropout": 0.0}
    return {
        "class_path": f"{rnnt}.RNNTransducer",
        "init_args": {
            "tokenizer": "asr_lightning.text.tokenizers.CharacterTokenizer",
            "features": {
                "class_path": f"asr_lightning.audio.features.{features}",
                "init_args": {"sample_rate": RATE, **parts[features], **options},
            },
            "encoder": {"class_path": f"{nn_path}.LSTMEncoder", "init_args": encoder},
            "predictor": {"class_path": f"{rnnt}.LSTMPredictor", "init_args": {"dimension": width}},
            "joint_dimension": width,
        },
    }


def save_teacher(folder: Path, config: dict[str, Any] | None = None) -> tuple[Path, nn.Module]:
    teacher = build_recognizer(config or configuration(6))
    path = folder / "teacher.ckpt"
    content = {"state_dict": teacher.state_dict(), "hyper_parameters": dict(teacher.hparams)}
    torch.save({**content, "pytorch-lightning_version": lightning.__version__}, path)
    return path, teacher
