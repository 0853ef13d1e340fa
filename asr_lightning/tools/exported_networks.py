"""The networks that `asr export` writes, in the forms that sherpa-onnx loads.

sherpa-onnx [k2-fsa, version 2.0] computes its own features and gives them to the encoder, so normalization is part of
the encoder here. It has two forms of transducers: those of icefall, whose prediction network sees the last few tokens,
with the blank first; and those of NeMo, whose prediction network has a state, with the blank last.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from asr_lightning.audio.features import Features
from asr_lightning.audio.kaldi_filter_bank import KaldiFilterBank
from asr_lightning.audio.normalization import UtteranceNormalization
from asr_lightning.errors import InputError
from asr_lightning.models.ctc import CTCRecognizer
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.rnn_transducer import RNNTransducer, StatelessPredictor
from asr_lightning.nn.emformer import Emformer
from asr_lightning.tools.traced_parts import (
    CTCNetwork,
    Joiner,
    StatefulDecoder,
    StatelessDecoder,
    StreamingEncoder,
    WholeEncoder,
    folded,
)

FRAMES = 120  # of the example that is traced
BLANK, SPACE = "<blk>", "\N{LOWER ONE EIGHTH BLOCK}"  # as sherpa-onnx names them
KALDI: dict[str, Any] = {"minimum_hertz": 20.0, "snip_edges": False}
NEMO: dict[str, Any] = {"minimum_hertz": 0.0, "snip_edges": False, "remove_mean": False, "mel_scale": "slaney"}
BELOW_NYQUIST = 400  # Hz, where sherpa-onnx ends the highest band
FILTER_BANK = f"{KaldiFilterBank.__module__}.{KaldiFilterBank.__name__}"  # its class path
TIMES = {0: "N", 1: "T"}

Run = Callable[..., Any]  # tensors to a sequence of tensors


@dataclass(frozen=True)
class Graph:
    """A network that becomes one file.

    Attributes:
        module: The network.
        inputs: An example of each input, by name.
        outputs: Names.
        axes: Names of the axes of any size, by input or output.
        metadata: What sherpa-onnx reads beside the network.
        defaults: Values of inputs that may be left out.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    axes: dict[str, dict[int, str]]
    metadata: Mapping[str, object] = field(default_factory=dict)
    defaults: dict[str, Tensor] = field(default_factory=dict)


class Exported(ABC):
    """Base class of the forms.

    Args:
        recognizer: In evaluation mode; it is not changed.

    Attributes:
        graphs: By name of the file.
        order: Our token ids in the order of the exported ones.
        tokenizer: The recognizer's.
        max_symbols: Most tokens that sherpa-onnx emits in one frame; None of CTC.
        notes: What was left out, and why.
    """

    arguments: dict[str, Any] = KALDI
    max_symbols: int | None = None

    def __init__(self, recognizer: Recognizer) -> None:
        recognizer = folded(recognizer)
        self.features, self.tokenizer = recognizer.features, recognizer.tokenizer
        self.order = list(range(len(self.tokenizer)))
        self.notes: list[str] = []
        self.graphs = self.make_graphs(recognizer)

    @abstractmethod
    def make_graphs(self, recognizer: Any) -> dict[str, Graph]:  # noqa: ANN401 - the subclass says which
        """Return the networks by name."""

    @abstractmethod
    def log_probs(self, runs: Mapping[str, Run], features: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        """Return log probabilities of real frames; `runs` execute the graphs.

        Args:
            runs: By name of the graph.
            features: (B, T, F).
            lengths: (B,).
            tokens: (B, U) in the order of the exported ones, without blanks: histories.
        """

    def streamed(self, runs: Mapping[str, Run], features: Tensor) -> Tensor | None:
        """Return the output of `streaming_encoder` for features (B, T, F), segment by segment; None without one."""
        if "streaming_encoder" not in self.graphs:
            return None
        graph = self.graphs["streaming_encoder"]
        window, step = int(str(graph.metadata["T"])), int(str(graph.metadata["decode_chunk_len"]))
        batch, size = features.shape[:2]
        attention, convolution = (
            graph.inputs[name][:, :, :1].repeat(1, 1, batch, 1) for name in ("attn_cache", "conv_cache")
        )
        features = torch.cat([features, features.new_zeros(batch, window, features.shape[2])], 1)
        outputs = []
        for begin in range(0, size, step):
            lengths = torch.full((batch,), min(window, size - begin))
            output, attention, convolution, counts = runs["streaming_encoder"](
                features[:, begin : begin + window], attention, convolution, torch.full((batch,), begin), lengths
            )
            outputs.append(output[:, : int(counts[0])])
        return torch.cat(outputs, 1)

    def check_features(self) -> None:
        """Check that sherpa-onnx computes these features.

        Raises:
            InputError: It computes others.
        """
        features = self.features
        arguments: dict[str, Any] = {"maximum_hertz": features.sample_rate / 2 - BELOW_NYQUIST, **self.arguments}
        needed = KaldiFilterBank(features.sample_rate, mels=features.dimension, **arguments)
        if not _same_features(features, needed):
            shown = ", ".join(f"{name}: {str(value).lower()}" for name, value in arguments.items())
            raise InputError(
                "expected the features that sherpa-onnx computes for this network, found "
                f"{_describe_features(features)}; train with {{class_path: {FILTER_BANK}, init_args: {{{shown}}}}}, "
                "a normalization as you like, or write it with --format torch, for your own runtime"
            )

    def symbols(self) -> list[str]:
        """Return the tokens as tokens.txt has them: their ids are their indices.

        Raises:
            InputError: One of them cannot be written there.
        """
        tokens = self.tokenizer.tokens
        spaces = {} if any(token.startswith(SPACE) for token in tokens) else {"_": SPACE}
        symbols = [BLANK if number == self.tokenizer.blank_id else spaces.get(tokens[number], tokens[number])
                   for number in self.order]  # fmt: skip
        wrong = [symbol for symbol in symbols if symbol.split() != [symbol]]
        if wrong:
            raise InputError(f"expected tokens without white space, which tokens.txt cannot hold, found {wrong[:5]}")
        return symbols


class StatelessTransducer(Exported):
    """A transducer with `StatelessPredictor`, as icefall's; with an Emformer also its steps, as a streaming Conformer.

    Encoder, decoder and joiner recognize whole utterances; `streaming_encoder`, decoder and joiner stream.
    """

    max_symbols = 1

    def make_graphs(self, recognizer: RNNTransducer) -> dict[str, Graph]:
        """Return encoder, decoder and joiner, and the steps of an Emformer."""
        predictor = recognizer.prediction.predictor
        assert isinstance(predictor, StatelessPredictor)
        blank = self.tokenizer.blank_id
        self.order = [blank, *(number for number in self.order if number != blank)]
        joint = recognizer.encoder_projection.out_features
        sizes = {"vocab_size": len(self.order), "context_size": predictor.context}
        return {
            "encoder": Graph(
                WholeEncoder(recognizer, transposed=False), _example(recognizer),
                ("encoder_out", "encoder_out_lens"),
                {"x": TIMES, "x_lens": {0: "N"}, "encoder_out": {0: "N", 1: "T'"}, "encoder_out_lens": {0: "N"}},
                {"model_type": "conformer", "version": "1", "model_author": "asr_lightning"},
            ),
            "decoder": Graph(
                StatelessDecoder(recognizer, self.order),
                {"y": torch.zeros(2, predictor.context, dtype=torch.int64)}, ("decoder_out",),
                {"y": {0: "N"}, "decoder_out": {0: "N"}}, sizes,
            ),
            "joiner": Graph(
                Joiner(recognizer, self.order),
                {"encoder_out": torch.zeros(2, joint), "decoder_out": torch.zeros(2, joint)}, ("logit",),
                {"encoder_out": {0: "N"}, "decoder_out": {0: "N"}, "logit": {0: "N"}}, {"joiner_dim": joint},
            ),
            **_streaming(recognizer, self.notes),
        }  # fmt: skip

    def log_probs(self, runs: Mapping[str, Run], features: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        """Return (real frames, U, V); see `Exported`."""
        encoded, encoded_lengths = runs["encoder"](features, lengths)
        context = self.graphs["decoder"].inputs["y"].shape[1]
        rows = len(tokens)
        padded = torch.cat([tokens.new_full((rows, context - 1), -1), tokens.new_zeros(rows, 1), tokens], 1)
        windows = padded.unfold(1, context, 1)  # (B, U + 1, context)
        return torch.cat([
            torch.stack([
                runs["joiner"](frames[:length], predicted.expand(int(length), -1))[0].log_softmax(1)
                for predicted in runs["decoder"](histories)[0].split(1)
            ], 1)
            for frames, length, histories in zip(encoded, encoded_lengths, windows, strict=True)
        ])  # fmt: skip


class StatefulTransducer(Exported):
    """A transducer whose prediction network is an LSTM, as NeMo's: time last, two tensors as state, the blank last."""

    arguments = NEMO
    max_symbols = 10

    def make_graphs(self, recognizer: RNNTransducer) -> dict[str, Graph]:
        """Return encoder, decoder and joiner, and the steps of an Emformer."""
        blank = self.tokenizer.blank_id
        self.order = [*(number for number in self.order if number != blank), blank]
        joint = recognizer.encoder_projection.out_features
        state = recognizer.prediction.initial_state(2, torch.device("cpu"))
        zeros = torch.zeros(len(state) // 2, *state[0].shape)  # (layers, B, D)
        x = _example(recognizer)
        steps = _streaming(recognizer, self.notes)
        if steps:
            self.notes.append(
                "streaming_encoder is for onnxruntime: sherpa-onnx streams transducers with StatelessPredictor only"
            )
        return {
            "encoder": Graph(
                WholeEncoder(recognizer, transposed=True),
                {"audio_signal": x["x"].transpose(1, 2), "length": x["x_lens"]}, ("outputs", "encoded_lengths"),
                {"audio_signal": {0: "N", 2: "T"}, "length": {0: "N"}, "outputs": {0: "N", 2: "T'"},
                 "encoded_lengths": {0: "N"}},
                {
                    "model_type": "EncDecRNNTBPEModel", "vocab_size": len(self.order) - 1, "normalize_type": "",
                    "subsampling_factor": _subsampling(recognizer), "pred_rnn_layers": len(zeros),
                    "pred_hidden": zeros.shape[2], "feat_dim": self.features.dimension,
                    "version": "1", "model_author": "asr_lightning",
                },
            ),
            "decoder": Graph(
                StatefulDecoder(recognizer, self.order),
                {"targets": torch.zeros(2, 1, dtype=torch.int32), "target_length": torch.ones(2, dtype=torch.int32),
                 "states.1": zeros, "states.2": zeros.clone()},
                ("outputs", "prednet_lengths", "next_states.1", "next_states.2"),
                {"targets": {0: "N"}, "target_length": {0: "N"}, "outputs": {0: "N"}, "prednet_lengths": {0: "N"},
                 **{f"{name}.{n}": {1: "N"} for name in ("states", "next_states") for n in (1, 2)}},
            ),
            "joiner": Graph(
                Joiner(recognizer, self.order, lattice=True),
                {"encoder_outputs": torch.zeros(2, joint, 3), "decoder_outputs": torch.zeros(2, joint, 2)},
                ("logits",),
                {"encoder_outputs": {0: "N", 2: "T'"}, "decoder_outputs": {0: "N", 2: "U"},
                 "logits": {0: "N", 1: "T'", 2: "U"}},
            ),
            **steps,
        }  # fmt: skip

    def log_probs(self, runs: Mapping[str, Run], features: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        """Return (real frames, U, V); see `Exported`."""
        encoded, encoded_lengths = runs["encoder"](features.transpose(1, 2), lengths)
        histories = torch.cat([tokens.new_full((len(tokens), 1), len(self.order) - 1), tokens], 1).int()
        zeros = self.graphs["decoder"].inputs["states.1"][:, :1]
        hidden = cell = zeros.repeat(1, len(tokens), 1)
        outputs = []
        for column in histories.split(1, dim=1):
            output, _, hidden, cell = runs["decoder"](column, torch.ones_like(column[:, 0]), hidden, cell)
            outputs.append(output)
        logits = runs["joiner"](encoded, torch.cat(outputs, 2))[0].log_softmax(3)
        return torch.cat([row[:length] for row, length in zip(logits, encoded_lengths, strict=True)])


class CTC(Exported):
    """A CTC recognizer, in the form of Zipformer-CTC in sherpa-onnx."""

    def make_graphs(self, recognizer: CTCRecognizer) -> dict[str, Graph]:
        """Return the one network."""
        return {
            "model": Graph(
                CTCNetwork(recognizer), _example(recognizer), ("log_probs", "log_probs_len"),
                {"x": TIMES, "x_lens": {0: "N"}, "log_probs": {0: "N", 1: "T'"}, "log_probs_len": {0: "N"}},
                {"model_type": "zipformer2_ctc", "vocab_size": len(self.order),
                 "subsampling_factor": _subsampling(recognizer), "version": "1", "model_author": "asr_lightning"},
            )
        }  # fmt: skip

    def log_probs(self, runs: Mapping[str, Run], features: Tensor, lengths: Tensor, tokens: Tensor) -> Tensor:
        """Return (real frames, V); see `Exported`."""
        scores, counts = runs["model"](features, lengths)
        return torch.cat([row[:count] for row, count in zip(scores, counts, strict=True)])


def make_exported(recognizer: Recognizer) -> Exported:
    """Return the networks of a recognizer in one of the forms.

    Raises:
        InputError: There is no form for it.
    """
    if isinstance(recognizer, CTCRecognizer):
        return CTC(recognizer)
    if not isinstance(recognizer, RNNTransducer):
        raise InputError(
            "expected a checkpoint of RNNTransducer or CTCRecognizer, which other runtimes search, found "
            f"{type(recognizer).__name__}"
        )
    stateless = isinstance(recognizer.prediction.predictor, StatelessPredictor)
    return (StatelessTransducer if stateless else StatefulTransducer)(recognizer)


def _streaming(recognizer: RNNTransducer, notes: list[str]) -> dict[str, Graph]:
    """Return the steps of an Emformer; nothing for other encoders."""
    encoder = recognizer.encoder
    if not isinstance(encoder, Emformer):
        return {}
    if isinstance(recognizer.features.normalization, UtteranceNormalization):
        notes.append("no streaming_encoder: UtteranceNormalization needs the whole utterance")
        return {}
    layers, dimension = len(encoder.layers), 2 * encoder.dimension
    inputs = {
        "x": torch.zeros(2, encoder.look_ahead, encoder.input_dimension),
        "attn_cache": torch.zeros(layers, encoder.left_context, 2, dimension),
        "conv_cache": torch.zeros(layers, 1, 2, dimension),
        "processed_frames": torch.tensor([0, encoder.segment * encoder.subsampling]),
        "x_lens": torch.full((2,), encoder.look_ahead),
    }
    axes = {name: {2: "N"} for name in ("attn_cache", "conv_cache", "new_attn_cache", "new_conv_cache")}
    return {
        "streaming_encoder": Graph(
            StreamingEncoder(recognizer), inputs,
            ("encoder_out", "new_attn_cache", "new_conv_cache", "encoder_out_lens"),
            axes | {name: {0: "N"} for name in ("x", "processed_frames", "x_lens", "encoder_out", "encoder_out_lens")},
            {
                "model_type": "conformer", "version": "1", "model_author": "asr_lightning",
                "num_encoder_layers": layers, "T": encoder.look_ahead, "pad_length": encoder.look_ahead,
                "decode_chunk_len": encoder.segment * encoder.subsampling, "left_context": encoder.left_context,
                "encoder_dim": dimension, "cnn_module_kernel": 2,
            },
            {"x_lens": torch.tensor([encoder.look_ahead])},
        )
    }  # fmt: skip


def _example(recognizer: Recognizer) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, FRAMES, recognizer.features.dimension, generator=generator)
    return {"x": x, "x_lens": torch.tensor([FRAMES, FRAMES - 20])}


def _subsampling(recognizer: Recognizer) -> int:
    """Return the number of feature frames for an encoder frame."""
    return round(recognizer.frame_times().step / recognizer.features.hop_seconds)


def _same_features(features: Features, needed: KaldiFilterBank) -> bool:
    if type(features) is not KaldiFilterBank:
        return False
    names = ("window_samples", "hop_samples", "scale", "snip_edges", "remove_mean")
    return all(getattr(features, name) == getattr(needed, name) for name in names) and torch.allclose(
        features.bank, needed.bank
    )


def _describe_features(features: Features) -> str:
    if type(features) is not KaldiFilterBank:
        return type(features).__name__
    names = ("window_samples", "hop_samples", "scale", "snip_edges", "remove_mean")
    return "KaldiFilterBank with " + ", ".join(f"{name} {getattr(features, name)}" for name in names) + " and its bands"
