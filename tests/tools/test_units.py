import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from asr_lightning.asr import main
from asr_lightning.text.hangul import SyllableTokenizer
from asr_lightning.text.tokenizers import SentencePieceTokenizer

LINES = ["b/ 비가 온다.", "(3시)/(세 시)에 비가 온다", "눈이 온다", "눈이 비가"]


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    folder = tmp_path / "kspon" / "KsponSpeech_01"
    folder.mkdir(parents=True)
    for number, line in enumerate(LINES):
        (folder / f"KsponSpeech_{number:06}.pcm").write_bytes(bytes(2_000))
        (folder / f"KsponSpeech_{number:06}.txt").write_bytes(line.encode("cp949"))
    arguments: dict[str, Any] = {
        "root": str(folder.parent),
        "train_subsets": ["KsponSpeech_01"],
        "test_subsets": ["none"],
    }
    data = {"class_path": "data_modules.ksponspeech.KsponSpeechDataModule", "init_args": arguments}
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({"data": data, "model": {"class_path": "not.looked.At"}}))
    return path


def test_characters_are_those_of_the_training_transcripts(experiment: Path, tmp_path: Path) -> None:
    output = tmp_path / "units" / "characters.tsv"
    assert main(["units", "characters", "--config", str(experiment), "--output", str(output)]) == 0
    tokenizer = SyllableTokenizer(str(output))
    assert set(tokenizer.tokens[4:]) == set("비가온다세시에눈이")
    assert main(["units", "characters", "--config", str(experiment), "--output", str(output), "--tokens", "6"]) == 0
    assert len(SyllableTokenizer(str(output))) == 6


def test_pieces_are_trained_on_them(experiment: Path, tmp_path: Path) -> None:
    output = tmp_path / "pieces.model"
    assert main(["units", "bpe", "--config", str(experiment), "--output", str(output), "--tokens", "18"]) == 0
    tokenizer = SentencePieceTokenizer(str(output))
    assert len(tokenizer) == 18
    assert tokenizer.decode(tokenizer.encode("비가 온다")) == "비가 온다"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "experiment.yaml: No such file or directory"),
        ("model: 3", "expected an experiment with a part `data:`"),
        ("data: {class_path: data_modules.ksponspeech.Nothing}", "this is no configuration of a corpus"),
        (
            "data: {class_path: data_modules.ksponspeech.KsponSpeechDataModule, init_args: {root: nowhere,"
            " train_subsets: [train]}}",
            "there is no such folder",
        ),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, content: str | None, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "experiment.yaml"
    if content is not None:
        path.write_text(content)
    assert main(["units", "characters", "--config", str(path), "--output", str(tmp_path / "out")]) == 2

    assert re.search(message, capfd.readouterr().err)


def test_the_data_of_an_experiment_can_be_changed(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("cat", "hat", "mat", "rat")
    for word in words:
        soundfile.write(tmp_path / f"{word}.flac", np.zeros(1_600), 16_000)
    rows = "".join(f"{word}.flac\tthe {word} sat on a {word}\n" for word in words)
    (tmp_path / "t.tsv").write_text(f"path\ttext\n{rows}")
    output = tmp_path / "english.model"
    changes = ["--data", "data_modules.table.TableDataModule", "--data.init_args.root", str(tmp_path)]
    changes += ["--data.init_args.split", "null", "--data.init_args.train_subsets", "[train]"]
    changes += ["--data.init_args.normalize", "true"]
    assert (
        main(["units", "unigram", "--config", str(experiment), "--output", str(output), "--tokens", "18", *changes])
        == 0
    )
    tokenizer = SentencePieceTokenizer(str(output))
    assert tokenizer.decode(tokenizer.encode("THE CAT SAT")) == "THE CAT SAT"
    assert (
        main(["units", "bpe", "--config", str(experiment), "--output", str(output), "--data.init_args.rot", "x"]) == 2
    )
    assert "rot" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["units", "bpe", "--config", str(experiment), "--output", str(output), "--model.x", "3"])
