"""Pages of the site that are not Markdown in this folder: README and its neighbours, and the notebooks."""

import json
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the project's root, and a page `NAME.md` for every `NAME.ipynb`."""
    root = Path(config.docs_dir).parent
    for name, page in ROOT.items():
        text = (root / name).read_text("utf-8")
        files.append(File.generated(config, page, content=links_from_docs(text)))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text = markdown(json.loads(Path(str(notebook.abs_src_path)).read_text("utf-8")), Path(notebook.src_uri).name)
        files.append(File.generated(config, notebook.src_uri.replace(".ipynb", ".md"), content=text))
    return files


def links_from_docs(text: str) -> str:
    """Return a page of the root with its links as they are from the folder `docs`."""
    text = text.replace("](docs/", "](")
    return re.sub(r"\]\((\w+\.md)", lambda link: f"]({ROOT.get(link[1], link[1])}", text)


def printed(lines: Iterable[str]) -> list[str]:
    """Return what a cell printed as Markdown: its tables as tables, all else as blocks of text."""
    blocks = ((table, "".join(group).strip("\n")) for table, group in groupby(lines, lambda line: line.startswith("|")))
    return [block if table else f"```text\n{block}\n```" for table, block in blocks if block]


def markdown(notebook: dict, name: str) -> str:
    """Return the cells of a notebook one below the other, each with what it printed."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += printed(line for output in cell["outputs"] for line in output.get("text", []))
    heading, *rest = parts
    return "\n\n".join([heading, f"This page is a notebook: [{name}]({name}).", *rest]) + "\n"
