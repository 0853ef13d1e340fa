"""Every ablation of the project, at both scales; and the rules of planning."""

import re
from pathlib import Path
from typing import Any

import lightning
import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from asr_lightning.ablations.definition import SCALES, read_ablation
from asr_lightning.ablations.overrides import CALLBACK_KEYS, as_yaml, differences
from asr_lightning.ablations.plan import Plan, plan_ablation
from asr_lightning.cli import CommandLine
from asr_lightning.errors import InputError
from asr_lightning.hmm.model import HiddenMarkovModel
from asr_lightning.models.checkpoints import build_model
from asr_lightning.models.experiment import parameters_without_memory
from asr_lightning.text.hangul import write_characters
from asr_lightning.text.lexicon import Lexicon

PROJECT = Path(__file__).parents[2]
ABLATIONS = sorted((PROJECT / "experiments/ablations").glob("*.yaml"))
CASES = [(path, scale) for path in ABLATIONS for scale in SCALES if read_ablation(path).names(scale)]
IDS = [f"{path.stem}-{scale}" for path, scale in CASES]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without runs."""
    monkeypatch.chdir(tmp_path)
    Path("experiments").symlink_to(PROJECT / "experiments")


def plan(path: Path, scale: str) -> Plan:
    return plan_ablation(Path("experiments/ablations") / path.name, scale)


@pytest.mark.parametrize(("path", "scale"), CASES, ids=IDS)
def test_every_model_corpus_and_callback_of_every_ablation_can_be_built(path: Path, scale: str) -> None:
    planned = plan_ablation(Path("experiments/ablations") / path.name, scale, seeds=[1])  # others are alike
    models: dict[str, Any] = {}
    run_keys = LightningArgumentParser(exit_on_error=False)
    CommandLine.add_arguments_to_parser(None, run_keys)  # type: ignore[arg-type] # it needs no command line
    for run in planned.runs:
        assert not any("{" in word for command in run.commands for word in command), run.commands
        for experiment in run.experiments.values():
            models.setdefault(as_yaml(experiment["model"]), experiment["model"])
            callbacks = ArgumentParser()
            callbacks.add_argument("--callbacks", type=list[lightning.Callback])
            callbacks.parse_object({"callbacks": experiment["trainer"].get("callbacks", [])})
            for key in CALLBACK_KEYS:
                run_keys.parse_object({key: experiment.get(key, {})}, defaults=True)
            data = ArgumentParser()
            data.add_subclass_arguments(lightning.LightningDataModule, "data")
            data.parse_object({"data": experiment["data"]})
    for model in models.values():
        if "folder" in model["init_args"]:  # of a hybrid, whose states are made first
            HiddenMarkovModel.monophone(Lexicon({"A": (("a",),)})).write(Path(model["init_args"]["folder"]))
        if characters := model["init_args"]["tokenizer"].get("init_args", {}).get("characters"):  # so are these
            write_characters(["".join(map(chr, range(0xAC00, 0xAC00 + 1_997)))], Path(characters))
        search = model["init_args"].get("search", {}).get("init_args", {})
        if "language_model" in search:  # it is trained first
            assert search["language_model"]["init_args"]["checkpoint"].endswith("checkpoints/last.ckpt")
            del model["init_args"]["search"]
        with parameters_without_memory():
            built = build_model(model, lightning.LightningModule)
        assert sum(parameter.numel() for parameter in built.parameters()) > 100_000


@pytest.mark.parametrize(("path", "scale"), CASES, ids=IDS)
def test_lists_of_characters_are_made_by_what_is_needed(path: Path, scale: str) -> None:
    planned = plan(path, scale)
    words = {word for run in planned.runs for command in run.commands for word in command}
    for run in planned.runs:
        if all("fit" in command or "test" in command for command in run.commands):
            tokenizer = run.experiments["experiment.yaml"]["model"]["init_args"]["tokenizer"]
            characters = tokenizer.get("init_args", {}).get("characters")
            assert characters is None or characters in words, characters


@pytest.mark.parametrize(("path", "scale"), CASES, ids=IDS)
def test_no_two_variants_are_the_same(path: Path, scale: str) -> None:
    planned = plan_ablation(Path("experiments/ablations") / path.name, scale, seeds=[1])
    for index, run in enumerate(planned.compared):
        for other in planned.compared[:index]:
            first, second = (planned_run.experiments["experiment.yaml"] for planned_run in (run, other))
            lines = [line for line in differences(first, second) if not line.startswith("trainer.default_root_dir")]
            assert lines, (run.name, other.name)


@pytest.mark.parametrize(("path", "scale"), CASES, ids=IDS)
def test_variants_are_trained_for_as_long_on_the_same_data(path: Path, scale: str) -> None:
    planned = plan_ablation(Path("experiments/ablations") / path.name, scale, seeds=[1])
    trained = [run.experiments["experiment.yaml"] for run in planned.compared if "fit" in run.commands[0]]
    for key in ("root", "train_subsets", "minutes", "test_subsets"):
        assert len({str(experiment["data"]["init_args"].get(key)) for experiment in trained}) == 1, key


def network(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model["init_args"].items() if key != "search"}


@pytest.mark.parametrize(("path", "scale"), CASES, ids=IDS)
def test_what_is_tested_is_the_network_that_was_trained(path: Path, scale: str) -> None:
    planned = plan_ablation(Path("experiments/ablations") / path.name, scale, seeds=[1])
    models = {
        str(run.folder / "checkpoints/last.ckpt"): run.experiments["experiment.yaml"]["model"] for run in planned.runs
    }
    for run in planned.runs:
        for command in (command for command in run.commands if "test" in command):
            trained = models[command[command.index("--ckpt_path") + 1]]
            name = Path(command[command.index("--config") + 1]).name
            assert network(trained) == network(run.experiments[name]["model"]), run.folder


@pytest.mark.parametrize(("path", "scale"), CASES, ids=IDS)
def test_every_network_gets_rates_on_the_test_sets(path: Path, scale: str) -> None:
    """Whichever seed, whether it is validated on them, tested or looked into."""
    planned = plan(path, scale)
    for run in planned.compared:
        data = run.experiments["experiment.yaml"]["data"]["init_args"]
        tested = any(command[2:3] == ("test",) for command in run.commands)
        assert data["test_subsets"] and (tested or set(data["test_subsets"]) <= set(data["validation_subsets"])), run
        assert sum(command[2:3] == ("test",) for command in run.commands) <= 2, "once, and once to look inside"
        assert set(planned.ablation.subsets) <= set(data["test_subsets"]), "what the table shows"


def test_every_ablation_has_a_target_of_make() -> None:
    targets = (PROJECT / "Makefile").read_text("utf-8")
    assert [path.stem for path in ABLATIONS if not re.search(rf"\b{path.stem}\b", targets)] == []


@pytest.mark.parametrize(("path", "scale"), CASES, ids=IDS)
def test_a_run_comes_after_what_it_needs(path: Path, scale: str) -> None:
    levels: dict[Path, int] = {}
    for run in plan(path, scale).runs:
        assert set(run.needs) <= set(levels), run.folder
        assert run.level == 1 + max((levels[need] for need in run.needs), default=-1)
        levels[run.folder] = run.level


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An experiment that is small enough to be read."""
    experiment = {
        "model": {"class_path": "a.Model", "init_args": {"layers": 3}},
        "data": {"class_path": "a.Data", "init_args": {"root": "corpus", "batch_seconds": 400, "workers": 8}},
        "trainer": {"max_epochs": 50, "callbacks": [{"class_path": "a.Selection", "init_args": {"teacher": "t"}}]},
    }
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(experiment), "utf-8")
    return path


def write(path: Path, **content: Any) -> Path:  # noqa: ANN401
    path.write_text(yaml.safe_dump({"question": "Does it?", "source": "Us 2026", **content}, sort_keys=False), "utf-8")
    return path


def test_a_planned_run_is_what_the_ablation_says(base: Path, tmp_path: Path) -> None:
    path = write(
        tmp_path / "depth.yaml",
        base=str(base),
        needs={"teacher": {}, "states": {"command": "hybrid prepare --config {experiment} --output {folder}"}},
        variants={
            "plain": {},
            "deep": {
                "values": {
                    "model.init_args.layers": {"demo": 4, "full": 12},
                    "trainer.callbacks.Selection.init_args.teacher": "{teacher}/checkpoints/last.ckpt",
                    "model.init_args.folder": "{states}",
                },
                "after": ["hybrid tune --checkpoint {checkpoint} --output '{folder}/a b'"],
                "inside": str(base),
            },
            "searched": {"network": "deep", "values": {"model.init_args.beam": 8}},
        },
        outputs=["convergence {runs} --output {output}", {"command": "path", "each_seed": "--between {plain} {deep}"}],
    )
    planned = plan_ablation(path, "full", tmp_path / "r", seeds=[3, 4])
    folder = tmp_path / "r/full/depth"
    assert [str(run.folder.relative_to(folder)) for run in planned.runs] == [
        *("plain/seed3", "plain/seed4", "teacher/seed1", "states/seed1"),
        *("deep/seed3", "deep/seed4", "searched/seed3", "searched/seed4"),
    ]
    deep, again, searched = planned.runs[4:7]
    experiment = deep.experiments["experiment.yaml"]
    assert experiment["model"]["init_args"] == {"layers": 12, "folder": str(folder / "states/seed1")}
    assert experiment["seed_everything"] == 3 and experiment["trainer"]["default_root_dir"] == str(
        folder / "deep/seed3"
    )
    [selection] = experiment["trainer"]["callbacks"]
    assert selection["init_args"] == {"teacher": str(folder / "teacher/seed1/checkpoints/last.ckpt")}
    config, checkpoint = str(folder / "deep/seed3/experiment.yaml"), str(folder / "deep/seed3/checkpoints/last.ckpt")
    assert deep.commands == (
        ("-m", "asr_lightning", "fit", "--config", config, "--ckpt_path", "last"),
        (
            "-m",
            "asr_lightning.tools.hybrid",
            "tune",
            "--checkpoint",
            checkpoint,
            "--output",
            f"{folder}/deep/seed3/a b",
        ),
        ("-m", "asr_lightning", "test", "--config", config.replace("experiment", "inside"), "--ckpt_path", checkpoint),
    )
    assert len(again.commands) == 2, "only the first seed's network is looked into"
    assert searched.commands == (
        *(("-m", "asr_lightning", "test", "--config", str(searched.experiment), "--ckpt_path", checkpoint),),
    )
    assert searched.needs == (deep.folder,) and searched.level == 2
    assert planned.outputs[0][2:6] == tuple(
        str(folder / name) for name in ("plain/seed3", "plain/seed4", "deep/seed3", "deep/seed4")
    )
    assert planned.outputs[1][2:] == (
        *("--between", str(folder / "plain/seed3"), str(folder / "deep/seed3")),
        *("--between", str(folder / "plain/seed4"), str(folder / "deep/seed4")),
    )


def test_what_looks_inside_is_added_to_the_callbacks_of_the_experiment(base: Path, tmp_path: Path) -> None:
    inside = tmp_path / "inside.yaml"
    inside.write_text(yaml.safe_dump({"trainer": {"callbacks+": [{"class_path": "a.Look", "init_args": {"at": "x"}}]}}))
    values = {"inside.trainer.callbacks.Look.init_args.at": "{root}/y", "weight_selection.layers": "last"}
    path = write(tmp_path / "one.yaml", base=str(base), variants={"a": {"values": values, "inside": str(inside)}})
    experiments = plan_ablation(path, "demo", seeds=[1]).runs[0].experiments
    assert [callback["class_path"] for callback in experiments["experiment.yaml"]["trainer"]["callbacks"]] == [
        "a.Selection"
    ]
    assert experiments["inside.yaml"]["trainer"]["callbacks"] == [
        *experiments["experiment.yaml"]["trainer"]["callbacks"],
        {"class_path": "a.Look", "init_args": {"at": "corpus/y"}},
    ]
    assert experiments["experiment.yaml"]["weight_selection"] == {"layers": "last"}


def test_a_rehearsal_is_short_and_elsewhere(base: Path, tmp_path: Path) -> None:
    variants = {"plain": {"after": ["align --output {folder}"]}}
    path = write(tmp_path / "one.yaml", base=str(base), variants=variants, outputs=["latency {runs} --utterances 300"])
    planned = plan_ablation(path, "full", changes={"data.init_args.root": "other"}, rehearsal=True)
    [run] = planned.runs
    assert planned.outputs[0][-3:] == ("--utterances", "300", "--utterances=2"), "the last is taken"
    assert run.commands[1][-2:] == ("--least-fit=-inf", "--least-share=0.1"), "an untrained network aligns nothing well"
    assert run.folder == Path("runs/rehearsal/full/one/plain/seed1")
    experiment = run.experiments["experiment.yaml"]
    assert experiment["data"]["init_args"] | {"evaluation_batch_seconds": 0} == {
        "root": "other", "batch_seconds": 16.0, "evaluation_batch_seconds": 0, "workers": 1
    }  # fmt: skip
    assert experiment["trainer"]["limit_train_batches"] == 2 and experiment["trainer"]["max_epochs"] == 1


def test_a_variant_of_another_ablation_is_a_row_and_a_need(base: Path, tmp_path: Path) -> None:
    write(
        tmp_path / "one.yaml", base=str(base), needs={"t": {}}, variants={"a": {"values": {"model.init_args.t": "{t}"}}}
    )
    path = write(
        tmp_path / "two.yaml",
        base=str(base),
        needs={"teacher": "one/a"},
        variants={"b": {"values": {"model.init_args.t": "{teacher}"}}, "a": "one/a"},
    )
    planned = plan_ablation(path, "demo", seeds=[2])
    folders = ["one/t/seed1", "one/a/seed1", "two/b/seed2", "one/a/seed2"]
    assert [str(run.folder) for run in planned.runs] == [f"runs/demo/{folder}" for folder in folders]
    assert [str(run.folder) for run in planned.compared] == ["runs/demo/two/b/seed2", "runs/demo/one/a/seed2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"variants": {"a": {}}}, "base is missing"),
        ({"base": "base.yaml", "variants": {}}, "variants: expected names with values, found {}"),
        ({"base": "base.yaml", "variants": {"a": {"value": 1}}}, "a: unknown value; expected some of after, base"),
        ({"base": "base.yaml", "variant": {}, "variants": {"a": {}}}, "the ablation: unknown variant"),
        (
            {"base": "base.yaml", "variants": {"a": {"values": {"seed_everything": "{b}"}}}},
            "expected placeholders with the name of a run, a, or one of",
        ),
        ({"base": "base.yaml", "variants": {"Great A": {}}}, "expected a name of small letters"),
        ({"base": "base.yaml", "variants": {"a": {}}, "needs": {"a": {}}}, "expected another name"),
        ({"base": "base.yaml", "variants": {"a": {}}, "metrics": ["wr"]}, "metrics: expected some of wer"),
        ({"base": "base.yaml", "variants": {"a": {}}, "seeds": [1.5]}, "seeds: expected whole numbers"),
        (
            {"base": "base.yaml", "variants": {"a": {}}, "paper": {"x WER": {"c": 1}}},
            "paper: x WER: expected names of runs, a; found c",
        ),
        ({"base": "base.yaml", "variants": {"a": {"network": "b"}, "b": {"network": "a"}}}, "needs itself"),
        ({"base": "base.yaml", "variants": {"a": {"values": {"model.x": 1}}}}, "model.x: expected a key of the exp"),
        ({"base": "nowhere.yaml", "variants": {"a": {}}}, "cannot read the experiment nowhere.yaml"),
        ({"base": {"large": "base.yaml"}, "variants": {"a": {}}}, "expected the path of an experiment at the scales"),
        ({"base": "base.yaml", "variants": {"a": "other/b"}}, "expected the name of the variant other/b"),
        ({"base": "base.yaml", "variants": {"a": "b"}}, "as ablation/variant, found b"),
        ({"base": "base.yaml", "variants": {"a": {"values": [1]}}}, "a: values: expected names with values, found [1]"),
        ({"base": "base.yaml", "variants": {"a": {}}, "seeds": 3}, "seeds: expected a list, found 3"),
        ({"base": 3, "variants": {"a": {}}}, "base: expected a text or names with values, found 3"),
        ({"base": "base.yaml", "variants": {"a": {"after": ["test 'x"]}}}, "expected a command as `lightning"),
        ({"base": "base.yaml", "variants": {"a": {"after": [3]}}}, "expected a command as `lightning"),
        ({"base": "base.yaml", "variants": {"a": {}}, "paper": {"x": {"a": "y"}}}, "expected a number by variant"),
        ({"base": "base.yaml", "variants": {"a": {}}, "paper": {"x": 3}}, "expected a number by variant, found 3"),
    ],
)
def test_what_is_wrong_is_told(base: Path, content: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        plan_ablation(write(tmp_path / "wrong.yaml", **content), "demo")
    assert message in str(error.value)


def test_a_missing_ablation_is_told_with_those_that_there_are(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no ablation at .*nothing.yaml .*in that folder: base"):
        read_ablation(tmp_path / "nothing.yaml")
