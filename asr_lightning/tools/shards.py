"""Write the corpus of an experiment as shards: tar files with FLAC of 16 bits, in lhotse's Shar layout.

Example:
    asr shards --config experiments/rnnt_teacher.yaml --output data/shards

A subset that is there already is left as it is; one that is something else is only replaced with --replace. A writer
that was killed leaves no subset. `lightning fit --config … --data data_modules.shards.ShardsDataModule
--data.init_args.root OUTPUT` trains on them. To train from object storage, copy OUTPUT there with your cloud's own
tool, and give its address (s3://bucket/folder) as root.
"""

import argparse
import sys
import warnings

from asr_lightning.asr import main
from asr_lightning.errors import InputError
from asr_lightning.tools.arguments import add_config, add_output, add_subsets, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_config(parser, "an experiment with the corpus")
    add_output(parser, "a folder for each subset")
    add_subsets(parser, "default: all that the experiment names")
    parser.add_argument("--utterances-per-shard", type=whole_number(1), default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--replace", action="store_true", help="write anew where something else is")


def run(options: argparse.Namespace) -> int:
    """Write subsets one after the other; return the exit status."""
    from asr_lightning.tools.subsets import read_corpus, set_up
    from data_modules.sharding import write_subset

    warnings.filterwarnings("always", message="Left out: ")
    corpus = read_corpus(options.config)
    subsets = [subset for role in corpus.subsets.values() for subset in role]
    chosen = list(dict.fromkeys(subsets if options.subsets is None else options.subsets))
    if not chosen:
        raise InputError(f"{options.config}: expected data with subsets, found none: give --subsets")
    set_up(corpus, "predict", chosen)
    folder = options.output.expanduser().absolute()
    for subset in chosen:
        summary = write_subset(corpus, subset, folder, options.utterances_per_shard, options.replace)
        print(
            f"{subset}: {summary.utterances} utterances, {summary.seconds / 3600:.2f} h, {summary.shards} shards, "
            f"{summary.bytes / 1e9:.3f} GB {'written' if summary.new else 'there already'}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(["shards", *sys.argv[1:]]))
