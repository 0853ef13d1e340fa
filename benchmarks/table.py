"""One table of what is fast and what is small, beside the peers, from one run on one machine.

    make bench        # installs the peers below runs/peers, and writes runs/benchmarks.md

Rows are those of the other scripts, at sizes that take about twenty minutes on two cores; their heads say what is
timed and how the peer is called. Peers are torch, torchaudio, lhotse and scikit-learn as this project has them, and
SpeechBrain as `make peers` installs it: without its dependencies, which its networks do not need.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import data_loading
import deep_speech_2
import looking_inside
import peers
import projected_lstm
import searching
import training_speed
import transducer_loss
from timing import HEAD, Row, provenance

from data_modules.spoken import SpokenDataModule

GROWTH = Path("experiments/demo/rnnt_random.yaml")


def rows(device: str) -> Iterator[Row]:
    """Give all rows."""
    device_arguments = ["--device", device]
    yield from transducer_loss.rows(transducer_loss.make_parser().parse_args(device_arguments))
    yield from peers.rows(peers.make_parser().parse_args(device_arguments))
    yield from deep_speech_2.rows(deep_speech_2.make_parser().parse_args(device_arguments))
    yield from projected_lstm.rows(projected_lstm.make_parser().parse_args(device_arguments))
    yield from searching.rows(searching.make_parser().parse_args(device_arguments))
    yield from data_loading.rows(data_loading.make_parser().parse_args(["--serve", "--turns", "3"]))
    yield from looking_inside.rows(looking_inside.make_parser().parse_args(["--points", "10000"]))
    for arguments in (["--batch-seconds", "15", "30", "60"], ["--utterance-seconds", "2.5", "5", "10", "30"]):
        yield from training_speed.rows(
            training_speed.make_parser().parse_args([str(GROWTH), *arguments, "--turns", "5", *device_arguments])
        )


def main() -> None:
    """Print the table as it grows, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of networks, losses and searches")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks.md"))
    options = parser.parse_args()
    SpokenDataModule(minutes=100.0, train_subsets=["train-clean-100"]).prepare_data()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", encoding="utf-8") as file:

        def write_line(line: object) -> None:
            print(line, flush=True)
            print(line, file=file, flush=True)

        write_line(f"{provenance()}\n\n{HEAD}")
        for row in rows(options.device):
            write_line(row)
        write_line("")
        for line in data_loading.paddings(data_loading.make_parser().parse_args([])):
            write_line(f"* {line}")
    print(f"Written to {options.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
