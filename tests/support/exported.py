"""Tiny recognizers whose features sherpa-onnx computes, and checkpoints of them."""

from pathlib import Path
from typing import Any

import torch

from asr_lightning.models.checkpoints import build_recognizer
from tests.support.streaming_recognizer import save

MELS = 20
ENCODERS = {
    "conformer": {
        "class_path": "asr_lightning.nn.conformer.Conformer",
        "init_args": {"dimension": 16, "layers": 2, "heads": 2, "feed_forward": 32, "kernel": 5, "channels": 4},
    },
    "layer_norms": {
        "class_path": "asr_lightning.nn.chunked_conformer.LayerNormConformer",
        "init_args": {"dimension": 16, "layers": 2, "heads": 2, "feed_forward": 32, "kernel": 5, "channels": [4, 3]},
    },
    "lstm": {
        "class_path": "asr_lightning.nn.recurrent.LSTMEncoder",
        "init_args": {"hidden": 12, "layers": 2, "channels": 4},
    },
    "emformer": {
        "class_path": "asr_lightning.nn.emformer.Emformer",
        "init_args": {
            "projection": 8, "subsampling": 4, "layers": 2, "heads": 2, "feed_forward": 32, "segment": 4,
            "left_context": 8, "right_context": 1,
        },
    },
    "jasper": {
        "class_path": "asr_lightning.models.jasper.Jasper",
        "init_args": {
            "repeats": 2, "channels": [24], "kernels": [5], "dropouts": [0.0], "copies": 1, "prologue": [24, 5],
            "epilogue": [32, 7], "dimension": 32,
        },
    },
    "ds2": {
        "class_path": "asr_lightning.models.deep_speech_2.DeepSpeech2Encoder",
        "init_args": {"hidden": 16, "layers": 2, "kind": "gru"},
    },
    "vanilla": {
        "class_path": "asr_lightning.models.deep_speech_2.DeepSpeech2Encoder",
        "init_args": {"hidden": 16, "layers": 2, "kind": "vanilla"},
    },
}  # fmt: skip
EXTRACTOR = {
    "class_path": "asr_lightning.nn.extractors.Convolutions2d",
    "init_args": {"input_dimension": MELS, "channels": [4, 4], "kernels": [[5, 5], [5, 5]]},
}
FILTER_BANK = "asr_lightning.audio.kaldi_filter_bank.KaldiFilterBank"
KALDI = {"minimum_hertz": 20.0, "maximum_hertz": 7600.0, "snip_edges": False}
NEMO = {**KALDI, "minimum_hertz": 0.0, "remove_mean": False, "mel_scale": "slaney"}


def network(
    encoder: str,
    predictor: str | None,
    normalization: str | None = None,
    transducer: str = "RNNTransducer",
    features: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The configuration of a transducer, or of a CTC recognizer without a predictor."""
    feature_arguments = {"mels": MELS, **(NEMO if predictor == "LSTMPredictor" else KALDI)}
    if normalization:
        feature_arguments["normalization"] = {"class_path": f"asr_lightning.audio.normalization.{normalization}"}
    inner = dict(ENCODERS[encoder]["init_args"])
    inner |= {"extractor": EXTRACTOR} if encoder in ("ds2", "vanilla") else {"input_dimension": MELS}
    arguments: dict[str, Any] = {
        "tokenizer": {"class_path": "asr_lightning.text.tokenizers.CharacterTokenizer"},
        "features": features or {"class_path": FILTER_BANK, "init_args": feature_arguments},
        "encoder": {"class_path": ENCODERS[encoder]["class_path"], "init_args": inner},
    }
    if predictor is None:
        return {"class_path": "asr_lightning.models.ctc.CTCRecognizer", "init_args": arguments}
    arguments |= {
        "predictor": {
            "class_path": f"asr_lightning.models.rnn_transducer.{predictor}",
            "init_args": {"dimension": 16, **({"layers": 2} if predictor == "LSTMPredictor" else {"context": 3})},
        },
        "joint_dimension": 24,
        "ctc_weight": 0.3,
        "search": {
            "class_path": "asr_lightning.decoding.transducer.TransducerSearch",
            "init_args": {"max_symbols": 10 if predictor == "LSTMPredictor" else 1},
        },
    }
    return {"class_path": f"asr_lightning.models.rnn_transducer.{transducer}", "init_args": arguments}


def write_checkpoint(path: Path, config: dict[str, Any]) -> Path:
    """Write random weights whose transcripts are long and differ from audio to audio."""
    torch.manual_seed(1)
    recognizer = build_recognizer(config)
    with torch.no_grad():
        for name, value in recognizer.named_buffers():
            if name.endswith(("running_mean", "running_variance")):
                value.add_(0.1 * torch.rand_like(value))
        for name in ("joint", "output"):
            if part := getattr(recognizer, name, None):
                output = getattr(part, "output", part)
                output.weight.mul_(8)
                if output.bias is None:  # what is activated is positive in the mean
                    output.weight[[recognizer.tokenizer.unk_id, recognizer.tokenizer.eos_id]] = -2
                    continue
                output.bias.zero_()
                if name == "output":  # the mean of all frames is subtracted, so that they differ
                    audio = 0.1 * torch.randn(1, 16_000)
                    encoded, _ = recognizer.eval()(audio, torch.tensor([16_000]))
                    output.bias.sub_(output.weight @ encoded[0].mean(dim=0))
                output.bias[recognizer.tokenizer.blank_id] += 2 if name == "joint" else 0
                output.bias[[recognizer.tokenizer.unk_id, recognizer.tokenizer.eos_id]] -= 100
        if hasattr(recognizer, "encoder_projection"):
            recognizer.encoder_projection.weight.mul_(4)
    return save(recognizer, path)
