"""One HTML file that shows a group of runs, without a server or a network: all data and scripts are in it."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from asr_lightning.files import write_atomically

PARTS = ("page.css", "page.js")


def write_page(path: Path, data: dict[str, Any]) -> None:
    """Write a page.

    Args:
        path: The HTML file.
        data: What `asr_lightning.report.page_data` has gathered, with a `title`.
    """
    style, script = ((files("asr_lightning.report") / name).read_text("utf-8") for name in PARTS)
    page = (files("asr_lightning.report") / "page.html").read_text("utf-8")
    content = {
        "TITLE": _escaped(data["title"]),
        "STYLE": style,
        # Nothing in the data can end the element that it stands in.
        "DATA": json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "PLOTLY": get_plotlyjs().replace("</script", "<\\/script"),
        "SCRIPT": script,
    }
    parts = page.split("@@")  # text, name, text, name, ...
    write_atomically(path, "".join(content[part] if place % 2 else part for place, part in enumerate(parts)))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
