"""Every line is read once per epoch, and texts that cannot be read are reported."""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from asr_lightning.errors import InputError
from data_modules.sampler import TrainBatches
from data_modules.text import TextDataModule, TextTrainBatches, find_texts
from tests.support.small_texts import write_texts


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """What is in `tmp_path/text`."""
    return write_texts(tmp_path / "text")


def module(folder: Path, **arguments: Any) -> TextDataModule:
    """Ready to train."""
    patterns = {"train_files": [f"{folder}/**/*.txt"], "validation_files": [f"{folder}/text/deeper/*.txt"]}
    data = TextDataModule(**{**patterns, "batch_characters": 200, "workers": 0, **arguments})
    data.prepare_data()
    data.setup("fit")
    return data


def rank_of(
    data: TextDataModule, rank: int, ranks: int, epoch: int = 0, done: int = 0, accumulation: int = 1
) -> TextDataModule:
    progress = SimpleNamespace(current=SimpleNamespace(ready=done))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank,
        world_size=ranks,
        accumulate_grad_batches=accumulation,
        overfit_batches=0,
        current_epoch=epoch,
        fit_loop=loop,
    )
    return data


# Batches.


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_line_is_read_once_per_epoch_on_any_number_of_ranks(tmp_path: Path, texts: list[str], ranks: int) -> None:
    data, companies = module(tmp_path), []
    for epoch in range(3):
        batches = [list(rank_of(data, rank, ranks, epoch).train_dataloader()) for rank in range(ranks)]
        assert {len(share) for share in batches} == {len(data.train_dataloader())}
        everything = [batch for share in batches for batch in share]
        assert sorted(text for batch in everything for text in batch.texts) == sorted(texts)
        assert all(len(batch) * (max(map(len, batch.texts)) + 1) <= 200 for batch in everything if len(batch))
        companies.append({frozenset(batch.texts) for batch in everything})
    assert (
        max(len(first & second) for first, second in zip(companies, companies[1:], strict=False))
        < len(companies[0]) / 4
    )
    evaluated = [list(rank_of(data, rank, ranks).val_dataloader()) for rank in range(ranks)]
    assert sorted(text for share in evaluated for batch in share for text in batch.texts) == sorted(texts[90:])
    assert len({len(share) for share in evaluated}) == 1


def test_steps_are_the_same_on_any_number_of_ranks_and_parts(tmp_path: Path, texts: list[str]) -> None:
    def steps(ranks: int, accumulation: int) -> list[list[str]]:
        data = module(tmp_path)
        shares = [list(rank_of(data, rank, ranks, 1, 0, accumulation).train_dataloader()) for rank in range(ranks)]
        assert {len(share) % accumulation for share in shares} == {0}
        groups = (range(first, first + accumulation) for first in range(0, len(shares[0]), accumulation))
        return [sorted(text for share in shares for part in group for text in share[part].texts) for group in groups]

    expected = steps(1, 1)
    assert len(expected) > 10
    for ranks, accumulation in ((2, 1), (8, 1), (1, 3), (2, 4)):
        assert steps(ranks, accumulation) == expected


def test_batches_are_full_and_little_padded() -> None:
    characters = np.sort(np.random.default_rng(0).gamma(4, 25, 50_000).astype(np.float32).round() + 1)[::-1]
    batches = TextTrainBatches(characters, lambda planned, epoch: (), 10_000)
    plan = batches.plan()[0]
    padded = [float(characters[batch].max()) * len(batch) for batch in plan]
    assert 1 - characters.sum() / sum(padded) < 0.03 and sum(padded) / len(plan) > 9_000
    first = [float(characters[batch].mean()) for batch in plan[:50]]
    assert np.corrcoef(first, np.arange(50))[0, 1] ** 2 < 0.2  # lengths come in any order


def test_a_resumed_epoch_reads_the_rest(tmp_path: Path, texts: list[str]) -> None:
    data = module(tmp_path, seed=3)
    expected = [batch.ids for batch in rank_of(data, 0, 2, epoch=1).train_dataloader()]
    rest = [batch.ids for batch in rank_of(module(tmp_path, seed=3), 0, 2, epoch=1, done=4).train_dataloader()]
    assert rest == expected[4:] and len(rest) >= 4
    different = [batch.ids for batch in rank_of(module(tmp_path, seed=4), 0, 2, epoch=1).train_dataloader()]
    assert different != expected
    state = data.train_dataloader().state_dict()
    for change, name in [({"seed": 4}, "seed"), ({"batch_characters": 100}, "batch_characters")]:
        with pytest.raises(InputError, match=f"{name}: .* in the checkpoint"):
            module(tmp_path, **{"seed": 3, **change}).train_dataloader().load_state_dict(state)
    (tmp_path / "text/a.txt").write_text("FEWER LINES")
    with pytest.raises(InputError, match="lines: 203 in the checkpoint, 114 now"):
        module(tmp_path, seed=3).train_dataloader().load_state_dict(state)


def test_workers_read_the_same(tmp_path: Path, texts: list[str]) -> None:
    alone, helped = (list(module(tmp_path, workers=workers).train_dataloader()) for workers in (0, 2))
    assert alone == helped


def test_long_lines_are_left_out_of_training_only(tmp_path: Path, texts: list[str]) -> None:
    data = module(tmp_path, max_characters=30)
    trained = [text for batch in data.train_dataloader() for text in batch.texts]
    assert sorted(trained) == sorted(text for text in texts if len(text) <= 30) and len(trained) < len(texts)
    assert sum(map(len, data.val_dataloader())) == len(texts[90:])
    with pytest.raises(InputError, match="at most 3 characters to train on, got 203 longer ones"):
        module(tmp_path, max_characters=3).train_dataloader()


def test_a_large_corpus_takes_little_memory_and_time() -> None:
    count = 1_000_000
    characters = np.sort(np.random.default_rng(0).integers(1, 400, count).astype(np.float32))[::-1]
    tracemalloc.start()
    begin = time.process_time()
    batches = TextTrainBatches(characters, lambda planned, epoch: planned, 80_000, 1, 4)  # type: ignore[arg-type, return-value]
    largest = max(len(batch) for batch in batches)
    seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert largest > 1000 and peak < 24 * count and seconds < 3.0  # plan_batches takes 80 bytes a line


# Errors and messages.


def write(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


BAD: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "a missing file": (
        lambda folder: {"train_files": [f"{folder}/none.txt"], "made_by": "make text"},
        r"no text files at .*/none\.txt .*make them with `make text`",
    ),
    "a pattern without files": (lambda folder: {"train_files": [f"{folder}/**/*.text"]}, r"looked for .*\*\.text"),
    "a folder": (lambda folder: {"train_files": [str(folder)]}, r"is a folder: .* a pattern, as .*/\*\*/\*\.txt"),
    "a packed file": (lambda folder: {"train_files": [write(folder, "a.txt.gz", b"\x1f\x8b")]}, "decompress it first"),
    "another encoding": (
        lambda folder: {"train_files": [write(folder, "a.txt", b"good\n\nfa\xe7ade\n")]},
        r"a\.txt:3: expected UTF-8, found b'\\xe7ade'.*iconv",
    ),
    "no words": (lambda folder: {"train_files": [write(folder, "a.txt", b"\n \n...\n")]}, "none in the 3 lines of"),
    "an empty file": (lambda folder: {"train_files": [write(folder, "a.txt", b"")]}, "none in the 0 lines of"),
    "too many columns": (
        lambda folder: {"train_files": [write(folder, "a.txt", b"A\nB\n")], "skip_columns": 1},
        "the first 1 columns: is skip_columns right",
    ),
    "no files": (lambda folder: {"train_files": []}, "expected train_files, got none"),
    "no batch": (lambda folder: {"batch_characters": 0}, "batch_characters must be 1 or more, got 0"),
    "fewer than no columns": (lambda folder: {"evaluation_skip_columns": -1}, "evaluation_skip_columns must be 0 or"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_told(tmp_path: Path, name: str) -> None:
    arguments, message = BAD[name]
    with pytest.raises(InputError, match=message):
        module(tmp_path, **{"validation_files": [], **arguments(tmp_path)})


def test_text_is_not_predicted(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(InputError, match="got predict: use `lightning test`"):
        module(tmp_path).setup("predict")


def test_a_cache_that_cannot_be_written_is_told(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASR_LIGHTNING_CACHE", str(tmp_path / "text/a.txt"))  # a file, not a folder
    with pytest.raises(InputError, match=r"cannot write an index .* ASR_LIGHTNING_CACHE"):
        module(tmp_path)


@pytest.mark.parametrize("change", ["another", "gone"])
def test_a_file_that_changes_in_mid_run_is_told(tmp_path: Path, texts: list[str], change: str) -> None:
    data, path = module(tmp_path), tmp_path / "text/a.txt"
    if change == "gone":
        path.unlink()
    else:
        path.write_text("SOMETHING ELSE")
    with pytest.raises(InputError, match=r"a\.txt cannot be read any more"):
        list(data.train_dataloader())


def test_files_are_found_once_and_in_order(tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text/[odd].txt").write_text("NAME")
    monkeypatch.chdir(tmp_path)
    expected = [tmp_path / "text" / name for name in ("[odd].txt", "deeper/b.txt", "a.txt")]
    assert find_texts(["text/[odd].txt", "text/deeper/*.txt", f"{tmp_path}/**/*.txt"]) == expected


@pytest.mark.parametrize(("options", "evaluated"), [({}, "B C"), ({"evaluation_skip_columns": 0}, "A B C")])
def test_columns_are_skipped_in_evaluation_as_in_training_unless_told(
    tmp_path: Path, options: dict[str, int], evaluated: str
) -> None:
    (tmp_path / "a.txt").write_text("A B C\n")
    data = module(tmp_path, validation_files=[f"{tmp_path}/a.txt"], skip_columns=1, **options)
    [trained], [validated] = data.train_dataloader(), data.val_dataloader()
    assert (trained.texts, validated.texts) == (["B C"], [evaluated])


def test_a_plan_is_what_the_sampler_of_speech_would_allow(tmp_path: Path) -> None:
    characters = np.sort(np.random.default_rng(1).integers(1, 80, 500).astype(np.float32))[::-1]
    text_batches, speech_batches = (
        kind(characters, lambda *arguments: (), 500, 0, 2) for kind in (TextTrainBatches, TrainBatches)
    )
    assert len(text_batches) == len(speech_batches)
    sizes = [sorted(len(batch) for rank in plan.plan(2) for batch in rank) for plan in (text_batches, speech_batches)]
    assert sizes[0] == sizes[1]
