import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from asr_lightning.asr import main
from asr_lightning.models.checkpoints import build_recognizer

Write = Callable[..., Path]
REFERENCE = "the cat sat on a mat"
WORSE = "the cut sat on a mat"
SPEEDS = ("training s", "training s/s", "search s/s")


def transcript_rows(*hypotheses: str) -> list[tuple[str, str, str, str]]:
    return [(f"u{number}", f"speaker{number}", REFERENCE, text) for number, text in enumerate(hypotheses)]


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture
def runs(transcribed_run: Write) -> Path:
    """Of 18 words, the seeds of base have 3 and 2 wrong, wide none; odd has the words of base's second seed."""
    transcribed_run(
        "base", 1, {"clean": transcript_rows(WORSE, "cat sot on a mat", REFERENCE), "other": transcript_rows(WORSE)}
    )
    transcribed_run("base", 2, {"clean": transcript_rows(WORSE, WORSE, REFERENCE), "other": transcript_rows(REFERENCE)})
    transcribed_run(
        "wide", 1, {"clean": transcript_rows(REFERENCE, REFERENCE, REFERENCE), "other": transcript_rows(REFERENCE)}
    )
    return transcribed_run("odd", 1, {"clean": transcript_rows(WORSE, WORSE, REFERENCE)})


def test_final_rates_significance_and_sentences_are_written(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["compare", str(runs), "--output", str(output), "--baseline", "base"]) == 0
    printed = capsys.readouterr().out
    pairs = [f"{run}_base_{subset}" for run, subset in (("odd", "clean"), ("wide", "clean"), ("wide", "other"))]
    files = {f"{kind}_{pair}" for pair in pairs for kind in ("utterances", "sentences")}
    written = {path.name for path in output.iterdir()}
    assert written == {f"{name}.{'csv' if 'utterances' in name else 'md'}" for name in files} | {
        *(f"wer_per_epoch.{suffix}" for suffix in ("csv", "md", "png", "svg")),
        *("final_rates.csv", "final_rates.md", "significance.csv", "significance.md"),
    }
    assert set(printed.splitlines()[-1].removeprefix(f"Written to {output}: ").split(", ")) == written
    assert rows(output / "final_rates.csv") == [
        [
            "subset",
            "run",
            "seeds",
            "WER",
            "utterances",
            "words",
            "parameters",
            "training s",
            "training s/s",
            "search s/s",
        ],
        ["clean", "base", "2", "13.89 ± 3.93", "3", "18", "–", "–", "–", "–"],
        ["clean", "odd", "1", "11.11", "3", "18", "–", "–", "–", "–"],
        ["clean", "wide", "1", "0.00", "3", "18", "–", "–", "–", "–"],
        ["other", "base", "2", "8.33 ± 11.79", "1", "6", "–", "–", "–", "–"],
        ["other", "wide", "1", "0.00", "1", "6", "–", "–", "–", "–"],
    ]
    head, *lines = rows(output / "significance.csv")
    assert [line[:4] for line in lines] == [
        ["clean", "odd", "base", f"{-0.5 / 18:.6f}"],
        ["clean", "wide", "base", f"{-2.5 / 18:.6f}"],
        ["other", "wide", "base", f"{-0.5 / 6:.6f}"],
    ]
    wide = dict(zip(head, lines[1], strict=True))
    assert (wide["units"], wide["unit"], wide["segments"]) == ("3", "utterance", "2")
    assert float(wide["mean_difference"]) == -1.25 and float(wide["z"]) == pytest.approx(-5)
    assert float(wide["p"]) == pytest.approx(5.733e-7, rel=1e-3)  # two-tailed, of |z| = 5
    markdown = (output / "significance.md").read_text()
    assert "| clean | wide | base | -13.89 | -25.00 … +0.00 |" in markdown
    assert r"| 3 utterances | \< 0.001 | -5.00 | 2 | 3 | 18 |" in markdown
    assert "| other | wide | base | -8.33 | – | – | 1 utterances |" in markdown  # nothing to be drawn from
    assert "Left out" in printed and "logs/version_<n>/metrics.csv" in printed


def test_utterances_and_sentences_are_those_of_the_pair(runs: Path, tmp_path: Path) -> None:
    assert (
        main(["compare", str(runs / "wide"), str(runs / "base"), "--output", str(tmp_path), "--baseline", "base"]) == 0
    )
    assert rows(tmp_path / "utterances_wide_base_clean.csv") == [
        ["id", "speaker", "words", "errors wide", "errors base", "difference"],
        ["u0", "speaker0", "6", "0.000000", "1.000000", "-1.000000"],
        ["u1", "speaker1", "6", "0.000000", "1.500000", "-1.500000"],
        ["u2", "speaker2", "6", "0.000000", "0.000000", "0.000000"],
    ]
    text = (tmp_path / "sentences_wide_base_clean.md").read_text()
    assert text.startswith("# wide against base on clean\n")
    first = text.index("u1, speaker speaker1: 1.5 → 0 errors in 6 words")
    assert text[first:].split("```")[1] == (
        "text\n"
        "REF            the cat sat   on a mat\n"
        "base (seed 1)  *** cat *sot* on a mat\n"
        "wide           the cat sat   on a mat\n"
    )
    assert text.index("## Most improved") < first < text.index("u0, speaker speaker0") < text.index("## Most harmed")
    assert text.endswith("## Most harmed\n\nNone.\n")


def test_the_first_run_that_is_not_the_reference_is_the_baseline(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(runs / name) for name in ("wide", "odd", "base")]
    assert main(["compare", *folders, "--output", str(tmp_path), "--reference", "wide"]) == 0
    assert {line[2] for line in rows(tmp_path / "significance.csv")[1:]} == {"odd"}
    assert "Epochs to reach" not in capsys.readouterr().out  # only with --baseline


def test_one_run_has_final_rates_and_nothing_to_be_tested_against(runs: Path, tmp_path: Path) -> None:
    assert main(["compare", str(runs / "base"), "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        *(f"wer_per_epoch.{suffix}" for suffix in ("csv", "md", "png", "svg")),
        *("final_rates.md", "final_rates.csv"),
    }


def test_a_missing_transcript_is_told_and_the_rest_goes_on(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = runs / "wide" / "seed1" / "transcripts" / "validation-epoch3-clean.jsonl"
    missing.unlink()
    assert main(["compare", str(runs), "--output", str(tmp_path), "--baseline", "base"]) == 0
    text = capsys.readouterr().out
    assert f"Left out: wide on clean: {missing}: expected transcripts" in text
    assert [line[:2] for line in rows(tmp_path / "significance.csv")[1:]] == [["clean", "odd"], ["other", "wide"]]


def test_runs_without_transcripts_lose_only_what_needs_them(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in runs.rglob("*.jsonl"):
        path.unlink()
    assert main(["compare", str(runs), "--output", str(tmp_path), "--baseline", "base"]) == 0
    text = capsys.readouterr().out
    assert "Left out: significance: no two runs have transcripts of their last epoch" in text
    assert (tmp_path / "final_rates.md").exists() and not (tmp_path / "significance.md").exists()


def test_names_of_runs_that_files_cannot_have(transcribed_run: Write, tmp_path: Path) -> None:
    transcribed_run("base", 1, {"clean": transcript_rows(WORSE)})
    folder = transcribed_run("wide", 1, {"clean": transcript_rows(REFERENCE)})
    rates = folder / "wide" / "seed1" / "error_rates.csv"
    rates.write_text(rates.read_text().replace("wide", "a/b c"))
    assert main(["compare", str(folder), "--output", str(tmp_path), "--baseline", "base"]) == 0
    assert (tmp_path / "utterances_a-b-c_base_clean.csv").exists()


def test_parameters_and_speeds_are_in_the_table(
    transcribed_run: Write, tmp_path: Path, config: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        folder = transcribed_run("base", seed, {"clean": transcript_rows(WORSE)})
        logs = folder / "base" / f"seed{seed}" / "logs" / "version_0"
        logs.mkdir(parents=True)
        (logs / "config.yaml").write_text(yaml.safe_dump({"model": config}))
        head = "train/audio_seconds_per_second_epoch,clean/real_time_factor"
        (logs / "metrics.csv").write_text(f"{head}\n{20 * seed},0.{seed}\n")
    assert main(["compare", str(folder), "--output", str(tmp_path), "--metrics", "cer", "wer"]) == 0
    text = capsys.readouterr().out
    size = f"{sum(parameter.numel() for parameter in build_recognizer(config).parameters()):,}"
    assert rows(tmp_path / "final_rates.csv")[1] == [
        "clean",
        "base",
        "2",
        "5.00 ± 0.00",
        "16.67 ± 0.00",
        "1",
        "6",
        size,
        "–",
        "30.0",
        "6.7",
    ]
    assert "Left out" not in text


def test_gradient_norms_are_a_section_and_runs_without_them_are_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, folder in enumerate(("base/seed1", "wide/seed1"), start=1):
        log = runs / folder / "logs/version_0/metrics.csv"
        log.parent.mkdir(parents=True)
        log.write_text("grad_norm/total,step\n" + "".join(f"{seed * (1 + step % 2)},{step}\n" for step in range(100)))
    output = tmp_path / "out"
    assert main(["compare", str(runs), "--gradients", "--output", str(output)]) == 0
    assert "Left out: gradients:" in capsys.readouterr().out  # base's second seed, and odd
    head, *lines = rows(output / "gradients.csv")
    assert [line[:5] for line in lines] == [
        ["total", "base", "1", "1.50", "1.50"],
        ["total", "wide", "1", "3.00", "3.00"],
    ]
    assert lines[0][head.index("early change")] == "1.00" and (output / "gradients.png").stat().st_size > 10_000

    assert main(["report", str(runs), "--output", str(tmp_path / "page.html")]) == 0
    assert "Gradient norms" in (tmp_path / "page.html").read_text("utf-8")
