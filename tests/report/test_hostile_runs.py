"""Folders of runs whose files were damaged or edited by mistake."""

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings

from asr_lightning.ablations.tuning import read_space
from asr_lightning.analysis.activations import read_utterances
from asr_lightning.analysis.layers import read_layers
from asr_lightning.asr import main
from asr_lightning.errors import InputError
from asr_lightning.report.page_contents import gather
from asr_lightning.report.run_folders import COLUMNS, read_experiments, read_rates, read_run
from asr_lightning.report.run_pairs import read_transcripts
from tests.support.looked_inside import inside
from tests.support.mutations import FUZZED, RANDOM, Refusing, mutated, spoiled

SPACE = b"a.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\na.layers: {low: 2, high: 5}\na.hidden: [128, 160]\n"
METRICS = "epoch,train/seconds,s/real_time_factor,train/audio_seconds_per_second_epoch\n0,12,0.1,30\n1,13,,31\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one" / "seed1"
    (folder / "transcripts").mkdir(parents=True)
    rates = [f"one,1,{epoch},s,{0.5 / epoch},0.1,1,0.1,0.1" for epoch in (1, 2, 3)]
    (folder / "error_rates.csv").write_text("\n".join([",".join(COLUMNS), *rates]) + "\n")
    rows = [{"id": f"u{number}", "speaker": "s", "reference": "A B", "hypothesis": "A C"} for number in range(3)]
    (folder / "transcripts/validation-epoch3-s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "logs/version_0").mkdir(parents=True)
    (folder / "logs/version_0/metrics.csv").write_text(METRICS)
    inside(folder)
    return folder


@FUZZED
@given(random=RANDOM)
def test_tables_transcripts_and_logs(random: Random, run: Path) -> None:
    names = ["error_rates.csv", "transcripts/validation-epoch3-s.jsonl", "logs/version_0/metrics.csv"]
    path = run / random.choice(names)
    with spoiled(path, random), Refusing("seed1"):
        read_rates(run / names[0])
        list(read_transcripts(run / names[1]))
        read_experiments([read_run(run)], [])


@FUZZED
@given(random=RANDOM)
def test_activations(random: Random, run: Path) -> None:
    folder = run / "activations" / "test"
    path = random.choice(sorted(folder.iterdir()))
    with spoiled(path, random), Refusing("activations"):
        read_layers(folder)
        read_utterances(folder)


@settings(FUZZED, max_examples=20)
@given(random=RANDOM)
def test_a_page_leaves_out_what_is_damaged(random: Random, run: Path) -> None:
    paths = [path for name in ("tsne", "neighbours", "alignments") for path in sorted((run / name).rglob("*.*"))]
    path = random.choice([path for path in paths if path.is_file()])
    with spoiled(path, random), Refusing():
        data, problems = gather([run], "title", None, "test")
        assert data["curves"] and all(isinstance(problem, str) for problem in problems)


@FUZZED
@given(random=RANDOM)
def test_spaces(random: Random, run: Path) -> None:
    (run / "space.yaml").write_bytes(mutated(SPACE, random))
    with Refusing("space.yaml"):
        for values in read_space(run / "space.yaml").values():
            assert isinstance(values, list) or values["low"] < values["high"]


@pytest.mark.parametrize("range_", ["{low: 1e-4, high: 1}", "{low: 0, high: 1, log: true}", "{low: .nan, high: 1}",
                                    "{low: 1, high: 2, step: 0}", "{low: 1, high: 1.0e+400}"])  # fmt: skip
def test_ranges_that_optuna_would_fall_over(range_: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(f"lr: {range_}\n")
    with pytest.raises(InputError, match="space.yaml"):
        read_space(tmp_path / "space.yaml")


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"\0", b'"' + b"x" * 200_000, b"run,seed\n"], ids=lambda content: content[:4]
)
def test_a_table_that_is_none_is_named(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "error_rates.csv").write_bytes(content)
    assert main(["compare", str(tmp_path), "--output", str(tmp_path / "o")]) == 2
    assert str(tmp_path / "error_rates.csv") in capsys.readouterr().err
