"""Recognizers of this suite from weights that others have published: SpeechBrain's Conformer transducers."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from asr_lightning.errors import InputError
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.models.public_weights import check_weights, count_layers, load_tensors, load_weights
from asr_lightning.models.recognizer import Recognizer

MOST_SYMBOLS = 6  # tokens of a frame in SpeechBrain's greedy search
BLOCK = r"\d+\.transformer\.encoder\.layers\.(\d+)\."
NAMES = (  # of the recipe's modules, which stand in a list, and ours
    (r"\d+\.convblock_(\d+)\.convs\.conv_0\.conv\.", r"encoder.subsampling.convolutions.\1."),
    (r"\d+\.convblock_(\d+)\.convs\.norm_0\.norm\.", r"encoder.subsampling.norms.\1."),
    (r"\d+\.transformer\.custom_src_module\.layers\.0\.w\.", "encoder.subsampling.projection."),
    (BLOCK + r"ffn_module1\.0\.", r"encoder.layers.\1.first_feed_forward.0."),
    (BLOCK + r"ffn_module1\.1\.ffn\.0\.", r"encoder.layers.\1.first_feed_forward.1."),
    (BLOCK + r"ffn_module1\.1\.ffn\.3\.", r"encoder.layers.\1.first_feed_forward.4."),
    (BLOCK + r"norm1\.norm\.", r"encoder.layers.\1.attention_norm."),
    (BLOCK + r"mha_layer\.in_proj_weight$", r"encoder.layers.\1.attention.packed"),
    (BLOCK + r"mha_layer\.linear_pos\.", r"encoder.layers.\1.attention.position."),
    (BLOCK + r"mha_layer\.pos_bias_u$", r"encoder.layers.\1.attention.content_bias"),
    (BLOCK + r"mha_layer\.pos_bias_v$", r"encoder.layers.\1.attention.position_bias"),
    (BLOCK + r"mha_layer\.out_proj\.", r"encoder.layers.\1.attention.output."),
    (BLOCK + r"convolution_module\.layer_norm\.", r"encoder.layers.\1.convolution.norm."),
    (BLOCK + r"convolution_module\.bottleneck\.0\.", r"encoder.layers.\1.convolution.gated."),
    (BLOCK + r"convolution_module\.conv\.", r"encoder.layers.\1.convolution.filter."),
    (BLOCK + r"convolution_module\.after_conv\.0\.", r"encoder.layers.\1.convolution.filter_norm."),
    (BLOCK + r"convolution_module\.after_conv\.2\.", r"encoder.layers.\1.convolution.output."),
    (BLOCK + r"ffn_module2\.0\.", r"encoder.layers.\1.second_feed_forward.0."),
    (BLOCK + r"ffn_module2\.1\.ffn\.0\.", r"encoder.layers.\1.second_feed_forward.1."),
    (BLOCK + r"ffn_module2\.1\.ffn\.3\.", r"encoder.layers.\1.second_feed_forward.4."),
    (BLOCK + r"norm2\.norm\.", r"encoder.layers.\1.norm."),
    (r"\d+\.transformer\.encoder\.norm\.norm\.", "encoder.norm."),
    (r"\d+\.Embedding\.", "embedding."),
    (r"\d+\.rnn\.(weight|bias)_(ih|hh)_l(\d+)$", r"prediction.predictor.layers.\3.\1_\2_l0"),
    (r"(\d+)\.w\.", r"linear.\1."),
    (r"\d+\.transformer\.positional_encoding(_decoder\.pe|\.inv_freq)$", "constant."),  # computed anew
)
DIMENSIONS = {  # of weights that sizes are read from
    "encoder.norm.weight": 1,
    "encoder.subsampling.norms.0.weight": 2,
    "encoder.layers.0.attention.content_bias": 2,
    "encoder.layers.0.first_feed_forward.1.weight": 2,
    "encoder.layers.0.convolution.filter.weight": 3,
    "embedding.weight": 2,
    "prediction.predictor.layers.0.weight_hh_l0": 2,
    "prediction.projection.weight": 2,
    "joint.output.weight": 2,
}
LINEAR = ("encoder_projection", "prediction.projection", "joint.output")  # those without a bias, in the recipe's order


def speechbrain_transducer(
    weights: Path,
    tokens: Path,
    statistics: Path,
    chunk: int | None = None,
    left_context: int | None = None,
    window: int = 512,
    decibels: float | None = 80.0,
    activation: str = "gelu",
) -> Recognizer:
    """Return an `OneHotTransducer` with the weights of SpeechBrain's Conformer transducer for LibriSpeech.

    Args:
        weights: `model.ckpt` of its recipe `conformer_transducer.yaml`, or of the hub.
        tokens: `tokenizer.ckpt`, its SentencePiece model, whose unknown piece is the blank.
        statistics: `normalizer.ckpt`, with `glob_mean` and `glob_std` of its features.
        chunk: Encoded frames of a chunk; whole utterances are encoded if None. What weights do not say begins here.
        left_context: Encoded frames before a chunk that it attends to; those of four chunks if None.
        window: Samples of the features' window.
        decibels: Dynamic range of an utterance's features; None for any, with which they stream.
        activation: Of the joint network: `gelu`, `relu` or `silu`.

    Raises:
        InputError: A file cannot be read, or the weights are of another network.
    """
    if chunk is None and left_context is not None:
        raise InputError(f"expected a chunk where there is a left context, got {left_context=} alone")
    mean, deviation = _read_statistics(statistics)
    state = _read_weights(weights)
    channels = _channels(weights, state, len(mean))
    blank = _blank(weights, state.pop("embedding.weight"))
    count, joint = state["joint.output.weight"].shape
    heads = state["encoder.layers.0.attention.content_bias"].shape[1]
    encoder = {
        "input_dimension": len(mean),
        "dimension": len(state["encoder.norm.weight"]),
        "layers": count_layers(state, r"encoder\.layers\.(\d+)\.norm\.weight"),
        "heads": heads,
        "feed_forward": len(state["encoder.layers.0.first_feed_forward.1.weight"]),
        "kernel": state["encoder.layers.0.convolution.filter.weight"].shape[2],
        "channels": channels,
    }
    if chunk is not None:
        encoder |= {"chunk": chunk, "left_context": 4 * chunk if left_context is None else left_context}
    recognizer = build_recognizer({
        "class_path": "asr_lightning.models.one_hot_transducer.OneHotTransducer",
        "init_args": {
            "tokenizer": {
                "class_path": "asr_lightning.text.tokenizers.SentencePieceTokenizer",
                "init_args": {"model": str(tokens), "blank_is_unknown": True},
            },
            "features": {
                "class_path": "asr_lightning.audio.public_features.DecibelLogMel",
                "init_args": {
                    "mels": len(mean), "window_samples": window, "decibels": decibels, "mean": mean,
                    "deviation": deviation,
                },
            },
            "encoder": {
                "class_path": "asr_lightning.nn.chunked_conformer."
                + ("LayerNormConformer" if chunk is None else "ChunkedConformer"),
                "init_args": encoder,
            },
            "predictor": {
                "class_path": "asr_lightning.models.rnn_transducer.LSTMPredictor",
                "init_args": {
                    "dimension": state["prediction.projection.weight"].shape[1],
                    "layers": count_layers(state, r"prediction\.predictor\.layers\.(\d+)\.weight_hh_l0"),
                },
            },
            "joint_dimension": joint,
            "activation": activation,
            "search": {
                "class_path": "asr_lightning.decoding.transducer.TransducerSearch",
                "init_args": {"max_symbols": MOST_SYMBOLS},
            },
        },
    })  # fmt: skip
    vocabulary = recognizer.tokenizer
    if len(vocabulary) != count or vocabulary.blank_id != blank:
        raise InputError(
            f"{tokens}: expected the SentencePiece model of the weights, {count} pieces of which the unknown one is "
            f"number {blank}, found {len(vocabulary)} with number {vocabulary.blank_id}"
        )
    return load_weights(recognizer, _convert_shapes(weights, state, heads), weights)


def _read_statistics(path: Path) -> tuple[list[float], list[float]]:
    content = load_tensors(path, "statistics of SpeechBrain's features")
    values = [content.get(name) for name in ("glob_mean", "glob_std")]
    if not all(isinstance(value, Tensor) and value.dim() == 1 and value.isfinite().all() for value in values):
        raise InputError(
            f"{path}: expected finite vectors glob_mean and glob_std, found {', '.join(map(str, content))}"
        )
    mean, deviation = (value.tolist() for value in values if value is not None)
    if len(mean) != len(deviation) or not mean:
        raise InputError(f"{path}: expected as many means as deviations, found {len(mean)} and {len(deviation)}")
    return mean, deviation


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights by names that are nearly those that they have here; their shapes are SpeechBrain's."""
    content = load_tensors(path, "weights of SpeechBrain's Conformer transducer")
    check_weights(path, content)
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        names = [re.sub(f"^{theirs}", ours, name) for theirs, ours in NAMES if re.match(theirs, name)]
        if not names:
            raise InputError(f"{path}: expected weights of SpeechBrain's Conformer transducer, found {name}")
        if not names[0].startswith("constant."):
            state[names[0]] = value
    _name_linear_layers(path, state)
    if missing := [name for name in DIMENSIONS if name not in state]:
        raise InputError(
            f"{path}: expected weights of SpeechBrain's Conformer transducer, found none that become "
            f"{', '.join(missing)}"
        )
    if flat := [name for name, count in DIMENSIONS.items() if state[name].dim() != count]:
        raise InputError(
            f"{path}: expected {DIMENSIONS[flat[0]]} dimensions of {flat[0]}, found {tuple(state[flat[0]].shape)}"
        )
    return state


def _name_linear_layers(path: Path, state: dict[str, Tensor]) -> None:
    """Give the linear layers, which have only numbers, their names, and remove that of CTC.

    Raises:
        InputError: There are more or fewer than the recipe has.
    """
    numbers = sorted({int(name.split(".")[1]) for name in state if name.startswith("linear.")})
    without_bias = [number for number in numbers if f"linear.{number}.bias" not in state]
    if len(without_bias) != len(LINEAR) or len(numbers) > len(LINEAR) + 1:
        raise InputError(
            f"{path}: expected {len(LINEAR)} linear layers without a bias, of encoder, prediction and joint network, "
            f"and one with a bias, of CTC, at most, found {len(without_bias)} and {len(numbers) - len(without_bias)}"
        )
    for number in numbers:
        weight, _ = state.pop(f"linear.{number}.weight", None), state.pop(f"linear.{number}.bias", None)
        if weight is not None and number in without_bias:  # CTC's reads projected frames, as no part of this suite
            state[f"{LINEAR[without_bias.index(number)]}.weight"] = weight


def _channels(path: Path, state: Mapping[str, Tensor], mels: int) -> list[int]:
    """Return the channels of the convolutions in front.

    Raises:
        InputError: They do not halve the frequencies of so many features.
    """
    shapes, expected, frequencies = [], [], mels
    for number in range(count_layers(state, r"encoder\.subsampling\.norms\.(\d+)\.weight")):
        norm = state.get(f"encoder.subsampling.norms.{number}.weight", torch.empty(0))
        frequencies = (frequencies + 1) // 2
        shapes.append(list(norm.shape))
        expected.append([frequencies, *norm.shape[1:]])
    if shapes != expected or any(len(shape) != 2 for shape in shapes):
        raise InputError(
            f"{path}: expected convolutions that halve {mels} features, with norms of {expected}, found {shapes}: "
            "are weights and statistics of the same network?"
        )
    return [channels for _, channels in shapes]


def _blank(path: Path, embedding: Tensor) -> int:
    """Return the token that the prediction network reads as zeros, where all others are one-hot.

    Raises:
        InputError: The embedding is another.
    """
    zeros = (embedding == 0).all(dim=1).nonzero().flatten().tolist()
    if len(zeros) == 1:
        others = torch.cat([embedding[: zeros[0]], embedding[zeros[0] + 1 :]])
        if others.shape[0] == others.shape[1] and torch.equal(others, torch.eye(len(others), dtype=others.dtype)):
            return int(zeros[0])
    raise InputError(
        f"{path}: expected tokens as one-hot vectors and the blank as zeros, found another embedding of "
        f"{' x '.join(map(str, embedding.shape))}"
    )


def _convert_shapes(path: Path, state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Return weights in the shapes that they have here."""
    converted: dict[str, Tensor] = {}
    try:
        for name, value in state.items():
            if name.endswith(".packed"):
                # Rows of every head are those of its queries, keys and values.
                parts = value.view(heads, 3, -1, value.shape[1]).unbind(1)
                for part, rows in zip(("query", "key", "value"), parts, strict=True):
                    converted[name.replace("packed", f"{part}.weight")] = rows.flatten(0, 1)
            elif name.endswith(("content_bias", "position_bias")):
                converted[name] = value.reshape(heads, -1)  # stored as of another shape, but read as this one
            elif "subsampling.convolutions" in name and name.endswith("weight"):
                converted[name] = value.transpose(2, 3)  # time and frequency
            elif "gated.weight" in name:
                converted[name] = value.squeeze(2)  # a convolution of one frame
            else:
                converted[name] = value
    except (RuntimeError, IndexError) as error:
        raise InputError(f"{path}: the weights are of another network: {name} is of {tuple(value.shape)}") from error
    # Scores are divided by the root of the whole dimension there, and by that of a head's here.
    for name in converted:
        if name.endswith((".query.weight", "content_bias", "position_bias")):
            converted[name] = converted[name] * heads**-0.5
    return converted
