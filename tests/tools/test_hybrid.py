import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from asr_lightning import cli
from asr_lightning.asr import main
from asr_lightning.errors import InputError
from asr_lightning.hmm import gmm
from asr_lightning.hmm.frame_alignment import in_seconds, phone_runs
from asr_lightning.hmm.model import HiddenMarkovModel, read_hmm
from asr_lightning.hmm.store import AlignmentStore
from asr_lightning.models.checkpoints import build_recognizer
from asr_lightning.text.lexicon import read_lexicon
from asr_lightning.text.phones import label_spans
from asr_lightning.tools import hybrid_states
from asr_lightning.tools.subsets import every
from data_modules.phone_labels import CTMLabels
from tests.support.small_hybrid import DEVELOPMENT, FEW, TEST, TRAINING, Made, experiment

FILES = {
    "HCLG.fst", "alignments.sqlite", "left_out.txt", "lexicon.txt", "mixtures.csv", "phone_grammar.fst", "phones.txt",
    "topology.json", "transitions.npy", "tree",
}  # fmt: skip
HOP, WINDOW = 0.010, 0.025  # seconds


def run(*arguments: Any) -> int:
    return main(["hybrid", *map(str, arguments)])


def prepare(made: Made, output: Path, *arguments: Any) -> int:
    lexicon = [] if "--lexicon" in arguments else ["--lexicon", made.corpus / "lexicon.txt"]
    return run("prepare", "--config", made.config, "--output", output, *lexicon, *FEW, *arguments)


def contents(folder: Path) -> dict[str, Any]:
    """The content of all files, and the entries of the database."""
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".sqlite"}
    return {**files, "alignments": {id: ids.tolist() for id, ids in AlignmentStore(folder / "alignments.sqlite")}}


def right_phones(folder: Path, corpus: Path) -> float:
    """The share of frames whose aligned phone is the one that the corpus knows, pauses left out."""
    model, truth = read_hmm(folder), CTMLabels(str(corpus))
    right = []
    for id, ids in AlignmentStore(folder / "alignments.sqlite"):
        true_segments = truth.segments(id)
        hop = HOP * model.subsampling
        starts = np.arange(len(ids)) * hop + (WINDOW - hop) / 2
        segments = in_seconds(phone_runs(model, ids), hop, WINDOW, true_segments[-1].end)
        pairs = zip(*(label_spans(track, starts, starts + hop) for track in (segments, true_segments)), strict=True)
        right += [phone == true_phone for phone, true_phone in pairs if true_phone != "SIL"]
    return float(np.mean(right))


def test_states_are_made_and_phones_found_where_they_were_spoken(made: Made) -> None:
    assert {path.name for path in made.states.iterdir()} == FILES
    alignments = contents(made.states)["alignments"]
    assert alignments.keys() == {id for subset in (TRAINING, DEVELOPMENT, TEST) for id in made.transcripts(subset)}
    model = read_hmm(made.states)
    trained = np.concatenate([alignments[id] for id in made.transcripts(TRAINING)])
    np.testing.assert_array_equal(model.transition_counts, np.bincount(trained, minlength=len(model.pdf_of)))
    assert model.lexicon.pronunciations == read_lexicon(made.corpus / "lexicon.txt").pronunciations
    assert model.tree.context_width == 3
    rows = [row.split(",") for row in (made.states / "mixtures.csv").read_text().splitlines()]
    assert rows[0] == ["model", "pass", "log_likelihood_per_frame", "gaussians", "not_aligned"]
    assert [row[0] for row in rows[1:]] == ["monophones"] * 12 + ["triphones"] * 6
    assert float(rows[12][2]) > float(rows[1][2]) and rows[12][4] == rows[18][4] == "0"
    assert float(rows[18][2]) > float(rows[12][2])  # triphones explain more than monophones
    share = right_phones(made.states, made.corpus)
    assert share > 0.6, share


def test_monophones_learn_from_the_shortest_utterances_and_triphones_from_any(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterance_ids: dict[str, list[str]] = {}
    train = gmm.train

    def watched(model: HiddenMarkovModel, examples: list[gmm.TrainingUtterance], *arguments: Any) -> Any:
        utterance_ids["triphones" if "monophones" in utterance_ids else "monophones"] = [
            utterance.id for utterance in examples
        ]
        counts.append(arguments[1])
        return train(model, examples, *arguments)

    counts: list[int] = []
    monkeypatch.setattr(gmm, "train", watched)
    minutes = ["--gmm-minutes", 0.5, "--triphone-minutes", 1.5, "--frames-per-gaussian", 10]
    assert prepare(made, tmp_path / "states", *minutes) == 0
    lengths = {id: len(ids) for id, ids in AlignmentStore(made.states / "alignments.sqlite")}
    training = sorted((lengths[id], id) for id in made.transcripts(TRAINING))
    shortest = {id for _, id in training[: len(utterance_ids["monophones"])]}
    assert set(utterance_ids["monophones"]) == shortest and 25 < sum(lengths[id] for id in shortest) / 100 <= 30
    seconds = sum(lengths[id] for id in utterance_ids["triphones"]) / 100
    assert 80 < seconds <= 90 and not shortest <= set(utterance_ids["triphones"])
    assert counts == [
        pytest.approx(sum(lengths[id] for id in utterance_ids[kind]) / 10, abs=1) for kind in utterance_ids
    ]


def test_a_network_may_see_every_third_frame_with_one_state_a_phone(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Kaldi's chain models: from states to words, and back to times."""
    states = tmp_path / "states"
    assert prepare(made, states, "--subsampling", 3, "--tied-states", 80) == 0
    assert "1 of each phone, a frame every 30 ms" in capsys.readouterr().out
    model, full_alignments = read_hmm(states), AlignmentStore(made.states / "alignments.sqlite")
    assert (model.states, model.subsampling, model.tree.context_width) == (1, 3, 3)
    assert len(model.phones) < model.pdfs <= 80
    aligned = dict(AlignmentStore(states / "alignments.sqlite"))
    assert len(aligned) > 0.9 * len(full_alignments)
    assert all(len(ids) == -(-len(full_alignments.get(id)) // 3) for id, ids in aligned.items())
    assert right_phones(states, made.corpus) > right_phones(made.states, made.corpus) - 0.08
    content = experiment(tmp_path, made.corpus)
    encoder = content["model"]["init_args"]["encoder"]["init_args"]
    torch.manual_seed(1)
    with pytest.raises(InputError, match=r"a frame for 3 feature frames, but .* give it a subsampling of 3"):
        build_recognizer(content["model"])(torch.zeros(1, 16_000), torch.tensor([16_000]))
    encoder["subsampling"] = 3
    content["model"]["init_args"]["mmi_weight"] = 0.5
    recognizer = build_recognizer(content["model"])
    [batch, *_] = every(made.config, [TRAINING], "training")
    losses = recognizer.loss(batch)
    assert losses.isfinite().all()
    losses.mean().backward()
    assert len(recognizer.transcribe(batch)) == len(batch)


def test_twice_in_a_row_gives_the_same(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert prepare(made, tmp_path / "again") == 0
        printed = capsys.readouterr()
        assert contents(tmp_path / "again") == contents(made.states)
        assert f"Written to {tmp_path / 'again'}" in printed.out and "utterances aligned, 0 not." in printed.out


def test_a_network_aligns_anew_with_the_same_states(made: Made, tmp_path: Path) -> None:
    output = tmp_path / "new" / "states"
    assert run("realign", "--config", made.config, "--checkpoint", made.checkpoint, "--output", output) == 0
    assert {path.name for path in output.iterdir()} == FILES - {"left_out.txt", "mixtures.csv"}
    old, new = contents(made.states), contents(output)
    for name in ("tree", "phones.txt", "lexicon.txt", "HCLG.fst"):
        assert new[name] == old[name]
    assert new["alignments"].keys() == old["alignments"].keys()
    assert new["alignments"] != old["alignments"]
    trained = np.concatenate([new["alignments"][id] for id in made.transcripts(TRAINING)])
    counts = np.bincount(trained, minlength=len(read_hmm(output).pdf_of))
    np.testing.assert_array_equal(read_hmm(output).transition_counts, counts)
    assert right_phones(output, made.corpus) > 0.6
    content = experiment(made.root, made.corpus)
    content["model"]["init_args"]["folder"] = str(output)
    recognizer = build_recognizer(content["model"])
    [batch, *_] = every(made.config, [TRAINING], "training")
    assert recognizer.loss(batch).isfinite().all()


def test_the_best_scale_is_found_and_taken_by_lightning_test(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = tmp_path / "new" / "tuned.yaml"
    options = ["--config", made.config, "--checkpoint", made.checkpoint, "--output", tuned]
    assert run("tune", *options, "--subsets", DEVELOPMENT, "--scales", 0.05, 0.1, 0.3) == 0
    printed = capsys.readouterr().out
    rates = {float(scale): float(rate) for scale, rate in re.findall(r"scale (\S+) .*: WER (\S+) %", printed)}
    assert set(rates) == {0.05, 0.1, 0.3} and len(set(rates.values())) > 1
    best = min(rates, key=lambda scale: rates[scale])
    search = yaml.safe_load(tuned.read_text())["model"]["init_args"]["search"]["init_args"]
    assert search == {"acoustic_scale": best, "beam": 13.0, "max_active": 7000, "hypotheses": 1, "lattice_beam": 8.0}
    monkeypatch.setattr("sys.argv", ["lightning"])
    for scale, extra in ((best, ["-c", str(tuned)]), (0.1, [])):  # 0.1 is the default
        data = ["--data.init_args.test_subsets", f"[{DEVELOPMENT}]"]
        cli.main(["test", "-c", str(made.config), *extra, *data, "--ckpt_path", str(made.checkpoint)])
        [tested_rate] = re.findall(rf"(?m)^ *{DEVELOPMENT} +(\S+)", capsys.readouterr().out)
        assert float(tested_rate) == pytest.approx(rates[scale], abs=0.01)


def test_without_subsets_the_best_scale_is_looked_for_where_the_experiment_validates(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = experiment(made.root, made.corpus)
    content["data"]["init_args"]["validation_subsets"] = [TRAINING]  # which is no development set
    (tmp_path / "none.yaml").write_text(yaml.safe_dump(content))
    options = ["--checkpoint", made.checkpoint, "--output", tmp_path / "tuned.yaml", "--scales", 0.1]
    assert run("tune", "--config", tmp_path / "none.yaml", *options) == 2
    errors = capsys.readouterr().err
    assert f"neither trains nor tests on, found {TRAINING}: give --subsets" in errors
    content["data"]["init_args"]["validation_subsets"] = [TEST]
    (tmp_path / "none.yaml").write_text(yaml.safe_dump(content))
    assert run("tune", "--config", tmp_path / "none.yaml", *options) == 2
    assert f"neither trains nor tests on, found {TEST}: give --subsets" in capsys.readouterr().err
    assert run("tune", "--config", made.config, *options, "--subsets", DEVELOPMENT, TEST) == 2
    assert f"does not test on, found {TEST} among its test_subsets" in capsys.readouterr().err
    assert not (tmp_path / "tuned.yaml").exists()
    opened = []
    original = hybrid_states.every
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hybrid_states, "every", lambda *arguments: opened.append(arguments[1]) or original(*arguments))
        assert run("tune", "--config", made.config, *options) == 0
    assert opened == [[DEVELOPMENT]]


@pytest.fixture
def smaller(made: Made, tmp_path: Path) -> tuple[Path, str]:
    """A lexicon without one of the words, and this word."""
    lines = (made.corpus / "lexicon.txt").read_text().splitlines(keepends=True)
    words = [word for text in made.transcripts(TRAINING).values() for word in text.split()]
    word = next(word for word in sorted(set(words)) if 2 <= words.count(word) <= 4 and len(word) > 4)
    path = tmp_path / "smaller.txt"
    path.write_text("".join(line for line in lines if line.split("\t")[0] != word))
    return path, word


def test_utterances_with_unknown_words_are_left_out_and_named(
    made: Made, smaller: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lexicon, word = smaller
    output = tmp_path / "states"
    assert prepare(made, output, "--lexicon", lexicon, "--unknown-words", "leave") == 0
    texts = {id: text for subset in (TRAINING, DEVELOPMENT, TEST) for id, text in made.transcripts(subset).items()}
    excluded = {id for id, text in texts.items() if word in text.split()}
    count = sum(text.split().count(word) for text in texts.values())
    printed = capsys.readouterr().out
    assert f"{len(texts) - len(excluded)} utterances aligned, {len(excluded)} not." in printed
    for id in excluded:
        assert f"{id}: not in the lexicon: {word}\n" in printed
    assert contents(output)["alignments"].keys() == texts.keys() - excluded
    assert (output / "left_out.txt").read_text() == f"{word} {count + 1}\n"  # also in the language model
    assert word not in read_hmm(output).lexicon


def test_unknown_words_are_said_as_others_are_spelt(made: Made, smaller: tuple[Path, str], tmp_path: Path) -> None:
    lexicon, word = smaller
    output = tmp_path / "states"
    assert prepare(made, output, "--lexicon", lexicon) == 0
    assert (output / "left_out.txt").read_text() == ""
    [guessed, *_] = read_hmm(output).lexicon.pronunciations[word]
    known_lexicon = read_lexicon(lexicon)
    assert set(guessed) <= set(known_lexicon.phones) and 0.5 * len(word) <= len(guessed) <= 1.5 * len(word)
    assert contents(output)["alignments"].keys() == contents(made.states)["alignments"].keys()


def test_a_language_model_of_other_texts_makes_another_graph(made: Made, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("id THE OLD ZEBRA\n" * 5 + "id SHE SAW THE OLD MAN\n" * 5)
    text = ["--text", tmp_path / "text", "--skip-columns", 1, "--order", 2, "--unknown-words", "leave"]
    assert prepare(made, tmp_path / "states", *text) == 0
    old, new = contents(made.states), contents(tmp_path / "states")
    assert new["left_out.txt"] == b"ZEBRA 1\n" and len(new["HCLG.fst"]) < 0.5 * len(old["HCLG.fst"])
    assert new["alignments"] == old["alignments"]


def test_what_is_stopped_leaves_everything_as_it_was(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made.states, tmp_path / "states")
    (tmp_path / "states/mine.txt").write_text("mine")
    old = contents(tmp_path / "states")

    def stop(*_: Any) -> None:
        assert any(path.is_dir() for path in (tmp_path / "states").iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(hybrid_states, "decoding_graph", stop)  # the last thing that is made
    for folder in ("states", "none"):
        if folder == "none":
            monkeypatch.setattr(hybrid_states, "decoding_graph", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert prepare(made, tmp_path / folder) == 130
        assert "stopped; nothing was written" in capsys.readouterr().err
    assert contents(tmp_path / "states") == old
    assert list((tmp_path / "none").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["prepare", "--config", "none.yaml", "--lexicon", "{lexicon}", "--output", "out"], "none.yaml: No such file"),
        (["prepare", "--config", "{config}", "--lexicon", "none.txt", "--output", "out"], "the lexicon none.txt"),
        (["prepare", "--config", "{config}", "--lexicon", "{config}", "--output", "out"], "hybrid.yaml, line 1"),
        (["prepare", "--config", "{lexicon}", "--lexicon", "{lexicon}", "--output", "out"], "lexicon.txt: "),
        (["prepare", "--config", "{config}", "--lexicon", "{lexicon}", "--output", "{config}"], "hybrid.yaml"),
        (["prepare", "--config", "{config}", "--lexicon", "{lexicon}", "--output", "out", "--arpa", "no.arpa"],
         "no.arpa"),
        (["prepare", "--config", "{config}", "--lexicon", "{lexicon}", "--output", "out", "--text", "no.txt"],
         "no text file at no.txt"),
        (["realign", "--config", "{config}", "--checkpoint", "no.ckpt", "--output", "out"], "no checkpoint at no.ckpt"),
        (["realign", "--config", "{config}", "--checkpoint", "{other}", "--output", "out"],
         "is a checkpoint of another network than the experiment"),
        (["tune", "--config", "{config}", "--checkpoint", "{other}", "--output", "out"],
         "is a checkpoint of another network than the experiment"),
        (["tune", "--config", "{config}", "--checkpoint", "{checkpoint}", "--output", "out", "--subsets", "dev-dirty"],
         "dev-dirty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_what_cannot_be_used_is_named_in_one_message(
    made: Made, checkpoint: Path, arguments: list[str], expected: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    paths = {
        "config": made.config, "lexicon": made.corpus / "lexicon.txt", "checkpoint": made.checkpoint,
        "other": checkpoint,
    }  # fmt: skip
    assert run(*(argument.format(**paths) for argument in arguments)) == 2
    printed = capsys.readouterr()
    assert sum(line.startswith("error: ") for line in printed.err.splitlines()) == 1
    assert expected in printed.err and "Traceback" not in printed.err and not printed.out
    assert not list(Path("out").glob("*"))


def test_subsets_without_utterances_are_named(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "speech"
    shutil.copytree(made.corpus, corpus)
    for path in (corpus / TRAINING).rglob("*.*"):
        path.unlink()
    config = tmp_path / "empty.yaml"
    config.write_text(yaml.safe_dump(experiment(made.root, corpus)))
    lexicon = made.corpus / "lexicon.txt"
    assert run("prepare", "--config", config, "--lexicon", lexicon, "--output", tmp_path / "out") == 2
    assert TRAINING in capsys.readouterr().err
    content = experiment(made.root, made.corpus)
    content["data"]["init_args"]["train_subsets"] = []
    config.write_text(yaml.safe_dump(content))
    assert run("prepare", "--config", config, "--lexicon", lexicon, "--output", tmp_path / "out") == 2
    assert "empty.yaml: expected data with train_subsets, found none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--lexicn", "x"], "--lexicon"),
        (["--lexicon", "x", "--color", "blue"], "--color"),
        (["--lexicon", "x", "--skip-columns", "-1"], "--skip-columns: invalid whole number from 0 value: '-1'"),
        (["--lexicon", "x", "--passes", "0"], "--passes: invalid whole number above 0 value: '0'"),
        (["--lexicon", "x", "--gmm-minutes", "nan"], "--gmm-minutes: invalid number above 0 value: 'nan'"),
        (["--lexicon", "x", "--order", "two"], "--order: invalid whole number above 0 value: 'two'"),
        (["--lexicon", "x", "--unknown-words", "shout"], "--unknown-words: invalid choice: 'shout'"),
    ],
)
def test_a_slip_in_an_option_is_named(more: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("prepare", "--config", "c", "--output", "o", *more)
    assert expected in capsys.readouterr().err


def test_a_training_without_the_states_is_refused_with_the_command(made: Made, tmp_path: Path) -> None:
    content = experiment(tmp_path, made.corpus)
    with pytest.raises(InputError, match=rf"{tmp_path / 'states'}.*asr hybrid"):
        build_recognizer(content["model"])
