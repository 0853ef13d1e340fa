"""HTML pages of one file each, with all data and scripts; they need no server and no network."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from asr_lightning.errors import printable
from asr_lightning.files import write_atomically

PARTS = ("sentences", "layers", "neighbours", "alignments")  # megabytes; placed behind the data of the first screen


def write_page(path: Path, data: dict[str, Any]) -> None:
    """Write a page.

    Args:
        path: The HTML file.
        data: Data of the page, with a `title`.
    """
    plotly = get_plotlyjs().replace("</script", "<\\/script")
    parts = {name: data[name] for name in PARTS if name in data}
    other_data = {name: value for name, value in data.items() if name not in PARTS}
    texts = {"TITLE": _escaped(data["title"]), "PLOTLY": plotly, "PARTS": _as_json(parts)}
    write_atomically(path, fill("page", other_data, **texts))


def fill(name: str, data: Any, **texts: str) -> str:  # noqa: ANN401 - whatever JSON holds
    """Return `<name>.html` with the common style, the common script and its own, the data and other texts."""

    def read(part: str) -> str:
        return (files("asr_lightning.report") / part).read_text("utf-8")

    content = {
        **texts,
        "STYLE": read("style.css"),
        "DATA": _as_json(data),
        "SCRIPT": read("common.js") + read(f"{name}.js"),
    }
    parts = read(f"{name}.html").split("@@")  # text, name, text, name, ...
    return "".join(content[part] if number % 2 else part for number, part in enumerate(parts))


def _as_json(data: Any) -> str:  # noqa: ANN401
    """Return JSON that cannot end the HTML element around it."""
    text = json.dumps(_printable_data(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _printable_data(data: Any) -> Any:  # noqa: ANN401
    """Return the data with printable texts: no control of text direction, valid UTF-8."""
    if isinstance(data, str):
        return printable(data)
    if isinstance(data, dict):
        return {_printable_data(key): _printable_data(value) for key, value in data.items()}
    return [_printable_data(value) for value in data] if isinstance(data, list | tuple) else data


def _escaped(text: str) -> str:
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
