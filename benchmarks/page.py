"""Measure the page of two networks of full size: megabytes, seconds to write it, seconds until a browser shows it.

Example:
    python benchmarks/page.py --utterances 2620

The runs are those of the tests (tests/support/planted_run.py): frames of eight layers, neighbours, alignments, and
transcripts of three seeds. Needs Chromium.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests`

from asr_lightning.asr import main as asr
from asr_lightning.report.run_folders import COLUMNS
from asr_lightning.report.tables import as_csv, as_text
from tests.support.planted_run import write_run

WORDS = 20  # of a sentence
TIMES = {
    "verdict": "performance.getEntriesByName('first-contentful-paint')[0].startTime",
    "all": "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))",
}


def write_runs(folder: Path, utterances: int) -> None:
    """Write two networks of three seeds; the first seed of each was looked into."""
    random = np.random.default_rng(1)
    sentences = random.integers(1000, size=(utterances, WORDS))
    for name in ("model_a", "model_b"):
        for seed in (1, 2, 3):
            run = folder / name / f"seed{seed}"
            (run / "transcripts").mkdir(parents=True)
            rates = [[name, str(seed), epoch, "test-clean", *[1 / epoch] * 5] for epoch in range(1, 51)]
            (run / "error_rates.csv").write_text(as_csv([COLUMNS, *rates]))
            lines = []
            for number, sentence in enumerate(sentences):
                hypothesis = np.where(random.random(WORDS) < 0.1, random.integers(1000, size=WORDS), sentence)
                texts = {"reference": _text(sentence), "hypothesis": _text(hypothesis)}
                lines.append(json.dumps({"id": f"u{number:04}", "speaker": f"{number % 40}", **texts}))
            path = run / "transcripts" / "validation-epoch50-test-clean.jsonl"
            path.write_text("\n".join(lines) + "\n")
        write_run(folder / name / "seed1")


def _text(words: np.ndarray) -> str:
    return " ".join(f"W{word}" for word in words)


def seconds_to_show(page: Path) -> dict[str, float]:
    """Return the seconds until Chromium shows the verdict, and all; medians of five."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        sys.exit("expected Chromium on this machine, found none: install it")
    times: dict[str, list[float]] = {name: [] for name in TIMES}
    with sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        for _ in range(5):
            window = browser.new_page(viewport={"width": 1280, "height": 900})
            window.goto(page.as_uri(), timeout=300_000)
            for name, script in TIMES.items():
                times[name].append(window.evaluate(script) / 1000)
            window.close()
        browser.close()
    return {name: float(np.median(seconds)) for name, seconds in times.items()}


def main() -> None:
    """Write runs and page, and print what it costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, nargs="+", default=[2620], help="transcribed (default: 2620)")
    options = parser.parse_args()
    table = [["utterances", "page, MB", "s to write", *(f"s to show {name}" for name in TIMES)]]
    for utterances in options.utterances:
        with tempfile.TemporaryDirectory() as folder:
            write_runs(Path(folder), utterances)
            page = Path(folder) / "page.html"
            start = time.perf_counter()
            if status := asr(["report", folder, "--output", str(page)]):
                sys.exit(status)
            write_seconds = time.perf_counter() - start
            shown = seconds_to_show(page)
            size = page.stat().st_size / 1e6
            table.append(
                [
                    f"{utterances:,}",
                    f"{size:.1f}",
                    f"{write_seconds:.1f}",
                    *(f"{seconds:.2f}" for seconds in shown.values()),
                ]
            )
    print(as_text(table))


if __name__ == "__main__":
    main()
