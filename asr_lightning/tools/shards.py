"""Writes the corpus of an experiment as shards: tar files of many utterances, in lhotse's Shar layout.

Example: python -m asr_lightning.tools.shards --config experiments/rnnt_teacher.yaml --output data/shards

`lightning fit --config … --data data_modules.shards.ShardsDataModule --data.init_args.root OUTPUT` trains on them.
To train from object storage, copy OUTPUT there with your cloud's own tool; `root` may be its address, as s3://bucket/folder.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from asr_lightning.errors import InputError
from asr_lightning.tools.arguments import whole_number
from asr_lightning.tools.subsets import read_corpus, set_up
from data_modules.sharding import Written, write_subset


def write_shards(
    config: Path, output: Path, subsets: Sequence[str] | None, utterances_per_shard: int, replace: bool
) -> Iterator[tuple[str, Written]]:
    """Write subsets one after the other, and give what was written of each.

    Args:
        config: An experiment with a corpus.
        output: The folder of all subsets.
        subsets: Their names; None: all that the experiment names.
        utterances_per_shard: The last shard of a subset may have fewer.
        replace: Take the place of other shards.

    Raises:
        InputError: The corpus cannot be used, or the folder cannot be written.
    """
    corpus = read_corpus(config)
    named = [subset for role in corpus.subsets.values() for subset in role]
    chosen = list(dict.fromkeys(named if subsets is None else subsets))
    if not chosen:
        raise InputError(f"{config}: expected data with subsets, found none: give --subsets")
    set_up(corpus, "predict", chosen)
    for subset in chosen:
        yield subset, write_subset(corpus, subset, output.expanduser().absolute(), utterances_per_shard, replace)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m asr_lightning.tools.shards",
        description="Write a corpus as shards: tar files with FLAC of 16 bits, in lhotse's Shar layout.",
        epilog="A subset that is there already is left as it is; one that is something else is only replaced with "
        "--replace. A writer that was killed leaves no subset. Train on the shards with --data "
        "data_modules.shards.ShardsDataModule --data.init_args.root OUTPUT. To train from object storage, copy the "
        "folder with your cloud's own tool, and give its address (s3://bucket/folder) as root. Exit status: 0, or 2 "
        "where the input cannot be used.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="EXPERIMENT", help="a YAML with the corpus")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where to write FOLDER/<subset>")
    parser.add_argument("--subsets", nargs="+", metavar="SUBSET", help="default: all that the experiment names")
    parser.add_argument("--utterances-per-shard", type=whole_number(1), default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--replace", action="store_true", help="write anew where something else is")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = make_parser().parse_args(arguments)
    warnings.filterwarnings("always", message="Left out: ")
    try:
        written = write_shards(
            options.config, options.output, options.subsets, options.utterances_per_shard, options.replace
        )
        for subset, one in written:
            print(
                f"{subset}: {one.utterances} utterances, {one.seconds / 3600:.2f} h, {one.shards} shards, "
                f"{one.bytes / 1e9:.3f} GB {'written' if one.new else 'there already'}",
                flush=True,
            )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
