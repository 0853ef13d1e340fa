"""A hybrid that is really made: seconds of the embedded corpus, the command `hybrid prepare`, and `lightning fit`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from asr_lightning import cli
from asr_lightning.asr import main
from data_modules.spoken import synthesize

DEMO = Path(__file__).parents[2] / "experiments/demo/hybrid.yaml"
SIZES = {"minutes": 2.5, "evaluation_minutes": 0.15}
TRAINING, DEVELOPMENT, TEST = "train-clean-100", "dev-clean", "test-clean"
# One Gaussian for each state is enough for so little speech.
FEW = [
    *("--passes", "12", "--triphone-passes", "6", "--frames-per-gaussian", "1000000"),
    *("--tied-states", "150", "--least-frames", "20"),
]


@dataclass(frozen=True)
class Made:
    """The paths of the hybrid's files."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "hybrid.yaml"

    @property
    def corpus(self) -> Path:
        return self.root / "speech"

    @property
    def states(self) -> Path:
        return self.root / "states"

    @property
    def checkpoint(self) -> Path:
        return self.root / "run/checkpoints/last.ckpt"

    def transcripts(self, subset: str) -> dict[str, str]:
        return transcripts_of(self.corpus / subset)


def transcripts_of(folder: Path) -> dict[str, str]:
    rows = [row for path in sorted(folder.rglob("*.trans.txt")) for row in path.read_text().splitlines()]
    return dict(row.split(" ", 1) for row in rows)


def experiment(root: Path, corpus: Path, **trainer: Any) -> dict[str, Any]:
    """The experiment of the demo, for a network that learns in seconds; everything lies in `root`."""
    content = yaml.safe_load(DEMO.read_text())
    model, data = content["model"]["init_args"], content["data"]["init_args"]
    model["features"]["init_args"]["mels"] = 40
    sizes = {"input_dimension": 40, "hidden": 48, "layers": 1, "recurrent_projection": 32, "projection": 16}
    model["encoder"]["init_args"] = sizes
    model["folder"] = str(root / "states")
    model["optimizer"] = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}
    del model["scheduler"]
    data |= {**SIZES, "root": str(corpus), "workers": 0, "batch_seconds": 8, "evaluation_batch_seconds": 30}
    data |= {"validation_subsets": [DEVELOPMENT], "test_subsets": [TEST]}
    saving = {"filename": "last", "enable_version_counter": False}
    content["trainer"] |= {
        "default_root_dir": str(root / "run"),
        "max_epochs": 16,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saving}],
        **trainer,
    }
    return content


def make(root: Path) -> Made:
    """Make all that `hybrid` and `align` read."""
    hybrid = Made(root)
    synthesize(hybrid.corpus, **SIZES, workers=1, progress=False)
    hybrid.config.write_text(yaml.safe_dump(experiment(root, hybrid.corpus)))
    lexicon = ["--lexicon", str(hybrid.corpus / "lexicon.txt")]
    assert (
        main(["hybrid", "prepare", "--config", str(hybrid.config), *lexicon, "--output", str(hybrid.states), *FEW]) == 0
    )
    cli.main(["fit", "-c", str(hybrid.config)])
    return hybrid
