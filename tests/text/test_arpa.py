import gzip
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from asr_lightning.errors import InputError
from asr_lightning.text import arpa
from asr_lightning.text.arpa import read_arpa, write_arpa
from asr_lightning.text.ngram import NGram
from asr_lightning.text.smoothing import kneser_ney, witten_bell

LN10 = math.log(10)

GOOD = """\\data\\
ngram 1=5
ngram 2=4
ngram 3=1

\\1-grams:
-1.5\t<unk>
-99\t<s>\t-0.4
-0.9\t</s>
-0.5\tÄ\t-0.3
-0.6\tB

\\2-grams:
-0.2\t<s> Ä\t-0.1
-0.8\tÄ B
-0.3\tB </s>
-0.7\tB Ä\t-99

\\3-grams:
-0.15\t<s> Ä B

\\end\\
"""


def made_model(order: int = 3, estimator: Callable[..., NGram] = kneser_ney) -> NGram:
    generator = random.Random(0)
    words = ["A", "É", "가", "D'E", "\\f\\", "7", "-99", "g\N{NO-BREAK SPACE}h"]
    return estimator([generator.choices(words, k=generator.randint(1, 7)) for _ in range(80)], order)


def assert_same(model: NGram, expected: NGram, tolerance: float = 0.0) -> None:
    assert model.tokens == expected.tokens
    assert model.order == expected.order
    for level, expected_level in zip(model.levels, expected.levels, strict=True):
        np.testing.assert_array_equal(level.keys, expected_level.keys)
        np.testing.assert_allclose(level.log_probs, expected_level.log_probs, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(level.backoffs, expected_level.backoffs, rtol=tolerance, atol=tolerance)


def read(path: Path, content: str | bytes) -> NGram:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_arpa(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lm.arpa"


def test_what_a_file_says_is_read(path: Path) -> None:
    model = read(path, GOOD)
    assert model.tokens == ("<unk>", "<s>", "</s>", "Ä", "B")
    assert [len(level.keys) for level in model.levels] == [5, 4, 1]
    assert model.log_prob("B", ["<s>", "Ä"]) == pytest.approx(-0.15 * LN10)
    assert model.log_prob("Ä", ["<s>"]) == pytest.approx(-0.2 * LN10)
    assert model.log_prob("</s>", ["<s>", "Ä"]) == pytest.approx((-0.1 - 0.3 - 0.9) * LN10)
    assert model.log_prob("B", ["B"]) == pytest.approx(-0.6 * LN10)  # no weight is 1
    assert model.log_prob("<s>") == model.log_prob("B", ["B", "Ä"]) == -math.inf  # -99 is 0


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\t", " "),
        lambda text: text.replace("\t", "  \t ").replace("<s> Ä", "<s>\tÄ"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", " \n"),
        lambda text: text.replace("\n\n", "\n"),
        lambda text: text.replace("\n-0.8", "\n\n-0.8"),
        lambda text: "made by hand\n\n" + text + "\nngram 9=9\n",
        lambda text: "\N{ZERO WIDTH NO-BREAK SPACE}" + text,
        lambda text: text.replace("ngram 1=5", "ngram  1 = 5"),
        lambda text: text.replace("<unk>", "<UNK>"),
        lambda text: text.replace("-0.8\tÄ B", "-0.8\tÄ B\t0").replace("-0.15\t<s> Ä B", "-0.15\t<s> Ä B\t0.0"),
        lambda text: text.replace("-99", "-100").replace("-0.5\t", "-5e-1\t"),
        lambda text: text.replace("ngram 3=1", "ngram 3=1\nngram 4=0").replace("\\end\\", "\\4-grams:\n\n\\end\\"),
    ],
)
def test_other_ways_to_write_the_same(path: Path, change: Callable[[str], str]) -> None:
    assert change(GOOD) != GOOD
    assert_same(read(path, change(GOOD)), read(path, GOOD))


def test_weights_below_an_empty_section_count(path: Path) -> None:
    text = (
        "\\data\\\nngram 1=4\nngram 2=0\n\n\\1-grams:\n-1\t<s>\t-0.5\n-0.3\ta\t-0.25\n-0.6\tb\n-0.9\t</s>\n\n"
        "\\2-grams:\n\n\\end\\\n"
    )
    model = read(path, text)
    assert model.log_prob("a", ["<s>"]) == pytest.approx(-0.8 * LN10)
    assert model.log_prob("b", ["a"]) == pytest.approx(-0.85 * LN10)
    assert model.log_prob("a", ["b"]) == pytest.approx(-0.3 * LN10)
    assert model.score(["a", "b"]) == pytest.approx(-2.55 * LN10)
    after_a = [model.log_prob(token, ["a"]) for token in model.tokens]
    assert model.distribution([model.id_of("a")]) == pytest.approx(after_a)
    write_arpa(model, path)
    assert read_arpa(path).score(["a", "b"]) == pytest.approx(-2.55 * LN10)


def test_the_order_of_lines_does_not_matter(path: Path) -> None:
    head, *sections = GOOD.split("-grams:\n")
    mixed = []
    for section in sections:
        grams, rest = section.split("\n\n")
        mixed.append("\n".join(reversed(grams.splitlines())) + "\n\n" + rest)
    model, expected = read(path, "-grams:\n".join([head, *mixed])), read(path, GOOD)
    assert model.tokens != expected.tokens
    for context in ([], ["<s>"], ["<s>", "Ä"], ["B"], ["Ä", "B"], ["B", "Ä"]):
        for token in expected.tokens:
            assert model.log_prob(token, context) == expected.log_prob(token, context)


def test_files_are_known_to_be_compressed_by_their_content(path: Path) -> None:
    assert_same(read(path, gzip.compress(GOOD.encode())), read(path.with_suffix(".gz"), GOOD))
    with pytest.raises(InputError, match=r"cannot read the language model .*lm.arpa"):
        read(path, gzip.compress(GOOD.encode())[:-20])


@pytest.mark.parametrize("name", ["new/lm.arpa", "lm.arpa.gz"])
@pytest.mark.parametrize("estimator", [kneser_ney, witten_bell])
def test_models_survive_being_written(tmp_path: Path, name: str, estimator: Callable[..., NGram]) -> None:
    model = made_model(3, estimator)
    write_arpa(model, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b" if name.endswith(".gz") else b"\\data\\\n")
    again = read_arpa(tmp_path / name)
    assert_same(again, model, 2e-8)
    for row in model.rows(2)[:20].tolist():
        assert np.exp(again.distribution(row)).sum() == pytest.approx(1.0, abs=1e-7)


def test_what_is_written(path: Path) -> None:
    model = read(path, GOOD.replace("-0.15\t<s> Ä B", "-0.15\t<s> Ä B\t-0.7"))  # a weight of no use
    write_arpa(model, path)
    assert path.read_text() == GOOD


def test_long_sections_are_written_in_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_arpa(made_model(), path)
    whole = path.read_bytes()
    monkeypatch.setattr(arpa, "BLOCK", 7)
    write_arpa(made_model(), path)
    assert path.read_bytes() == whole


def test_beginnings_that_were_pruned_away_are_added(path: Path) -> None:
    text = (
        GOOD.replace("2=4", "2=1")
        .replace("3=1", "3=2\nngram 4=2")
        .replace("-0.8\tÄ B\n", "")
        .replace("-0.7\tB Ä\t-99\n", "")
    )
    text = text.replace("-0.2\t<s> Ä\t-0.1\n", "").replace("-0.15\t<s> Ä B", "-0.15\t<s> Ä B\t-0.2\n-0.25\tÄ Ä B")
    text = text.replace("\\end\\", "\\4-grams:\n-0.35\tB B Ä Ä\n-0.45\tB B Ä B\n\n\\end\\")
    model = read(path, text)
    assert [len(level.keys) for level in model.levels] == [5, 4, 3, 2]  # <s> Ä, Ä Ä and B B; B B Ä
    assert model.log_prob("Ä", ["B", "B", "Ä"]) == pytest.approx(-0.35 * LN10)
    assert model.log_prob("B", ["B", "B", "Ä"]) == pytest.approx(-0.45 * LN10)
    assert model.log_prob("B", ["Ä", "B", "Ä"]) == pytest.approx((-0.3 - 0.6) * LN10)
    assert model.log_prob("Ä", ["B", "B"]) == pytest.approx(-0.5 * LN10)
    assert model.log_prob("Ä", ["<s>"]) == pytest.approx((-0.4 - 0.5) * LN10)
    assert model.log_prob("B", ["<s>", "Ä"]) == pytest.approx(-0.15 * LN10)
    assert model.log_prob("</s>", ["<s>", "Ä", "B"]) == pytest.approx((-0.2 - 0.3) * LN10)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "\\date\\", r"line 22: expected an ARPA file, .* \\data\\ .* found the end of the file"),
        ("ngram 1=5\n", "", "line 2: expected ngram 1=<count>, found 'ngram 2=4'"),
        ("ngram 2=4", "ngram 2=four", r"line 3: expected the line \\1-grams:, found 'ngram 2=four'"),
        ("ngram 1=5\nngram 2=4\nngram 3=1\n", "", r"line 3: expected ngram 1=<count>, found '\\\\1-grams:'"),
        ("\\2-grams:", "\\3-grams:", r"line 13: expected the line \\2-grams:, found '\\\\3-grams:'"),
        ("ngram 1=5", "ngram 1=6", "line 6: expected 6 1-grams, as line 2 says, found 5; the file is damaged"),
        ("ngram 2=4", "ngram 2=3", "line 13: expected 3 2-grams, as line 3 says, found 4; the file is damaged"),
        ("ngram 3=1\n", "", r"line 18: expected the line \\end\\, found '\\\\3-grams:'"),
        ("\\end\\", "", r"line 22: expected the line \\end\\, found the end of the file"),
        ("-0.15\t<s> Ä B\n\n\\end\\", "", "line 19: expected 1 3-grams, as line 4 says, found 0"),
        ("-0.8\tÄ B", "-0.8\tÄ", "line 15: expected a log10 probability, 2 tokens and maybe .*, found '-0.8.*Ä'"),
        ("-0.6\tB", "-0.6", "line 11: expected a log10 probability, 1 token and maybe a back-off weight, found '-0.6'"),
        ("-0.8\tÄ B", "-0.8\tÄ B -0.1 C", "line 15: expected a log10 probability, 2 tokens"),
        ("-0.8\tÄ B", "x\tÄ B", "line 15: expected a number, found 'x'"),
        ("-0.8\tÄ B", "nan\tÄ B", "line 15: expected a number, found 'nan'"),
        ("-0.8\tÄ B", "-1_0\tÄ B", "line 15: expected a number, found '-1_0'"),
        ("-0.8\tÄ B", "-0.8\tÄ B C", "line 15: expected a number, found 'C'"),
        ("-0.8\tÄ B", "-0.8\tÄ B inf", "line 15: expected a number, found 'inf'"),
        ("-0.8\tÄ B", "0.8\tÄ B", "line 15: expected a log10 probability of 0 or less, found '0.8.*Ä B'"),
        ("-0.8\tÄ B", "-0.8\tÄ C", "line 15: expected tokens of the 1-grams, found 'C'"),
        ("-0.3\tB </s>", "-0.3\tÄ B", "line 16: expected every n-gram once, found 'Ä B' again, as in line 15"),
        ("-0.6\tB", "-0.6\tÄ", "line 11: expected every token once, found 'Ä' again"),
        ("-99\t<s>", "-99\t<S>", "expected <s> and </s> among the 1-grams, found no <s>"),
        (GOOD, "", "line 1: expected an ARPA file, .* found the end of the file"),
    ],
)
def test_malformed_files_are_told_with_the_line(path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError, match=f"^{path}(: |, ){message}"):
        read(path, GOOD.replace(old, new, 1))


def test_other_encodings_and_missing_files_are_told(path: Path) -> None:
    with pytest.raises(InputError, match="line 10: expected UTF-8, found"):
        read(path, GOOD.encode("latin-1"))
    with pytest.raises(InputError, match="cannot read the language model .*No such file"):
        read_arpa(path.with_name("none.arpa"))
    with pytest.raises(InputError, match="cannot read the language model .*Is a directory"):
        read_arpa(path.parent)


def test_an_old_file_stays_until_the_new_one_is_complete(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("old")
    blocks = iter(["first block"])

    def break_off(model: NGram) -> object:
        yield next(blocks)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(arpa, "_blocks", break_off)
    with pytest.raises(InputError, match=r"cannot write the language model .*lm.arpa \(No space left on device\)"):
        write_arpa(made_model(), path)
    assert [file.name for file in path.parent.iterdir() if file.is_file()] == [path.name]
    assert path.read_text() == "old"
    with pytest.raises(InputError, match="cannot write the language model"):
        write_arpa(made_model(), path / "lm.arpa")
