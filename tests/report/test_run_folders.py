import math
from dataclasses import replace
from pathlib import Path

import pytest

from asr_lightning.callbacks import transcripts
from asr_lightning.errors import InputError
from asr_lightning.files import write_atomically
from asr_lightning.report import run_folders
from asr_lightning.report.figures import ErrorRate

HEAD = "run,seed,epoch,subset,wer,cer,ser,swer,unspaced_cer"


def write(folder: Path, lines: list[str], name: str = "error_rates.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join([HEAD, *lines]) + "\n")
    return folder / name


def test_what_the_callback_writes_can_be_read(tmp_path: Path) -> None:
    assert list(transcripts.COLUMNS) == run_folders.COLUMNS
    line = {"run": 'a "b", c', "seed": "", "epoch": "3", "subset": "clean", "wer": "0.1", "cer": "0.2", "ser": "inf"}
    line |= {"swer": "0.3", "unspaced_cer": "0.4"}
    path = tmp_path / "error_rates.csv"
    write_atomically(path, transcripts.rates_as_csv([line]))
    expected = ErrorRate('a "b", c', "", 3, "clean", 0.1, 0.2, math.inf, 0.3, 0.4)
    assert run_folders.read_rates(path) == [expected]  # written before utterances were counted
    write_atomically(path, transcripts.rates_as_csv([line | {"utterances": "5", "words": "20"}]))
    assert run_folders.read_rates(path) == [replace(expected, utterances=5, words=20)]
    old = ["run,seed,epoch,subset,wer,cer,ser,swer,unspaced_cer", 'a "b"; c,,3,clean,0.1,0.2,inf,0.3,0.4']
    write_atomically(path, "\n".join(old))
    assert run_folders.read_rates(path) == [replace(expected, run='a "b"; c')]


@pytest.mark.parametrize(
    "line",
    [
        "ws,1,2,clean,0.1,0.1,0.1,0.1",
        "ws,1,2,clean,0.1,0.1,0.1,0.1,0.1,0.1",
        "ws,1,two,clean,0.1,0.1,0.1,0.1,0.1",
        "ws,1,-1,clean,0.1,0.1,0.1,0.1,0.1",
        "ws,1,2,clean,10 %,0.1,0.1,0.1,0.1",
        "ws,1,2,clean,0.1,-0.1,0.1,0.1,0.1",
        "ws,1,2,clean,0.1,0.1,nan,0.1,0.1",
        "ws,1,2,clean,0.1,0.1,0.1,0.1,0.1,3,-1",
        "ws,1,2,clean,0.1,0.1,0.1,0.1,0.1,3,some",
        "",
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, ["ws,1,1,clean,0.1,0.1,0.1,0.1,0.1", line, "ws,1,3,clean,0.1,0.1,0.1,0.1,0.1"])
    with pytest.raises(InputError, match=r"error_rates.csv, line 3: expected run,seed"):
        run_folders.read_rates(path)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "error_rates.csv"
    path.write_text("epoch,wer\n1,0.5\n")
    with pytest.raises(InputError, match="line 1: expected the columns run,seed,.*got 'epoch,wer'"):
        run_folders.read_rates(path)


def test_a_line_that_a_full_disk_has_cut_off_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/seconds\r\n1,10.5\r\n2,21")
    assert run_folders.read_metrics(path) == [{"step": "1", "train/seconds": "10.5"}]
    path.write_text("step,train/sec")
    assert run_folders.read_metrics(path) == []


def test_what_was_tested_goes_before_what_was_validated(tmp_path: Path) -> None:
    write(tmp_path, [f"las,1,{epoch},clean,0.{epoch},0.1,0.1,0.1,0.1" for epoch in (1, 2)])
    validated = run_folders.read_run(tmp_path)
    assert (validated.name, validated.seed, validated.rates["clean"].wer) == ("las", "1", 0.2)
    assert validated.transcripts("clean") == tmp_path / "transcripts" / "validation-epoch2-clean.jsonl"
    write(tmp_path, ["las,1,7,clean,0.01,0.01,0.02,0.01,0.01"], "test_error_rates.csv")
    tested = run_folders.read_run(tmp_path)
    assert tested.rates["clean"].wer == 0.01
    assert tested.transcripts("clean") == tmp_path / "transcripts" / "test-epoch7-clean.jsonl"


def test_speeds_are_those_of_all_audio_and_the_subsets_of_each_seed(tmp_path: Path) -> None:
    """Two epochs of 60 s of audio, in 1 s and 3 s: 30 s/s; the second seed in 2 s each: 30 s/s; the third 60 s/s."""
    speeds = {1: (60, 20), 2: (30, 30), 3: (60, 60)}
    for seed, (first, second) in speeds.items():
        subset = "other" if seed == 3 else "clean"
        write(tmp_path / f"seed{seed}", [f"las,{seed},1,{subset},0.1,0.1,0.1,0.1,0.1"])
        logs = tmp_path / f"seed{seed}" / "logs" / "version_0"
        logs.mkdir(parents=True)
        head = "train/audio_seconds_per_second_epoch,clean/real_time_factor"
        (logs / "metrics.csv").write_text(f"{head}\n{first},\n,0.{seed}\n{second},\n")
    runs = [run_folders.read_run(folder) for folder in run_folders.find_runs([tmp_path])]
    problems: list[str] = []
    [experiment] = run_folders.read_experiments(runs, problems)
    assert experiment.audio_seconds_per_second == pytest.approx((30 + 30 + 60) / 3)
    assert experiment.real_time_factors == {"clean": pytest.approx(0.15)}  # the third has no such rates
    assert [rate.seed for rate in experiment.rates("clean")] == ["1", "2"]
    assert experiment.parameters is None and len(problems) == 3  # without config.yaml
    assert str(tmp_path / "seed1") in problems[0]
    with pytest.raises(InputError):
        run_folders.read_experiments(runs)
