r"""Make a checkpoint of this suite from weights that others have published.

Example:
    asr import torchaudio --bundle EMFORMER_RNNT_BASE_LIBRISPEECH --output runs/public/checkpoints/last.ckpt
    asr import speechbrain --weights model.ckpt --tokens tokenizer.ckpt --statistics normalizer.ckpt \
        --output runs/public/checkpoints/last.ckpt

`torchaudio` reads its streaming RNN-T, Emformer and LSTM, which has 76.7 M parameters: either from files, or with
--bundle by torchaudio's own download, which needs a network.

`speechbrain` reads the streaming Conformer transducers of its recipe for LibriSpeech (conformer_transducer.yaml), from
three files that huggingface.co/speechbrain has in asr-streaming-conformer-librispeech: 80.6 M parameters. They encode
utterances as a whole, or with --chunk in chunks.

The weights keep the license of their publisher: Apache 2.0 for SpeechBrain's; for torchaudio's, see its documentation
of the bundle.
"""

# ruff: noqa: N999 - the command is `asr import`

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from asr_lightning.asr import main
from asr_lightning.tools.arguments import above_zero, whole_number

if TYPE_CHECKING:
    from asr_lightning.models.recognizer import Recognizer

FILES = ("weights", "tokens", "statistics")
ACTIVATIONS = ("gelu", "relu", "silu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands' arguments."""
    commands = parser.add_subparsers(required=True, metavar="NETWORK", dest="kind")
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument(
        "--output", type=Path, required=True, metavar="CHECKPOINT", help="what is written, beside tokens.model"
    )
    _add_torchaudio(
        commands.add_parser(
            "torchaudio",
            parents=[output],
            help="its RNN-T with an Emformer",
            description="The license of the weights is in torchaudio's documentation of the bundle.",
        )
    )
    _add_speechbrain(
        commands.add_parser(
            "speechbrain", parents=[output], help="its RNN-T with a Conformer",
            description="Weights for LibriSpeech, under Apache 2.0: "
            "https://huggingface.co/speechbrain/asr-streaming-conformer-librispeech",
        )
    )  # fmt: skip


def _add_torchaudio(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle",
        metavar="NAME",
        help="of torchaudio.pipelines: EMFORMER_RNNT_BASE_LIBRISPEECH, which is downloaded",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="state_dict of torchaudio's RNNT, or a checkpoint")
    parser.add_argument("--tokens", type=Path, metavar="FILE", help="its SentencePiece model")
    parser.add_argument("--statistics", type=Path, metavar="FILE", help="its JSON with mean and invstddev of features")
    for name, default, about in (
        ("heads", 8, "of the self-attention"),
        ("segment", 4, "groups of frames that are encoded at once"),
        ("left-context", 30, "groups before a segment"),
        ("right-context", 1, "groups behind a segment"),
    ):
        parser.add_argument(
            f"--{name}", type=whole_number(0 if "context" in name else 1), default=default, metavar="N",
            help=f"{about}, which weights do not say (default: {default})",
        )  # fmt: skip
    parser.add_argument("--activation", choices=ACTIVATIONS, default="gelu", help="(default: gelu)")


def _add_speechbrain(parser: argparse.ArgumentParser) -> None:
    for name, about in (
        ("weights", "model.ckpt of the recipe or of the hub"),
        ("tokens", "tokenizer.ckpt, its SentencePiece model"),
        ("statistics", "normalizer.ckpt, with glob_mean and glob_std of its features"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="FILE", help=about)
    parser.add_argument(
        "--chunk", type=whole_number(1), metavar="N",
        help="encoded frames of a chunk, each of 40 ms, as 24; without it, utterances are encoded as a whole",
    )  # fmt: skip
    parser.add_argument(
        "--left-context", type=whole_number(0), metavar="N",
        help="encoded frames before a chunk that it attends to (default: those of four chunks)",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=above_zero(int), default=512, metavar="N",
        help="samples of the features' window, which weights do not say (default: 512)",
    )  # fmt: skip
    parser.add_argument(
        "--decibels", type=whole_number(0), default=80, metavar="X",
        help="dynamic range of an utterance's features (default: 80); 0: any, which `asr listen` needs",
    )  # fmt: skip
    parser.add_argument(
        "--activation", choices=ACTIVATIONS, default="gelu", help="of the joint network (default: gelu)"
    )


def run(options: argparse.Namespace) -> int:
    """Write the checkpoint; return the exit status."""
    from asr_lightning.files import replacing
    from asr_lightning.models.checkpoints import CheckpointFiles

    recognizer, pieces = {"torchaudio": _torchaudio, "speechbrain": _speechbrain}[options.kind](options)
    checkpoint = {"state_dict": recognizer.state_dict(), "hyper_parameters": dict(recognizer.hparams)}
    CheckpointFiles().save_checkpoint(checkpoint, options.output)
    tokens = options.output.with_name("tokens.model")
    with replacing(tokens) as unfinished:
        shutil.copyfile(pieces, unfinished)
    count = sum(parameter.numel() for parameter in recognizer.parameters())
    print(f"{options.output}: {count:,} parameters; {tokens}: {len(recognizer.tokenizer):,} tokens with the blank")
    return 0


def _torchaudio(options: argparse.Namespace) -> tuple["Recognizer", Path]:
    """Return the recognizer, and the file of its SentencePiece model."""
    from asr_lightning.errors import InputError
    from asr_lightning.models.public_transducers import download, torchaudio_transducer

    given = [name for name in FILES if getattr(options, name) is not None]
    if bool(options.bundle) == bool(given) or (given and len(given) < len(FILES)):
        raise InputError("expected either --bundle, or all of --weights, --tokens and --statistics")
    files = download(options.bundle) if options.bundle else [getattr(options, name) for name in FILES]
    recognizer = torchaudio_transducer(
        files[0], files[1], files[2],
        options.heads, options.segment, options.left_context, options.right_context, options.activation,
    )  # fmt: skip
    return recognizer, files[1]


def _speechbrain(options: argparse.Namespace) -> tuple["Recognizer", Path]:
    """Return the recognizer, and the file of its SentencePiece model."""
    from asr_lightning.models.public_conformers import speechbrain_transducer

    recognizer = speechbrain_transducer(
        options.weights, options.tokens, options.statistics,
        options.chunk, options.left_context, options.window, options.decibels or None, options.activation,
    )  # fmt: skip
    return recognizer, options.tokens


if __name__ == "__main__":
    sys.exit(main(["import", *sys.argv[1:]]))
