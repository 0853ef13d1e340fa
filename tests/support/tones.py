"""Speech that a small network learns in seconds: a tone for every letter, silence for a space."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning
import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from asr_lightning.batch import Batch, Utterance
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.recognizer import Recognizer

RATE = 8_000  # samples per second
TEXTS = ["A CAB", "DEAF BEE", "BED", "HE FED", "GAD", "FACE", "EGG AGE", "CAGED"]  # letters A to H


def speak(text: str, seed: int = 0) -> Tensor:
    """Audio (S,): 80 ms of sine and 20 ms of pause per letter, in a little noise."""
    time = torch.arange(RATE * 8 // 100) / RATE
    pause = torch.zeros(RATE * 2 // 100)
    parts = []
    for letter in text:
        hertz = 0.0 if letter == " " else 350.0 + 420.0 * (ord(letter) - ord("A"))
        parts += [0.3 * torch.sin(2 * torch.pi * hertz * time), pause]
    audio = torch.cat(parts) if parts else torch.zeros(RATE // 10)
    return audio + 0.001 * torch.randn(len(audio), generator=torch.Generator().manual_seed(seed))


def utterances(texts: Iterable[str] = TEXTS, name: str = "tone") -> list[Utterance]:
    return [
        Utterance(f"{name}-{number}", speak(text, number), RATE, text, "speaker") for number, text in enumerate(texts)
    ]


def batch_of(texts: Iterable[str] = TEXTS, name: str = "tone") -> Batch:
    return Batch.collate(utterances(texts, name), RATE)


def write_corpus(root: Path, subset: str, texts: Iterable[str]) -> None:
    """Write the utterances as files in LibriSpeech's layout."""
    folder = root / subset / "speaker" / "1"
    folder.mkdir(parents=True)
    spoken = utterances(texts, subset)
    for utterance in spoken:
        soundfile.write(folder / f"{utterance.id}.flac", utterance.audio.numpy(), RATE)
    lines = "".join(f"{utterance.id} {utterance.text}\n" for utterance in spoken)
    (folder / "speaker-1.trans.txt").write_text(lines)


def loader(batches: Sequence[Batch]) -> DataLoader:
    """Ready batches, in their order."""
    return DataLoader(batches, batch_size=None, shuffle=False)  # type: ignore[arg-type]


def make_trainer(folder: Path | str, **options: Any) -> lightning.Trainer:
    settings = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
    }
    return lightning.Trainer(**{**settings, **options})


def transducer(**changes: Any) -> dict[str, Any]:
    """A small RNN transducer without dropout, as an experiment's `model`."""
    arguments = {
        "tokenizer": {"class_path": "asr_lightning.text.tokenizers.CharacterTokenizer"},
        "features": features("LogMel", "UtteranceNormalization", mels=20),
        "encoder": lstm_encoder(20),
        "predictor": {
            "class_path": "asr_lightning.models.rnn_transducer.LSTMPredictor",
            "init_args": {"dimension": 32},
        },
        "joint_dimension": 32,
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 3e-3}},
    }
    return {"class_path": "asr_lightning.models.rnn_transducer.RNNTransducer", "init_args": {**arguments, **changes}}


def attention_decoder(**changes: Any) -> dict[str, Any]:
    """A small encoder-decoder, as an experiment's `model`."""
    arguments = {
        "tokenizer": {"class_path": "asr_lightning.text.tokenizers.CharacterTokenizer"},
        "features": features("LogMel", "UtteranceNormalization", mels=20),
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 3e-3}},
    }
    return {"class_path": "asr_lightning.models.encoder_decoder.EncoderDecoder", "init_args": {**arguments, **changes}}


def ctc(encoder: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A recognizer with a CTC output only."""
    config = attention_decoder(encoder=encoder, **changes)
    return {**config, "class_path": "asr_lightning.models.ctc.CTCRecognizer"}


def deep_speech_2(extractor: str = "Convolutions2d", **changes: Any) -> dict[str, Any]:
    """An encoder of Deep Speech 2 for 20 features, with an extractor by its class name."""
    sizes: dict[str, dict[str, Any]] = {
        "Convolutions2d": {"channels": [4, 4], "kernels": [[7, 5], [5, 3]], "strides": [[2, 2], [2, 1]]},
        "Convolutions1d": {"channels": [32, 32], "kernels": [5, 5], "strides": [1, 2]},
        "VGG": {"channels": [4, 8]},
    }
    front = {"class_path": f"asr_lightning.nn.extractors.{extractor}"}
    arguments = {"input_dimension": 20, **sizes[extractor], "batch_norm": bool(changes.get("batch_norm", True))}
    return {
        "class_path": "asr_lightning.models.deep_speech_2.DeepSpeech2Encoder",
        "init_args": {"extractor": {**front, "init_args": arguments}, "hidden": 32, "layers": 2, **changes},
    }


def frame_attention(name: str, **sizes: Any) -> dict[str, Any]:
    return {"class_path": f"asr_lightning.nn.frame_attention.{name}", "init_args": {"dropout": 0.0, **sizes}}


def speller(
    attention: str, sampling: float = 0.0, layers: int = 1, query_state: str = "current", **sizes: Any
) -> dict[str, Any]:
    """A speller with an attention by its class name."""
    mechanism = {"class_path": f"asr_lightning.nn.mechanisms.{attention}", "init_args": {"dimension": 32, **sizes}}
    arguments = {"hidden": 48, "layers": layers, "sampling": sampling, "query_state": query_state}
    return {
        "class_path": "asr_lightning.models.listen_attend_spell.Speller",
        "init_args": {"attention": mechanism, **arguments},
    }


def make(**changes: Any) -> Recognizer:
    """A small transducer with CTC, so that transcripts can be too long."""
    torch.manual_seed(4)
    return build_recognizer(transducer(**{"ctc_weight": 0.3, **changes}))


def lstm_encoder(input_dimension: int, **changes: Any) -> dict[str, Any]:
    sizes = {"hidden": 32, "layers": 1, "channels": 8, "subsampling": 4, "dropout": 0.0}
    return {
        "class_path": "asr_lightning.nn.recurrent.LSTMEncoder",
        "init_args": {"input_dimension": input_dimension, **sizes, **changes},
    }


def conformer(input_dimension: int, **changes: Any) -> dict[str, Any]:
    sizes = {"dimension": 32, "layers": 2, "heads": 2, "feed_forward": 64, "kernel": 7, "channels": 8, "dropout": 0.0}
    return {
        "class_path": "asr_lightning.nn.conformer.Conformer",
        "init_args": {"input_dimension": input_dimension, **sizes, **changes},
    }


def conformer_of_layer_norms(name: str = "LayerNormConformer", **changes: Any) -> dict[str, Any]:
    arguments = {"input_dimension": 20, "dimension": 32, "layers": 2, "heads": 2, "feed_forward": 64, "kernel": 9,
                 "channels": [8], "dropout": 0.0, **changes}  # fmt: skip
    return {"class_path": f"asr_lightning.nn.chunked_conformer.{name}", "init_args": arguments}


def streaming_conformer() -> dict[str, Any]:
    config = conformer(20, chunk=4, left_context=8, largest_chunk=6)
    return {**config, "class_path": "asr_lightning.nn.conformer.StreamingConformer"}


def features(name: str, normalization: str | None = None, **arguments: Any) -> dict[str, Any]:
    """Features by class names, as `features("LogMel", "GlobalNormalization", mels=20)`."""
    if normalization is not None:
        arguments["normalization"] = {"class_path": f"asr_lightning.audio.normalization.{normalization}"}
    return {
        "class_path": f"asr_lightning.audio.features.{name}",
        "init_args": {"sample_rate": RATE, **arguments},
    }
