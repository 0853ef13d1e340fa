r"""Transcribe audio files: a line `path<TAB>text` per file, in the order given, or files in other formats.

Example:
    asr transcribe --checkpoint runs/rnnt/checkpoints/last.ckpt a.wav b.flac > texts.tsv
    asr transcribe --checkpoint runs/rnnt/checkpoints/last.ckpt talks --output transcripts --formats json srt

Tabs, ends of lines and control characters in a path are written as \t, \n and \x1b. In a file of more than 42 s,
each stretch between pauses of 0.3 s is recognized alone; where there is no such pause in 40 s, overlapping pieces of 20
to 44 s are, and are joined by the times of their words.
A file that is incomplete or cannot be used gets no line. It is named on stderr with the reason, the other files are
transcribed, and the exit status is 1.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from asr_lightning.asr import main
from asr_lightning.errors import InputError
from asr_lightning.tools.arguments import above_zero, add_config, add_device, add_int8, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "audio", nargs="*", metavar="AUDIO",
        help="WAV, FLAC, OGG, MP3, …; any sample rate, channels are mixed to one. Or folders with such files",
    )  # fmt: skip
    parser.add_argument("--list", type=Path, metavar="FILE", help="more of them, a path a line; - for standard input")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a .ckpt file that `lightning fit` has written")
    add_config(
        parser, "an experiment of the same network, for another search (default: what is in the checkpoint)", False
    )
    parser.add_argument(
        "--formats", nargs="+", choices=("txt", "json", "ctm", "srt", "vtt", "TextGrid"), default=["txt"], metavar="F",
        help="of txt, json, ctm, srt, vtt, TextGrid; without --output one of the first three (default: txt)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="gets FOLDER/NAME.FORMAT for every file; files that have all of theirs are left alone",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="transcribe files again that have their transcripts")
    parser.add_argument(
        "--n-best", type=whole_number(1), default=1, metavar="N", help="hypotheses of each piece in json (default: 1)"
    )
    parser.add_argument(
        "--confidence", choices=("product", "min", "mean"), default="product",
        help="of a word, from the probabilities of its tokens (default: product)",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", type=Path, metavar="JSON", help="of these confidences, as `asr confidence` writes it"
    )
    parser.add_argument(
        "--beam", type=whole_number(1), metavar="N", help="hypotheses kept (default: as experiment or checkpoint say)"
    )
    parser.add_argument(
        "--piece-seconds", type=above_zero(float), default=40.0, metavar="S",
        help="longest stretch of a longer file: one without a pause is cut where it is quietest, after half of this at "
        "the earliest (default: 40)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-seconds", type=above_zero(float), default=100.0, metavar="S",
        help="seconds of audio that are recognized at once; a longer piece goes alone (default: 100)",
    )  # fmt: skip
    add_device(parser)
    add_int8(parser)


def run(options: argparse.Namespace) -> int:
    """Transcribe the files; return the exit status."""
    from asr_lightning.tools import transcript_files
    from asr_lightning.tools.transcript_files import Transcript, TranscriptFolder, find_sounds

    formats = list(dict.fromkeys(options.formats))
    if options.output is None and (len(formats) > 1 or formats[0] not in ("txt", "json", "ctm")):
        raise InputError(f"--formats {' '.join(formats)}: expected an --output folder for them, since each is a file")
    if options.n_best > 1 and "json" not in formats:
        raise InputError("--n-best: only --formats json has more than the best hypothesis")
    inputs = [*options.audio, *(transcript_files.read_file_list(options.list) if options.list is not None else [])]
    if not inputs:
        raise InputError("expected audio files, folders or a --list of them, got none")
    paths: Sequence[str] = inputs
    if options.output is not None:
        folder = TranscriptFolder(options.output, formats, find_sounds(inputs), options.n_best, options.overwrite)
        paths, write = folder.unfinished(), folder.write
        if finished := len(folder.names) - len(paths):
            print(f"{finished} of {len(folder.names)} files have their transcripts; --overwrite makes them anew",
                  file=sys.stderr)  # fmt: skip
    else:
        paths = [name for path in inputs for name in (find_sounds([path]) if Path(path).is_dir() else [path])]
        terminal = sys.stdout.isatty()
        make = {
            "txt": lambda transcript: transcript_files.as_line(transcript, terminal),
            **{name: transcript_files.writers(options.n_best)[name] for name in ("json", "ctm")},
        }[formats[0]]

        def write(transcript: Transcript) -> None:
            print(make(transcript), end="", flush=True)

    # These import torch, which takes seconds: what is wrong with the options is named before.
    from asr_lightning.analysis.calibration import read_calibration
    from asr_lightning.tools import transcription
    from asr_lightning.tools.prepared_recognizer import keep_hypotheses, prepare_recognizer

    calibration = None if options.calibration is None else read_calibration(options.calibration)
    recognizer = prepare_recognizer(options.checkpoint, options.device, options.beam, options.config, options.int8)
    if options.n_best > 1:
        keep_hypotheses(recognizer, options.n_best)

    def transcripts(progress: Callable[[float], object]) -> Iterable[Transcript]:
        results = transcription.transcribe(
            recognizer, paths, options.batch_seconds, options.confidence, progress, options.piece_seconds
        )
        return (
            results
            if calibration is None
            else (transcription.calibrated(transcript, calibration) for transcript in results)
        )

    return 0 if transcription.write_transcripts(transcripts, len(paths), write) else 1


if __name__ == "__main__":
    sys.exit(main(["transcribe", *sys.argv[1:]]))
