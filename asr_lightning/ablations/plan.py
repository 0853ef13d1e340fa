"""Plan the runs of an ablation: folder, experiment, commands and what must be finished before."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr_lightning.ablations.definition import PLACEHOLDER, Ablation, Variant, at_scale, read_ablation
from asr_lightning.ablations.overrides import Experiment, as_yaml, override
from asr_lightning.asr import NAMES, RENAMED
from asr_lightning.errors import InputError
from asr_lightning.files import read_yaml, write_atomically

EXPERIMENT, INSIDE = "experiment.yaml", "inside.yaml"
REHEARSED_SECONDS = 16.0  # of a training batch in a rehearsal
REHEARSED_EVALUATION_SECONDS = 140.0  # four of the longest utterances
# Options of commands in a rehearsal, after two steps of training.
REHEARSED_OPTIONS = {"align": ("--least-fit=-inf", "--least-share=0.1"), "latency": ("--utterances=2",)}


@dataclass(frozen=True)
class PlannedRun:
    """A run with one seed.

    Attributes:
        name: Of the variant, or of what is needed.
        seed: Of all its generators.
        folder: Of everything that it writes.
        experiments: Content by file name; they are written into the folder before the first command.
        commands: What Python is called with, in this order.
        needs: Folders of the runs that must be finished before.
        level: 0 for runs that need no other, 1 for those that need them, and so on.
    """

    name: str
    seed: int
    folder: Path
    experiments: Mapping[str, Experiment]
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[Path, ...]
    level: int

    @property
    def label(self) -> str:
        """Name in messages and for `--only`: `random/seed1`."""
        return f"{self.name}/seed{self.seed}"

    @property
    def experiment(self) -> Path:
        """Path of the experiment that it trains or tests."""
        return self.folder / EXPERIMENT


@dataclass(frozen=True)
class Plan:
    """All runs of an ablation at one scale.

    Attributes:
        ablation: What is planned.
        scale: `demo` or `full`.
        folder: Of the results; runs lie below it, those of other ablations beside it.
        runs: In an order in which each comes after what it needs.
        compared: Those of the variants, which are rows of the table.
        variants: Names of the variants that are compared, the baseline first.
        outputs: Commands after all runs.
        reference: A run that tables and pictures show too, as the teacher.
    """

    ablation: Ablation
    scale: str
    folder: Path
    runs: tuple[PlannedRun, ...]
    compared: tuple[PlannedRun, ...]
    variants: tuple[str, ...]
    outputs: tuple[tuple[str, ...], ...]

    reference: PlannedRun | None


def plan_ablation(
    path: Path,
    scale: str,
    output: Path = Path("runs"),
    seeds: Sequence[int] = (),
    variants: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
    rehearsal: bool = False,
) -> Plan:
    """Plan all runs of an ablation.

    Args:
        path: YAML of the ablation.
        scale: `demo` or `full`.
        output: Folder of runs; these lie in `<output>/<scale>/<ablation>/<variant>/seed<k>`.
        seeds: In place of those of the ablation.
        variants: Some of them; all of the scale if empty.
        changes: New values of every experiment by dotted key, where it has the part that they belong to.
        rehearsal: Two steps and a tiny evaluation of every run, with one seed.

    Raises:
        InputError: The ablation, an experiment or a reference is wrong.
    """
    planner = _Planner(scale, output / "rehearsal" if rehearsal else output, dict(changes or {}), rehearsal)
    ablation = read_ablation(path)
    names = ablation.names(scale)
    if unknown := [name for name in variants if name not in names]:
        raise InputError(
            f"{path}: no variant {', '.join(unknown)} at the scale {scale}; expected some of {', '.join(names)}"
        )
    chosen = [name for name in names if not variants or name in variants]
    if not chosen:
        raise InputError(f"{path}: expected variants at the scale {scale}, found none")
    planner.seeds = list(seeds) or list(ablation.seeds)
    planner.seeds = planner.seeds[:1] if rehearsal else planner.seeds
    compared = tuple(planner.add(path, ablation, name, seed) for name in chosen for seed in planner.seeds)
    folder = planner.folder(ablation)
    outputs = [_output(planner, path, ablation, compared, text) for text in at_scale(list(ablation.outputs), scale)]
    commands = [command for command in outputs if command]
    reference = planner.add(path, ablation, ablation.reference, 1) if ablation.reference else None
    return Plan(
        ablation, scale, folder, tuple(planner.runs.values()), compared, tuple(chosen), tuple(commands), reference
    )


class _Planner:
    """Collection of runs, each after those that it needs."""

    def __init__(self, scale: str, output: Path, changes: dict[str, Any], rehearsal: bool) -> None:
        self.scale, self.output, self.changes, self.rehearsal = scale, output, changes, rehearsal
        self.seeds: list[int] = []
        self.runs: dict[Path, PlannedRun] = {}
        self.pending: list[Path] = []

    def folder(self, ablation: Ablation) -> Path:
        """Return the folder of an ablation's results."""
        return self.output / self.scale / ablation.name

    def add(self, path: Path, ablation: Ablation, name: str, seed: int) -> PlannedRun:
        """Plan a run and what it needs, unless it is planned already."""
        need = ablation.needs.get(name)
        variant = need or ablation.variants.get(name)
        if isinstance(variant, str):
            ablation_name, _, variant_name = variant.partition("/")
            other_path = path.with_name(f"{ablation_name}.yaml")
            return self.add(other_path, read_ablation(other_path), variant_name, 1 if need else seed)
        if variant is None or self.scale not in variant.scales:
            raise InputError(f"{path}: there is no {name or 'variant without a name'} at the scale {self.scale}")
        seed = 1 if need else seed
        folder = self.folder(ablation) / name / f"seed{seed}"
        if folder in self.runs:
            return self.runs[folder]
        if folder in self.pending:
            raise InputError(f"{path}: {name} needs itself, by way of {', '.join(f.parent.name for f in self.pending)}")
        self.pending.append(folder)
        needed = {need_name: self.add(path, ablation, need_name, seed) for need_name in variant.names(self.scale)}
        self.pending.remove(folder)
        run = self._run(variant, seed, folder, needed)
        self.runs[folder] = run
        return run

    def _run(self, variant: Variant, seed: int, folder: Path, needed: Mapping[str, PlannedRun]) -> PlannedRun:
        fields = {
            **{name: str(run.folder) for name, run in needed.items()},
            "folder": str(folder),
            "experiment": str(folder / EXPERIMENT),
            "inside": str(folder / INSIDE),
            "checkpoint": str(
                (needed[variant.network].folder if variant.network else folder) / "checkpoints/last.ckpt"
            ),
            "seed": str(seed),
            "scale": self.scale,
            "root": next((root for run in needed.values() if (root := _root(run.experiments[EXPERIMENT]))), ""),
        }
        experiments = self._experiments(variant, seed, folder, fields)
        fields["root"] = _root(experiments[EXPERIMENT]) or fields["root"]
        level = 1 + max((run.level for run in needed.values()), default=-1)
        needs = tuple(run.folder for run in needed.values())
        commands = tuple(self.command(text, fields) for text in self._texts(variant, seed, experiments))
        return PlannedRun(variant.name, seed, folder, experiments, commands, needs, level)

    def command(self, text: str, fields: Mapping[str, str]) -> tuple[str, ...]:
        """Return the words of a command; in a rehearsal, with options that make it short."""
        command = _command(text, fields)
        tool = command[1].rpartition(".")[2]
        return (*command, *(REHEARSED_OPTIONS.get(tool, ()) if self.rehearsal else ()))

    def _experiments(
        self, variant: Variant, seed: int, folder: Path, fields: Mapping[str, str]
    ) -> dict[str, Experiment]:
        """Compose the experiment that a run trains or tests, and the one that looks into its network."""
        values = at_scale(variant.values, self.scale)
        inside_values = {
            key.removeprefix("inside."): value for key, value in values.items() if key.startswith("inside.")
        }
        values = {key: value for key, value in values.items() if not key.startswith("inside.")}
        experiment = override(read_yaml(Path(variant.base[self.scale]), "the experiment"), _fill_nested(values, fields))
        experiment = self._override_values(experiment, seed, folder)
        if self.scale not in variant.inside:
            return {EXPERIMENT: experiment}
        inside = override(
            read_yaml(Path(variant.inside[self.scale]), "the experiment"),
            _fill_nested(inside_values, {**fields, "root": _root(experiment)}),
        )
        callbacks = _callbacks(experiment, inside)
        for callback in callbacks if self.rehearsal else ():  # the network recognizes no words yet
            if str(callback.get("class_path")).endswith(".Neighbours"):
                callback["init_args"] = {**callback.get("init_args", {}), "silence": "warn"}
        return {EXPERIMENT: experiment, INSIDE: override(experiment, {"trainer.callbacks": callbacks})}

    def _override_values(self, experiment: Experiment, seed: int, folder: Path) -> Experiment:
        """Set seed and folder, the user's changes, and the values that make a rehearsal short."""
        data = (experiment.get("data") or {}).get("init_args") or {}
        values: dict[str, Any] = {"seed_everything": seed, "trainer.default_root_dir": str(folder)}
        if self.rehearsal:
            limits = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches")
            values |= {f"trainer.{name}": 2 if "train" in name else 1 for name in limits}
            values |= {"trainer.max_epochs": 1, "trainer.log_every_n_steps": 1, "trainer.accumulate_grad_batches": 1}
            if "val_check_interval" in experiment.get("trainer", {}):
                values["trainer.val_check_interval"] = 1.0
            if "batch_seconds" in data:
                values["data.init_args.batch_seconds"] = min(data["batch_seconds"], REHEARSED_SECONDS)
                values["data.init_args.evaluation_batch_seconds"] = REHEARSED_EVALUATION_SECONDS
                values["data.init_args.workers"] = 1
        # Texts of a language model are no corpus: they have none of its keys.
        changes = {key: value for key, value in self.changes.items() if "root" in data or not key.startswith("data.")}
        return override(experiment, {**values, **changes})

    def _texts(self, variant: Variant, seed: int, experiments: Mapping[str, Experiment]) -> Iterable[str]:
        """Return the commands of a run: training, a test where training validates on other subsets, and those after it.

        Only the network of the first seed is looked into; this is a test too.
        """
        command, after_texts = at_scale([variant.command, list(variant.after)], self.scale)
        if command:
            yield command
        elif variant.network:
            yield "lightning test --config {experiment} --ckpt_path {checkpoint}"
        else:
            yield "lightning fit --config {experiment} --ckpt_path last"
        is_first = seed == (self.seeds or [1])[0]
        seed_texts = [text for text in after_texts if is_first or "{inside}" not in text]
        look_inside = is_first and INSIDE in experiments and not any("{inside}" in text for text in seed_texts)
        tested = bool(
            command
            or variant.network
            or look_inside
            or any(str(text).startswith("lightning test") for text in seed_texts)
        )
        if not tested and _untested(experiments[EXPERIMENT]):
            yield "lightning test --config {experiment} --ckpt_path {checkpoint}"
        yield from seed_texts
        if look_inside:
            yield "lightning test --config {inside} --ckpt_path {checkpoint}"


def _callbacks(experiment: Experiment, inside: Experiment) -> list[Any]:
    """Return the callbacks that look inside: those of `trainer.callbacks+` are added, a whole list replaces them."""
    trainer, inside_trainer = (part.get("trainer") or {} for part in (experiment, inside))
    if "callbacks+" in inside_trainer:
        return [*(trainer.get("callbacks") or []), *inside_trainer["callbacks+"]]
    return list(inside_trainer.get("callbacks") or [])


def _untested(experiment: Experiment) -> set[str]:
    """Return the test subsets that training does not validate on."""
    data = (experiment.get("data") or {}).get("init_args") or {}
    return {*(data.get("test_subsets") or ())} - {*(data.get("validation_subsets") or ())}


def _root(experiment: Experiment) -> str:
    """Return the folder of the corpus."""
    data = experiment.get("data") or {}
    return str((data.get("init_args") or {}).get("root", ""))


def _command(text: str, fields: Mapping[str, str]) -> tuple[str, ...]:
    """Return what Python is called with for `lightning …` or `TOOL …`."""
    try:
        tool, *arguments = [word for part in shlex.split(text) for word in _expand_placeholders(part, fields)]
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"expected a command as `lightning …` or `TOOL …`, found {text!r}: {error}") from error
    if tool not in ("lightning", *NAMES, *RENAMED):
        raise InputError(f"{text!r}: expected `lightning` or a command of `asr`, {', '.join(NAMES)}; found {tool!r}")
    return ("-m", "asr_lightning" if tool == "lightning" else f"asr_lightning.tools.{tool}", *arguments)


def as_typed(command: Sequence[str]) -> str:
    """Write what Python is called with as a user would type it."""
    _, module, *arguments = command
    words = ["lightning"] if module == "asr_lightning" else ["asr", module.rpartition(".")[2]]
    return shlex.join([*words, *arguments])


def _expand_placeholders(part: str, fields: Mapping[str, str]) -> list[str]:
    """Fill the placeholders of a word; `{runs}` becomes a word for each run."""
    return fields["runs"].split("\n") if part == "{runs}" and "runs" in fields else [_fill(part, fields)]


def _fill_nested(value: Any, fields: Mapping[str, str]) -> Any:  # noqa: ANN401 - any value of a YAML
    if isinstance(value, str):
        return _fill(value, fields)
    if isinstance(value, Mapping):
        return {key: _fill_nested(member, fields) for key, member in value.items()}
    return [_fill_nested(member, fields) for member in value] if isinstance(value, list) else value


def _fill(text: str, fields: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda match: fields.get(match[1], match[0]), text)


def _output(
    planner: _Planner, path: Path, ablation: Ablation, compared: Sequence[PlannedRun], text: str | Mapping[str, str]
) -> tuple[str, ...]:
    """Return a command over all runs, with `each_seed` for each seed; empty where a variant in it is not chosen."""
    if not text:
        return ()
    spec = {"command": text} if isinstance(text, str) else dict(text)
    if set(spec) - {"command", "each_seed"} or "command" not in spec:
        raise InputError(f"{ablation.name}: outputs: expected commands, or command and each_seed, found {text!r}")
    names = [name for part in spec.values() for name in PLACEHOLDER.findall(part)]
    folders = {run.name: run.folder.parent for run in compared}
    if any(name in ablation.variants and name not in folders for name in names):
        return ()
    folder = planner.folder(ablation)
    needs = {name: str(planner.add(path, ablation, name, 1).folder) for name in names if name in ablation.needs}
    fields = {
        "output": str(folder),
        "runs": "\n".join(str(run.folder) for run in compared),
        "scale": planner.scale,
    }
    fields["root"] = _root(compared[0].experiments[EXPERIMENT])
    all_fields = {**fields, **needs, **{name: str(run_folder) for name, run_folder in folders.items()}}
    words = list(planner.command(spec["command"], all_fields))
    for seed in planner.seeds if "each_seed" in spec else ():
        seed_fields = {**all_fields, **{name: str(run_folder / f"seed{seed}") for name, run_folder in folders.items()}}
        words += [_fill(word, seed_fields) for word in shlex.split(spec["each_seed"])]
    return tuple(words)


def write_experiments(run: PlannedRun) -> None:
    """Write the experiments of a run into its folder."""
    for name, experiment in run.experiments.items():
        write_atomically(run.folder / name, as_yaml(experiment))
