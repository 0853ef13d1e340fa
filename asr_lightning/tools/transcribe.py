r"""Write what is said in audio files: a line `path<TAB>text` per file, in the order given.

Example:
    asr transcribe --checkpoint runs/rnnt/checkpoints/last.ckpt a.wav b.flac > texts.tsv

Tabs, ends of lines and control characters in a path are written as \t, \n and \x1b. A file of more than 40 s is
recognized in pieces of 20 to 40 s, cut at pauses. A file that cannot be used, or is cut off, has no line: it is named
on stderr with the reason, and the rest goes on; the exit status is then 1.
"""

import argparse
import io
import sys
from pathlib import Path

from asr_lightning.asr import main
from asr_lightning.tools.arguments import above_zero, add_config, add_device, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "audio", nargs="+", metavar="AUDIO", help="WAV, FLAC, OGG, MP3, …; any sample rate, channels are mixed to one"
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a .ckpt file that `lightning fit` has written")
    add_config(
        parser, "an experiment of the same network, for another search (default: what is in the checkpoint)", False
    )
    parser.add_argument(
        "--beam", type=whole_number(1), metavar="N", help="hypotheses kept (default: as experiment or checkpoint say)"
    )
    parser.add_argument(
        "--batch-seconds", type=above_zero(float), default=100.0, metavar="S",
        help="seconds of audio that are recognized at once; a longer piece goes alone (default: 100)",
    )  # fmt: skip
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Transcribe the files; return the exit status."""
    from asr_lightning.tools.transcription import prepare, write_transcripts

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may be in any encoding
            stream.reconfigure(errors="surrogateescape")
    recognizer = prepare(options.checkpoint, options.device, options.beam, options.config)
    return 0 if write_transcripts(recognizer, options.audio, options.batch_seconds, sys.stdout) else 1


if __name__ == "__main__":
    sys.exit(main(["transcribe", *sys.argv[1:]]))
