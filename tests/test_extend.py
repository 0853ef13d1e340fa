"""The worked example of docs/extend.md, typed into a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extend.md").read_text("utf-8")
ENCODER, EXPERIMENT, ROW = re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE, re.DOTALL)
TABLE = "ARCHITECTURES: dict[str, dict[str, Any]] = {"


@pytest.mark.timeout(1_800)  # it learns eight utterances by heart
def test_the_worked_encoder_meets_the_contract(tmp_path: Path) -> None:
    for folder in ("asr_lightning", "data_modules", "experiments", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "asr_lightning/models/tdnn.py").write_text(ENCODER, "utf-8")
    experiment = yaml.safe_load((ROOT / "experiments/demo/conformer_ctc.yaml").read_text("utf-8"))
    experiment["model"]["init_args"]["encoder"] = yaml.safe_load(EXPERIMENT)
    experiment["trainer"]["default_root_dir"] = "runs/demo/tdnn_ctc/seed1"
    (tmp_path / "experiments/demo/tdnn_ctc.yaml").write_text(yaml.safe_dump(experiment, width=1_000), "utf-8")
    architectures = tmp_path / "tests/support/architectures.py"
    text = architectures.read_text("utf-8")
    assert text.count(TABLE) == 1
    architectures.write_text(text.replace(TABLE, f"{TABLE}\n{ROW}"), "utf-8")
    files = ["tests/models/test_contract.py", "tests/models/test_axes_of_models.py", "tests/test_experiments.py"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *files, "-k", "TDNN or tdnn_ctc", "-p", "no:cacheprovider", "-rA"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-4_000:] + ended.stderr[-2_000:]
    passed = {line.partition("::")[2] for line in ended.stdout.splitlines() if line.startswith("PASSED")}
    for name in (
        "test_it_learns_eight_utterances_by_heart[TDNN with CTC]",
        "test_every_parameter_gets_a_gradient[TDNN with CTC]",
        "test_models_and_data_can_be_built[demo/tdnn_ctc.yaml]",
    ):
        assert name in passed, passed
