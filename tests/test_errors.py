"""Text from files is shown and never executed: by a terminal, a table, a page or a spreadsheet."""

import csv
import io
import json
import sys
from pathlib import Path
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_lightning.errors import InputError, print_any_character, printable, reason
from asr_lightning.report.figures import ErrorRate, plot_error_rates
from asr_lightning.report.page import fill
from asr_lightning.report.tables import as_csv, as_markdown, as_text, escape_markdown, from_csv
from asr_lightning.text.phones import Segment
from asr_lightning.tools.alignment_files import ctm_rows
from asr_lightning.tools.transcript_files import as_column
from data_modules.manifest import BadFile, Manifest, write_manifest

HOSTILE = {
    "\x1b[2J\x1b]0;title\x07": r"\x1b[2J\x1b]0;title\x07",
    "\x9b31m": r"\x9b31m",
    "wav\u202e3pm.exe": r"wav\u202e3pm.exe",
    "\u2066a\u2069": r"\u2066a\u2069",
    "a\tb\nc\rd": r"a\tb\nc\rd",
    "half \udcc7": r"half \udcc7",
    "\U000e0041": r"\U000e0041",
    "line\u2028\x85end": r"line\u2028\x85end",
}


@pytest.mark.parametrize(("text", "expected"), HOSTILE.items(), ids=map(ascii, HOSTILE))
def test_what_a_terminal_obeys_is_written_out(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert str(InputError(f"{text.replace(chr(10), '')}: first\nsecond")).endswith(": first\nsecond")
    assert "\n".join(str(InputError(text)).split("\n")) == expected.replace(r"\n", "\n")
    assert reason(ValueError(text)) == expected.replace(r"\n", "\n")
    assert str(BadFile(text, "unreadable audio")) == f"{expected}: unreadable audio"
    assert as_text([[text]]) == expected
    assert as_csv([[text]]) == f"{expected}\n"
    assert next(iter(ctm_rows(text, [Segment(0.0, 1.0, "A")]))).split() == [
        expected.replace(" ", "_"), "1", "0.0000000", "1.0000000", "A",
    ]  # fmt: skip


@given(st.text(st.characters()))
def test_any_text_is_one_printable_line_and_stays_so(text: str) -> None:
    line = printable(text)
    assert printable(line) == line and len(line.splitlines()) <= 1
    assert not {category(character) for character in line} & {"Cc", "Cs", "Zl", "Zp"}
    line.encode("utf-8")


@pytest.mark.parametrize("text", ["한국어 CAFÉ", "می‌خواهم", "👩‍👧", "back\\slash", "ﷺ"])
def test_other_scripts_stay(text: str) -> None:
    assert printable(text) == text


def test_names_stay_within_their_cells() -> None:
    assert as_markdown([["a|b", "<script>", "[x](javascript:1)", "`"]]).splitlines()[0] == (
        r"| a\|b | \<script> | \[x](javascript:1) | \` |"
    )
    assert escape_markdown("rnnt_ws (seed 1)") == "rnnt_ws (seed 1)"
    assert as_csv([['=HYPERLINK("http://a")', "@SUM(A1)", "+lm", "-x"], ["-0.5", "+1.2", -0.5, "–"]]) == (
        '"\'=HYPERLINK(""http://a"")",\'@SUM(A1),\'+lm,\'-x\n-0.5,+1.2,-0.500000,–\n'
    )


def test_what_is_no_formula_any_more_is_read_as_it_was() -> None:
    texts = ["=1", "-x", "-", "+", "'", "-0.5", "it's", "A"]
    [written] = csv.reader(as_csv([texts]).splitlines())
    assert written == ["'=1", "'-x", "-", "+", "'", "-0.5", "it's", "A"]  # a sign alone is a token
    assert [from_csv(cell) for cell in written] == texts


def test_a_page_holds_names_as_texts() -> None:
    page = fill("page", {"title": "</script><script>\u202e\udcc7"}, TITLE="", PLOTLY="", PARTS="{}")
    page.encode("utf-8")
    assert "</script><script>\\" not in page and "\u202e" not in page
    data = page[page.index('{"title"') :]
    assert json.loads(data[: data.index("</script>")])["title"] == r"</script><script>\u202e\udcc7"


def test_a_dollar_in_the_name_of_a_run_is_no_formula(tmp_path: Path) -> None:
    rates = [ErrorRate(r"$\frac$ a$", "1", epoch, "$x_$", 0.1, 0.1, 0.1, 0.1, 0.1) for epoch in (1, 2)]
    plot_error_rates(rates, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_path_keeps_its_column_and_its_bytes() -> None:
    assert as_column("a\tb\x1b\n\udcc7\u202e.wav") == "a\\tb\\x1b\\n\udcc7\\u202e.wav"


def test_bad_files_keep_their_columns(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "dev.cuts.jsonl", [BadFile("/a\tb\nc", "empty audio", "0 samples")], "")
    assert Manifest(manifest.path).bad_files() == [BadFile(r"/a\tb\nc", "empty audio", "0 samples")]


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("utf-8", "→ é 한 ".encode() + b"\xff"),
        ("cp1252", b"\\u2192 \xe9 \\ud55c \xff"),
        ("ascii", b"\\u2192 \\xe9 \\ud55c \xff"),
    ],
)
def test_a_terminal_of_any_encoding_shows_any_text(
    encoding: str, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    print_any_character()
    print("→ é 한 \udcff", end="", flush=True)  # the last is a byte of a file name
    assert stream.buffer.getvalue() == written  # type: ignore[attr-defined]
