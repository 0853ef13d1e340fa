"""Imports go one way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [  # each imports itself and those before
    {"batch", "errors", "files", "renamed", "text", "audio", "nn", "losses"},
    {"decoding", "scoring", "hmm"},
    {"models"},
    {"analysis"},
    {"report"},
    {"callbacks"},
    {"asr", "tools", "ablations"},
    {"cli", "error_messages", "parser", "__main__"},
]
RANKS = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
SHARED_BY_ARCHITECTURES = {
    *("recognizer", "checkpoints", "instantiation", "class_paths", "same_network", "schedules", "fsdp"),
    *("skipped_steps", "averaging", "global_batch", "evaluation", "public_weights", "word_times"),
}
FORMS = {  # of an architecture, with the file that has it
    "normalized_transducer": "rnn_transducer",
    "one_hot_transducer": "rnn_transducer",
}
OURS = ("asr_lightning", "data_modules")
FILES = sorted(path.relative_to(ROOT) for package in OURS for path in (ROOT / package).rglob("*.py"))


def imports(source: str) -> Iterator[tuple[str, ...]]:
    """The dotted names that a file imports from us, split at the dots."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (parts for name in names if (parts := tuple(name.split(".")))[0] in OURS)


def allowed(importer: tuple[str, ...], imported: tuple[str, ...]) -> bool:
    """Whether a file, as `("asr_lightning", "nn", "masks")`, may import a name."""
    if importer[0] == "data_modules":
        return imported[0] == "data_modules" or imported[1] in {"batch", "text", "audio", "errors", "files"}
    if imported[0] == "data_modules":
        return importer[1] in {"cli", "tools"}
    if imported[1] == "models" == importer[1]:
        return imported[2] in SHARED_BY_ARCHITECTURES or imported[2] == FORMS.get(importer[2])
    return RANKS[imported[1]] <= RANKS[importer[1]]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_one_way(path: Path) -> None:
    importer = path.with_suffix("").parts
    forbidden = [".".join(name) for name in imports((ROOT / path).read_text()) if not allowed(importer, name)]
    assert not forbidden


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("asr_lightning.nn.sequences", "import asr_lightning.models.recognizer"),
        ("asr_lightning.losses.ctc", "from asr_lightning import decoding"),
        ("asr_lightning.models.ctc", "from asr_lightning.models.rnn_transducer import Joint"),
        ("asr_lightning.models.rnn_transducer", "from asr_lightning.models.one_hot_transducer import OneHot"),
        ("asr_lightning.models.ctc", "from asr_lightning.callbacks.throughput import Throughput"),
        ("asr_lightning.report.html", "import data_modules.spoken"),
        ("data_modules.corpus", "def late():\n    from asr_lightning.models import recognizer"),
    ],
)
def test_the_check_sees_imports_the_other_way(importer: str, imported: str) -> None:
    [name] = imports(imported)
    assert not allowed(tuple(importer.split(".")), name)
