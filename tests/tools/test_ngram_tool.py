import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from asr_lightning.asr import main
from asr_lightning.text.arpa import read_arpa, write_arpa
from asr_lightning.text.hangul import JamoTokenizer
from asr_lightning.text.ngram import NGram
from asr_lightning.text.pruning import prune
from asr_lightning.text.smoothing import kneser_ney, witten_bell
from asr_lightning.text.tokenizers import CharacterTokenizer, SentencePieceTokenizer, train_sentencepiece

LINES = [f"{a} {b} {c}" for a in ("THE CAT", "A DOG") for b in ("SAW", "DIDN'T SEE") for c in ("ME", "THEM", "IT ALL")]


def assert_same(path: Path, model: NGram, tmp_path: Path) -> None:
    write_arpa(model, tmp_path / "expected.arpa")
    assert path.read_bytes() == (tmp_path / "expected.arpa").read_bytes()


def experiment(folder: Path, tokenizer: str, **arguments: str) -> str:
    """Write an experiment whose recognizer has this tokenizer, and return its path."""
    part = {"class_path": f"asr_lightning.text.{tokenizer}", "init_args": arguments}
    (folder / "experiment.yaml").write_text(json.dumps({"model": {"init_args": {"tokenizer": part}}}))
    return str(folder / "experiment.yaml")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "train.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


def test_the_command_estimates_and_measures(text: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "asr_lightning.tools.ngram"]
    output = tmp_path / "new" / "lm.arpa"
    arguments = ["estimate", "--order", "2", "--smoothing", "witten-bell", "--output", str(output), "-"]
    result = subprocess.run(
        [*command, *arguments], input=text.read_text(), capture_output=True, text=True, timeout=60, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    expected = witten_bell([line.split() for line in LINES], 2)
    counts = [len(level.keys) for level in expected.levels]
    assert result.stdout.splitlines() == [
        "12 sentences, 58 words, order 2, witten-bell",
        f"1-grams: {counts[0]}",
        f"2-grams: {counts[1]}",
        f"Written to {output}",
    ]
    assert_same(output, expected, tmp_path)
    (tmp_path / "test.txt").write_text("THE DOG SAW ME\nTHE COW SAW IT\n")
    result = subprocess.run(
        [*command, "perplexity", "--arpa", str(output), str(tmp_path / "test.txt")],
        capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    measured = read_arpa(output).perplexity([["THE", "DOG", "SAW", "ME"], ["THE", "COW", "SAW", "IT"]])
    assert measured.without_unknown < measured.with_unknown
    assert result.stdout.splitlines() == [
        "2 sentences, 8 words, 1 (12.50%) unknown",
        f"natural log probability {measured.log_prob + measured.unknown_log_prob:.2f}, with unknown words as <unk>",
        f"perplexity {measured.with_unknown:.2f}; {measured.without_unknown:.2f} without the unknown words",
    ]


def test_kneser_ney_trigrams_are_the_default(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ngram", "estimate", "--output", str(tmp_path / "lm.arpa"), str(text)]) == 0
    assert_same(tmp_path / "lm.arpa", kneser_ney([line.split() for line in LINES], 3), tmp_path)
    assert capsys.readouterr().out.startswith("12 sentences, 58 words, order 3, kneser-ney\n")


def test_a_pruned_model(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "lm.arpa"
    arguments = ["estimate", "--smoothing", "witten-bell", "--prune", "0.01", "--output", str(output), str(text)]
    assert main(["ngram", *arguments]) == 0
    whole = witten_bell([line.split() for line in LINES], 3)
    pruned = prune(whole, 0.01)
    assert_same(output, pruned, tmp_path)
    sizes = [(len(old.keys), len(new.keys)) for old, new in zip(whole.levels, pruned.levels, strict=True)]
    assert sizes[2][1] < sizes[2][0]
    shown = [f"{length}-grams: {old}, of which {new} stay" for length, (old, new) in enumerate(sizes, 1)]
    assert capsys.readouterr().out.splitlines()[1:4] == shown


def test_files_in_all_their_forms(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "LibriSpeech" / "1" / "2"
    folder.mkdir(parents=True)
    (folder / "1-2.trans.txt").write_text("".join(f"1-2-{n:04} {line}\n" for n, line in enumerate(LINES[:5])))
    (folder.parent / "1-1.trans.txt").write_bytes(
        b"\xef\xbb\xbf" + "".join(f"  1-1-{n:04}\t{line} \r\n\r\n" for n, line in enumerate(LINES[5:9])).encode()
    )
    (tmp_path / "text").write_bytes(gzip.compress("".join(f"id {line}\n" for line in [*LINES[9:], "  "]).encode()))
    (folder / "1-2.flac").write_bytes(b"\xff")
    pattern = str(tmp_path / "LibriSpeech" / "**" / "*.trans.txt")
    output = tmp_path / "lm.arpa"
    options = ["--skip-columns", "1", "--output", str(output)]
    assert main(["ngram", "estimate", *options, pattern, str(tmp_path / "text")]) == 0
    order = [*LINES[5:9], *LINES[:5], *LINES[9:]]  # by path
    assert_same(output, kneser_ney([line.split() for line in order], 3), tmp_path)


def test_tokens_of_the_recognizer(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "lm.arpa"
    text.write_text("".join(f"{line.lower()}!\n" for line in [*LINES, "room 101", "..."]))
    assert main(["ngram", "estimate", "--units", "tokens", "--order", "4", "--output", str(output), str(text)]) == 0
    model = read_arpa(output)
    tokenizer = CharacterTokenizer()
    assert set(model.tokens) == {*tokenizer.tokens, "<s>", "</s>"} - {"<blank>", "<eos>"}
    sentences = [[tokenizer.tokens[number] for number in tokenizer.encode(line)] for line in [*LINES, "ROOM 101"]]
    assert_same(output, kneser_ney(sentences, 4, tokenizer.tokens[1:2] + tokenizer.tokens[3:]), tmp_path)
    capsys.readouterr()
    assert main(["ngram", "perplexity", "--units", "tokens", "--arpa", str(output), str(text)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"13 sentences, {sum(map(len, sentences))} tokens, 3 (")
    assert len(printed.splitlines()) == 3


def test_pieces_of_a_sentencepiece_model(text: Path, tmp_path: Path) -> None:
    pieces = train_sentencepiece(LINES, 24, tmp_path / "pieces")
    output = tmp_path / "lm.arpa"
    config = experiment(tmp_path, "tokenizers.SentencePieceTokenizer", model=str(pieces))
    options = ["--units", "tokens", "--config", config, "--output", str(output)]
    assert main(["ngram", "estimate", *options, str(text)]) == 0
    tokenizer = SentencePieceTokenizer(str(pieces))
    sentences = [[tokenizer.tokens[number] for number in tokenizer.encode(line)] for line in LINES]
    vocabulary = [token for token in tokenizer.tokens if token not in ("<blank>", "<eos>")]
    assert_same(output, kneser_ney(sentences, 3, vocabulary), tmp_path)


def test_a_tokenizer_that_does_not_exist_is_named(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = experiment(tmp_path, "none.NoTokenizer")
    assert main(["ngram", "estimate", "--units", "tokens", "--config", config, "--output", "lm.arpa", str(text)]) == 2
    assert "there is no none in asr_lightning.text;" in capsys.readouterr().err


def test_jamo_of_korean(tmp_path: Path) -> None:
    (tmp_path / "korean.txt").write_text("나는 학교에 간다\n우리는 간다\n")
    options = ["--units", "tokens", "--config", experiment(tmp_path, "hangul.JamoTokenizer"), "--order", "2"]
    assert main(["ngram", "estimate", *options, "--output", f"{tmp_path}/lm.arpa", f"{tmp_path}/korean.txt"]) == 0
    model = read_arpa(tmp_path / "lm.arpa")
    assert set(JamoTokenizer().tokens) - {"<blank>", "<eos>"} <= set(model.tokens)
    assert model.log_prob("ᅡ") > model.log_prob("ᅲ")


def test_whatever_sentencepiece_calls_it_the_unknown_token_is_unk(text: Path, tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_prefix=f"{tmp_path}/pieces", vocab_size=24, unk_piece="?", minloglevel=2
    )
    text.write_text("THE CAT\nTHE X\n")
    config = experiment(tmp_path, "tokenizers.SentencePieceTokenizer", model=f"{tmp_path}/pieces.model")
    options = ["--units", "tokens", "--config", config, "--order", "1"]
    assert main(["ngram", "estimate", *options, "--output", str(tmp_path / "lm.arpa"), str(text)]) == 0
    model = read_arpa(tmp_path / "lm.arpa")
    assert "?" not in model.ids
    unseen = min(model.log_prob(token) for token in model.tokens if token != "<s>")
    assert model.log_prob("<unk>") > unseen  # as the X is one
    assert len(model.tokens) == len(set(model.tokens))
    assert [model.tokens.count(token) for token in ("<unk>", "<s>", "</s>")] == [1, 1, 1]


def test_other_units_than_those_of_the_model_are_suspected(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ngram", "estimate", "--units", "tokens", "--output", str(tmp_path / "lm.arpa"), str(text)]) == 0
    assert main(["ngram", "perplexity", "--arpa", str(tmp_path / "lm.arpa"), str(text)]) == 0
    assert "Most words are unknown: are --units" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["estimate", "none.txt"], "error: no text file at none.txt (looked for "),
        (["estimate", "*.none"], "error: no text file at *.none (looked for "),
        (["estimate", "folder"], "error: no text file at folder (looked for "),
        (["estimate", "latin.txt"], r"error: latin.txt, line 2: expected UTF-8, found the byte b'\xc9'"),
        (["estimate", "cut.gz"], "error: cannot read cut.gz: "),
        (["estimate", "blank.txt"], "error: expected sentences to estimate a language model from, found none"),
        (["estimate", "train.txt", "--skip-columns", "9"], "error: expected sentences to estimate"),
        (["estimate", "train.txt", "--order", "9"], "error: expected a sentence of 8 or more tokens for an order of 9"),
        (["estimate", "marked.txt"], "error: sentence 1: expected tokens without white space that are not <s> or"),
        (["estimate", "train.txt", "--config", "bare.yaml"], "error: --config bare.yaml: expected --units tokens"),
        (["estimate", "train.txt", "--units", "tokens", "--config", "m"], "error: m: No such file or directory"),
        (
            ["estimate", "train.txt", "--units", "tokens", "--config", "bare.yaml"],
            "error: bare.yaml: expected a `token",
        ),
        (["perplexity", "train.txt"], "error: cannot read the language model lm.arpa (No such file or directory)"),
        (["perplexity", "train.txt", "--arpa", "train.txt"], "error: train.txt, line 12: expected an ARPA file"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_line(
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.txt").write_bytes("CAFE\nCAFÉ\n".encode("latin-1"))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"A B C D\n")[:-9])
    (tmp_path / "blank.txt").write_text("\n  \n")
    (tmp_path / "marked.txt").write_text("<s> A </s>\n")
    (tmp_path / "bare.yaml").write_text("model: {init_args: {}}")
    option = "--output" if arguments[0] == "estimate" else "--arpa"
    files = set(tmp_path.iterdir())
    assert main(["ngram", arguments[0], option, "lm.arpa", *arguments[1:]]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1
    assert not printed.out
    assert set(tmp_path.iterdir()) == files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prune", "-1"], "--prune: invalid number above 0 value: '-1'"),
        (["--order", "0"], "--order: invalid whole number from 1 value: '0'"),
        (["--skip-columns", "-1"], "--skip-columns: invalid whole number from 0 value: '-1'"),
        (["--smoothing", "none"], "choose from"),
        (["--units", "letters"], "choose from"),
    ],
)
def test_options_that_cannot_be(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["ngram", "estimate", "--output", "lm.arpa", "train.txt", *arguments])
    assert message in capsys.readouterr().err


def test_progress_is_only_shown_on_a_terminal(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["ngram", "estimate", "--output", str(tmp_path / "lm.arpa"), str(text)]) == 0
        assert ("12 sentences" in stream.getvalue()) == shown
