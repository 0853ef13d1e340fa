"""Every architecture, small. To add one, add a row to ARCHITECTURES: the contract test and others go over all."""

from pathlib import Path
from typing import Any

from tests.support.hybrids import hybrid, write_states
from tests.support.tones import (
    TEXTS,
    attention_decoder,
    conformer,
    conformer_of_layer_norms,
    ctc,
    deep_speech_2,
    features,
    frame_attention,
    lstm_encoder,
    speller,
    streaming_conformer,
    transducer,
)

ONE_HOT = "asr_lightning.models.one_hot_transducer.OneHotTransducer"
STATELESS = {
    "class_path": "asr_lightning.models.rnn_transducer.StatelessPredictor",
    "init_args": {"dimension": 32, "context": 2},
}


EMFORMER = {
    "class_path": "asr_lightning.nn.emformer.Emformer",
    "init_args": {
        "input_dimension": 20, "projection": 24, "subsampling": 2, "layers": 2, "heads": 4, "feed_forward": 96,
        "segment": 3, "left_context": 6, "right_context": 2, "dropout": 0.0,
    },
}  # fmt: skip


def recurrent(name: str, **sizes: Any) -> dict[str, Any]:
    arguments = {"input_dimension": 20, "hidden": 32, **sizes}
    return {"class_path": f"asr_lightning.nn.recurrent.{name}", "init_args": arguments}


def transformer(name: str, **sizes: Any) -> dict[str, Any]:
    arguments = {"dimension": 32, "layers": 2, "heads": 2, "feed_forward": 64, "dropout": 0.0, **sizes}
    return {"class_path": f"asr_lightning.models.speech_transformer.{name}", "init_args": arguments}


def searching(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "asr_lightning.decoding.attention.AttentionSearch", "init_args": arguments}


ARCHITECTURES: dict[str, dict[str, Any]] = {  # small, without dropout, for audio of RATE
    "RNN-T of LSTMs": transducer(),
    "RNN-T of LSTMs with CTC": transducer(
        encoder=lstm_encoder(81, subsampling=2),
        features=features("PowerSpectrogram", "GlobalNormalization"),
        ctc_weight=0.3,
    ),
    "RNN-T of LSTMs with the pruned loss": transducer(
        transducer_loss={
            "class_path": "asr_lightning.losses.transducer.pruned.PrunedLoss",
            "init_args": {"width": 4, "left_out": 0.001},
        },
    ),
    "RNN-T with a Conformer": transducer(
        encoder=conformer(20), features=features("KaldiFilterBank", "GlobalNormalization", mels=20)
    ),
    "stateless RNN-T with a Conformer and CTC": transducer(
        encoder=conformer(13, head_dimension=8),
        features=features("MFCC", "UtteranceNormalization", coefficients=13, mels=20),
        predictor=STATELESS,
        ctc_weight=0.5,
    ),
    "RNN-T with an Emformer": transducer(encoder=EMFORMER),
    "RNN-T with an Emformer and layer norms": {
        "class_path": "asr_lightning.models.normalized_transducer.NormalizedTransducer",
        "init_args": transducer(
            encoder=EMFORMER,
            predictor={
                "class_path": "asr_lightning.models.normalized_transducer.NormalizedLSTMPredictor",
                "init_args": {"dimension": 32, "layers": 2, "dropout": 0.0},
            },
        )["init_args"],
    },
    "RNN-T with a streaming Conformer": transducer(
        encoder=streaming_conformer(), features=features("LogMel", "GlobalNormalization", mels=20)
    ),
    "one-hot RNN-T with a Conformer of LayerNorms": {
        "class_path": ONE_HOT, "init_args": transducer(encoder=conformer_of_layer_norms())["init_args"]
    },
    "one-hot RNN-T with a streaming Conformer of LayerNorms": {
        "class_path": ONE_HOT,
        "init_args": transducer(
            encoder=conformer_of_layer_norms("ChunkedConformer", chunk=6, left_context=12, largest_chunk=6),
            features=features("LogMel", "GlobalNormalization", mels=20),
        )["init_args"],
    },
    "RNN-T with a streaming LSTM and CTC": transducer(
        encoder=recurrent("StreamingLSTMEncoder", layers=2, channels=8, subsampling=2, dropout=0.0), ctc_weight=0.3
    ),
    "LAS": attention_decoder(
        encoder=recurrent("PyramidalLSTMEncoder", layers=2, plain_layers=1),
        decoder=speller("DotAttention", sampling=0.1),
    ),
    "end-to-end of projected LSTMs": attention_decoder(
        encoder=recurrent("ProjectedLSTMEncoder", layers=2, projection=48, subsampling=[2, 2]),
        decoder=speller("LocationAwareAttention", channels=4, filter_frames=10),
        label_smoothing=0.05,
        optimizer={"class_path": "torch.optim.Adam", "init_args": {"lr": 6e-3}},
    ),
    "end-to-end of projected LSTMs, attention asked with the previous state": attention_decoder(
        encoder=recurrent("ProjectedLSTMEncoder", layers=2, projection=48, subsampling=[2, 2], last_tanh=False),
        decoder=speller(
            "LocationAwareAttention", channels=4, filter_frames=10, sharpening=2.0, layers=2, query_state="previous"
        ),
        ctc_weight=0.5,
        search=searching(beam=2),
    ),
    "joint CTC-attention": attention_decoder(
        encoder=lstm_encoder(20), decoder=speller("AdditiveAttention"), ctc_weight=0.3, search=searching(ctc_weight=0.3)
    ),
    "Conformer with multi-head attention and a beam": attention_decoder(
        encoder=conformer(20), decoder=speller("MultiHeadAttention", heads=2), search=searching(beam=3)
    ),
    "Speech Transformer": attention_decoder(
        encoder=transformer("TransformerEncoder", input_dimension=20, channels=8),
        decoder=transformer("TransformerDecoder"),
    ),
    "Speech Transformer with CTC": attention_decoder(
        encoder=transformer("TransformerEncoder", input_dimension=20, channels=8),
        decoder=transformer("TransformerDecoder"),
        ctc_weight=0.3,
        search=searching(ctc_weight=0.3, beam=2),
    ),
    "Deep Speech 2": ctc(deep_speech_2(fully_connected=40)),
    "Deep Speech 2 as KoSpeech has it": ctc(
        deep_speech_2(directions="concatenate", batch_norm="input"), output_bias=False, loss_per_token=True
    ),
    "Deep Speech 2 with an input that both directions share": ctc(deep_speech_2(shared_input=True)),
    "Deep Speech 2 with vanilla units and without BatchNorm": ctc(
        deep_speech_2("Convolutions1d", kind="vanilla", batch_norm=False)
    ),
    "Deep Speech 2 with vanilla units, published attention and a prefix beam": ctc(
        deep_speech_2("VGG", kind="vanilla", attention=frame_attention("HeadAttention", heads=4)),
        search={"class_path": "asr_lightning.decoding.ctc_search.CTCSearch", "init_args": {"beam": 3}},
    ),
    "Deep Speech 2 with LSTMs and attention over time": ctc(
        deep_speech_2(kind="lstm", directions="concatenate", attention=frame_attention("TimeAttention", heads=2))
    ),
    "Deep Speech 2 with positions and temporal weights": ctc(
        deep_speech_2(attention=frame_attention("TimeAttention", heads=2, positions=True, decay=True))
    ),
    "Deep Speech 2 with additive attention": ctc(
        deep_speech_2("Convolutions1d", attention=frame_attention("AdditiveTimeAttention", hidden=16))
    ),
    "Deep Speech 2 with location-aware attention": ctc(
        deep_speech_2(
            attention=frame_attention("AdditiveTimeAttention", hidden=16, location=True, channels=10, filter_frames=5)
        )
    ),
    "Deep Speech 2 with cross-attention": attention_decoder(
        encoder=deep_speech_2(),
        decoder=transformer("TransformerDecoder"),
        ctc_weight=0.5,
        search=searching(ctc_weight=0.5),
    ),
    "Jasper": ctc(
        {
            "class_path": "asr_lightning.models.jasper.Jasper",
            "init_args": {
                "input_dimension": 20, "repeats": 2, "channels": [24, 32], "kernels": [5, 7], "dropouts": [0.0, 0.0],
                "copies": 1, "prologue": [24, 5], "epilogue": [32, 7], "dimension": 32, "epilogue_dropout": 0.0,
            },
        }
    ),
    "Jasper without dense residuals": ctc(
        {
            "class_path": "asr_lightning.models.jasper.Jasper",
            "init_args": {
                "input_dimension": 20, "repeats": 2, "channels": [24], "kernels": [5], "dropouts": [0.0], "copies": 2,
                "dense": False, "prologue": [24, 5], "epilogue": [32, 7], "dimension": 32, "epilogue_dropout": 0.0,
            },
        }
    ),
    "Conformer with CTC": ctc(conformer(20)),
    "LSTMs with recurrent projections and CTC": ctc(
        {
            "class_path": "asr_lightning.nn.projected_lstm.RecurrentProjectionEncoder",
            "init_args": {
                "input_dimension": 20, "hidden": 48, "layers": 2, "recurrent_projection": 16, "projection": 12,
                "context": 2, "subsampling": 3,
            },
        }
    ),
    "hybrid with hidden Markov models": hybrid(),
    "hybrid with hidden Markov models and lattice-free MMI": hybrid(mmi_weight=0.5),
}  # fmt: skip
UNSEEN = ["BAD", "HEAD CHEF AGED", "A", "FEE"]
NAMED = {"tone": TEXTS, "unseen": UNSEEN}


def with_states(config: dict[str, Any], folder: Path, korean: bool = False) -> dict[str, Any]:
    """The same configuration with the files that a hybrid needs besides its network, if it is one."""
    if "folder" not in config["init_args"]:
        return config
    spoken = {f"{name}-{n}": text for name, texts in NAMED.items() for n, text in enumerate(texts)}
    write_states(folder, [*TEXTS, *UNSEEN], spoken, korean)
    return {**config, "init_args": {**config["init_args"], "folder": str(folder)}}
