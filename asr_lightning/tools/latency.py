r"""Measure the delay of words and the cost of recognition, of networks that stream and others.

Example:
    asr latency runs/demo/rnnt_streaming_random/seed1 runs/demo/rnnt_streaming_ws/seed1 \
        --chunks 2 4 8 16 32 --output reports/latency

Audio is read in pieces, one utterance at a time, in one thread. The delay of a word is the audio that had been read
when its last token was written, less the exact end of the word: it does not depend on the machine. The real-time factor
is processor time for a second of audio. A network that does not stream writes everything when the audio has ended.

Writes latency.csv, latency.md, and latency.png with the WER against the delay.
"""

import argparse
import sys
from pathlib import Path

from asr_lightning.asr import main
from asr_lightning.tools.arguments import above_zero, add_config, add_output, add_subsets, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "networks", nargs="+", type=Path, metavar="RUN",
        help="folder of a run, whose checkpoints/last.ckpt is measured, or a .ckpt file",
    )  # fmt: skip
    add_config(
        parser, "experiment whose `data` is read (default: config.yaml in the logs of the first network's run)", False
    )
    add_subsets(parser, "default: those that the experiment tests on")
    parser.add_argument(
        "--chunks", nargs="+", type=whole_number(1), metavar="FRAMES",
        help="sizes of chunks, in encoded frames, of encoders that have chunks (default: the size of the experiment)",
    )  # fmt: skip
    parser.add_argument(
        "--truth", type=Path, metavar="PATH",
        help="CTM of phones with --lexicon, else of words: a file, or a folder with *.phones.ctm or *.ctm (default: "
        "the embedded corpus's own)",
    )  # fmt: skip
    parser.add_argument("--lexicon", type=Path, metavar="FILE", help="pronunciations of the words, for phones")
    parser.add_argument(
        "--piece", type=above_zero(float), default=0.02, metavar="SECONDS",
        help="of audio that is read at once, to which delays are rounded up (default: 0.02)",
    )  # fmt: skip
    parser.add_argument(
        "--utterances", type=whole_number(0), default=0, metavar="N", help="of each subset at most; 0 for all (default)"
    )
    add_output(parser, "latency.csv, latency.md and latency.png")


def run(options: argparse.Namespace) -> int:
    """Measure; return the exit status."""
    from asr_lightning.tools.delays import compare
    from asr_lightning.tools.weight_lines import find_config

    checkpoints = [path / "checkpoints" / "last.ckpt" if path.is_dir() else path for path in options.networks]
    config = options.config or find_config(checkpoints[0])
    section = compare(
        checkpoints, config, options.subsets, options.chunks, (options.truth, options.lexicon), options.piece,
        options.utterances,
    )  # fmt: skip
    print(section)
    print(f"\nWritten to {options.output.absolute()}: {', '.join(section.write(options.output))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(["latency", *sys.argv[1:]]))
