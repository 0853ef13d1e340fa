"""Recognizers of this suite from weights that others have published: torchaudio's RNN-T."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torchaudio import pipelines
from torchaudio.utils import _download_asset

from asr_lightning.audio.public_features import MELS
from asr_lightning.errors import InputError, reason
from asr_lightning.files import regular
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.public_weights import check_weights, count_layers, load_tensors, load_weights
from asr_lightning.models.recognizer import Recognizer

NAMES = (  # of torchaudio's RNN-T, and ours
    (r"transcriber\.input_linear\.", "encoder.projection."),
    (
        r"transcriber\.transformer\.emformer_layers\.(\d+)\.attention\.emb_to_key_value\.",
        r"encoder.layers.\1.key_value.",
    ),
    (r"transcriber\.transformer\.emformer_layers\.(\d+)\.attention\.emb_to_query\.", r"encoder.layers.\1.query."),
    (r"transcriber\.transformer\.emformer_layers\.(\d+)\.attention\.out_proj\.", r"encoder.layers.\1.output."),
    (r"transcriber\.transformer\.emformer_layers\.(\d+)\.layer_norm_input\.", r"encoder.layers.\1.attention_norm."),
    (r"transcriber\.transformer\.emformer_layers\.(\d+)\.pos_ff\.0\.", r"encoder.layers.\1.feed_forward_norm."),
    (r"transcriber\.transformer\.emformer_layers\.(\d+)\.pos_ff\.1\.", r"encoder.layers.\1.expansion."),
    (r"transcriber\.transformer\.emformer_layers\.(\d+)\.pos_ff\.4\.", r"encoder.layers.\1.contraction."),
    (r"transcriber\.transformer\.emformer_layers\.(\d+)\.layer_norm_output\.", r"encoder.layers.\1.norm."),
    (r"transcriber\.output_linear\.", "encoder_projection."),
    (r"transcriber\.layer_norm\.", "encoder_norm."),
    (r"predictor\.embedding\.", "prediction.embedding."),
    (r"predictor\.input_layer_norm\.", "prediction.predictor.norm."),
    (r"predictor\.lstm_layers\.(\d+)\.x2g\.", r"prediction.predictor.layers.\1.input."),
    (r"predictor\.lstm_layers\.(\d+)\.p2g\.", r"prediction.predictor.layers.\1.recurrence."),
    (r"predictor\.lstm_layers\.(\d+)\.g_norm\.", r"prediction.predictor.layers.\1.gate_norm."),
    (r"predictor\.lstm_layers\.(\d+)\.c_norm\.", r"prediction.predictor.layers.\1.cell_norm."),
    (r"predictor\.linear\.", "prediction.projection."),
    (r"predictor\.output_layer_norm\.", "prediction.norm."),
    (r"joiner\.linear\.", "joint.output."),
)
PREFIX = "model."  # of every name in checkpoints of torchaudio's own training script


def torchaudio_transducer(
    weights: Path,
    tokens: Path,
    statistics: Path,
    heads: int = 8,
    segment: int = 4,
    left_context: int = 30,
    right_context: int = 1,
    activation: str = "gelu",
) -> Recognizer:
    """Return a `NormalizedTransducer` with the weights of torchaudio's RNN-T.

    Args:
        weights: `state_dict` of torchaudio's `RNNT`, or a checkpoint of its training script.
        tokens: Its SentencePiece model; the blank follows its pieces.
        statistics: JSON with `mean` and `invstddev` of its features.
        heads: Of the self-attention; the weights do not say how many. These and the rest: those of
            `emformer_rnnt_base` by default.
        segment: Of the Emformer, after grouping of frames.
        left_context: Likewise.
        right_context: Likewise.
        activation: Of the Emformer's feed-forward parts.

    Raises:
        InputError: A file cannot be read, or the weights are of another network.
    """
    state = _read_weights(weights)
    mean, inverse_deviation = _read_statistics(statistics)
    inner, features = state["encoder.projection.weight"].shape
    joint, dimension = state["encoder_projection.weight"].shape
    if features != MELS or dimension % inner:
        raise InputError(
            f"{weights}: expected a network that reads {MELS} features, grouped, got {features} and layers of "
            f"{dimension} over groups of {inner}"
        )
    recognizer = build_recognizer({
        "class_path": "asr_lightning.models.normalized_transducer.NormalizedTransducer",
        "init_args": {
            "tokenizer": {
                "class_path": "asr_lightning.text.tokenizers.SentencePieceTokenizer",
                "init_args": {"model": str(tokens), "lower_case": True},
            },
            "features": {
                "class_path": "asr_lightning.audio.public_features.PublicLogMel",
                "init_args": {"mean": mean, "inverse_deviation": inverse_deviation},
            },
            "encoder": {
                "class_path": "asr_lightning.nn.emformer.Emformer",
                "init_args": {
                    "input_dimension": features,
                    "projection": inner,
                    "subsampling": dimension // inner,
                    "layers": count_layers(state, r"encoder\.layers\.(\d+)\.norm\.weight"),
                    "heads": heads,
                    "feed_forward": len(state["encoder.layers.0.expansion.weight"]),
                    "segment": segment,
                    "left_context": left_context,
                    "right_context": right_context,
                    "activation": activation,
                },
            },
            "predictor": {
                "class_path": "asr_lightning.models.normalized_transducer.NormalizedLSTMPredictor",
                "init_args": {
                    "dimension": state["prediction.embedding.weight"].shape[1],
                    "layers": count_layers(state, r"prediction\.predictor\.layers\.(\d+)\.cell_norm\.weight"),
                },
            },
            "joint_dimension": joint,
        },
    })  # fmt: skip
    count, vocabulary = len(state["joint.output.bias"]), recognizer.tokenizer
    if len(vocabulary) != count or vocabulary.blank_id != count - 1:
        raise InputError(
            f"{tokens}: expected the SentencePiece model of the weights, {count - 1} pieces before the blank, found "
            f"{len(vocabulary)} tokens with the blank at {vocabulary.blank_id}"
        )
    return load_weights(recognizer, state, weights)


def download(bundle: str) -> list[Path]:
    """Return weights, SentencePiece model and statistics of a bundle of torchaudio, which downloads them.

    Raises:
        InputError: There is no such bundle of an RNN-T, or the files cannot be had.
    """
    bundles = {name: value for name, value in vars(pipelines).items() if isinstance(value, pipelines.RNNTBundle)}
    if bundle not in bundles:
        raise InputError(f"--bundle: expected one of {', '.join(sorted(bundles))}, got {bundle}")
    chosen = bundles[bundle]
    try:
        return [
            Path(_download_asset(path))
            for path in (chosen._rnnt_path, chosen._sp_model_path, chosen._global_stats_path)
        ]
    except (OSError, RuntimeError) as error:  # no network, or a file of another content
        raise InputError(
            f"{bundle}: torchaudio cannot download its files: {reason(error)}; give --weights, --tokens, --statistics"
        ) from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights by the names that they have here."""
    content = load_tensors(path, "weights of torchaudio's RNN-T")
    if isinstance(content.get("state_dict"), Mapping):
        content = {name.removeprefix(PREFIX): value for name, value in content["state_dict"].items()}
    check_weights(path, content)
    state = {}
    for name, value in content.items():
        ours = [re.sub(f"^{theirs}", own, name) for theirs, own in NAMES if re.match(theirs, name)]
        if not ours:
            raise InputError(f"{path}: expected weights of torchaudio's RNN-T, found {name}")
        state[ours[0]] = value
    needed = ("encoder.projection.weight", "encoder_projection.weight", "joint.output.bias",
              "prediction.embedding.weight", "encoder.layers.0.expansion.weight")  # fmt: skip
    if missing := [name for name in needed if name not in state]:
        raise InputError(f"{path}: expected weights of torchaudio's RNN-T, found none that become {', '.join(missing)}")
    return state


def _read_statistics(path: Path) -> tuple[list[float], list[float]]:
    try:
        content: Any = json.loads(regular(path).read_text("utf-8"))
        mean, inverse = ([float(value) for value in content[name]] for name in ("mean", "invstddev"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected JSON with mean and invstddev of the features: {reason(error)}") from error
    if len(mean) != MELS or len(inverse) != MELS:
        raise InputError(f"{path}: expected mean and invstddev of {MELS} features, found {len(mean)}, {len(inverse)}")
    return mean, inverse
