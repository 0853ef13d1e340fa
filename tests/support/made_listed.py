"""Small corpora in the layouts that people have, made of tones; the same audio whatever the layout."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.ipc
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

TEXTS = [f"sentence number {number} of some" for number in range(24)]
RATES = (8_000, 16_000, 22_050, 44_100, 48_000)
FORMATS = ((".flac", "FLAC", "PCM_16"), (".wav", "WAV", "PCM_24"), (".mp3", "MP3", None), (".ogg", "OGG", "VORBIS"))


def chirp(number: int, rate: int, seconds: float | None = None) -> np.ndarray:
    """A rising tone with some noise, another for each number."""
    seconds = 0.4 + 0.03 * number if seconds is None else seconds
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(number).standard_normal(len(times))
    return 0.3 * np.sin(2 * np.pi * (200 + 20 * number + 150 * times) * times) + 0.02 * noise


def write_audio(folder: Path, number: int, name: str = "", mixed: bool = True) -> Path:
    """An utterance of one of the rates and formats, or as 16 kHz FLAC."""
    suffix, kind, subtype = FORMATS[number % len(FORMATS)] if mixed else FORMATS[0]
    rate = RATES[number % len(RATES)] if mixed else 16_000
    path = folder / f"{name or f'clip {number} (take 1) [b]'}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, chirp(number, rate), rate, format=kind, subtype=subtype)
    return path


def flat_folder(root: Path, suffix: str = ".tsv") -> Path:
    """Audio in one folder, and a table beside it."""
    rows = [
        {"path": write_audio(root, number).name, "text": text, "speaker": f"spk{number % 6}"}
        for number, text in enumerate(TEXTS)
    ]
    write_table(root / f"transcripts{suffix}", rows)
    return root


def common_voice(root: Path) -> Path:
    """Tables of subsets over a folder `clips`, and other tables beside them."""
    for number, subset in enumerate(("train", "dev", "test")):
        numbers = range(8 * number, 8 * number + 8)
        rows = [
            {"client_id": f"c{n % 3}", "path": write_audio(root / "clips", n, f"common_voice_en_{n}").name,
             "sentence_id": f"s{n}", "sentence": f'"{TEXTS[n]}" she said', "up_votes": "2", "locale": "en"}
            for n in numbers
        ]  # fmt: skip
        write_table(root / f"{subset}.tsv", rows)
    write_table(root / "clip_durations.tsv", [{"clip": "common_voice_en_1.mp3", "duration[ms]": "500"}])
    return root


def kaldi(root: Path) -> Path:
    """A folder `data` of a recipe, with segments of recordings that hold eight utterances each."""
    recipe = root
    for number, subset in enumerate(("train", "dev", "test")):
        numbers = range(8 * number, 8 * number + 8)
        parts = [chirp(n, 16_000) for n in numbers]
        ends = np.cumsum([len(part) for part in parts]) / 16_000
        begins = [0.0, *ends[:-1]]
        (recipe / "audio").mkdir(parents=True, exist_ok=True)
        soundfile.write(recipe / "audio" / f"call {number}.wav", np.concatenate(parts), 16_000, subtype="PCM_16")
        folder = recipe / "data" / subset
        folder.mkdir(parents=True)
        (folder / "wav.scp").write_text(f"call{number} audio/call {number}.wav\n")
        ids = [f"spk{n % 3}-utt{n:02d}" for n in numbers]
        rows = list(zip(ids, numbers, begins, ends, strict=True))
        (folder / "segments").write_text("".join(f"{id} call{number} {b:.4f} {e:.4f}\n" for id, _, b, e in rows))
        (folder / "text").write_text("".join(f"{id} {TEXTS[n]}\n" for id, n, _, _ in rows))
        (folder / "utt2spk").write_text("".join(f"{id} {id[:4]}\n" for id in ids))
    return recipe / "data"


def audio_folder(root: Path) -> Path:
    """The Hugging Face hub's: a folder for each split, with `metadata.csv` beside the audio."""
    for number, subset in enumerate(("train", "validation", "test")):
        rows = [
            {
                "file_name": f"wav/{write_audio(root / subset / 'wav', n, f'u{n}').name}",
                "transcription": f"{TEXTS[n]}, so",
            }
            for n in range(8 * number, 8 * number + 8)
        ]
        write_table(root / subset / "metadata.csv", rows)
    return root


def nemo(root: Path) -> Path:
    """Manifests of JSON lines with parts of long files."""
    long = np.concatenate([chirp(n, 44_100, 0.5) for n in range(24)])
    (root / "long").mkdir(parents=True)
    soundfile.write(root / "long" / "all.flac", long, 44_100)
    for number, subset in enumerate(("train", "dev", "test")):
        rows = [
            {"audio_filepath": "long/all.flac", "offset": 0.5 * n, "duration": 0.5, "text": TEXTS[n], "speaker": None}
            for n in range(8 * number, 8 * number + 8)
        ]
        (root / f"{subset}_manifest.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def cuts(root: Path) -> Path:
    """Files of lhotse's cuts, as its recipes call them, over parts of recordings of 22,050 Hz."""
    (root / "audio").mkdir(parents=True)
    for number, subset in enumerate(("train", "dev", "test")):
        numbers = range(8 * number, 8 * number + 8)
        path = root / "audio" / f"call-{number}.flac"
        soundfile.write(path, np.concatenate([chirp(n, 22_050, 0.6) for n in numbers]), 22_050)
        recording = Recording.from_file(path)
        cut_list = []
        for index, n in enumerate(numbers):
            segment = SupervisionSegment(f"s{n}", recording.id, 0, 0.6, text=TEXTS[n], speaker=f"spk{n % 3}")
            cut_list.append(MonoCut(f"cut-{n}", 0.6 * index, 0.6, 0, supervisions=[segment], recording=recording))
        CutSet.from_cuts(cut_list).to_file(root / f"corpus_cuts_{subset}.jsonl.gz")
    return root


def arrow(root: Path) -> Path:
    """A dataset dictionary of Hugging Face with the audio in it, two batches of rows in each file."""
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    for number, subset in enumerate(("train", "validation", "test")):
        numbers = list(range(8 * number, 8 * number + 8))
        paths = [write_audio(root.with_name("source"), n, f"u{n}") for n in numbers]
        folder = root / subset
        folder.mkdir(parents=True)
        names = []
        for part in (0, 1):
            rows = slice(4 * part, 4 * part + 4)
            audio = [{"bytes": path.read_bytes(), "path": path.name} for path in paths[rows]]
            columns = {
                "audio": pyarrow.array(audio, kind),
                "sentence": [TEXTS[n] for n in numbers[rows]],
                "speaker_id": [n % 3 for n in numbers[rows]],
            }
            table = pyarrow.table(columns)
            names.append(f"data-0000{part}-of-00002.arrow")
            with pyarrow.ipc.new_stream(folder / names[-1], table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    return root


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """CSV with quotation marks as they are written by spreadsheets, or plain TSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            lines = [list(rows[0]), *(list(row.values()) for row in rows)]
            file.write("".join("\t".join(fields) + "\n" for fields in lines))
