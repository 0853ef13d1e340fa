"""Parts of recognizers as they are traced for export: tensors in, tensors out, in the order that sherpa-onnx has."""

import copy

import torch
from torch import Tensor, nn

from asr_lightning.errors import InputError
from asr_lightning.models.ctc import CTCRecognizer
from asr_lightning.models.deep_speech_2 import ClippedRNN, RecurrentLayer
from asr_lightning.models.recognizer import Recognizer
from asr_lightning.models.rnn_transducer import RNNTransducer
from asr_lightning.nn.emformer import Emformer
from asr_lightning.nn.sequences import silence_padding


class WholeEncoder(nn.Module):
    """Normalization, encoder, and the projection for the joint network; maybe with time last."""

    def __init__(self, recognizer: RNNTransducer, transposed: bool) -> None:
        super().__init__()
        self.normalization = recognizer.features.normalization
        self.transducer = copy_parts(recognizer, "encoder", "encoder_projection", "encoder_norm")
        self.transposed = transposed

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return projected frames and their numbers (B,)."""
        x = x.transpose(1, 2) if self.transposed else x
        encoded, lengths = self.transducer.encoder(normalized(self.normalization, x, lengths), lengths)
        projected = self.transducer.project(encoded)
        return projected.transpose(1, 2) if self.transposed else projected, lengths


class StreamingEncoder(nn.Module):
    """Steps of an Emformer, with the inputs of icefall's streaming Conformer, and real frames behind them."""

    def __init__(self, recognizer: RNNTransducer) -> None:
        super().__init__()
        self.normalization = recognizer.features.normalization
        self.transducer = copy_parts(recognizer, "encoder", "encoder_projection", "encoder_norm")

    def forward(
        self, x: Tensor, attn_cache: Tensor, conv_cache: Tensor, processed: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode a segment.

        Args:
            x: Features (B, look_ahead, F).
            attn_cache: Keys and values (layers, left_context, B, 2 D).
            conv_cache: There is no convolution; it is handed on.
            processed: Frames (B,) before x.
            lengths: Real frames of x (B,).
        """
        lengths = lengths + torch.zeros_like(processed)  # a default is one number for all rows
        x = normalized(self.normalization, x, lengths)
        encoder = self.transducer.encoder
        assert isinstance(encoder, Emformer)
        encoded, counts, past = encoder.step(
            x, lengths, attn_cache.transpose(1, 2), torch.div(processed, encoder.subsampling, rounding_mode="floor")
        )
        return self.transducer.project(encoded), past.transpose(1, 2), conv_cache + 0.0, counts


class StatelessDecoder(nn.Module):
    """The prediction network over the last tokens; ids below 0 stand for the embeddings before the first token."""

    def __init__(self, recognizer: RNNTransducer, order: list[int]) -> None:
        super().__init__()
        self.prediction = recognizer.prediction
        self.register_buffer("order", torch.tensor(order))
        self.order: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, joint dimension) of tokens (B, context)."""
        network = self.prediction
        embedded = network.embedding(self.order[tokens.clamp(min=0)])
        embedded = embedded * (tokens >= 0).unsqueeze(2).to(embedded.dtype)
        predicted, _ = network.predictor(embedded[:, -1:], (embedded[:, :-1],))
        return network.projection(predicted)[:, 0]


class StatefulDecoder(nn.Module):
    """The prediction network over one token, with hidden states and cells of all layers as two tensors."""

    def __init__(self, recognizer: RNNTransducer, order: list[int]) -> None:
        super().__init__()
        self.prediction = recognizer.prediction
        self.register_buffer("order", torch.tensor(order))
        self.order: Tensor

    def forward(
        self, tokens: Tensor, lengths: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read tokens (B, 1) from states (layers, B, D); return (B, joint dimension, 1), lengths, and states."""
        state = tuple(part for pair in zip(hidden.unbind(0), cell.unbind(0), strict=True) for part in pair)
        predicted, new_state = self.prediction(self.order[tokens.long()], state)
        return predicted.transpose(1, 2), lengths + 0, torch.stack(new_state[::2]), torch.stack(new_state[1::2])


class Joiner(nn.Module):
    """The joint network, with the tokens in another order; `lattice` joins all frames with all histories."""

    def __init__(self, recognizer: RNNTransducer, order: list[int], lattice: bool = False) -> None:
        super().__init__()
        self.joint = copy.deepcopy(recognizer.joint)
        self.joint.output.weight = nn.Parameter(self.joint.output.weight[order])
        if self.joint.output.bias is not None:
            self.joint.output.bias = nn.Parameter(self.joint.output.bias[order])
        self.lattice = lattice

    def forward(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """Return logits (B, V) of (B, D) and (B, D); or (B, T, U, V) of (B, D, T) and (B, D, U)."""
        if self.lattice:
            encoded, predicted = encoded.transpose(1, 2).unsqueeze(2), predicted.transpose(1, 2).unsqueeze(1)
        return self.joint(encoded, predicted)


class CTCNetwork(nn.Module):
    """Normalization, encoder and output, as log probabilities."""

    def __init__(self, recognizer: CTCRecognizer) -> None:
        super().__init__()
        self.normalization = recognizer.features.normalization
        self.encoder, self.output = recognizer.encoder, recognizer.output

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return log probabilities (B, T', V) and their numbers (B,)."""
        encoded, lengths = self.encoder(normalized(self.normalization, x, lengths), lengths)
        return self.output(encoded).log_softmax(2), lengths


def normalized(normalization: nn.Module | None, x: Tensor, lengths: Tensor) -> Tensor:
    """Return features (B, T, F) as `Features` hands them on: normalized, zero beyond the lengths."""
    return silence_padding(x if normalization is None else normalization(x, lengths), lengths)


def copy_parts(recognizer: RNNTransducer, *names: str) -> RNNTransducer:
    """Return a copy of a recognizer with these of its parts alone."""
    reduced = copy.copy(recognizer)
    reduced._modules = {name: part for name, part in recognizer._modules.items() if name in names}
    reduced._buffers = {}
    return reduced


def folded(recognizer: Recognizer) -> Recognizer:
    """Return a copy in float32 whose recurrent layers have their BatchNorm in their weights.

    Raises:
        InputError: A layer computes frame by frame in Python, which no format can hold.
    """
    recognizer = copy.deepcopy(recognizer).float().eval()
    if any(isinstance(module, ClippedRNN) for module in recognizer.modules()):
        raise InputError("Deep Speech 2 with kind: vanilla cannot be exported; gru and lstm can")
    for layer in recognizer.modules():
        if isinstance(layer, RecurrentLayer):
            for norm, rnn in ((layer.forward_norm, layer.forward_rnn), (layer.backward_norm, layer.backward_rnn)):
                if norm is not None:
                    weight, bias = norm(rnn.weight_ih_l0.detach(), rnn.bias_ih_l0.detach(), None)
                    rnn.weight_ih_l0.data, rnn.bias_ih_l0.data = weight.detach(), bias.detach()
            layer.forward_norm = layer.backward_norm = None
    for parameter in recognizer.parameters():
        parameter.requires_grad_(False)
    return recognizer
