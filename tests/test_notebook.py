"""The notebook of the documentation runs from its first cell to its last, and its stored output has the same form."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/swap_attention.ipynb"
SIZES = "MINUTES, EPOCHS = 3, 3"
VARIANTS = ("location", "additive", "dot")


def code_cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def form(printed: str) -> tuple[str, list[str], set[str]]:
    """Return the heading of the table, the names of its rows, and the networks whose sentences follow."""
    lines = printed.splitlines()
    heading, *rows = [line for line in lines if line.startswith("| ") and not line.startswith("| -")]
    names = [row.split("|")[1].split()[0] for row in rows]
    return heading, names, {line.split()[0] for line in lines if line.startswith(VARIANTS)}


@pytest.mark.timeout(1_200)  # it trains three networks, one after the other
def test_the_notebook_ends_with_the_table(tmp_path: Path) -> None:
    cells = code_cells()
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
    stored = "".join(line for cell in cells for output in cell["outputs"] for line in output["text"])
    assert form(ended.stdout) == form(stored), "store the output anew: python tests/test_notebook.py"
    assert form(stored)[1] == list(VARIANTS) and form(stored)[2] == set(VARIANTS)


def test_it_is_small() -> None:
    assert NOTEBOOK.stat().st_size < 100_000


def execute() -> None:
    """Run the cells, and store what each of them prints."""
    notebook, namespace = json.loads(NOTEBOOK.read_text("utf-8")), dict[str, Any]()
    for number, cell in enumerate((cell for cell in notebook["cells"] if cell["cell_type"] == "code"), start=1):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec("".join(cell["source"]), namespace)
        lines = printed.getvalue().splitlines(keepends=True)
        cell["execution_count"] = number
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    execute()
