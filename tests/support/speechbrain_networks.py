"""Networks of SpeechBrain's own classes, as its recipe `conformer_transducer.yaml` builds them, and what they compute.

The outputs of a tiny one are stored beside, so that tests need SpeechBrain only where they compare full sizes. They are
written anew, with speechbrain 1.1.2 and hyperpyyaml importable, by

    python -m tests.support.speechbrain_networks
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

REFERENCE = Path(__file__).with_suffix(".npz")
PIECES = 40  # of a SentencePiece model, the blank in place of the unknown one
TINY = {"mels": 16, "dimension": 8, "joint": 6, "heads": 2, "layers": 2, "hidden": 12, "predictor": 5,
        "vocabulary": PIECES, "channels": (3, 2), "kernel": 7, "quiet": 10}  # fmt: skip
SMALL = {"mels": 80, "dimension": 24, "joint": 20, "heads": 4, "layers": 3, "hidden": 40, "predictor": 12,
         "vocabulary": PIECES, "channels": (6, 5), "kernel": 31, "quiet": 15}  # fmt: skip
FULL = {"mels": 80, "dimension": 512, "joint": 640, "heads": 8, "layers": 12, "hidden": 2048, "predictor": 512,
        "vocabulary": 1000, "channels": (64, 32), "kernel": 31, "quiet": 18}  # fmt: skip
CHUNK, LEFT_CHUNKS = 3, 2
SAMPLES = 12_345  # of the stored utterance: an odd number of frames before both convolutions


def speech(samples: int, seed: int = 0) -> Tensor:
    """Audio (samples,): a tone that rises and swells, louder and softer than the dynamic range of the features."""
    seconds = torch.arange(samples) / 16_000
    tone = torch.sin(700 * seconds.square() + (900 + 90 * seed) * seconds) * (1 + torch.sin(9 * seconds)) / 2
    return 0.1 * tone * (seconds > 0.1)  # the beginning is digital silence


class SpeechBrain:
    """The recipe's modules with random weights, and the numbers that they compute of one utterance."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        from speechbrain.decoders.transducer import TransducerBeamSearcher
        from speechbrain.lobes.features import Fbank
        from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
        from speechbrain.lobes.models.transformer.TransformerASR import EncoderWrapper, TransformerASR
        from speechbrain.nnet.embedding import Embedding
        from speechbrain.nnet.linear import Linear
        from speechbrain.nnet.RNN import LSTM
        from speechbrain.nnet.transducer.transducer_joint import Transducer_joint
        from speechbrain.processing.features import InputNormalization

        torch.manual_seed(0)
        mels, dimension, joint, vocabulary = (sizes[name] for name in ("mels", "dimension", "joint", "vocabulary"))
        frequencies = -(-mels // 4)
        front = ConvolutionFrontEnd(
            input_shape=(8, 10, mels), num_blocks=2, num_layers_per_block=1, out_channels=sizes["channels"],
            kernel_sizes=(3, 3), strides=(2, 2), residuals=(False, False),
        )  # fmt: skip
        transformer = TransformerASR(
            input_size=frequencies * sizes["channels"][1], tgt_vocab=vocabulary, d_model=dimension,
            nhead=sizes["heads"], num_encoder_layers=sizes["layers"], num_decoder_layers=0, d_ffn=sizes["hidden"],
            dropout=0.1, activation=nn.GELU, encoder_module="conformer", attention_type="RelPosMHAXL",
            normalize_before=True, causal=False, kernel_size=sizes["kernel"],
        )  # fmt: skip
        self.front, self.encoder = front, EncoderWrapper(transformer=transformer)
        embedding = Embedding(num_embeddings=vocabulary, consider_as_one_hot=True, blank_id=0)
        predictor = LSTM(input_shape=[None, None, vocabulary - 1], hidden_size=sizes["predictor"], num_layers=1)
        self.encoder_projection = Linear(input_size=dimension, n_neurons=joint, bias=False)
        projection = Linear(input_size=sizes["predictor"], n_neurons=joint, bias=False)
        ctc = Linear(input_size=joint, n_neurons=vocabulary)
        self.output = Linear(input_size=joint, n_neurons=vocabulary, bias=False)
        self.joint = Transducer_joint(joint="sum", nonlinearity=nn.GELU)
        self.prediction = [embedding, predictor, projection]
        self.model = nn.ModuleList(
            [front, self.encoder, embedding, predictor, self.encoder_projection, projection, ctc, self.output]
        ).eval()
        for name, parameter in self.model.named_parameters():  # norms and biases as after training
            if parameter.requires_grad and ("norm" in name or parameter.dim() == 1):
                parameter.data.add_(0.2 * torch.randn(parameter.shape))
        self.filters = Fbank(sample_rate=16_000, n_fft=512, n_mels=mels, win_length=32)
        self.normalizer = InputNormalization(norm_type="global").eval()
        self.normalizer.glob_mean = -20 + 5 * torch.randn(mels)
        self.normalizer.glob_std = 10 + 5 * torch.rand(mels)
        self.normalizer.count = 1000
        self.greedy = TransducerBeamSearcher(
            decode_network_lst=self.prediction, tjoint=self.joint, classifier_network=[self.output], blank_id=0,
            beam_size=1, nbest=1,
        )  # fmt: skip
        # Random networks say the same in all frames, are sure of nothing, and emit tokens without end.
        with torch.no_grad():
            encoded = self.encoder(self.front(self.normalizer(self.filters(speech(SAMPLES)[None]))), torch.ones(1))
            norm = transformer.encoder.norm.norm
            norm.bias -= encoded.mean(dim=(0, 1))
            spread = encoded.std(dim=1).mean()
            self.encoder_projection.w.weight.mul_(2 / spread)
            projection.w.weight.mul_(4)
            predictor.rnn.weight_ih_l0.mul_(4)
            self.output.w.weight.mul_(4)
            self.output.w.weight[0] += sizes["quiet"] / joint

    def save(self, folder: Path) -> None:
        """Write `model.ckpt` and `normalizer.ckpt`."""
        torch.save(self.model.state_dict(), folder / "model.ckpt")
        self.normalizer._save(str(folder / "normalizer.ckpt"))

    @torch.no_grad()
    def compute(self, audio: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return features, encoded frames (whole, in chunks, streamed), log probabilities and tokens of audio (S,)."""
        from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

        features = self.normalizer(self.filters(audio[None]))
        front, whole = self.front(features), torch.ones(1)
        encoded = self.encoder(front, whole)
        chunks = DynChunkTrainConfig(CHUNK, LEFT_CHUNKS)
        chunked = self.encoder(front, whole, dynchunktrain_config=chunks)
        context = self.encoder.make_streaming_context(chunks)
        pieces = [self.encoder.forward_streaming(piece, context) for piece in front.split(CHUNK, dim=1)]
        projected = self.encoder_projection(encoded)
        predicted = torch.cat([torch.zeros(1, 1, dtype=torch.long), targets[None]], dim=1)
        for layer in self.prediction:
            predicted = layer(predicted)
            predicted = predicted[0] if isinstance(predicted, tuple) else predicted
        logits = self.output(self.joint(projected.unsqueeze(2), predicted.unsqueeze(1)))
        return {
            "features": features[0],
            "encoded": encoded[0],
            "chunked": chunked[0],
            "streamed": torch.cat(pieces, dim=1)[0],
            "log_probs": logits.log_softmax(3)[0],
            "tokens": torch.tensor(self.greedy(projected)[0][0]),
        }


def targets_of(vocabulary: int) -> Tensor:
    return torch.tensor([5, 9, vocabulary - 1, 1])


def read_reference(folder: Path) -> dict[str, Tensor]:
    """Write `model.ckpt` and `normalizer.ckpt` of the stored network into a folder; return what it computed."""
    with np.load(REFERENCE) as stored:
        content = {name: torch.from_numpy(stored[name]) for name in stored.files}
    weights = {name.removeprefix("model/"): value for name, value in content.items() if name.startswith("model/")}
    weights["1.transformer.positional_encoding_decoder.pe"] = torch.zeros(1, 2500, TINY["dimension"])
    torch.save(weights, folder / "model.ckpt")
    statistics = {name: content[f"normalizer/{name}"] for name in ("glob_mean", "glob_std")}
    torch.save({"count": 1000, **statistics}, folder / "normalizer.ckpt")
    return {name: value for name, value in content.items() if "/" not in name}


def write_reference() -> None:
    """Write the file that `read_reference` reads."""
    network = SpeechBrain(TINY)
    content = dict(network.compute(speech(SAMPLES), targets_of(TINY["vocabulary"])))
    content |= {f"model/{name}": value for name, value in network.model.state_dict().items() if ".pe" not in name}
    content |= {f"normalizer/{name}": getattr(network.normalizer, name) for name in ("glob_mean", "glob_std")}
    np.savez_compressed(REFERENCE, **{name: value.numpy() for name, value in content.items()})
    print(f"{REFERENCE}: {REFERENCE.stat().st_size:,} bytes, tokens {content['tokens'].tolist()}")


if __name__ == "__main__":
    write_reference()
