"""Five layouts end to end: a class and a root, the same batches from shards, and the message for a wrong root."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from asr_lightning.asr import main
from asr_lightning.audio.resampling import resample, sixteen_bits
from asr_lightning.errors import InputError
from data_modules.arrow import ArrowDataModule
from data_modules.corpus import CorpusDataModule
from data_modules.cuts import CutsDataModule
from data_modules.kaldi import KaldiDataModule
from data_modules.ksponspeech import KsponSpeechDataModule
from data_modules.layouts import advise, init_args, role_of
from data_modules.librispeech import LibriSpeechDataModule
from data_modules.shards import ShardsDataModule
from data_modules.table import TableDataModule
from data_modules.table_reading import channel_of, times_of
from tests.support import made_listed

LAYOUTS: dict[str, tuple[Callable[[Path], Path], type[CorpusDataModule]]] = {
    "flat folder and TSV": (made_listed.flat_folder, TableDataModule),
    "flat folder and CSV": (lambda root: made_listed.flat_folder(root, ".csv"), TableDataModule),
    "Common Voice": (made_listed.common_voice, TableDataModule),
    "Kaldi": (made_listed.kaldi, KaldiDataModule),
    "Hugging Face audio folder": (made_listed.audio_folder, TableDataModule),
    "NeMo": (made_listed.nemo, TableDataModule),
    "lhotse's cuts": (made_listed.cuts, CutsDataModule),
    "Hugging Face on disk": (made_listed.arrow, ArrowDataModule),
}


def ready(module: CorpusDataModule) -> CorpusDataModule:
    module.prepare_data()
    module.setup("fit")
    return module


def batches(module: CorpusDataModule, epoch: int) -> list[tuple[Any, ...]]:
    loader = ready(module).train_dataloader()
    loader.progress = lambda: (epoch, 0)
    validation = [batch for part in module.val_dataloader().values() for batch in part]
    return [
        (batch.ids, batch.texts, batch.speakers, batch.audio.tolist(), batch.audio_lengths.tolist())
        for batch in [*loader, *validation]
    ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_class_and_a_root_are_enough_and_shards_give_the_same_batches(name: str, tmp_path: Path) -> None:
    make, kind = LAYOUTS[name]
    root = make(tmp_path / "my corpus [1]")
    module = kind(root=str(root), batch_seconds=4.0, workers=0, speed_factors=[0.9, 1.0])  # type: ignore[call-arg]
    subsets = {f"{role}_subsets": module.subsets[role] for role in ("train", "validation", "test")}
    assert all(len(names) == 1 for names in subsets.values())
    expected = [batches(module, epoch) for epoch in (0, 1)]
    assert expected[0] != expected[1]
    module.setup("test")
    texts = sorted(
        module.manifests[names[0]][number].supervisions[0].text or ""
        for names in subsets.values() for number in range(len(module.manifests[names[0]]))
    )  # fmt: skip
    assert len(texts) == len(made_listed.TEXTS)
    assert all(any(text in row for row in texts) for text in made_listed.TEXTS)

    experiment = {"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": {"root": str(root)}}
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump({"data": experiment}))
    output = tmp_path / "shards"
    assert main(["shards", "--config", str(tmp_path / "experiment.yaml"), "--output", str(output),
                      "--utterances-per-shard", "5"]) == 0  # fmt: skip
    again = ShardsDataModule(str(output), batch_seconds=4.0, workers=0, speed_factors=[0.9, 1.0], **subsets)
    assert [batches(again, epoch) for epoch in (0, 1)] == expected


def read_by_text(module: CorpusDataModule) -> dict[str, np.ndarray]:
    return {
        text: audio[:length].numpy()
        for batch in ready(module).train_dataloader()
        for text, audio, length in zip(batch.texts, batch.audio, batch.audio_lengths, strict=True)
    }


def test_formats_and_rates_are_mixed_in_a_run(tmp_path: Path) -> None:
    root = made_listed.flat_folder(tmp_path / "flat")
    audio = read_by_text(TableDataModule(str(root), split=None, train_subsets=["train"], workers=0))
    assert len(audio) == len(made_listed.TEXTS)
    for number, text in enumerate(made_listed.TEXTS):
        rate = made_listed.RATES[number % len(made_listed.RATES)]
        expected = resample(made_listed.chirp(number, rate), rate, 16_000)
        lossless = number % len(made_listed.FORMATS) < 2
        assert abs(len(audio[text]) - len(expected)) <= (0 if lossless else 400)
        if lossless:
            np.testing.assert_allclose(audio[text], expected, atol=2 / 32_768)
        else:
            size = min(len(expected), len(audio[text]))
            assert np.corrcoef(audio[text][:size], expected[:size])[0, 1] > 0.95
        np.testing.assert_array_equal(audio[text], sixteen_bits(audio[text]))


def test_parts_of_long_files_are_read_without_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = soundfile.SoundFile.read
    samples: list[int] = []

    def counting(file: Any, *arguments: Any, **named: Any) -> np.ndarray:
        block = read(file, *arguments, **named)
        samples.append(len(block))
        return block

    root = made_listed.kaldi(tmp_path / "recipe")
    module = ready(KaldiDataModule(str(root), workers=0))
    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    for number in range(8):
        samples.clear()
        audio = module.read_audio(module.manifests["train"][number])
        expected = made_listed.chirp(number, 16_000)
        np.testing.assert_allclose(audio, expected, atol=1 / 32_768)
        assert sum(samples) == len(expected)


@pytest.mark.parametrize("text", ["x", "nan", "-1", "1_0"])
def test_what_is_no_channel_and_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a channel, counted from 0, found"):
        channel_of({"channel": text})
    with pytest.raises(ValueError, match="expected seconds"):
        times_of({"begin": "1.5", "end": text})
    assert channel_of({"channel": "1.0"}) == 1 and times_of({"begin": "1.5", "end": "2e0"}) == (1.5, 2.0)


def test_a_channel_is_chosen_and_opposite_ones_are_named(tmp_path: Path) -> None:
    left, right = made_listed.chirp(1, 16_000, 1.0), made_listed.chirp(2, 16_000, 1.0)
    for name, channels in (("both", (left, right)), ("opposite", (left, -left))):
        soundfile.write(tmp_path / f"{name}.wav", np.stack(channels, axis=1), 16_000, subtype="FLOAT")
    made_listed.write_table(tmp_path / "a.tsv", [{"path": f"{n}.wav", "text": n} for n in ("both", "opposite")])
    options: dict[str, Any] = {"root": str(tmp_path), "split": None, "train_subsets": ["train"], "workers": 0}
    with pytest.raises(InputError, match=r"opposite\.wav.*opposite phase.*channel 0"):
        ready(TableDataModule(**options))
    mixed = read_by_text(TableDataModule(**options, on_bad="skip"))
    np.testing.assert_allclose(mixed["both"], (left + right) / 2, atol=1 / 32_768)
    for channel, expected in ((0, left), (1, right)):
        chosen = read_by_text(TableDataModule(**options, channel=channel))
        np.testing.assert_allclose(chosen["both"], expected, atol=1 / 32_768)
    with pytest.raises(InputError, match="expected a channel 2"):
        ready(TableDataModule(**options, channel=2))
    made_listed.write_table(
        tmp_path / "a.tsv", [{"path": "both.wav", "text": f"c{n}", "channel": str(n)} for n in range(2)]
    )
    apart = read_by_text(TableDataModule(**options))
    np.testing.assert_allclose(apart["c1"], right, atol=1 / 32_768)


def test_narrow_band_audio_is_named(tmp_path: Path) -> None:
    rows = []
    for number in range(6):
        noise = 0.1 * np.random.default_rng(number).standard_normal(16_000)
        audio = resample(noise[:8_000], 8_000, 16_000) if number % 2 else noise
        soundfile.write(tmp_path / f"{number}.flac", audio, 16_000)
        rows.append({"path": f"{number}.flac", "text": "a"})
    soundfile.write(tmp_path / "6.wav", 0.1 * noise, 8_000)
    made_listed.write_table(tmp_path / "a.tsv", [*rows, {"path": "6.wav", "text": "a"}])
    with pytest.warns(UserWarning) as warned:
        ready(TableDataModule(str(tmp_path), split=None, train_subsets=["train"]))
    messages = " ".join(str(warning.message) for warning in warned)
    assert "3 of 6 utterances that were checked" in messages and "above 4,000 Hz" in messages
    assert "1 of 7 utterances are upsampled" in messages


@pytest.mark.parametrize("module", [LibriSpeechDataModule, KsponSpeechDataModule])
def test_a_wrong_module_names_the_right_one(module: type[CorpusDataModule], tmp_path: Path) -> None:
    root = made_listed.flat_folder(tmp_path / "flat")
    with pytest.raises(InputError) as refusal:
        ready(module(root=str(root), train_subsets=["train-clean-100"]))  # type: ignore[call-arg]
    assert "transcripts.tsv has columns path, text, speaker: use" in str(refusal.value)
    line = f"--data data_modules.table.TableDataModule --data.init_args.root {root}"
    assert line in str(refusal.value)
    with pytest.raises(InputError, match=r"KaldiDataModule --data.init_args.root \S*data "):
        ready(module(root=str(made_listed.kaldi(tmp_path / "kaldi")), train_subsets=["t"]))  # type: ignore[call-arg]


def test_a_listed_corpus_names_other_layouts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data_modules.table.TableDataModule"):
        KaldiDataModule(str(made_listed.common_voice(tmp_path / "voice")))
    with pytest.raises(InputError, match="data_modules.kaldi.KaldiDataModule"):
        TableDataModule(str(made_listed.kaldi(tmp_path / "kaldi")))
    with pytest.raises(InputError, match="there is no such folder.*voice"):
        TableDataModule(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no files"):
        TableDataModule(str(tmp_path / "empty"))
    (tmp_path / "empty/train.tsv").touch()
    with pytest.raises(InputError, match=r"train.tsv: no bytes. Expected a line of column names"):
        TableDataModule(str(tmp_path / "empty"))
    for name in ("train", "test"):
        made_listed.write_table(tmp_path / f"empty/{name}.tsv", [{"path": "a.flac", "text": "guten tag"}])
    with pytest.raises(InputError, match="train.tsv has no column gesagt: expected names among its columns path, text"):
        TableDataModule(str(tmp_path / "empty"), columns={"text": "gesagt"})


def test_columns_without_usual_names_are_shown_with_the_line_to_type(tmp_path: Path) -> None:
    made_listed.write_audio(tmp_path, 0, "a", mixed=False)
    made_listed.write_table(tmp_path / "t.tsv", [{"tondatei": "a.flac", "gesagt": "guten tag"}])
    with pytest.raises(InputError) as refusal:
        TableDataModule(str(tmp_path))
    assert "t.tsv has columns tondatei, gesagt" in str(refusal.value)
    assert "--data.init_args.columns.path tondatei --data.init_args.columns.text gesagt" in str(refusal.value)
    module = TableDataModule(
        str(tmp_path), columns={"path": "tondatei", "text": "gesagt"}, split=None, train_subsets=["train"], workers=0
    )
    assert list(read_by_text(module)) == ["guten tag"]


def test_advice_looks_at_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("HELLO,a.wav\nYES,b.wav\n")
    assert "--data.init_args.columns.path 1 --data.init_args.columns.text 0" in advise(tmp_path)
    (tmp_path / "t.csv").rename(tmp_path / "t.json")
    assert "t.json: expected an object for each utterance" in advise(tmp_path)
    made_listed.kaldi(tmp_path / "far/below/this")
    assert f"--data.init_args.root {tmp_path / 'far/below/this/data'} " in advise(tmp_path)
    names = {"tr": "train", "train_dev": "validation", "valid": "validation", "validated": None, "si284": None}
    assert {name: role_of(name) for name in names} == names
    assert init_args({"test_subsets": ["0", "b"]}) == """--data.init_args.test_subsets '["0", "b"]'"""


def test_transcripts_beside_the_audio_are_told_how_to_become_a_table(tmp_path: Path) -> None:
    import subprocess

    for number in range(3):
        made_listed.write_audio(tmp_path / "some folder", number, f"u{number}", mixed=False)
        (tmp_path / "some folder" / f"u{number}.txt").write_text(f"text {number}\n")
    advice = advise(tmp_path)
    [command] = [line.strip() for line in advice.splitlines() if line.strip().startswith("cd ")]
    subprocess.run(["bash", "-c", command], check=True)
    module = TableDataModule(str(tmp_path), split=None, train_subsets=["train"], workers=0)
    assert sorted(text.strip() for text in read_by_text(module)) == ["text 0", "text 1", "text 2"]


def test_a_manifest_of_nemo_without_offsets_takes_whole_files(tmp_path: Path) -> None:
    path = made_listed.write_audio(tmp_path, 3, mixed=False)
    row = {"audio_filepath": str(path), "duration": 0.49, "text": "hello"}
    (tmp_path / "train_manifest.json").write_text(json.dumps(row) + "\n")
    audio = read_by_text(TableDataModule(str(tmp_path), split=None, workers=0))
    assert len(audio["hello"]) == len(made_listed.chirp(3, 16_000))
