"""Paths, classes, targets, commands and keys of the documentation exist; sources are cited by name."""

import contextlib
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from asr_lightning import asr, cli
from asr_lightning.hmm.model import HiddenMarkovModel
from asr_lightning.text.lexicon import Lexicon
from asr_lightning.text.tokenizers import train_sentencepiece
from tests.support.small_texts import sentences

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FOLDERS = ("asr_lightning/", "data_modules/", "experiments/", "tests/", "benchmarks/", "docs/", ".ci/", ".github/")
MADE = {"asr_lightning/models/tdnn.py", "experiments/demo/tdnn_ctc.yaml"}  # by the reader of docs/extend.md
MADE_CLASS = "asr_lightning.models.tdnn"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".html", ".js", ".css", ".ipynb", ".cff", ".txt"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(page: Path) -> list[str]:
    """The lines of its code blocks, joined where they end with a backslash, without remarks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines]


def sources() -> Iterator[Path]:
    """All files of the project that people write."""
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if path.suffix in SUFFIXES and parts[0] not in {".venv", "build", "data", "runs"} and ".git" not in parts:
            yield path


def test_sources_are_cited_by_authors_and_year() -> None:
    numbers = re.compile(r"\bseed 0{2}\d")
    assert not [str(path) for path in sources() if numbers.search(path.read_text("utf-8"))]


def test_every_cited_paper_has_a_reference() -> None:
    cited = re.compile(r"\[((?:van der )?[A-Z][\w-]+)(?:,? (?:et al\.|and|&|[A-Z]\w+))*,? ((?:19|20)\d\d)\b")
    references = re.findall(
        r"\* \*\*((?:van der )?[\w-]+).*? (\d{4})\*\*", (ROOT / "docs/papers.md").read_text("utf-8")
    )
    missing = {
        f"{match[0]} in {name_of(path)}"
        for folder in ("asr_lightning", "data_modules")
        for path in (ROOT / folder).rglob("*.py")
        for match in cited.finditer(re.sub(r"\s+", " ", path.read_text("utf-8")))
        if match.groups() not in references
    }
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    words = re.findall(r"[\w./*-]+", text)
    paths = {word.rstrip(".") for word in words if word.startswith(FOLDERS) and "/" in word}
    links = {link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link}
    generated = {"swap_attention.md"}  # docs/site.py makes it of the notebook
    missing = [path for path in paths - MADE if not list(ROOT.glob(path.rstrip("/") or path))]
    missing += [link for link in links - generated if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_classes_and_modules_exist(page: Path) -> None:
    for name in set(re.findall(r"\b(?:asr_lightning|data_modules)(?:\.\w+)+", page.read_text("utf-8"))):
        if name.startswith(MADE_CLASS) or name.endswith((".md", ".py", ".git")):
            continue
        parts = name.split(".")
        split = next(n for n in range(len(parts), 0, -1) if importable(".".join(parts[:n])))
        value: object = importlib.import_module(".".join(parts[:split]))
        for part in parts[split:]:
            assert hasattr(value, part), name
            value = getattr(value, part)


def importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    inline = re.findall(r"`make ([\w-]+)", page.read_text("utf-8"))
    blocks = [line.split()[1] for line in commands(page) if re.match(r"make \w", line)]
    assert {*inline, *blocks} <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_scripts_exist(page: Path) -> None:
    programs = {"lightning", "asr", "python", "pip", "pre-commit"}
    for line in commands(page):
        for word in line.split():
            if word.startswith(".venv/bin/"):
                assert word.removeprefix(".venv/bin/") in programs, line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_can_be_read(page: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        values = yaml.safe_load(block)
        assert isinstance(values, dict)
        for class_path, arguments in classes_in(values):
            module, name = class_path.rsplit(".", 1)
            if module != MADE_CLASS:
                documented = getattr(importlib.import_module(module), name)
                known = ArgumentParser().add_class_arguments(documented, fail_untyped=False)
                assert arguments <= {argument.split(".")[0] for argument in known}, class_path


def classes_in(values: object) -> Iterator[tuple[str, set[str]]]:
    """Yield each class path and the names of its arguments."""
    if isinstance(values, dict):
        if "class_path" in values:
            yield values["class_path"], set(values.get("init_args", {}))
        for value in values.values():
            yield from classes_in(value)
    elif isinstance(values, list):
        for value in values:
            yield from classes_in(value)


ASR = re.compile(r"(\S*/)?asr \w")
COMMANDS = [(name_of(page), line) for page in PAGES for line in commands(page) if ASR.match(line)]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_asr_commands_have_these_options(page: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line.split(" -- ")[0])[1:]
    assert words[0] in asr.NAMES
    subcommands = words[:2] if words[0] in ("hybrid", "ngram") else words[:1]
    with contextlib.suppress(SystemExit):
        asr.main([*subcommands, "--help"])
    options = set(re.findall(r"(?<![\w-])--[\w-]+", capsys.readouterr().out))
    assert {word for word in words if word.startswith("--")} <= options


RECIPES = [
    (name_of(page), line) for page in PAGES for line in commands(page) if re.match(r"\S*lightning (fit|test)", line)
]


@pytest.mark.parametrize(("page", "line"), RECIPES)
def test_recipes_build_their_model_data_and_callbacks(
    page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "tdnn_ctc" in line:
        pytest.skip("made and run by tests/test_extend.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    if "bpe200" in line:
        texts = ["THE CAT SAW THE DOG", "A BIRD SINGS IN THE OLD TREE", "WE WALKED HOME BY THE QUIET RIVER"] * 3
        train_sentencepiece(texts, 40, Path("runs/bpe200"), "bpe")
    if "_public" in line:
        train_sentencepiece(sentences(200), 40, Path("runs/public/checkpoints/tokens"))
    if "hybrid" in line:
        for folder in ("runs/hybrid/states", "runs/demo/hybrid/states"):
            HiddenMarkovModel.monophone(Lexicon({"A": (("a",),)})).write(Path(folder))
        Path("runs/hybrid/search.yaml").write_text("model: {init_args: {}}\n")
    if "TableDataModule" in line:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/metadata.csv").write_text("path,text\n" + "".join(f"{n}.wav,a word\n" for n in range(30)))
        line = line.replace("/corpora/mine", str(tmp_path / "mine"))
    built: list[object] = []
    monkeypatch.setattr(cli.CommandLine, "_run_subcommand", lambda self, _: built.extend((self.model, self.datamodule)))
    monkeypatch.setattr("sys.argv", ["lightning"])
    cli.main(shlex.split(line)[1:])
    assert len(built) == 2


def test_the_overview_is_short_and_of_this_version() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130
    assert (ROOT / "docs/page.png").stat().st_size < 200_000
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == PROJECT["version"]
    assert f"## {PROJECT['version']} (" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_package_has_an_api_page() -> None:
    pages = "\n".join(path.read_text("utf-8") for path in (ROOT / "docs/api").glob("*.md"))
    nav = (ROOT / "mkdocs.yml").read_text("utf-8")
    packages = {path.parent.name for path in ROOT.glob("asr_lightning/*/__init__.py")} - {"tools"}
    for package in packages:
        assert f"::: asr_lightning.{package}\n" in pages and f"api/{package}.md" in nav, package
    assert "::: data_modules\n" in pages


class Loaded(HTMLParser):
    """Collects what a browser would fetch to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.addresses.append(values.get("src") or "")
        if tag == "link" and values.get("rel") != "canonical":
            self.addresses.append(values.get("href") or "")


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the site needs `make docs` first")
def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    ended = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= 25
    for page in pages:
        parser = Loaded()
        parser.feed(page.read_text("utf-8"))
        assert parser.addresses and not [
            address for address in parser.addresses if re.match(r"(https?:)?//", address)
        ], page
