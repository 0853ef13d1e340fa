"""Networks of peers, put together from their own layers as their own recipes do it, at the shapes of our experiments.

Each takes audio (B, samples) of equal length, targets (B, U) without blanks and their lengths, and gives the mean loss.
SpeechBrain's transducer loss needs a GPU; on a CPU it is given torchaudio's, as torchaudio's own.
"""

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.functional import rnnt_loss
from torchaudio.models import Conformer
from torchaudio.models.rnnt import _Joiner, _Predictor

VOCABULARY, MELS = 31, 80
CTC = 0.3  # share of the loss beside an attention decoder
SUBSAMPLING, CHANNELS = 4, 108
DIMENSION, LAYERS, HEADS, INNER, KERNEL, JOINT = 216, 7, 4, 864, 31, 256  # of the transducers


class TorchaudioTransducer(nn.Module):
    """torchaudio's Conformer between its parts of a transducer, as its Conformer RNN-T recipe has them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torchaudio.transforms.MelSpectrogram(16_000, n_fft=400, hop_length=160, n_mels=MELS)
        self.front = nn.Sequential(  # torchaudio's Conformer has none
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


class SpeechBrainTransducer(nn.Module):
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
        shares = torch.ones(len(audio), device=audio.device)  # SpeechBrain's lengths are shares of the longest
        encoded = self.projection(self.encoder.encode(self.front(self.features(audio)), shares))
        predicted = self.predicted(self.predictor(self.embedding(nn.functional.pad(targets, (1, 0))))[0])
        logits = self.output(self.joint(encoded.unsqueeze(2), predicted.unsqueeze(1)))
        frames = torch.full((len(audio),), encoded.shape[1], dtype=torch.int32, device=audio.device)
        return rnnt_loss(logits, targets.int(), frames, lengths.int(), blank=0)


class SpeechBrainAttention(nn.Module):
    """SpeechBrain's location-aware decoder and its LSTMs, as a pyramid, as its LAS recipe of LibriSpeech has them."""

    def __init__(self) -> None:
        super().__init__()
        from speechbrain.lobes.features import Fbank
        from speechbrain.nnet.linear import Linear
        from speechbrain.nnet.RNN import LSTM, AttentionalRNNDecoder

        self.features = Fbank(sample_rate=16_000, n_fft=400, n_mels=MELS)
        self.layers = nn.ModuleList(LSTM(192, input_size=2 * size, bidirectional=True) for size in (MELS, 384))
        self.dropout = nn.Dropout(0.1)
        self.embedding = nn.Embedding(VOCABULARY, 256)
        self.decoder = AttentionalRNNDecoder(
            "lstm", "location", 256, 192, 2, enc_dim=384, input_size=256, channels=10, kernel_size=10, dropout=0.1
        )
        self.output = Linear(input_size=256, n_neurons=VOCABULARY)  # its searches ask for this kind
        self.ctc = nn.Linear(384, VOCABULARY)

    def forward(self, audio: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
        """Return the mean loss."""
        encoded = self.features(audio)
        for layer in self.layers:
            encoded = self.dropout(layer(encoded[:, : encoded.shape[1] // 2 * 2].unflatten(1, (-1, 2)).flatten(2))[0])
        histories = self.embedding(functional.pad(targets, (1, 0)))
        decoded, _ = self.decoder(histories, encoded, torch.ones(len(audio), device=audio.device))
        return with_ctc(self.output(decoded), self.ctc(encoded), targets, lengths)


class SpeechBrainTransformer(nn.Module):
    """SpeechBrain's Transformer as its recipe of LibriSpeech puts it together."""

    def __init__(self) -> None:
        super().__init__()
        from speechbrain.lobes.features import Fbank
        from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
        from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR

        self.features = Fbank(sample_rate=16_000, n_fft=400, n_mels=MELS)
        self.front = ConvolutionFrontEnd(
            (8, 10, MELS), num_blocks=2, num_layers_per_block=1, out_channels=[32, 32], kernel_sizes=[3, 3],
            strides=[2, 2], residuals=[False, False],
        )  # fmt: skip
        self.transformer = TransformerASR(
            tgt_vocab=VOCABULARY, input_size=MELS // 4 * 32, d_model=192, nhead=4, num_encoder_layers=4,
            num_decoder_layers=2, d_ffn=768, dropout=0.1, normalize_before=True, causal=False,
        )  # fmt: skip
        self.output = nn.Linear(192, VOCABULARY)
        self.ctc = nn.Linear(192, VOCABULARY)

    def forward(self, audio: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
        """Return the mean loss."""
        shares = torch.ones(len(audio), device=audio.device)
        histories = functional.pad(targets, (1, 0), value=1)  # SpeechBrain takes 0 for padding
        encoded, decoded = self.transformer(self.front(self.features(audio)), histories, shares)
        return with_ctc(self.output(decoded), self.ctc(encoded), targets, lengths)


def ctc_loss(logits: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean CTC loss of utterances of equal length."""
    frames = torch.full_like(lengths, logits.shape[1])
    scores = logits.log_softmax(2).transpose(0, 1)
    return functional.ctc_loss(scores, targets, frames, lengths, reduction="none").mean()


def with_ctc(logits: Tensor, frames: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean loss of a text decoder's logits (B, U + 1, V), and of CTC beside it."""
    extended = functional.pad(targets, (0, 1), value=VOCABULARY - 1)
    attention = functional.cross_entropy(logits.flatten(0, 1), extended.flatten(), reduction="sum") / len(targets)
    return (1 - CTC) * attention + CTC * ctc_loss(frames, targets, lengths)
