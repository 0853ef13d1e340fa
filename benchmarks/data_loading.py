"""Reading a corpus from FLAC files and from shards, beside lhotse's own loader in one run, and padding.

    python benchmarks/data_loading.py --root data/spoken_small --subset train-clean-100 [--durations data/LibriSpeech]

All are read in turns: ours through the data module as training reads it, lhotse's by its `DynamicBucketingSampler` of
ten buckets and `collate_audio` in as many workers. The first passes are not counted, so the files are in memory if
there is enough of it. The padding is that of the batches of one epoch. With --serve, the shards are also read from a
web server on this machine, as from object storage without a network.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import CutSet
from lhotse.dataset import DynamicBucketingSampler
from lhotse.dataset.collation import collate_audio
from timing import Row, Work, in_turns, print_table

from data_modules.corpus import CorpusDataModule
from data_modules.librispeech import LibriSpeechDataModule
from data_modules.sampler import plan_batches
from data_modules.sharding import write_subset
from data_modules.shards import ShardsDataModule


def prepare(corpus: CorpusDataModule) -> CorpusDataModule:
    """Open the manifests of a corpus."""
    corpus.prepare_data()
    corpus.setup("fit")
    return corpus


def read(loader: Iterable[Any]) -> None:
    """Read an epoch."""
    for _ in loader:
        pass


class Collated(torch.utils.data.Dataset):
    """Lhotse's batches: audio and its lengths."""

    def __getitem__(self, cuts: CutSet) -> tuple[torch.Tensor, torch.Tensor]:
        """Read some cuts."""
        return collate_audio(cuts)


def lhotse_sampler(corpus: CorpusDataModule, subset: str, batch_seconds: float) -> DynamicBucketingSampler:
    """Return lhotse's batches of the same utterances."""
    cuts = CutSet.from_cuts(corpus.manifests[subset][number] for number in range(len(corpus.manifests[subset])))
    return DynamicBucketingSampler(cuts, max_duration=batch_seconds, num_buckets=10, shuffle=True, seed=1)


def padding(durations: np.ndarray, batch_seconds: float, ranks: int) -> float:
    """Return the share of the batches of an epoch that is padding."""
    plan = plan_batches(durations, batch_seconds, ranks, seed=1)
    padded = sum(float(durations[batch].max()) * len(batch) for rank in plan for batch in rank if batch)
    return 1 - float(durations.sum(dtype=np.float64)) / padded


def serve(folder: Path) -> subprocess.Popen[str]:
    """Start the web server of the tests; its first line is its port."""
    script = Path(__file__).parents[1] / "tests" / "data_modules" / "range_server.py"
    command = [sys.executable, str(script), str(folder), str(folder / "server.log"), "0"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Give a row for files beside lhotse's loader, for shards beside files, and for a server beside shards."""
    arguments = {"train_subsets": [options.subset], "batch_seconds": options.batch_seconds, "workers": options.workers}
    files = prepare(LibriSpeechDataModule(root=str(options.root), **arguments))
    sampler = lhotse_sampler(files, options.subset, options.batch_seconds)
    lhotse_loader = torch.utils.data.DataLoader(
        Collated(), sampler=sampler, batch_size=None, num_workers=options.workers
    )
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        summary = write_subset(files, options.subset, Path(folder), options.utterances_per_shard)
        shards = prepare(ShardsDataModule(root=folder, **arguments))
        loaders: dict[str, Work] = {
            "lhotse": lambda: read(lhotse_loader),
            "files": lambda: read(files.train_dataloader()),
            "shards": lambda: read(shards.train_dataloader()),
        }
        server = serve(Path(folder)) if options.serve else None
        if server and server.stdout:
            served = prepare(ShardsDataModule(root=f"http://127.0.0.1:{server.stdout.readline().strip()}", **arguments))
            loaders["HTTP"] = lambda: read(served.train_dataloader())
        seconds = in_turns(loaders, options.turns)
        if server:
            server.kill()
    beside = {
        "files": "lhotse's DynamicBucketingSampler, same files",
        "shards": "our reading of files",
        "HTTP": "shards",
    }
    for name, peer in zip(list(loaders)[1:], loaders, strict=False):
        yield Row(
            f"reading, {name}", f"{summary.utterances} utterances, {options.workers} workers", seconds[name],
            beside[name], seconds[peer], summary.seconds,
        )  # fmt: skip


def paddings(options: argparse.Namespace) -> Iterator[str]:
    """Give lines of how much of an epoch is padding, in our batches and in lhotse's."""
    for root in [options.root, *([options.durations] if options.durations else [])]:
        corpus = prepare(LibriSpeechDataModule(root=str(root), train_subsets=[options.subset]))
        durations = corpus.manifests[options.subset].durations
        shares = [f"{padding(durations, options.batch_seconds, ranks):.1%} on {ranks}" for ranks in (1, 8)]
        batches = [
            [cut.duration for cut in cuts] for cuts in lhotse_sampler(corpus, options.subset, options.batch_seconds)
        ]
        lhotse_share = 1 - sum(map(sum, batches)) / sum(max(batch) * len(batch) for batch in batches)
        yield (
            f"Padding of {root.name}, {durations.sum() / 3600:.2f} h in batches of {options.batch_seconds:.0f} s: "
            f"ours {', '.join(shares)} ranks; lhotse's DynamicBucketingSampler of ten buckets {lhotse_share:.1%}"
        )


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/spoken_small"), help="a corpus in LibriSpeech's layout")
    parser.add_argument("--subset", default="train-clean-100")
    parser.add_argument("--durations", type=Path, help="another corpus, of which only the padding is computed")
    parser.add_argument("--batch-seconds", type=float, default=200.0)
    parser.add_argument("--utterances-per-shard", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help="also read the shards over HTTP, on this machine")
    parser.add_argument("--scratch", type=Path, help="where shards are written for a while; default: as TMPDIR says")
    return parser


def main() -> None:
    """Print speeds and padding."""
    options = make_parser().parse_args()
    print_table(rows(options))
    print("\n".join(paddings(options)))


if __name__ == "__main__":
    main()
