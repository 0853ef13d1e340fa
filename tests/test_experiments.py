"""Every experiment is complete, and its run has its name."""

import difflib
import os
import re
import shutil
import subprocess
from pathlib import Path

import lightning
import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from asr_lightning.ablations.overrides import CALLBACK_KEYS, override
from asr_lightning.ablations.tuning import read_space
from asr_lightning.callbacks.best_checkpoints import run_checkpoints
from asr_lightning.callbacks.observation import check_paths
from asr_lightning.cli import CommandLine
from asr_lightning.errors import InputError
from asr_lightning.hmm.model import HiddenMarkovModel
from asr_lightning.models.checkpoints import build_model, build_recognizer
from asr_lightning.models.experiment import parameters_without_memory
from asr_lightning.models.instantiation import instantiate
from asr_lightning.scoring import RATES
from asr_lightning.text.hangul import write_characters
from asr_lightning.text.lexicon import Lexicon
from asr_lightning.text.tokenizers import train_sentencepiece
from tests.support.small_texts import sentences

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
ALL = sorted([*EXPERIMENTS.glob("*.yaml"), *EXPERIMENTS.glob("demo/*.yaml")])
PATHS = [path for path in ALL if not path.stem.endswith("_inside")]
INSIDE = [path for path in ALL if path.stem.endswith("_inside")]  # analyses, given beside another experiment
MODELS = [yaml.safe_load(path.read_text("utf-8"))["model"]["init_args"] for path in PATHS]
STATES = {model["folder"] for model in MODELS if "folder" in model}  # of hybrids


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SentencePiece model."""
    return train_sentencepiece(sentences(200), 40, tmp_path_factory.mktemp("pieces") / "tokens")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: Path) -> None:
    """A folder that has only the files that users make first."""
    monkeypatch.chdir(tmp_path)
    public = Path("runs/public/checkpoints")
    public.mkdir(parents=True)
    shutil.copy(pieces, public / "tokens.model")
    write_characters(["".join(map(chr, range(0xAC00, 0xAC00 + 1_997)))], Path("data/ksponspeech_characters.tsv"))
    for folder in STATES:
        HiddenMarkovModel.monophone(Lexicon({"A": (("a",),)})).write(Path(folder))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_models_and_data_can_be_built(path: Path) -> None:
    config = yaml.safe_load(path.read_text("utf-8"))
    with parameters_without_memory():
        model = build_model(config["model"], lightning.LightningModule)
    assert sum(parameter.numel() for parameter in model.parameters()) > 100_000
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(lightning.LightningDataModule, "data", required=True)
    assert isinstance(
        parser.instantiate(parser.parse_object({"data": config["data"]})).data, lightning.LightningDataModule
    )


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_runs_have_folders_of_the_experiments_name(path: Path) -> None:
    config = yaml.safe_load(path.read_text("utf-8"))
    expected = f"runs/demo/{path.stem}/seed1" if path.parent.name == "demo" else f"runs/{path.stem}"
    assert config["trainer"]["default_root_dir"] == expected
    assert len(path.read_text("utf-8").splitlines()) <= 66


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_what_every_run_does_stands_in_no_experiment(path: Path) -> None:
    config = yaml.safe_load(path.read_text("utf-8"))
    assert "callbacks" not in config["trainer"]
    assert set(config) <= {
        *("model", "data", "trainer", "checkpoints"),
        *("initialization", "initialize_from", "weight_selection"),
    }
    parser = LightningArgumentParser(exit_on_error=False)
    CommandLine.add_arguments_to_parser(None, parser)  # type: ignore[arg-type] # it needs no command line
    arguments = {key: config[key] for key in CALLBACK_KEYS if key in config}
    namespace = parser.instantiate_classes(parser.parse_object(arguments))
    subsets = config["data"]["init_args"]
    names = {kind: subsets.get(f"{kind}_subsets", []) for kind in ("train", "validation", "test")}
    best = [checkpoint for checkpoint in run_checkpoints(**namespace.checkpoints, subsets=names) if checkpoint.monitor]
    assert [checkpoint.metric for checkpoint in best] == (
        ["cer" if re.search("kspo|kospeech", path.stem) else "wer"] if path in CHOOSING else []
    )


CHOOSING = [  # checkpoints by a development subset: those of full size that do not only follow a paper's test sets
    path for path in PATHS if path.parent == EXPERIMENTS and path.stem != "lm_char"
]


def test_a_student_s_experiment_is_the_one_without_selection_and_three_lines() -> None:
    for name in ("rnnt", "rnnt_lstm", "rnnt_streaming", "demo/rnnt", "demo/rnnt_streaming"):
        random_lines, selected_lines = (
            (EXPERIMENTS / f"{name}_{kind}.yaml").read_text().splitlines() for kind in ("random", "ws")
        )
        changed = [line for line in difflib.ndiff(random_lines, selected_lines) if line[0] in "+-"]
        assert [line.split(":")[0] for line in changed] == [
            *("-   default_root_dir", "+   default_root_dir"),
            *("+ weight_selection", "+   teacher", "+   made_by"),
        ]


def test_students_of_a_public_teacher_differ_in_what_they_take_of_it() -> None:
    selected, random = (
        yaml.safe_load((EXPERIMENTS / f"rnnt_{kind}_public.yaml").read_text()) for kind in ("ws", "random")
    )
    teacher = selected.pop("weight_selection")["teacher"]
    statistics = random.pop("initialize_from")
    for experiment in (selected, random):
        del experiment["trainer"]["default_root_dir"]
    assert selected == random and statistics["checkpoint"] == teacher
    with parameters_without_memory():
        parts = [name for name, part in build_recognizer(random["model"]).named_children() if part.state_dict()]
    assert sorted(statistics["skip"]) == sorted({*parts} - {"features", "ctc"})


def test_a_hybrid_without_its_states_says_how_to_make_them() -> None:
    model = yaml.safe_load((EXPERIMENTS / "demo/hybrid.yaml").read_text("utf-8"))["model"]
    shutil.rmtree(model["init_args"]["folder"])
    with pytest.raises(InputError, match=r"runs/demo/hybrid/states.*asr hybrid"):
        build_recognizer(model)


@pytest.mark.parametrize("path", INSIDE, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_what_looks_inside_is_callbacks_that_fit_the_network(path: Path) -> None:
    inside, trained = (
        yaml.safe_load(file.read_text("utf-8")) for file in (path, path.with_name(path.name.replace("_inside", "")))
    )
    assert list(inside) == ["trainer"] and list(inside["trainer"]) == ["callbacks+"]
    callbacks = inside["trainer"]["callbacks+"]
    for callback in callbacks:
        instance, _ = instantiate(callback, lightning.Callback, "a callback")
        assert type(instance).__name__ == callback["class_path"].rpartition(".")[2]
    with parameters_without_memory():
        model = build_recognizer(trained["model"])
    [activations] = [callback for callback in callbacks if callback["class_path"].endswith("Activations")]
    check_paths(model, activations["init_args"]["modules"])
    command = next(line for line in path.read_text("utf-8").splitlines() if "lightning test" in line and "--" in line)
    name = path.relative_to(EXPERIMENTS.parent)
    assert command == (
        f"#   lightning test --config {str(name).replace('_inside', '')} --config {name} --ckpt_path "
        f"{trained['trainer']['default_root_dir']}/checkpoints/last.ckpt"
    )


@pytest.mark.parametrize("name", ["e2e_a", "e2e_b", "demo/e2e_a", "demo/e2e_b"])
def test_one_key_gives_models_a_and_b_the_order_of_las(name: str) -> None:
    config = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text("utf-8"))["model"]
    shapes = []
    for query_state in ("previous", "current"):
        config["init_args"]["decoder"]["init_args"]["query_state"] = query_state
        with parameters_without_memory():
            weights = build_recognizer(config).state_dict()
        shapes.append({part: tuple(weight.shape) for part, weight in weights.items()})
    assert {part for part, shape in shapes[0].items() if shapes[1].pop(part) != shape} == {"decoder.output.weight"}
    assert not shapes[1]


SPACES = sorted(EXPERIMENTS.glob("search_spaces/*.yaml"))
DEEP_SPEECH_2 = ["ds2", "ds2_kspon", "ds2_kospeech", "demo/ds2"]


@pytest.mark.parametrize("space", SPACES, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", DEEP_SPEECH_2)
@pytest.mark.parametrize("end", [0, -1])
def test_both_ends_of_a_search_space_can_be_built(space: Path, name: str, end: int) -> None:
    config = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text("utf-8"))
    for key, values in read_space(space).items():
        *folders, last = key.split(".")
        part = config
        for folder in folders:
            part = part[folder]  # an argument of a part that the experiment has
        part[last] = values[end] if isinstance(values, list) else values["high" if end else "low"]
    with parameters_without_memory():
        assert build_recognizer(config["model"]).make_optimizer
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(lightning.LightningDataModule, "data", required=True)
    parser.parse_object({"data": config["data"]})


SWEEPS = sorted(EXPERIMENTS.glob("sweeps/*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
@pytest.mark.parametrize("end", [0, -1])
def test_a_sweep_of_wandb_runs_a_command_that_an_experiment_takes(
    path: Path, end: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that W&B's agent makes of sampled values is run with a `lightning` that prints its arguments."""
    sweep = yaml.safe_load(path.read_text("utf-8"))
    parameters = {
        key: {"value": space["values"][end] if "values" in space else space["max" if end else "min"]}
        for key, space in sweep["parameters"].items()
    }
    arguments = create_sweep_command_args({"args": parameters})["args"]
    command = [
        word for part in create_sweep_command(sweep["command"]) for word in (arguments if part == "${args}" else [part])
    ]
    program = tmp_path / "lightning"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_RUN_ID", "of run 1")
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[:3] == ["fit", "--config", f"experiments/{Path(words[2]).name}"]
    assert words[3:5] == ["--trainer.default_root_dir", f"runs/sweeps/{path.stem}/of run 1"]
    experiment = yaml.safe_load((EXPERIMENTS.parent / words[2]).read_text("utf-8"))
    values = {key: yaml.safe_load(value) for key, value in (word[2:].split("=", 1) for word in words[5:])}
    assert values.keys() == parameters.keys()
    with parameters_without_memory():
        assert build_recognizer(override(experiment, values)["model"])
    subset, _, rate = sweep["metric"]["name"].rpartition("/")
    assert rate in RATES and subset in experiment["data"]["init_args"]["validation_subsets"]
    assert subset not in experiment["data"]["init_args"]["test_subsets"]
