"""The notebook of the documentation runs from its first cell to its last, on seconds of speech."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/swap_attention.ipynb"
SIZES = "MINUTES, EPOCHS = 3, 3"
VARIANTS = ("location", "additive", "dot")


@pytest.mark.timeout(1_200)  # it trains three networks, one after the other
def test_the_notebook_ends_with_the_table(tmp_path: Path) -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    assert code.count(SIZES) == 1
    (tmp_path / "notebook.py").write_text(code.replace(SIZES, "MINUTES, EPOCHS = 0.1, 1"), "utf-8")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    ended = subprocess.run(
        [sys.executable, "notebook.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-2_000:] + ended.stderr[-4_000:]
    assert "status 0" in ended.stdout, ended.stdout[-4_000:]
    rows = [line.split("|")[1].strip() for line in ended.stdout.splitlines() if line.startswith("|")]
    assert all(any(row.startswith(name) for row in rows) for name in VARIANTS), rows
    transcripts = [line.split()[0] for line in ended.stdout.splitlines() if line.startswith(VARIANTS)]
    assert set(transcripts) == set(VARIANTS)


def test_it_is_stored_with_its_output_and_small() -> None:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    printed = "".join(line for cell in cells for output in cell.get("outputs", []) for line in output["text"])
    assert all(f"| {name} " in printed for name in VARIANTS)
    assert NOTEBOOK.stat().st_size < 100_000
