"""The layout, its formats, and the faults that a copy of it may have."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asr_lightning.errors import InputError
from data_modules.excerpt import Excerpt
from data_modules.ksponspeech import KsponSpeechDataModule

LINES = {  # of our own, by number
    "000001": "b/ 오늘은 비가 온다.",
    "000002": "(4월)/(사 월)에는+ 그/ 비가 온다",
    "620001": "한 9% 쯤*",
    "621001": "눈이 온다 n/",
}
SAID = ["오늘은 비가 온다", "사 월에는 그 비가 온다", "한 9퍼센트 쯤"]
EVALUATION = {"E00001": "해가 진다", "E00002": "달이 뜬다"}


def samples(number: str) -> np.ndarray:
    return np.random.default_rng(int(number[1:])).integers(-9_000, 9_000, 4_000 + int(number[-1]), dtype=np.int16)


def write_pair(folder: Path, number: str, line: str, odd: bool = False, encoding: str = "cp949") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"KsponSpeech_{number}.pcm"
    path.write_bytes(samples(number).astype("<i2").tobytes() + (b"\x7f" if odd else b""))
    path.with_suffix(".txt").write_bytes(line.encode(encoding))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A corpus in the layout of AI Hub."""
    lists: dict[str, list[str]] = {"train": [], "dev": [], "eval_clean": []}
    for number, line in LINES.items():
        directory = f"KsponSpeech_0{1 if number < '1' else 5}/KsponSpeech_{number[:3].rjust(4, '0')}"
        write_pair(tmp_path / directory, number, line)
        subset = "train" if number < "621" else "dev"
        lists[subset].append(f"{directory}/KsponSpeech_{number}.pcm :: {line}")
    for number, line in EVALUATION.items():
        directory = "KsponSpeech_eval/eval_clean"
        write_pair(tmp_path / directory, number, line, odd=True)
        lists["eval_clean"].append(f"{directory}/KsponSpeech_{number}.pcm :: {line}")
    (tmp_path / "scripts").mkdir()
    for subset, rows in lists.items():
        (tmp_path / "scripts" / f"{subset}.trn").write_text("\n".join(rows) + "\n", "utf-8")
    return tmp_path


def read(root: Path, subset: str = "train", **more: Any) -> dict[str, tuple[str, np.ndarray]]:
    data = KsponSpeechDataModule(root=str(root), validation_subsets=[subset], workers=0, batch_seconds=5.0, **more)
    data.prepare_data()
    data.setup("validate")
    (loader,) = data.val_dataloader().values()
    utterances = {
        id.removeprefix("KsponSpeech_"): (batch.texts[row], batch.audio[row, : batch.audio_lengths[row]].numpy())
        for batch in loader
        for row, id in enumerate(batch.ids)
    }
    assert not data.lost_utterances
    return dict(sorted(utterances.items()))


def texts(root: Path, subset: str = "train", **more: Any) -> list[str]:
    return [text for text, _ in read(root, subset, **more).values()]


def rewrite(path: Path, old: str, new: str, encoding: str = "utf-8") -> None:
    content = path.read_text("utf-8")
    assert old in content
    path.write_bytes(content.replace(old, new).encode(encoding))


def test_lists_say_what_is_in_a_subset_and_pcm_is_read_sample_by_sample(root: Path) -> None:
    utterances = read(root)
    assert [text for text, _ in utterances.values()] == SAID
    for number, (_, audio) in utterances.items():
        np.testing.assert_array_equal(audio, samples(number) / np.float32(32_768))
    assert texts(root, "dev") == ["눈이 온다"]


def test_an_odd_last_byte_is_dropped(root: Path) -> None:
    utterances = read(root, "eval_clean")
    assert list(utterances) == list(EVALUATION)
    for number, (text, audio) in utterances.items():
        assert text == EVALUATION[number]
        np.testing.assert_array_equal(audio, samples(number) / np.float32(32_768))


def test_the_side_is_chosen_and_cached_apart(root: Path) -> None:
    assert texts(root, side="spelling")[1:] == ["4월에는 그 비가 온다", "한 9% 쯤"]
    assert texts(root, side="pronunciation") == SAID


def move_lists(to: str) -> Callable[[Path], None]:
    def move(root: Path) -> None:
        (root / to).mkdir(exist_ok=True)
        for path in (root / "scripts").iterdir():
            path.rename(root / to / path.name)

    return move


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "lists in another folder": move_lists("KsponSpeech_scripts"),
    "lists beside the folders": move_lists("."),
    "no lists": lambda root: shutil.rmtree(root / "scripts"),
    "lists in CP949": lambda root: rewrite(root / "scripts/train.trn", "비가", "비가", "cp949"),
    "a byte order mark": lambda root: rewrite(root / "scripts/train.trn", "KsponSpeech_01", "\ufeffKsponSpeech_01"),
    "paths with one folder more": lambda root: rewrite(root / "scripts/train.trn", "KsponSpeech_0", "d/KsponSpeech_0"),
    "paths with one folder less": lambda root: rewrite(root / "scripts/train.trn", "KsponSpeech_05/", ""),
    "paths of the older release": lambda root: rewrite(root / "scripts/train.trn", "KsponSpeech", "KaiSpeech"),
    "empty lines": lambda root: rewrite(root / "scripts/train.trn", "\n", "\r\n\r\n"),
    "audio of another folder": lambda root: shutil.move(root / "KsponSpeech_05", root / "more"),
}  # fmt: skip


@pytest.mark.parametrize("change", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_copies_of_the_corpus_that_are_laid_out_a_little_differently(
    root: Path, change: Callable[[Path], object]
) -> None:
    change(root)
    assert texts(root) == SAID


def test_without_lists_the_parts_are_told_by_their_folders(root: Path) -> None:
    shutil.rmtree(root / "scripts")
    assert texts(root, "dev") == ["눈이 온다"]
    assert texts(root, "eval_clean") == list(EVALUATION.values())
    assert texts(root, "KsponSpeech_05") == [SAID[2], "눈이 온다"]


def test_an_excerpt_is_the_first_folders_divided_by_names_alone(tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / f"KsponSpeech_0{1 + number // 30}/KsponSpeech_{1 + number // 10:04d}"
        write_pair(folder, f"{number:06d}", f"{'가나다라'[number // 10]}{number}")
    (tmp_path / "train.trn").write_text("KsponSpeech_000039.pcm :: a list of the whole corpus", "utf-8")
    excerpt = Excerpt(folders=3, held_out=4)
    dev, train = (read(tmp_path, subset, excerpt=excerpt, seed=7) for subset in ("dev", "train"))
    assert len(dev) == 4 and len(train) == 26 and not dev.keys() & train.keys()
    assert max(*dev, *train) == "000029" and all(text[0] in "가나다" for text, _ in train.values())
    assert list(read(tmp_path, "dev", excerpt=excerpt, seed=8)) == list(dev)
    assert len(read(tmp_path, "dev", excerpt=Excerpt(4, 5))) == 5  # and it is cached apart
    assert list(read(tmp_path)) == ["000039"]
    with pytest.raises(InputError, match=r"expected 5 folders .* more than 39 utterances, found 4 with 40.*null"):
        texts(tmp_path, excerpt=Excerpt(5, 39))
    with pytest.raises(InputError, match=r"one folder or more.*got Excerpt\(folders=0, held_out=1\)"):
        Excerpt(0, 1)


def test_transcripts_beside_the_audio_may_be_utf_8(root: Path) -> None:
    shutil.rmtree(root / "scripts")
    write_pair(root / "KsponSpeech_01/KsponSpeech_0000", "000001", LINES["000001"], encoding="utf-8-sig")
    assert texts(root) == SAID


def test_audio_that_was_converted_is_read(root: Path) -> None:
    path = root / "KsponSpeech_01/KsponSpeech_0000/KsponSpeech_000001.pcm"
    soundfile.write(path.with_suffix(".flac"), samples("000001"), 16_000)
    path.unlink()
    np.testing.assert_array_equal(read(root)["000001"][1], samples("000001") / np.float32(32_768))


def test_a_mark_within_the_text_does_not_cut_it(root: Path) -> None:
    rewrite(root / "scripts/train.trn", "오늘은 비가", "오늘은 :: 비가")
    assert texts(root) == SAID


def test_three_known_files_read_a_sign_otherwise(root: Path) -> None:
    write_pair(root / "KsponSpeech_05/KsponSpeech_0502", "501006", "한 9% 쯤")
    with (root / "scripts/train.trn").open("a", encoding="utf-8") as file:
        file.write("KsponSpeech_05/KsponSpeech_0502/KsponSpeech_501006.pcm :: 한 9% 쯤\n")
    assert read(root)["501006"][0] == "한 9프로 쯤"


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no audio": (lambda folder: (folder / "KsponSpeech_000001.pcm").unlink(), "transcript without audio"),
    "no bytes": (lambda folder: (folder / "KsponSpeech_000001.pcm").write_bytes(b""), "empty audio"),
    "a WAV file": (lambda folder: (folder / "KsponSpeech_000001.pcm").write_bytes(b"RIFF" * 9), "unreadable audio"),
    "half a sample": (lambda folder: (folder / "KsponSpeech_000001.pcm").write_bytes(b"\0"), "empty audio"),
    "brackets": (
        lambda folder: rewrite(folder.parents[1] / "scripts/train.trn", "b/ 오늘은", "(오늘은"),
        "malformed annotation",
    ),
    "no mark": (
        lambda folder: rewrite(folder.parents[1] / "scripts/train.trn", "000001.pcm ::", "000001.pcm"),
        "malformed line",
    ),
}  # fmt: skip


def test_noise_without_words_is_scored_as_an_empty_transcript(root: Path) -> None:
    rewrite(root / "scripts/train.trn", "b/ 오늘은 비가 온다.", "b/ n/")
    assert texts(root) == ["", *SAID[1:]]


@pytest.mark.parametrize(("spoil", "kind"), SPOILED.values(), ids=SPOILED.keys())
def test_a_bad_file_is_named_and_can_be_left_out(root: Path, spoil: Callable[[Path], object], kind: str) -> None:
    spoil(root / "KsponSpeech_01/KsponSpeech_0000")
    with pytest.raises(InputError, match=f"(?s)1 {kind}.*(000001|train.trn:1).*on_bad skip"):
        texts(root)
    with pytest.warns(UserWarning, match=kind):
        assert texts(root, on_bad="skip") == SAID[1:]


def test_a_transcript_that_is_missing_or_of_no_encoding_is_named(root: Path) -> None:
    shutil.rmtree(root / "scripts")
    folder = root / "KsponSpeech_01/KsponSpeech_0000"
    (folder / "KsponSpeech_000001.txt").unlink()
    (folder / "KsponSpeech_000002.txt").write_bytes(b"\xff\xff\x81")
    with pytest.raises(InputError, match="(?s)1 audio without transcript.*1 transcript neither UTF-8 nor CP949"):
        texts(root)
    with pytest.warns(UserWarning, match="neither UTF-8"):
        assert texts(root, on_bad="skip") == SAID[2:]


def test_a_name_in_a_list_twice_is_reported(root: Path) -> None:
    rewrite(root / "scripts/train.trn", "KsponSpeech_000002", "KsponSpeech_000001")
    with pytest.raises(InputError, match="1 duplicate id"):
        texts(root)


def write_equal_names(root: Path, lines: str, *folders: str) -> None:
    """Files 0001.pcm in several folders, of 1,000 samples times the folder's number, and a list."""
    for number, folder in enumerate(folders, start=1):
        (root / folder).mkdir(parents=True)
        (root / folder / "0001.pcm").write_bytes(np.full(1_000 * number, number, "<i2").tobytes())
    (root / "train.trn").write_text(lines, "utf-8")


def lengths(root: Path, **more: Any) -> dict[str, int]:
    return {id: len(audio) for id, (_, audio) in read(root, **more).items()}


def test_the_longest_equal_end_of_a_listed_path_decides(tmp_path: Path) -> None:
    write_equal_names(tmp_path, "B/0001.pcm :: 가\n", "A", "B", "C/B")
    with pytest.raises(InputError, match=r"1 ambiguous path(.|\n)*B/0001.pcm may be B/0001.pcm and C/B/0001.pcm"):
        texts(tmp_path)
    (tmp_path / "train.trn").write_text("corpus/C/B/0001.pcm :: 가\n", "utf-8")
    assert lengths(tmp_path) == {"0001": 3_000}
    (tmp_path / "train.trn").write_text("corpus\\A\\0001.pcm :: 가\nC/B/0001.pcm :: 나\n", "utf-8")
    assert lengths(tmp_path) == {"A-0001": 1_000, "C-B-0001": 3_000}
    (tmp_path / "train.trn").write_text("D/0001.pcm :: 가\n", "utf-8")
    with pytest.raises(InputError, match="1 ambiguous path"):
        texts(tmp_path)


def test_a_file_of_another_folder_is_not_taken_where_names_come_twice(tmp_path: Path) -> None:
    write_equal_names(tmp_path, "B/0001.pcm :: 가\nA/0002.pcm :: 나\n", "A", "B")
    (tmp_path / "B" / "0001.pcm").rename(tmp_path / "B" / "0002.pcm")
    (tmp_path / "A" / "0003.pcm").write_bytes(bytes(2_000))
    (tmp_path / "B" / "0003.pcm").write_bytes(bytes(4_000))
    with pytest.raises(InputError, match="2 transcript without audio"):
        texts(tmp_path)


def test_a_missing_subset_is_explained(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="(?s)has no train2.*Lists there: dev, eval_clean, train.*aihub"):
        texts(root, "train2")
    with pytest.raises(InputError, match="there is no such folder"):
        texts(tmp_path / "nowhere")


def test_a_file_that_shrank_after_the_manifest_costs_itself_only(root: Path) -> None:
    data = KsponSpeechDataModule(root=str(root), validation_subsets=["train"], workers=0, batch_seconds=5.0)
    data.prepare_data()
    data.setup("validate")
    (root / "KsponSpeech_01/KsponSpeech_0000/KsponSpeech_000001.pcm").write_bytes(b"\0\0")
    (loader,) = data.val_dataloader().values()
    with pytest.warns(UserWarning, match="1 samples, expected 4001"):
        assert sum(len(batch) for batch in loader) == 2
