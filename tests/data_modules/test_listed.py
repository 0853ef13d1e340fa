"""Splits, unique ids, and lines of tables and Kaldi's lists that cannot be used."""

import gzip
import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pytest

from asr_lightning.errors import InputError
from data_modules.arrow import ArrowDataModule
from data_modules.cuts import CutsDataModule
from data_modules.kaldi import KaldiDataModule
from data_modules.listed import SHARES, divide, kept_together, make_unique
from data_modules.manifest import BadFile, Listing
from data_modules.table import TableDataModule
from data_modules.table_reading import look, read_table_rows
from data_modules.walk import find_file
from tests.support import made_listed

ARROW_AUDIO = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def listings(speakers: int, each: int = 5) -> list[Listing]:
    return [Listing(f"u{s}-{n}", f"/a/u{s}-{n}.wav", "x", f"spk{s}") for s in range(speakers) for n in range(each)]


def test_a_split_keeps_speakers_together_and_everything_once() -> None:
    utterances = listings(20)
    parts = divide(utterances, SHARES, kept_together(utterances, 3), 1)
    assert sorted(utterance.id for part in parts.values() for utterance in part) == sorted(
        utterance.id for utterance in utterances
    )
    speakers = {name: {utterance.speaker for utterance in part} for name, part in parts.items()}
    assert {name: len(part) for name, part in speakers.items()} == {"train": 16, "dev": 2, "test": 2}
    assert not speakers["train"] & speakers["dev"] and not speakers["dev"] & speakers["test"]
    shuffled = divide(utterances[::-1], SHARES, "speaker", 1)
    assert {name: {utterance.id for utterance in part} for name, part in shuffled.items()} == {
        name: {utterance.id for utterance in part} for name, part in parts.items()
    }
    assert divide(utterances, SHARES, "speaker", 2) != parts


def test_utterances_are_drawn_where_speakers_are_unknown() -> None:
    utterances = [Listing(f"u{n}", f"/a/u{n}.wav", "x") for n in range(200)]
    parts = divide(utterances, SHARES, kept_together(utterances, 3), 1)
    assert {name: len(part) for name, part in parts.items()} == {"train": 160, "dev": 20, "test": 20}
    for name in ("dev", "test"):  # not a run of neighbours
        assert (
            max(int(utterance.id[1:]) for utterance in parts[name])
            - min(int(utterance.id[1:]) for utterance in parts[name])
            > 100
        )


def test_each_subset_has_a_speaker_or_it_is_an_error() -> None:
    parts = divide(listings(3, 1) + listings(1, 50), SHARES, "speaker", 1)
    assert all(parts.values())
    with pytest.raises(InputError, match="at least 3 speakers .* found 2: split_by: utterance"):
        divide(listings(2), SHARES, "speaker", 1)


def test_a_split_of_too_little_says_what_cannot_be_used(tmp_path: Path) -> None:
    table = tmp_path / "all.tsv"
    table.write_text("path\ttext\n")
    with pytest.raises(InputError, match=f"^{tmp_path}: expected at least 3 utterances .* found 0.$"):
        TableDataModule(str(tmp_path)).find_utterances("train")
    table.write_text("path\ttext\na.wav\thello\nb.wav\tyes\n")
    with pytest.raises(InputError, match="found 0.\n2 others .*:\n  2 transcript without audio\n.*:2: .*no a.wav"):
        TableDataModule(str(tmp_path)).find_utterances("train")


def test_files_of_one_name_are_called_by_their_folders() -> None:
    bad: list[BadFile] = []
    utterances = [Listing("a", f"/c/{folder}/a.wav", folder) for folder in ("x", "y", "y/z")] + [
        Listing("b", "/c/b.wav", "b")
    ]
    unique = make_unique([*utterances, utterances[0]], bad)
    assert [utterance.id for utterance in unique] == ["x-a", "y-a", "y-z-a", "b"]
    assert [file.kind for file in bad] == ["duplicate id"]


@pytest.mark.parametrize(
    ("name", "content", "columns", "row"),
    [
        ("t.csv", 'path,text\na.wav,"one, ""two"""\n', ["path", "text"], ["a.wav", 'one, "two"']),
        ("t.csv", "path;text\r\na.wav;one, two\r\n", ["path", "text"], ["a.wav", "one, two"]),
        ("t.csv", 'path,text\na.wav,"two\nlines"\n', ["path", "text"], ["a.wav", "two\nlines"]),
        ("t.tsv", 'path\tsentence\na.mp3\t"No," he said\n', ["path", "sentence"], ["a.mp3", '"No," he said']),
        ("t.tsv", 'path\ttext\na.mp3\t"a ""b"""\n', ["path", "text"], ["a.mp3", 'a "b"']),
        ("t.csv", ",path,text\n0,a.wav,x\n", ["0", "path", "text"], ["0", "a.wav", "x"]),  # as pandas writes it
        ("t.csv", "path,text\na.wav,x,,\n", ["path", "text"], ["a.wav", "x"]),
        ("t.csv", "LJ1|It is 2.|It is two.\n", ["0", "1", "2"], ["LJ1", "It is 2.", "It is two."]),
        ("t.tsv", "a.wav\thello\n", ["0", "1"], ["a.wav", "hello"]),
        ("t.jsonl", '{"audio_filepath": "a.wav", "text": "x"}\n', ["audio_filepath", "text"], ["a.wav", "x"]),
        ("t.json", '[{"path": "a.wav", "text": "x"}]', ["path", "text"], ["a.wav", "x"]),
    ],
)
def test_tables_of_all_kinds(tmp_path: Path, name: str, content: str, columns: list[str], row: list[str]) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"):
        (tmp_path / name).write_text(content, encoding=encoding, newline="")
        table = look(tmp_path / name)
        assert table is not None and table.columns == columns
        rows = [fields for _, fields in read_table_rows(table) if isinstance(fields, dict)]
        assert [list(fields.values()) for fields in rows] == [row]


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    audio = made_listed.write_audio(tmp_path / "clips", 0, "a", mixed=False)
    lines = [
        "path\ttext\tbegin\tend", "a\tgood\t0.1\t0.3", "missing.wav\tx\t\t", "a.flac\tx\tsoon\t", "a.flac\tx\t1",
        "a.flac\tx\t0.2\t900", "\tx\t\t", "a.flac\twhole\t\t", "a.flac\tx\t-1\t",
    ]  # fmt: skip
    (tmp_path / "t.tsv").write_bytes("\n".join(lines).encode() + b"\na.flac\t\xff\xfe\t0.1\t0.2\n")
    module = TableDataModule(str(tmp_path), split=None, train_subsets=["train"], workers=0, on_bad="skip")
    with pytest.warns(UserWarning, match="7 files of train cannot be used"):
        module.prepare_data()
    module.setup("fit")
    part = module.manifests["train"]
    assert [part[n].supervisions[0].text for n in range(len(part))] == ["good", "whole"]
    kinds = sorted((file.kind, file.path.removeprefix(f"{tmp_path}/t.tsv:")) for file in part.bad_files())
    assert kinds == [
        ("malformed row", "4"), ("malformed row", "5"), ("malformed row", "7"), ("malformed row", "9"),
        ("no such part", str(audio)), ("transcript not UTF-8", "10"), ("transcript without audio", "3"),
    ]  # fmt: skip


def test_a_missing_dev_is_taken_from_train(tmp_path: Path) -> None:
    root = made_listed.common_voice(tmp_path)
    (root / "dev.tsv").unlink()
    module = TableDataModule(str(root))
    assert module.subsets["validation"] == ["dev"]
    dev, train = ({utterance.id for utterance in module.find_utterances(name)[0]} for name in ("dev", "train"))
    assert dev and train and not dev & train and len(dev | train) == 8
    assert len(TableDataModule(str(root), split=None).find_utterances("train")[0]) == 8


def test_a_column_names_subsets(tmp_path: Path) -> None:
    rows = [
        {"path": made_listed.write_audio(tmp_path, n, f"u{n}", mixed=False).name, "text": "x", "split": split}
        for n, split in enumerate(("train", "train", "validation", "test"))
    ]
    made_listed.write_table(tmp_path / "all.csv", rows)
    module = TableDataModule(str(tmp_path))
    assert module.subsets == {"train": ["train"], "validation": ["validation"], "test": ["test"], "predict": ["test"]}
    assert [len(module.find_utterances(name)[0]) for name in ("train", "validation", "test")] == [2, 1, 1]


def test_options_have_manifests_of_their_own(tmp_path: Path) -> None:
    root = str(made_listed.flat_folder(tmp_path))
    options: list[dict[str, Any]] = [{}, {"split_seed": 2}, {"channel": 0}, {"normalize": True}, {"sample_rate": 8_000}]
    assert len({TableDataModule(root, **option).manifest_folder for option in options}) == len(options)


def test_what_kaldi_lists_and_is_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    path = made_listed.write_audio(folder, 0, "a", mixed=False)
    (folder / "wav.scp").write_text(f"a {path}\nb sph2pipe b.sph |\nc c.wav\nd raw.ark:17\n")
    (folder / "text").write_text("a some text\nb more\nc else\ne nothing\na twice\n")
    module = KaldiDataModule(str(folder), split=None, train_subsets=["train"])
    utterances, bad = module.list_utterances("")
    assert [(utterance.id, utterance.text) for utterance in utterances] == [("a", "some text")]
    assert sorted(file.kind for file in bad) == [
        "a pipe", "duplicate id", "transcript without audio", "transcript without audio", "transcript without audio",
    ]  # fmt: skip
    (folder / "segments").write_text("a a 0.1 0.3\ne a 0.2 -1\nb a 0.3 0.1\nc gone 0 1\n")
    utterances, bad = module.list_utterances("")
    assert [(utterance.id, utterance.begin, utterance.end) for utterance in utterances] == [
        ("a", 0.1, 0.3),
        ("e", 0.2, None),
    ]
    assert {"malformed line", "segment without audio"} <= {file.kind for file in bad}


def entries(path: Path, content: str) -> list[Any]:
    """The texts of a table's rows, and the kinds of those that cannot be used, with their lines."""
    made_listed.write_audio(path.parent, 0, "a", mixed=False)
    path.write_text(content, encoding="utf-8", newline="")
    listings, bad = TableDataModule(str(path.parent)).list_utterances("")
    return [*(listing.text for listing in listings), *(f"{file.path.rpartition(':')[2]} {file.kind}" for file in bad)]


def test_a_row_that_cannot_be_split_takes_no_other_with_it(tmp_path: Path) -> None:
    rows = 'path,text\na.flac,one\na.flac,"not closed\na.flac,"nor this\na.flac,two\na.flac,"to the end\na.flac,x\n'
    assert entries(tmp_path / "t.csv", rows) == ["one", "two", "4 malformed row", "7 malformed row"]
    lines = ['{"path": "a.flac", "text": "one"}', '{"path": "a.fl', '["a.flac", "two"]']
    lines += [f'{{"path": "a.flac", "text": {text}}}' for text in ('["a", "b"]', "true", '{"x": 1}', "5", "NaN")]
    assert entries(tmp_path / "json/t.jsonl", "\n".join(lines)) == [
        "one", "5", "", *(f"{line} malformed row" for line in (2, 3, 4, 5, 6)),
    ]  # fmt: skip


def test_of_two_columns_of_one_name_none_is_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t.csv: expected one column text, found 2. Rename"):
        entries(tmp_path / "t.csv", "path,text,text\na.flac,one,two\n")


def test_files_are_found_as_other_systems_spell_them(tmp_path: Path) -> None:
    folder = tmp_path / unicodedata.normalize("NFD", "\uc74c\uc131")
    (folder / "x.wav").mkdir(parents=True)
    for name in ("A.WAV", "two.wav", "Two.wav"):
        (folder / name).touch()
    base = unicodedata.normalize("NFC", folder.name)
    assert find_file(f"{base}/a.wav", [tmp_path]) == str(folder / "A.WAV")
    assert find_file(f"{base}\\A", [tmp_path], ("", ".wav")) == str(folder / "A.WAV")
    assert find_file("two.wav", [folder]) == str(folder / "two.wav")
    assert find_file("TWO.wav", [folder]) is None  # of two that may be meant
    assert find_file("x.wav", [folder]) == str(folder / "x.wav")  # opening it says that it is a folder
    table = tmp_path / "t.csv"
    table.write_text("path,text\nC:\\\\corpus\\\\a.wav,one\n/home/a/corpus/gone.wav,two\n")
    listings, bad = TableDataModule(str(table), audio=str(folder)).list_utterances("")
    assert [listing.path for listing in listings] == [str(folder / "A.WAV")] and len(bad) == 1


def test_utterances_that_are_trained_on_and_evaluated_are_counted(tmp_path: Path) -> None:
    root = made_listed.common_voice(tmp_path)
    (root / "validated.tsv").write_text((root / "train.tsv").read_text())
    module = TableDataModule(str(root))
    assert module.subsets["validation"] == ["dev"]  # `validated` is no subset to validate on
    options: dict[str, Any] = {"train_subsets": ["train"], "validation_subsets": ["validated"], "workers": 0}
    with pytest.warns(UserWarning, match="8 of 8 utterances of validated are also in train, as common_voice_en_0"):
        TableDataModule(str(root), **options).prepare_data()


def test_subsets_may_be_numbers_and_no_paths(tmp_path: Path) -> None:
    rows = [{"path": made_listed.write_audio(tmp_path, n, f"u{n}", mixed=False).name, "text": "x", "split": split}
            for n, split in enumerate(("0", "../up"))]  # fmt: skip
    made_listed.write_table(tmp_path / "all.csv", rows)
    assert TableDataModule(str(tmp_path), train_subsets=[0]).subsets["train"] == ["0"]
    with pytest.raises(InputError, match="names that files can have, found '../up'"):
        TableDataModule(str(tmp_path), train_subsets=["../up"]).prepare_data()


def test_lists_of_kaldi_in_utf_16_and_folders_without_text(tmp_path: Path) -> None:
    for name in ("train", "test"):
        path = made_listed.write_audio(tmp_path / name, 0, "a", mixed=False)
        (tmp_path / name / "wav.scp").write_text(f"a {path}\n")
    (tmp_path / "train/text").write_text("a \uc548\ub155\n", encoding="utf-16")
    (tmp_path / "train/segments").write_text("a a 0.3 0.1\n")
    module = KaldiDataModule(str(tmp_path), split=None, train_subsets=["train"])
    with pytest.warns(UserWarning, match="test cannot be used: there is wav.scp, but no text"):
        _, bad = module.list_utterances("train")
    assert [file.kind for file in bad] == ["malformed line"]
    (tmp_path / "train/segments").unlink()
    assert [utterance.text for utterance in module.list_utterances("train")[0]] == ["\uc548\ub155"]


def test_cuts_with_fields_of_other_kinds_are_named(tmp_path: Path) -> None:
    root = made_listed.cuts(tmp_path)
    path = root / "corpus_cuts_train.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    lines[0]["supervisions"][0]["text"], lines[1]["duration"] = 5, float("nan")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))  # and it is not compressed any more
    listings, bad = CutsDataModule(str(root)).list_utterances("corpus_cuts_train")
    assert len(listings) == 6 and [file.kind for file in bad] == ["malformed line"] * 2


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        (pyarrow.array([b"RIFF"]), "expected audio as a struct of bytes and path, .* found binary"),
        (pyarrow.array([{"array": [0.1], "path": "a"}]), "expected audio as a struct of bytes and path"),
        (pyarrow.array([{"bytes": None, "path": "a"}], ARROW_AUDIO), "neither bytes nor a file a"),
    ],
)
def test_audio_that_is_not_in_an_arrow_file(audio: Any, expected: str, tmp_path: Path) -> None:
    table = pyarrow.table({"audio": audio, "text": ["x"]})
    (tmp_path / "corpus").mkdir()
    with pyarrow.ipc.new_stream(tmp_path / "corpus/data.arrow", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match=expected):
        ArrowDataModule(str(tmp_path / "corpus")).find_utterances("train")


def test_splits_side_by_side_and_selected_rows_of_arrow_files(tmp_path: Path) -> None:
    paths = [str(made_listed.write_audio(tmp_path, number, mixed=False)) for number in (0, 1)]
    table = pyarrow.table({"file": paths, "text": ["x", "y"], "begin": [0.1, None], "end": [0.2, None]})
    for split in ("train-00000-of-00002", "train-00001-of-00002", "test"):
        with pyarrow.ipc.new_stream(tmp_path / f"corpus-{split}.arrow", table.schema) as writer:
            writer.write_table(table)
    module = ArrowDataModule(str(tmp_path), split=None)
    assert sorted(module.files) == ["test", "train"] and len(module.files["train"]) == 2
    assert [(part.begin, part.end) for part in module.list_utterances("test")[0]] == [(0.1, 0.2), (0.0, None)]
    (tmp_path / "state.json").write_text('{"_data_files": [], "_indices_data_files": [{"filename": "indices.arrow"}]}')
    with pytest.raises(InputError, match="flatten_indices"):
        ArrowDataModule(str(tmp_path))
