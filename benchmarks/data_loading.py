"""Reading a corpus from FLAC files and from shards: utterances and seconds of audio per second, and padding.

    python benchmarks/data_loading.py --root data/spoken --subset train-clean-100 [--durations data/LibriSpeech]

Both are read in one run, in turns, through the data module as training reads them: the first pass of each is not
counted, so the files are in memory if there is enough of it. The padding is that of the batches of one epoch. With
--serve, the shards are also read from a web server on this machine, as from object storage without a network.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

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


def read(corpus: CorpusDataModule) -> tuple[int, float, float]:
    """Read an epoch; return the utterances, the seconds of audio and the seconds that it took."""
    begin, utterances, audio = time.perf_counter(), 0, 0.0
    for batch in corpus.train_dataloader():
        utterances += len(batch)
        audio += batch.seconds
    return utterances, audio, time.perf_counter() - begin


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


def compare_speed(options: argparse.Namespace) -> None:
    """Print how fast both are read."""
    given = {"train_subsets": [options.subset], "batch_seconds": options.batch_seconds, "workers": options.workers}
    files = prepare(LibriSpeechDataModule(root=str(options.root), **given))
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        written = write_subset(files, options.subset, Path(folder), options.utterances_per_shard)
        shards = prepare(ShardsDataModule(root=folder, **given))
        corpora = {"files": files, "shards": shards}
        server = serve(Path(folder)) if options.serve else None
        if server and server.stdout:
            corpora["http"] = prepare(
                ShardsDataModule(root=f"http://127.0.0.1:{server.stdout.readline().strip()}", **given)
            )
        speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in corpora}
        for turn in range(options.turns + 1):
            for name, corpus in corpora.items():
                utterances, audio, seconds = read(corpus)
                if turn:
                    speeds[name].append((utterances / seconds, audio / seconds))
        if server:
            server.kill()
    print(f"{options.subset}: {written.utterances} utterances, {written.seconds / 3600:.2f} h, "
          f"{written.shards} shards, {options.workers} workers, {options.turns} turns")  # fmt: skip
    for name, turns in speeds.items():
        utterance_speed, audio_speed = (statistics.median(values) for values in zip(*turns, strict=True))
        low, high = min(audio for _, audio in turns), max(audio for _, audio in turns)
        print(
            f"{name}\t{utterance_speed:.0f} utterances/s\t{audio_speed:.0f} ({low:.0f} to {high:.0f}) audio seconds/s"
        )
    for one, other in [("shards", "files"), *([("http", "shards")] if options.serve else [])]:
        ratios = [this[1] / that[1] for this, that in zip(speeds[one], speeds[other], strict=True)]
        print(f"{one} / {other}\t{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    """Print speeds and padding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/spoken"), help="a corpus in LibriSpeech's layout")
    parser.add_argument("--subset", default="train-clean-100")
    parser.add_argument("--durations", type=Path, help="another corpus, of which only the padding is computed")
    parser.add_argument("--batch-seconds", type=float, default=200.0)
    parser.add_argument("--utterances-per-shard", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help="also read the shards over HTTP, on this machine")
    parser.add_argument("--scratch", type=Path, help="where shards are written for a while; default: as TMPDIR says")
    options = parser.parse_args()
    compare_speed(options)
    for root in [options.root, *([options.durations] if options.durations else [])]:
        corpus = prepare(LibriSpeechDataModule(root=str(root), train_subsets=[options.subset]))
        durations = corpus.manifests[options.subset].durations
        shares = [f"{padding(durations, options.batch_seconds, ranks):.1%} on {ranks}" for ranks in (1, 8)]
        print(f"padding of {root}, {durations.sum() / 3600:.2f} h in batches of {options.batch_seconds:.0f} s: "
              f"{', '.join(shares)} ranks")  # fmt: skip


if __name__ == "__main__":
    main()
