"""Pages of one HTML file each, without a server or a network: all data and scripts are in it."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from asr_lightning.errors import printable
from asr_lightning.files import write_atomically


def write_page(path: Path, data: dict[str, Any]) -> None:
    """Write a page.

    Args:
        path: The HTML file.
        data: What `asr_lightning.report.page_data` has gathered, with a `title`.
    """
    plotly = get_plotlyjs().replace("</script", "<\\/script")
    write_atomically(path, fill("page", data, TITLE=_escaped(data["title"]), PLOTLY=plotly))


def fill(name: str, data: Any, **texts: str) -> str:  # noqa: ANN401 - whatever JSON holds
    """Return `<name>.html` with the style of all pages, its script behind that of all pages, data and other texts."""

    def read(part: str) -> str:
        return (files("asr_lightning.report") / part).read_text("utf-8")

    content = {
        **texts,
        "STYLE": read("style.css"),
        # Nothing in the data can end the element that it stands in.
        "DATA": json.dumps(_shown(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace(
            "<", "\\u003c"
        ),
        "SCRIPT": read("common.js") + read(f"{name}.js"),
    }
    parts = read(f"{name}.html").split("@@")  # text, name, text, name, ...
    return "".join(content[part] if number % 2 else part for number, part in enumerate(parts))


def _shown(data: Any) -> Any:  # noqa: ANN401
    """Return the same data whose texts turn no lines around, and can be written in UTF-8."""
    if isinstance(data, str):
        return printable(data)
    if isinstance(data, dict):
        return {_shown(key): _shown(value) for key, value in data.items()}
    return [_shown(value) for value in data] if isinstance(data, list | tuple) else data


def _escaped(text: str) -> str:
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
