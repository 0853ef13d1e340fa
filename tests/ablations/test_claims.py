"""Verdicts on claims, of runs whose rates were planted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import sync_playwright

from asr_lightning.ablations.claims import VERDICTS, Evidence, read_claims, weigh_claims
from asr_lightning.ablations.definition import SCALES
from asr_lightning.ablations.plan import plan_ablation, write_experiments
from asr_lightning.asr import main
from asr_lightning.report.run_folders import COLUMNS
from asr_lightning.report.tables import as_csv, from_csv, read_rows
from tests.support.browser import ARGUMENTS, CHROMIUM

PROJECT = Path(__file__).parents[2]
CLAIM = {
    **{"claim": "It helps.", "source": "Us 2026", "paper": "3 beside 4 %", "ablation": "small"},
    **{"lower": "new", "higher": "old", "measure": "wer", "subset": "test-clean"},
}
WORDS = "a b c d e f g h i j".split()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an ablation of two variants, and without runs."""
    monkeypatch.chdir(tmp_path)
    ablations = tmp_path / "experiments" / "ablations"
    ablations.mkdir(parents=True)
    base = str(PROJECT / "experiments/demo/rnnt_random.yaml")
    content = {
        "question": "Does it help?",
        "source": "Us 2026",
        "base": base,
        "variants": {"old": {}, "new": {}, "other": {}},
    }
    (ablations / "small.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def plant(name: str, rates: Sequence[float], utterances: int = 40, epoch: int = 0) -> None:
    """Make finished runs of a variant: so many of ten words wrong in every utterance, on average."""
    seeds = range(1, len(rates) + 1)
    for run in plan_ablation(Path("experiments/ablations/small.yaml"), "demo", seeds=seeds).compared:
        if run.name != name or run.seed > len(rates):
            continue
        write_experiments(run)
        (run.folder / "finished.json").write_text(json.dumps(run.commands))
        rate = rates[run.seed - 1]
        row = [name, run.seed, epoch, "test-clean", rate, rate, 1.0, 1.0, rate, utterances, 10 * utterances]
        for file in ("test_error_rates.csv", "error_rates.csv"):
            (run.folder / file).write_text(as_csv([COLUMNS, row]))
        lines = []
        for number in range(utterances):
            wrong = round(10 * rate * (number + 1)) - round(10 * rate * number)
            words = ["x"] * wrong + WORDS[wrong:]
            lines.append(
                {"id": f"u{number:02}", "speaker": "", "reference": " ".join(WORDS), "hypothesis": " ".join(words)}
            )
        path = run.folder / "transcripts" / f"test-epoch{epoch}-test-clean.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def plant_gradients(name: str, changes: Sequence[float]) -> None:
    """Log norms of the gradient that rise and fall by a factor each step."""
    for run in plan_ablation(Path("experiments/ablations/small.yaml"), "demo").compared:
        if run.name == name:
            path = run.folder / "logs" / "version_0" / "metrics.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [[step, 2.718281828 ** (changes[run.seed - 1] * (step % 2))] for step in range(40)]
            path.write_text(as_csv([["step", "grad_norm/total"], *rows]))


def plant_layers(name: str, values: Sequence[Sequence[float]]) -> None:
    """Write the purity of layers, a list of speakers each."""
    run = next(
        run for run in plan_ablation(Path("experiments/ablations/small.yaml"), "demo").compared if run.name == name
    )
    path = run.folder / "tsne" / "test" / "figures.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[list[object]] = [["layer", "speaker", "space", "purity"]]
    for layer, speakers in enumerate(values):
        for speaker, value in enumerate(speakers):
            rows += [[f"layer{layer}", f"s{speaker}", "original", value], [f"layer{layer}", f"s{speaker}", "tsne", 0.0]]
    path.write_text(as_csv(rows))


def weighed(**changed: object) -> Evidence:
    Path("claims.yaml").write_text(
        yaml.safe_dump({"claims": [{key: value for key, value in {**CLAIM, **changed}.items() if value}]})
    )
    [evidence] = weigh_claims(
        read_claims(Path("claims.yaml"), "demo"), Path("experiments/ablations"), "demo", Path("runs")
    )
    return evidence


@pytest.mark.parametrize(
    ("new", "old", "verdict"),
    [
        ([0.10, 0.11, 0.12], [0.30, 0.31, 0.33], "confirmed"),
        ([0.30, 0.31, 0.33], [0.10, 0.11, 0.12], "not confirmed"),
        ([0.10, 0.30, 0.50], [0.20, 0.40, 0.60], "undecided"),  # seeds differ more than variants
        ([0.300, 0.301, 0.302], [0.303, 0.304, 0.305], "undecided"),  # utterances leave doubt
    ],
)
def test_a_verdict_needs_seeds_and_utterances(new: list[float], old: list[float], verdict: str) -> None:
    plant("new", new)
    plant("old", old)
    evidence = weighed()
    assert evidence.verdict == verdict and evidence.units == "seeds" and evidence.pair is not None
    assert (evidence.lower, evidence.higher) == (tuple(new), tuple(old))


def test_more_seeds_than_the_comparison_names_are_counted() -> None:
    plant("new", [0.1, 0.2, 0.3, 0.4, 0.5])
    plant("old", [0.6, 0.7, 0.8, 0.9])
    Path("runs/demo/small/new/seed_old").mkdir()
    evidence = weighed()
    assert (len(evidence.lower), len(evidence.higher)) == (5, 4)


def test_two_seeds_decide_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    plant("new", [0.1, 0.1])
    plant("old", [0.9, 0.9])
    evidence = weighed()
    assert (evidence.verdict, evidence.reason) == ("undecided", "new has 2 seeds, old has 2 seeds; 3 are needed")
    assert main(["verdicts", "--claims", "claims.yaml"]) == 0
    assert "\n               new has 2 seeds, old has 2 seeds; 3 are needed\n" in capsys.readouterr().out


def test_without_both_variants_nothing_was_run() -> None:
    plant("new", [0.1, 0.1, 0.1])
    assert (weighed().verdict, weighed().command) == ("not run", "asr ablate small --variants new old")


@pytest.mark.parametrize("content", [None, "", "run,seed\n", "\x00", "x" * 100])
def test_runs_whose_rates_are_gone_or_damaged_are_no_evidence(content: str | None) -> None:
    plant("new", [0.1, 0.1, 0.1])
    plant("old", [0.9, 0.9, 0.9])
    for path in Path("runs/demo/small/new/seed2").glob("*error_rates.csv"):
        path.unlink() if content is None else path.write_text(content)
    evidence = weighed()
    assert evidence.verdict == "not run" and "runs/demo/small/new/seed2" in evidence.reason


def test_rates_of_an_epoch_are_those_of_validation() -> None:
    plant("new", [0.1, 0.2, 0.3], epoch=2)
    plant("old", [0.7, 0.8, 0.9], epoch=2)
    evidence = weighed(epoch=2)
    assert evidence.verdict == "confirmed" and evidence.pair is None, "transcripts of one epoch are kept only"
    missing = weighed(epoch=1)
    assert missing.verdict == "not run" and "expected WER, test-clean, epoch 1 of every seed" in missing.reason
    assert "there are test-clean, epoch 2" in missing.reason


def test_gradients_are_compared_by_their_early_change() -> None:
    for name, changes in {"new": [0.1, 0.12, 0.11], "old": [0.5, 0.6, 0.55]}.items():
        plant(name, [0.5] * 3)
        plant_gradients(name, changes)
    evidence = weighed(measure="gradient_change", subset=None)
    assert evidence.verdict == "confirmed"
    assert evidence.lower == pytest.approx((0.1, 0.12, 0.11), rel=1e-5)


def test_layers_are_compared_speaker_by_speaker() -> None:
    for name in ("new", "old"):
        plant(name, [0.5] * 3)
    plant_layers("new", [[0.9, 0.5, 0.7], [0.0] * 3, [0.8, 0.38, 0.61]])
    evidence = weighed(measure="purity", subset=None, higher="new", layers=["last", "first"])
    assert evidence.verdict == "confirmed" and evidence.units == "speakers", "speakers differ, their differences hardly"
    assert evidence.lower == (0.8, 0.38, 0.61) and evidence.higher == (0.9, 0.5, 0.7)
    assert "expected the figures of layers" in weighed(measure="purity", subset=None, layers=["last", "last"]).reason


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"measure": "bleu"}, "measure: expected one of wer, cer"),
        ({"epoch": 0.5}, "or one for each of demo, full, found 0.5"),
        ({"subset": None}, "expected a subset, as test-clean, for the measure wer"),
        (
            {"measure": "purity", "subset": None},
            "expected two layers, as [last, first], for the measure purity, found 0",
        ),
        ({"layers": ["top", "first"]}, "layers: expected first or last"),
        ({"epoch": {"demi": 1}}, "epoch: expected a whole number from 1, or one for each of demo, full"),
        ({"higher": "new"}, "expected two variants, or two layers of one, found new as lower and as higher"),
        ({"clam": "x"}, "unknown clam; expected some of claim, source"),
        ({"lower": None}, "expected the keys claim, source, paper, ablation, lower, higher, measure; lower is missing"),
        ({"ablation": "large"}, "no ablation at experiments/ablations/large.yaml"),
        ({"lower": "newer"}, "no variant newer at the scale demo; expected some of new, old, other"),
    ],
)
def test_wrong_claims_are_told(changed: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = [{key: value for key, value in {**CLAIM, **changed}.items() if value is not None}]
    Path("claims.yaml").write_text(yaml.safe_dump({"claims": content}))
    Path("runs/demo").mkdir(parents=True)
    assert main(["verdicts", "--claims", "claims.yaml"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("runs", ["nowhere", "runs/demo", "claims.yaml"])
def test_a_folder_without_runs_is_told(runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    plant("new", [0.1, 0.1, 0.1])
    Path("claims.yaml").write_text(yaml.safe_dump({"claims": [CLAIM]}))
    assert main(["verdicts", "--claims", "claims.yaml", "--runs", runs]) == 2
    assert f"{runs}/demo, found no such folder" in capsys.readouterr().err
    assert main(["verdicts", "--claims", "claims.yaml", "--output", "claims.yaml"]) == 2
    assert "--output: expected a folder, found the file claims.yaml" in capsys.readouterr().err
    Path("claims.yaml").write_text(yaml.safe_dump({"claims": [CLAIM, CLAIM]}))
    assert main(["verdicts", "--claims", "claims.yaml"]) == 2
    assert "claim 2: expected every claim once, found this one again: It helps." in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "claim: x", "claims: []", "claims: [x]", "claims: [", "\x00"])
def test_what_is_no_list_of_claims_is_told(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("claims.yaml").write_text(content)
    assert main(["verdicts", "--claims", "claims.yaml"]) == 2
    assert main(["verdicts", "--claims", "missing.yaml"]) == 2
    assert "missing.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("scale", SCALES)
def test_the_claims_of_this_project_name_comparisons_and_variants(
    scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    (tmp_path / "runs" / scale).mkdir(parents=True)
    claims = read_claims(Path("experiments/claims/papers.yaml"), scale)
    evidence = weigh_claims(claims, Path("experiments/ablations"), scale, tmp_path / "runs")
    assert len(evidence) == len(claims) > 30 and {result.verdict for result in evidence} == {"not run"}


def test_what_contradicts_a_paper_comes_first_and_is_traceable(capsys: pytest.CaptureFixture[str]) -> None:
    plant("new", [0.1, 0.11, 0.12])
    plant("old", [0.3, 0.31, 0.32])
    claims = [CLAIM, {**CLAIM, "claim": "It hurts.", "lower": "old", "higher": "new"}]
    claims.append({**CLAIM, "claim": "<b>It</b> was seen.", "measure": "gradient_change"})
    del claims[-1]["subset"]
    Path("claims.yaml").write_text(yaml.safe_dump({"claims": claims}))
    assert main(["verdicts", "--claims", "claims.yaml"]) == 1, "there are no gradients"
    output = capsys.readouterr().out
    assert "not run        <b>It</b> was seen.\n" in output and "confirmed      It helps.\n" in output
    assert "WER, test-clean: new 11.00 ± 1.00 against old 31.00 ± 1.00, 3 + 3 seeds; difference -20.00 (" in output
    folder = Path("runs/demo/verdicts")
    rows = read_rows(folder / "verdicts.csv", {"claim", "verdict"})
    assert [(row["claim"], row["verdict"]) for row in rows] == [
        ("It hurts.", "not confirmed"), ("It helps.", "confirmed"), ("<b>It</b> was seen.", "not run"),
    ]  # fmt: skip
    assert rows[1]["values, lower"] == "10.00 11.00 12.00"
    assert from_csv(rows[1]["difference"]) == "-20.00" and rows[1]["over"] == "3 + 3 seeds"
    runs = read_rows(folder / "runs.csv", {"run", "digest"})
    assert len(runs) == 6 and len({row["digest"] for row in runs}) == 6
    digest = runs[0]["digest"]
    path = Path(runs[0]["run"]) / "test_error_rates.csv"
    path.write_text(path.read_text().replace("40,400", "40,401"))
    main(["verdicts", "--claims", "claims.yaml"])
    assert read_rows(folder / "runs.csv", {"digest"})[0]["digest"] != digest


def test_runs_of_other_values_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant("new", [0.1, 0.1, 0.1])
    plant("old", [0.3, 0.3, 0.3])
    path = folder / "experiments" / "ablations" / "small.yaml"
    content = yaml.safe_load(path.read_text())
    content["variants"]["new"] = {"values": {"trainer.max_epochs": 9}}
    path.write_text(yaml.safe_dump(content))
    Path("claims.yaml").write_text(yaml.safe_dump({"claims": [CLAIM]}))
    assert main(["verdicts", "--claims", "claims.yaml"]) == 0
    assert "runs whose values differ from those of the experiments now" in capsys.readouterr().err
    assert "trainer.max_epochs: 4 before, 9 now" in Path("runs/demo/verdicts/runs.md").read_text()


def test_results_leave_out_what_is_still_training_and_name_variants_that_are_alike(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plant("new", [0.1, 0.2, 0.9])
    plant("old", [0.1, 0.2, 0.3])
    Path("runs/demo/small/new/seed3/finished.json").unlink()
    assert main(["ablate", "experiments/ablations/small.yaml", "--results"]) == 0
    assert "Left out: new/seed3, which is still training." in capsys.readouterr().out
    text = Path("runs/demo/small/table.md").read_text("utf-8")
    assert "15.00 ± 7.07" in text and "new and old have the same rates with every seed" in text


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_the_page_shows_every_claim_with_its_interval() -> None:
    plant("new", [0.1, 0.11, 0.12])
    plant("old", [0.3, 0.31, 0.32])
    claims = [{**CLAIM, "claim": "<b>It helps.</b>"}, {**CLAIM, "lower": "old", "higher": "new"}]
    claims += [{**CLAIM, "epoch": 7}, {**CLAIM, "claim": "Others help.", "lower": "other"}]
    Path("claims.yaml").write_text(yaml.safe_dump({"claims": claims}))
    assert main(["verdicts", "--claims", "claims.yaml"]) == 1, "there is no epoch 7"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 400, "height": 700})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(Path("runs/demo/verdicts/page.html").absolute().as_uri())
        assert page.locator("h2").all_text_contents()[:3] == ["Not confirmed", "Confirmed", "Not run"]
        assert page.locator(".claim h3").nth(1).text_content() == "<b>It helps.</b>"
        assert page.locator(".claim svg").count() == 2 and page.locator(".waiting li").count() == 1
        label = page.locator(".claim.confirmed svg").get_attribute("aria-label")
        assert label is not None and label.startswith("difference in points, left of 0 as claimed; over seeds: −20 (")
        assert page.evaluate("document.documentElement.scrollWidth <= 400")
        page.locator(".claim.confirmed summary").click()
        assert page.locator(".claim.confirmed pre").first.is_visible()
        assert "new: 10.00 11.00 12.00" in page.locator(".claim.confirmed details").inner_text()
        browser.close()
    assert not problems and set(VERDICTS) == {"not confirmed", "confirmed", "undecided", "not run"}
