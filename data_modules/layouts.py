"""Recognize the layout of a folder: the data module that reads it, and the arguments to type."""

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import yaml

from asr_lightning.errors import InputError, shown
from asr_lightning.files import regular
from data_modules.table_reading import AUDIO_SUFFIXES, HEAD, JSON_SUFFIXES, Table, decode, find_tables, look

MOST_NAMES = 20  # in a message
MOST_FOLDERS = 500  # below a folder, that are looked at for a message
MOST_ENTRIES = 20_000  # of a folder, with all below, that are looked at for a message
ROLES = {  # of subsets, and what their names begin with
    "train": ("train", "tr_", "tr-", "tr0"),
    "validation": ("dev", "val", "dt_", "dt0"),
    "test": ("test", "eval", "tt_", "et_", "et0"),
}
WHOLE_NAMES = {  # `validated` of Common Voice holds all of its subsets
    "tr": "train", "cv": "validation", "dt": "validation", "tt": "test", "et": "test",
    "train_dev": "validation", "validated": None,
}  # fmt: skip
MODULES = {
    "TableDataModule": "table",
    "KaldiDataModule": "kaldi",
    "CutsDataModule": "cuts",
    "ShardsDataModule": "shards",
    "ArrowDataModule": "arrow",
    "LibriSpeechDataModule": "librispeech",
    "KsponSpeechDataModule": "ksponspeech",
}


class Layout(NamedTuple):
    """What was recognized: a sentence, the class that reads it, the root to give, and further arguments."""

    description: str
    module: str
    root: Path
    arguments: dict[str, object]


def role_of(subset: str) -> str | None:
    """What a subset is for, by its name: `train`, `validation` or `test`; None where the name does not tell."""
    name = re.split("cuts[_-]", subset.lower())[-1]  # as lhotse's recipes call them: librispeech_cuts_train-clean-5
    if name in WHOLE_NAMES:
        return WHOLE_NAMES[name]
    return next((role for role, beginnings in ROLES.items() if name.startswith(beginnings)), None)


def command_line(module: type | str, root: Path, arguments: dict[str, object]) -> str:
    """The arguments of `lightning fit` that read a corpus: the class, its root, and other `init_args`."""
    path = (
        f"data_modules.{MODULES[module]}.{module}"
        if isinstance(module, str)
        else f"{module.__module__}.{module.__name__}"
    )
    return f"{shlex.join(['--data', path])} {init_args({'root': root, **arguments})}"


def init_args(arguments: dict[str, object]) -> str:
    """The options of `lightning fit` that set arguments of the data."""
    words = []
    for name, value in arguments.items():
        text = _flow(value) if isinstance(value, list) else str(value)
        words += [f"--data.init_args.{name}", text]
    return shlex.join(words)


def _flow(names: list[object]) -> str:
    """A list of names in YAML, with quotation marks where it would be read as something else."""
    plain = f"[{', '.join(map(str, names))}]"
    try:
        unchanged = yaml.safe_load(plain) == names
    except yaml.YAMLError:
        unchanged = False
    return plain if unchanged else json.dumps(names, ensure_ascii=False)


def listed(names: Sequence[str]) -> str:
    """Names for a message, of which there may be many and long ones."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(shown(name, 40) for name in names[:MOST_NAMES]) + more


def advise(root: Path) -> str:
    """Say what lies in a folder, and what to type to train on it."""
    if not root.is_dir() and not root.is_file():
        parent = next(path for path in root.parents if path.is_dir())
        names = ", ".join(shown(name) for name in sorted(os.listdir(parent))[:MOST_NAMES]) or "nothing"
        return f"{root}: there is no such folder; in {parent} there is {names}. Set --data.init_args.root."
    layouts = recognize(root)
    if not layouts:
        return "\n".join(
            [f"{root} holds {_contents(root)}. docs/data.md shows the layouts that are read.", *_no_tables(root)]
        )
    lines = []
    for layout in layouts:
        lines += [layout.description + ": use", f"  {command_line(layout.module, layout.root, layout.arguments)}"]
    return "\n".join(lines)


def recognize(root: Path) -> list[Layout]:
    """The layouts that a folder, or the folders in it, may be, the surest first."""
    if root.is_file():
        return list(_tables([root], root))
    layouts = _lists(root) or [*_read_corpora(root)]
    if not layouts:
        candidates = [(folder, find_tables(folder)) for folder in _folders(root)]
        layouts = [layout for folder, tables in candidates for layout in _tables(tables, folder)][:5]
    return layouts or next(filter(None, map(_lists, islice(_folders_below(root), MOST_FOLDERS))), [])


def _lists(folder: Path) -> list[Layout]:
    """The layouts of a folder whose lists are in it or in its folders."""
    folders = [folder, *_folders(folder)]
    return [
        *_kaldi(folders, folder),
        *_arrow(folders, folder),
        *_shards(folders, folder),
        *_cuts(folder),
        *_tables(find_tables(folder), folder),
    ]


def _folders_below(root: Path) -> Iterator[Path]:
    """The folders below a folder, the nearest first; links are not followed."""
    level = [root]
    while level:
        level = [path for folder in level for path in _folders(folder) if not path.is_symlink()]
        yield from level


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _subsets(names: list[str]) -> dict[str, object]:
    """Arguments for the roles of subsets that have telling names; of a single unnamed one, those of a split."""
    roles = {role: [name for name in names if role_of(name) == role] for role in ROLES}
    if not any(roles.values()):
        roles = {"train": ["train"], "validation": ["dev"], "test": ["test"]}
    roles["validation"] = roles["validation"] or ["dev"]
    roles["test"] = roles["test"] or ["test"]
    return {f"{role}_subsets": part for role, part in roles.items() if part}


def _kaldi(folders: list[Path], root: Path) -> Iterator[Layout]:
    data = [folder for folder in folders if (folder / "wav.scp").is_file() and (folder / "text").is_file()]
    if data:
        names = [folder.name for folder in data if folder != root]
        description = (
            f"{root} is a Kaldi data folder" if data[0] == root else f"{root} has Kaldi data folders {', '.join(names)}"
        )
        yield Layout(f"{description} (wav.scp, text)", "KaldiDataModule", root, _subsets(names))


def _arrow(folders: list[Path], root: Path) -> Iterator[Layout]:
    data = [folder for folder in folders if any(folder.glob("*.arrow"))]
    if data:
        names = [folder.name for folder in data if folder != root]
        yield Layout(f"{root} is a Hugging Face dataset on disk (*.arrow)", "ArrowDataModule", root, _subsets(names))


def _shards(folders: list[Path], root: Path) -> Iterator[Layout]:
    data = [folder for folder in folders if any(folder.glob("recording.*.tar")) and any(folder.glob("cuts.*.jsonl*"))]
    if data:
        top = root.parent if data[0] == root else root
        names = [folder.name for folder in data]
        roles = {f"{role}_subsets": [name for name in names if role_of(name) == role] for role in ROLES}
        chosen: dict[str, object] = {role: part for role, part in roles.items() if part}
        yield Layout(
            f"{', '.join(names)} in {top} are shards in lhotse's Shar layout",
            "ShardsDataModule", top, chosen or {"train_subsets": names[:1]},
        )  # fmt: skip


def _cuts(root: Path) -> Iterator[Layout]:
    names = [path.name.partition(".jsonl")[0] for path in find_cuts(root)]
    if names:
        yield Layout(
            f"{root} has lhotse's cuts {', '.join(names[:MOST_NAMES])}", "CutsDataModule", root, _subsets(names)
        )
    recordings = sorted(root.glob("*recordings*.jsonl*"))
    if recordings and not names:
        recordings_name = recordings[0].name
        counterparts = [recordings_name.replace("recordings", kind) for kind in ("supervisions", "cuts")]
        command = f"lhotse cut simple -r {recordings_name} -s {counterparts[0]} {counterparts[1]}"
        yield Layout(
            f"{root} has lhotse's recordings and supervisions; make cuts of each with `{command}`, then",
            "CutsDataModule", root, {},
        )  # fmt: skip


def find_cuts(root: Path) -> list[Path]:
    """The files of lhotse's cuts in a folder that are not those of Shar."""
    paths = sorted(path for path in root.glob("*cuts*.jsonl*") if path.is_file() and path.name[0] != ".")
    return [path for path in paths if not re.fullmatch(r"cuts\.\d+\.jsonl(\.gz)?", path.name)]


def _tables(paths: list[Path], root: Path) -> Iterator[Layout]:
    """One layout for the tables whose columns have usual names; if there is none, one for each other table."""
    usual: list[Table] = []
    others: list[Table] = []
    for path in paths:
        try:
            table = look(path)
        except (OSError, InputError):
            continue
        if table is None or (path.suffix == ".json" and not table.guess()):
            continue
        (usual if {"path", "text"} <= set(table.guess()) else others).append(table)
    if usual:
        names = [table_name(table.path, root) for table in usual]
        description = "; ".join(
            f"{_below(table.path, root)} has columns {', '.join(table.columns[:MOST_NAMES])}" for table in usual[:5]
        )
        divided = "subset" in usual[0].guess()
        subsets = {} if divided else _subsets(names)
        if len(usual) > 1 and not any(map(role_of, names)):
            subsets = {"table": _below(usual[0].path, root), **subsets}
        yield Layout(description, "TableDataModule", root, subsets)
        return
    for table in others[:5]:
        guessed = table.guess()
        free = [column for column in table.columns if column not in guessed.values()]
        named = dict(zip(table.columns, map(str, table.first), strict=False))
        free.sort(key=lambda column: not named.get(column, "").strip().lower().endswith(AUDIO_SUFFIXES))
        arguments = {
            f"columns.{role}": guessed.get(role) or (free.pop(0) if free else "COLUMN") for role in ("path", "text")
        }
        header = "" if table.header else ", which has no header,"
        fields = ", ".join(shown(column, 40) for column in table.columns[:MOST_NAMES])
        row = "" if not table.first else f" (as {', '.join(shown(repr(str(field)), 40) for field in table.first[:5])})"
        yield Layout(
            f"{_below(table.path, root)}{header} has columns {fields}{row}; name that of the path and that of the text",
            "TableDataModule", root, {**({"table": _below(table.path, root)} if root.is_dir() else {}), **arguments},
        )  # fmt: skip


def _no_tables(root: Path) -> Iterator[str]:
    """Say of files that are called as tables are what they lack."""
    for path in ([root] if root.is_file() else find_tables(root))[:5]:
        try:
            if path.suffix.lower() == ".txt":  # may be anything
                continue
            with regular(path).open("rb") as file:
                line = decode(file.read(HEAD)).strip().partition("\n")[0]
        except OSError as error:
            yield f"{path.name} cannot be read: {error.strerror or error}."
            continue
        if not line:
            yield f"{path.name}: no bytes. Expected a line of column names, and a line per utterance."
        elif path.suffix.lower() in JSON_SUFFIXES:
            expected = 'an object for each utterance, as {"path": "a.wav", "text": "…"}, one a line or in a list'
            yield f"{path.name}: expected {expected}; it begins with {shown(line)}"
        else:
            yield f"{path.name}: expected a line of two or more column names; its first line is {shown(line, 40)}"


def _below(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path != root else path.name


def table_name(path: Path, root: Path) -> str:
    """The subset of a table: its name, or that of its folder."""
    return path.parent.name if path.stem == "metadata" and path.parent != root else path.stem


def _read_corpora(root: Path) -> Iterator[Layout]:
    """LibriSpeech's and KsponSpeech's layouts at any depth."""
    files = list(_walk(root))
    transcripts = [path for path in files if path.name.lower().endswith(".trans.txt")]
    if transcripts:
        # .../SUBSET/SPEAKER/CHAPTER/x.trans.txt
        tops = Counter(path.parents[3] if len(path.parents) > 3 else path.parent for path in transcripts)
        top = tops.most_common(1)[0][0]
        names = sorted(
            {path.parents[2].name for path in transcripts if len(path.parents) > 3 and path.parents[3] == top}
        )
        roles = {f"{role}_subsets": [name for name in names if role_of(name) == role] for role in ROLES}
        chosen: dict[str, object] = {role: part for role, part in roles.items() if part}
        yield Layout(
            f"{top} has LibriSpeech's layout, with the subsets {', '.join(names[:MOST_NAMES])}",
            "LibriSpeechDataModule", top, chosen or {"train_subsets": names[:1]},
        )  # fmt: skip
    lists = [path for path in files if path.suffix == ".trn"]
    if lists or any(path.suffix == ".pcm" for path in files):
        top = lists[0].parent.parent if lists and lists[0].parent != root else root
        names = sorted({path.stem for path in lists}) or ["train", "dev"]
        roles = {f"{role}_subsets": [name for name in names if role_of(name) == role] for role in ROLES}
        yield Layout(
            f"{top} has KsponSpeech's layout", "KsponSpeechDataModule", top,
            {role: part for role, part in roles.items() if part},
        )  # fmt: skip


def _walk(root: Path) -> Iterator[Path]:
    """Files of a folder and of those below, some thousands at most."""
    files = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    return islice(files, MOST_ENTRIES)


def _contents(root: Path) -> str:
    """Count the files of a folder by the ends of their names."""
    if root.is_file():
        return "no table of two columns or more"
    files = list(_walk(root))
    if not files:
        return "no files"
    counts = Counter(path.suffix.lower() or "no suffix" for path in files)
    description = ", ".join(f"{count:,} × {shown(suffix, 20)}" for suffix, count in counts.most_common(8))
    if counts[".parquet"]:
        description += (
            ". Parquet is read after `datasets.load_dataset('parquet', data_dir=ROOT).save_to_disk(FOLDER)`, with "
            "data_modules.arrow.ArrowDataModule"
        )
    pairs = {path.with_suffix("") for path in files if path.suffix.lower() in AUDIO_SUFFIXES} & {
        path.with_suffix("") for path in files if path.suffix == ".txt"
    }
    if pairs:
        find = "find . -name '*.txt' | sort | while read -r f"
        audio = "a=$(ls \"${f%.txt}\".* | grep -v '\\.txt$')"
        row = "printf '%s\\t%s\\n' \"$a\" \"$(tr '\\n\\t' '  ' < \"$f\")\""
        description += (
            ". Transcripts lie beside the audio as .txt: write a table with the columns path and text, as with\n"
            f"  cd {shlex.quote(str(root))} && (printf 'path\\ttext\\n'; {find}; do {audio}; {row}; done) > "
            "transcripts.tsv\nand use data_modules.table.TableDataModule"
        )
    return description
