"""The first screen: verdicts against planted differences, keys that differ, commands and curves."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from asr_lightning.report.page_sentences import gather_sentences
from asr_lightning.report.page_summary import (
    commands_of_run,
    differing_keys,
    gather_summary,
    gather_training,
    paper_curves,
    read_config,
    verdicts,
)
from asr_lightning.report.run_folders import COLUMNS, Experiment, read_experiments, read_run
from asr_lightning.report.run_pairs import PairComparison, compare_pairs
from asr_lightning.report.tables import as_csv, p_value

WORDS = "the cat sat on a mat today".split()


def write_run(folder: Path, name: str, seed: int, wrong: float, config: dict[str, object] | None = None) -> Path:
    """A run of 60 sentences of 8 speakers, of which a share has one wrong, one missing and one inserted word."""
    (folder / "transcripts").mkdir(parents=True)
    count = round(60 * wrong)
    rows = [
        {"id": f"u{number:02}", "speaker": f"s{number % 8}", "reference": " ".join(WORDS),
         "hypothesis": "a cat sat on mat today too" if number < count else " ".join(WORDS)}
        for number in range(60)
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "transcripts" / "validation-epoch4-clean.jsonl").write_text(text)
    wer = 3 * count / 420
    rates = [[name, str(seed), epoch, "clean", *[wer * 4 / epoch] * 5, 60, 420] for epoch in (1, 2, 4)]
    (folder / "error_rates.csv").write_text(as_csv([COLUMNS, *rates]))
    logs = folder / "logs" / "version_0"
    logs.mkdir(parents=True)
    (logs / "config.yaml").write_text(yaml.safe_dump(config or {}))
    with (logs / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["epoch", "step", "train/loss", "clean/loss"], [0, 1, 4.0, ""], [0, 2, 2.0, ""], [0, 2, "", 5.0],
             [1, 3, 1.0, ""], [1, 4, "nan", ""]]
        )  # fmt: skip
    return folder


def experiments(*folders: Path) -> list[Experiment]:
    problems: list[str] = []
    return read_experiments([read_run(folder) for folder in folders], problems)


def pairs_of(group: list[Experiment], baseline: str) -> list[PairComparison]:
    results = compare_pairs({experiment.name: experiment.runs for experiment in group}, baseline)
    return [pair for pair in results if isinstance(pair, PairComparison)]


def test_a_planted_difference_is_the_verdict(tmp_path: Path) -> None:
    group = experiments(
        write_run(tmp_path / "base" / "seed1", "base", 1, 0.9), write_run(tmp_path / "new" / "seed1", "new", 1, 0.2)
    )
    [verdict] = verdicts(group, pairs_of(group, "base"), "base")
    assert verdict["kind"] == "better"
    assert verdict["lead"] == "new makes fewer word errors than base on clean."
    text = verdict["text"]
    assert text is not None
    assert text.startswith("8.57 % against 38.57 % WER after 4 epochs, one seed each: −30.00 points, 95 % interval −")
    assert text.endswith(", p < 0.001.")
    [reverse] = verdicts(group, pairs_of(group, "new"), "new")
    assert reverse["kind"] == "worse" and "+30.00 points" in str(reverse["text"])


def test_an_interval_with_zero_is_no_difference(tmp_path: Path) -> None:
    group = experiments(
        write_run(tmp_path / "a" / "seed1", "a", 1, 0.5), write_run(tmp_path / "b" / "seed1", "b", 1, 0.5)
    )
    [verdict] = verdicts(group, pairs_of(group, "a"), "a")
    assert verdict["kind"] == "same" and verdict["lead"] == "No difference is shown between b and a on clean."
    assert str(verdict["text"]).endswith("p = 1.000.")


def test_a_verdict_over_seeds_says_of_how_many(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"base{seed}", "base", seed, 0.9) for seed in (1, 2)]
    runs += [write_run(tmp_path / f"new{seed}", "new", seed, 0.2) for seed in (1, 2, 3)]
    group = experiments(*runs)
    [verdict] = verdicts(group, pairs_of(group, "base"), "base")
    assert " WER after 4 epochs, means of 3 and 2 seeds: −30.00 points" in str(verdict["text"])


def test_a_verdict_needs_seeds_that_agree(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"base{seed}", "base", seed, share) for seed, share in ((1, 0.9), (2, 0.2))]
    runs += [write_run(tmp_path / f"new{seed}", "new", seed, 0.2) for seed in (1, 2)]
    group = experiments(*runs)
    [verdict] = verdicts(group, pairs_of(group, "base"), "base")
    assert verdict["lead"] == "new made fewer word errors than base on clean, but seeds differ as much."
    assert verdict["kind"] == "same" and "; 95 % interval over seeds −" in str(verdict["text"])


def test_epochs_of_seeds_that_are_still_training_are_told(tmp_path: Path) -> None:
    for seed, epochs in ((1, 4), (2, 3)):
        folder = write_run(tmp_path / f"seed{seed}", "only", seed, 0.4)
        path = folder / "error_rates.csv"
        lines = path.read_text().splitlines()
        path.write_text(
            "\n".join([lines[0], *(line for line in lines[1:] if int(line.split(",")[2]) <= epochs)]) + "\n"
        )
    [verdict] = verdicts(experiments(tmp_path / "seed1", tmp_path / "seed2"), [], "only")
    assert " WER after 2 to 4 epochs" in str(verdict["text"])


def test_a_single_run_has_its_rate_and_seeds_their_range(tmp_path: Path) -> None:
    group = experiments(*(write_run(tmp_path / f"seed{n}", "only", n, share) for n, share in ((1, 0.4), (2, 0.6))))
    [verdict] = verdicts(group, [], "only")
    assert verdict["lead"] == "only on clean"
    assert verdict["text"] == "21.43 % WER after 4 epochs, mean of 2 seeds (17.14 to 25.71)."


def test_only_keys_that_differ_are_listed() -> None:
    shared = {"trainer": {"max_epochs": 4, "default_root_dir": "a"}, "seed_everything": 1}
    callback = {"class_path": "asr_lightning.callbacks.weight_selection.WeightSelection", "init_args": {"axis": True}}
    trainer = {"max_epochs": 4, "default_root_dir": "b", "callbacks": [callback]}
    other = {"seed_everything": 2, "trainer": trainer}
    table = differing_keys({"plain": shared, "selected": other, "unknown": {}})
    assert table is not None
    assert table["head"] == ["key", "plain", "selected"]
    assert table["rows"] == [
        ["trainer.callbacks.WeightSelection.class_path", "–", "WeightSelection"],
        ["trainer.callbacks.WeightSelection.axis", "–", "true"],
    ]
    assert differing_keys({"plain": shared, "same": shared}) is None
    assert differing_keys({"plain": shared}) is None


def test_commands_are_those_that_started_the_run(tmp_path: Path) -> None:
    [experiment] = experiments(write_run(tmp_path / "my run", "only", 1, 0.4))
    [run] = experiment.runs
    assert commands_of_run(run) == [f"lightning fit --config '{tmp_path}/my run/logs/version_0/config.yaml'"]
    (run.folder / "finished.json").write_text(json.dumps([["-m", "asr_lightning", "fit", "--config", "a b.yaml"]]))
    assert commands_of_run(run) == ["python -m asr_lightning fit --config 'a b.yaml'"]


def test_training_curves_are_means_over_the_steps_of_an_epoch(tmp_path: Path) -> None:
    group = experiments(write_run(tmp_path / "seed1", "only", 1, 0.4))
    curves = {curve["name"]: curve["runs"] for curve in gather_training(group)}
    assert curves["training loss"] == [{"name": "only", "seeds": {"1": [[1, 3.0], [2, 1.0]]}}]
    assert curves["loss on clean"] == [{"name": "only", "seeds": {"1": [[1, 5.0]]}}]


def test_a_loss_that_only_a_later_start_has_is_drawn_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "seed1", "only", 1, 0.4)
    later = run / "logs" / "version_1" / "metrics.csv"
    later.parent.mkdir()
    later.write_text("epoch,step,other/loss\n2,300,7.0\n")
    curves = {curve["name"]: curve["runs"] for curve in gather_training(experiments(run))}
    assert curves["loss on other"] == [{"name": "only", "seeds": {"1": [[3, 7.0]]}}]
    assert curves["loss on clean"] == [{"name": "only", "seeds": {"1": [[1, 5.0]]}}]


def test_rates_of_a_paper_by_epoch() -> None:
    paper = {"clean WER, epoch 10": {"a": 5.5}, "clean WER, epoch 5": {"a": 8.1, "b": 4.8}, "clean WER": {"a": 3.5}}
    assert paper_curves(paper) == [
        {"name": "a", "subset": "clean", "metric": "wer", "points": [[5, 8.1], [10, 5.5]]},
        {"name": "b", "subset": "clean", "metric": "wer", "points": [[5, 4.8]]},
    ]


def test_the_summary_holds_data_and_runs_without_a_log(tmp_path: Path) -> None:
    data = {"class_path": "data_modules.librispeech.LibriSpeechDataModule", "init_args": {"train_subsets": ["x", "y"]}}
    first = write_run(tmp_path / "a" / "seed1", "a", 1, 0.4, {"data": data})
    second = write_run(tmp_path / "b" / "seed1", "b", 1, 0.4)
    (second / "logs" / "version_0" / "config.yaml").unlink()
    (second / "logs" / "version_0" / "metrics.csv").unlink()
    summary = gather_summary(experiments(first, second), [], "a")
    assert [row[4] for row in summary["facts"]["rows"]] == ["LibriSpeechDataModule: x, y", "–"]
    assert summary["commands"][1] == {"run": "b", "lines": []}
    assert {"epochs: 4", "data: LibriSpeechDataModule: x, y"} <= set(summary["summary"])


def test_sentences_are_sent_with_their_edits_and_fewer_where_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = experiments(
        write_run(tmp_path / "base" / "seed1", "base", 1, 0.5), write_run(tmp_path / "new" / "seed1", "new", 1, 0.25)
    )
    runs, pairs = {experiment.name: experiment.runs for experiment in group}, pairs_of(group, "base")
    [section] = gather_sentences(runs, pairs)
    assert len(section["sentences"]) == 60 and section["note"] == "" and section["seeds"] is None
    assert section["sentences"][20] == [
        "u20", "s4", "the cat sat on a mat today", [[[0, "a"], [4, None]], [[7, "too"]]], [[], []], 3.0, 0.0,
    ]  # fmt: skip
    monkeypatch.setattr("asr_lightning.report.page_sentences.SENTENCE_BYTES", 1000)
    [section] = gather_sentences(runs, pairs)
    assert 3 < len(section["sentences"]) < 20
    assert all(row[5] != row[6] for row in section["sentences"])
    assert section["note"].endswith("of 60 sentences: those whose numbers of errors differ most.")


def test_the_configuration_is_that_of_the_training_not_of_a_look_inside(tmp_path: Path) -> None:
    for start, columns, callback in ((0, "epoch,step,train/seconds", ""), (1, "epoch,step,clean/wer", "TSNE")):
        folder = tmp_path / "logs" / f"version_{start}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"{columns}\n1,2,3\n")
        (folder / "config.yaml").write_text(f"trainer: {{callbacks: [{callback}]}}\n")
    assert read_config(tmp_path) == {"trainer": {"callbacks": []}}
    (tmp_path / "logs" / "version_0" / "metrics.csv").write_text("epoch,step,clean/wer\n1,2,3\n")
    assert read_config(tmp_path) == {"trainer": {"callbacks": ["TSNE"]}}, "of its last start if it was only tested"


def test_p_values() -> None:
    assert [p_value(p) for p in (None, 0.0, 0.0009, 0.001, 0.0421, 1.0)] == [
        "–", "< 0.001", "< 0.001", "0.001", "0.042", "1.000",
    ]  # fmt: skip


@pytest.mark.parametrize("config", ["- a\n- b\n", "data: [1]\n", "data: {init_args: 3}\n", "{" * 2000, "\x00", ""])
@pytest.mark.parametrize("finished", ["{", "3", "[3]", '{"a": 1}', "[" * 5000])
def test_a_damaged_configuration_or_record_leaves_a_dash(tmp_path: Path, config: str, finished: str) -> None:
    folder = write_run(tmp_path / "seed1", "only", 1, 0.4)
    (folder / "logs" / "version_0" / "config.yaml").write_text(config)
    (folder / "logs" / "version_0" / "metrics.csv").write_text("epoch,train/loss\ninf,1\nnan,2\n1,inf\n,3\n")
    (folder / "finished.json").write_text(finished)
    group = experiments(folder)
    summary = gather_summary(group, [], "only")
    assert summary["facts"]["rows"][0][4] == "–" and summary["differences"] is None
    assert gather_training(group) == []
    assert all(isinstance(line, str) for line in summary["commands"][0]["lines"])


def test_many_comparisons_begin_with_the_best_run(tmp_path: Path) -> None:
    shares = (0.5, 0.6, 0.4, 0.8, 0.3, 0.7)
    group = experiments(
        *(write_run(tmp_path / str(index), f"r{index}", 1, share) for index, share in enumerate(shares))
    )
    assert [verdict["run"] for verdict in verdicts(group, pairs_of(group, "r0"), "r0")] == [
        "r4",
        "r2",
        "r1",
        "r5",
        "r3",
    ]
