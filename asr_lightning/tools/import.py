"""Make a checkpoint of this suite from weights that others have published.

Example:
    asr import torchaudio --bundle EMFORMER_RNNT_BASE_LIBRISPEECH --output runs/public/checkpoints/last.ckpt

It reads the streaming RNN-T of torchaudio, Emformer and LSTM, which has 76.7 M parameters: either from files, or with
--bundle by torchaudio's own download, which needs a network. The licence of weights is that of who published them;
torchaudio says it in its documentation of the bundle.
"""

# ruff: noqa: N999 - the command is `asr import`

import argparse
import shutil
import sys
from pathlib import Path

from asr_lightning.asr import main
from asr_lightning.tools.arguments import whole_number

FILES = ("weights", "tokens", "statistics")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("kind", choices=("torchaudio",), help="whose network it is")
    parser.add_argument(
        "--bundle",
        metavar="NAME",
        help="of torchaudio.pipelines: EMFORMER_RNNT_BASE_LIBRISPEECH, which is downloaded",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="state_dict of torchaudio's RNNT, or a checkpoint")
    parser.add_argument("--tokens", type=Path, metavar="FILE", help="its SentencePiece model")
    parser.add_argument("--statistics", type=Path, metavar="FILE", help="its JSON with mean and invstddev of features")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="CHECKPOINT", help="what is written, beside tokens.model"
    )
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
    parser.add_argument(
        "--activation",
        choices=("gelu", "relu", "silu"),
        default="gelu",
        help="(default: gelu)",
    )


def run(options: argparse.Namespace) -> int:
    """Write the checkpoint; return the exit status."""
    from asr_lightning.errors import InputError
    from asr_lightning.files import replacing
    from asr_lightning.models.checkpoints import CheckpointFiles
    from asr_lightning.models.public_transducers import download, torchaudio_transducer

    given = [name for name in FILES if getattr(options, name) is not None]
    if bool(options.bundle) == bool(given) or (given and len(given) < len(FILES)):
        raise InputError("expected either --bundle, or all of --weights, --tokens and --statistics")
    files = download(options.bundle) if options.bundle else [getattr(options, name) for name in FILES]
    recognizer = torchaudio_transducer(
        files[0], files[1], files[2],
        options.heads, options.segment, options.left_context, options.right_context, options.activation,
    )  # fmt: skip
    checkpoint = {"state_dict": recognizer.state_dict(), "hyper_parameters": dict(recognizer.hparams)}
    CheckpointFiles().save_checkpoint(checkpoint, options.output)
    tokens = options.output.with_name("tokens.model")
    with replacing(tokens) as unfinished:
        shutil.copyfile(files[1], unfinished)
    count = sum(parameter.numel() for parameter in recognizer.parameters())
    print(f"{options.output}: {count:,} parameters; {tokens}: {len(recognizer.tokenizer):,} tokens with the blank")
    return 0


if __name__ == "__main__":
    sys.exit(main(["import", *sys.argv[1:]]))
