import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from praatio import textgrid

from asr_lightning.asr import main
from asr_lightning.text.lexicon import read_lexicon
from asr_lightning.text.phones import Segment
from data_modules.phone_labels import CTMLabels, TextGridLabels
from tests.support.small_hybrid import DEVELOPMENT, TEST, TRAINING, Made, experiment, transcripts_of

SAMPLE = 1 / 16_000  # second


def run(made: Made, output: Path, *arguments: Any) -> int:
    config = [] if "--config" in arguments else ["--config", made.config]
    return main(["align", *map(str, ["--checkpoint", made.checkpoint, *config, "--output", output, *arguments])])


@pytest.fixture(scope="module")
def alignments(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alignments of the training subset and of one that was not trained on."""
    output = tmp_path_factory.mktemp("aligned") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASR_LIGHTNING_CACHE", str(output.parent / "cache"))
        assert run(made, output, "--subsets", TRAINING, TEST) == 0
    return output


@pytest.fixture
def changed(made: Made, tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """An experiment whose corpus has other transcripts of some utterances."""

    def change(texts: dict[str, str]) -> Path:
        corpus = tmp_path / "changed"
        shutil.copytree(made.corpus, corpus)
        for path in corpus.rglob("*.trans.txt"):
            transcripts = {id: texts.get(id, text) for id, text in transcripts_of(path.parent).items()}
            path.write_text("".join(f"{id} {text}\n" for id, text in transcripts.items()))
        (tmp_path / "changed.yaml").write_text(yaml.safe_dump(experiment(made.root, corpus)))
        return tmp_path / "changed.yaml"

    return change


def spans(folder: Path, subset: str, id: str) -> dict[str, list[Segment]]:
    """The segments of an utterance in each kind of file."""
    grids = str(folder / "TextGrid" / subset)
    return {
        **{f"{tier}.ctm": CTMLabels(str(folder / f"{subset}.{tier}.ctm")).segments(id) for tier in ("phones", "words")},
        **{tier: TextGridLabels(grids, tier).segments(id) for tier in ("phones", "words")},
    }


@pytest.mark.parametrize("subset", [TRAINING, TEST])
def test_every_utterance_is_tiled_by_its_words_and_their_phones(made: Made, alignments: Path, subset: str) -> None:
    lexicon = read_lexicon(made.corpus / "lexicon.txt").pronunciations
    transcripts = made.transcripts(subset)
    assert {path.stem for path in (alignments / "TextGrid" / subset).iterdir()} == transcripts.keys()
    for id, text in transcripts.items():
        [audio] = made.corpus.rglob(f"{id}.flac")
        seconds = soundfile.info(audio).duration
        segments_by_file = spans(alignments, subset, id)
        for tier in ("phones", "words"):
            segments, grid = segments_by_file[f"{tier}.ctm"], segments_by_file[tier]
            assert [segment.label for segment in segments] == [segment.label for segment in grid]
            for segment, grid_segment in zip(segments, grid, strict=True):
                assert (segment.start, segment.end) == pytest.approx((grid_segment.start, grid_segment.end), abs=1e-6)
            assert segments[0].start == 0.0 and segments[-1].end == pytest.approx(seconds, abs=1e-6)
            assert all(left.end == pytest.approx(right.start, abs=1e-6) for left, right in pairwise(segments))
            assert all(
                segment.end - segment.start > 0.029 for segment in segments
            )  # three states of a frame each, or longer
        words = [word for word in segments_by_file["words.ctm"] if word.label != "SIL"]
        assert " ".join(word.label for word in words) == text
        phones = segments_by_file["phones.ctm"]
        for word in words:
            inside = [phone.label for phone in phones if word.start - SAMPLE < phone.start < word.end - SAMPLE]
            assert tuple(inside) in lexicon[word.label]
        pauses = [
            [segment for segment in segments_by_file[f"{tier}.ctm"] if segment.label == "SIL"]
            for tier in ("phones", "words")
        ]
        assert pauses[0] == pauses[1]


def test_borders_are_where_the_corpus_knows_them(made: Made, alignments: Path) -> None:
    truth, errors, phones = CTMLabels(str(made.corpus)), [], 0
    for id in made.transcripts(TRAINING):
        true_segments = truth.segments(id)
        segments = spans(alignments, TRAINING, id)["phones.ctm"]
        phones += len(true_segments)
        if [segment.label for segment in segments] == [segment.label for segment in true_segments]:
            errors += [
                abs(segment.start - true_segment.start)
                for segment, true_segment in zip(segments[1:], true_segments[1:], strict=True)
            ]
    assert len(errors) > 0.2 * phones  # others paused, or were spoken in another way
    assert np.median(errors) < 0.015 and np.mean(np.array(errors) < 0.030) > 0.8, np.quantile(errors, [0.5, 0.8, 0.9])


def test_a_transcript_of_other_audio_is_named_and_left_out(
    made: Made, changed: Callable[[dict[str, str]], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = made.transcripts(TRAINING)
    by_length = sorted(right, key=lambda id: len(right[id]))
    wrong = {}
    for first, second in zip(by_length[::4], by_length[1::4], strict=False):  # neighbours exchange their texts
        wrong |= {first: right[second], second: right[first]}
    config = changed(wrong)
    options = ["--config", config, "--subsets", TRAINING]
    assert run(made, tmp_path / "out", *options) == 1
    printed = capsys.readouterr()
    named = dict(re.findall(r"^(\S+): audio and transcript do not match: (.*)", printed.err, re.MULTILINE))
    assert named.keys() <= wrong.keys() and len(named) > 0.8 * len(wrong)
    assert all(re.fullmatch(r"a mean log posterior of -\S+ without pauses, expected -6 or more", reason) for reason in
               named.values())  # fmt: skip
    share = (len(right) - len(named)) / len(right)
    assert "expected a share of 1 or more (--least-share)" in printed.err
    assert run(made, tmp_path / "some", *options, "--least-share", share) == 0
    written = {path.stem for path in (tmp_path / "out/TextGrid" / TRAINING).iterdir()}
    assert written == right.keys() - named.keys()
    assert run(made, tmp_path / "all", *options, "--least-fit=-inf") == 0  # Kaldi's search finds a way for any text
    assert len(list((tmp_path / "all/TextGrid" / TRAINING).iterdir())) == len(right)
    assert run(made, tmp_path / "none", *options, "--least-fit", "0") == 1
    assert not (tmp_path / "none/TextGrid").exists()
    assert (tmp_path / f"none/{TRAINING}.words.ctm").read_text() == ""


def test_what_cannot_be_aligned_is_named_and_the_rest_goes_on(
    made: Made, changed: Callable[[dict[str, str]], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *rest = made.transcripts(DEVELOPMENT)
    text = made.transcripts(DEVELOPMENT)[first]
    config = changed({first: f"{text} ZEBRAS YONDER", second: " ".join([text] * 30)})
    assert run(made, tmp_path / "out", "--config", config, "--subsets", DEVELOPMENT) == 1
    errors = capsys.readouterr().err
    assert f"{first}: not in the lexicon: ZEBRAS, YONDER\n" in errors
    assert re.search(rf"^{second}: too short: \d+ frames, its words need \d+$", errors, re.MULTILINE)
    assert {path.stem for path in (tmp_path / "out/TextGrid" / DEVELOPMENT).iterdir()} == set(rest)
    for id in rest:
        assert spans(tmp_path / "out", DEVELOPMENT, id)["words.ctm"]


def test_twice_in_a_row_gives_the_same_bytes(made: Made, alignments: Path, tmp_path: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file() and TEST in str(path.relative_to(folder))]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    for _ in range(2):
        assert run(made, tmp_path / "out") == 0  # what the experiment tests on
        assert contents(tmp_path / "out") == contents(alignments)
    assert len(contents(alignments)) == 2 + len(made.transcripts(TEST))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"TextGrid", f"{TEST}.phones.ctm",
                                                                    f"{TEST}.words.ctm"}  # fmt: skip


def test_what_is_stopped_leaves_no_half_files(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, calls = textgrid.Textgrid.save, []

    def save(grid: Any, path: str, **options: Any) -> None:
        original(grid, path, **options)
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(textgrid.Textgrid, "save", save)
    assert run(made, tmp_path / "out") == 130
    assert "stopped" in capsys.readouterr().err
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 2 and all(path.suffix == ".TextGrid" and path.name[0] != "." for path in files)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--checkpoint", "no.ckpt"], "no checkpoint at no.ckpt"),
        (["--checkpoint", "{other}"], "is a checkpoint of another network than the experiment"),
        (["--checkpoint", "{lexicon}"], "lexicon.txt"),
        (["--config", "none.yaml"], "none.yaml: No such file"),
        (["--config", "{lexicon}"], "lexicon.txt: "),
        (["--subsets", "dev-dirty"], "dev-dirty"),
        (["--output", "{lexicon}"], "lexicon.txt"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_named_in_one_message(
    made: Made, checkpoint: Path, more: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    paths = {"other": checkpoint, "lexicon": made.corpus / "lexicon.txt"}
    assert run(made, tmp_path / "out", *(option.format(**paths) for option in more)) == 2
    printed = capsys.readouterr()
    assert "error: " in printed.err and expected in printed.err and not printed.out
    assert not (tmp_path / "out").exists()


def test_a_subset_without_utterances_is_named(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made.corpus, tmp_path / "speech")
    for path in (tmp_path / "speech" / TEST).rglob("*.*"):
        path.unlink()
    config = tmp_path / "empty.yaml"
    config.write_text(yaml.safe_dump(experiment(made.root, tmp_path / "speech")))
    assert run(made, tmp_path / "out", "--config", config) == 2
    assert TEST in capsys.readouterr().err
    content = experiment(made.root, made.corpus)
    content["data"]["init_args"]["test_subsets"] = []
    config.write_text(yaml.safe_dump(content))
    assert run(made, tmp_path / "out", "--config", config) == 2
    assert "expected data with test_subsets, found none: give --subsets" in capsys.readouterr().err


def test_a_slip_in_an_option_is_named(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    for more, expected in ((["--subset", "--x"], "--subset"), (["--least-fit", "much"], "invalid float value: 'much'")):
        with pytest.raises(SystemExit, match="2"):
            run(made, Path("out"), *more)
        assert expected in capsys.readouterr().err
