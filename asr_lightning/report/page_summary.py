"""First screen of the page: verdicts, facts about the runs, differing configuration keys, training curves.

Everything is read from the run folders: error rates, `logs/version_<n>/metrics.csv` and `config.yaml`, `finished.json`.
"""

import json
import shlex
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from asr_lightning.errors import InputError
from asr_lightning.files import load_yaml, regular, source_commit
from asr_lightning.report.run_folders import SECONDS, Experiment, Run, numbers, read_metrics, versions
from asr_lightning.report.run_pairs import PairComparison
from asr_lightning.report.tables import MISSING, p_value
from asr_lightning.scoring.significance import mean_difference

SHOWN = 4  # verdicts on the first screen; the others are behind a button
KEYS = 60  # configuration keys in the table of differences
# Keys that differ between any two runs and say nothing about the experiment.
NOT_COMPARED = (
    *("seed_everything", "config", "ckpt_path", "trainer.default_root_dir", "trainer.logger", "transcripts.run"),
    "trainer.callbacks.Transcripts.init_args.run",
)
SERIES = {"train/loss": "training loss", "grad_norm/total": "gradient norm", "update_norm/total": "update norm"}

Data = dict[str, Any]


def gather_summary(experiments: Sequence[Experiment], pairs: Sequence[PairComparison], baseline: str) -> Data:
    """Return what the first screen shows.

    Args:
        experiments: At least one.
        pairs: Comparisons with the baseline.
        baseline: Name of the experiment that the others are compared with.
    """
    configs = {experiment.name: read_config(experiment.runs[0].folder) for experiment in experiments}
    table = facts(experiments, configs)
    return {
        "verdicts": verdicts(experiments, pairs, baseline),
        "shown": SHOWN,
        "summary": _shared_facts(table),
        "facts": table,
        "differences": differing_keys(configs),
        "commands": [
            {"run": experiment.name, "lines": [line for run in experiment.runs for line in commands_of_run(run)]}
            for experiment in experiments
        ],
        "written": f"{time.strftime('%Y-%m-%d')}, commit {source_commit()}",
    }


def verdicts(
    experiments: Sequence[Experiment], pairs: Sequence[PairComparison], baseline: str
) -> list[dict[str, str | None]]:
    """Return a sentence for each comparison, or for each experiment and subset if nothing can be compared.

    If there are more comparisons than the first screen has room for, the best runs come first, and development subsets
    last.

    Returns:
        `lead` (the conclusion), `text` (the numbers), `run`, `subset` and `kind`: `better`, `worse`, `same` (the
        interval over utterances includes 0, or that over seeds where there are several) or `rate` (no interval).
    """
    by_name = {experiment.name: experiment for experiment in experiments}
    if pairs:
        if len(pairs) > SHOWN:
            pairs = sorted(pairs, key=lambda pair: (pair.subset.startswith("dev"), pair.bootstrap.difference))
        return [_comparison_entry(by_name[pair.run], by_name[pair.baseline], pair) for pair in pairs]
    return [
        _rate_entry(experiment, subset)
        for subset in _subsets(experiments)
        for experiment in sorted(experiments, key=lambda experiment: experiment.name != baseline)
        if experiment.rates(subset)
    ]


def _subsets(experiments: Sequence[Experiment]) -> list[str]:
    return sorted({subset for experiment in experiments for run in experiment.runs for subset in run.rates})


def _comparison_entry(run: Experiment, baseline: Experiment, pair: PairComparison) -> dict[str, str | None]:
    bootstrap, p = pair.bootstrap, pair.matched_pairs.p
    run_rate, baseline_rate = (_mean_rate(experiment, pair.subset) for experiment in (run, baseline))
    text = (
        f"{run_rate} against {baseline_rate} WER"
        f"{_epochs(run, baseline, pair.subset)}{_seeds(run, baseline, pair.subset)}: "
    )
    text += f"{_signed(bootstrap.difference)} points"
    kind, lead = "rate", f"{run.name} and {baseline.name} on {pair.subset}"
    if bootstrap.low is not None and bootstrap.high is not None:
        text += f", 95 % interval {_signed(bootstrap.low)} to {_signed(bootstrap.high)}"
        kind = "better" if bootstrap.high < 0 else "worse" if bootstrap.low > 0 else "same"
        lead = {
            "better": f"{run.name} makes fewer word errors than {baseline.name} on {pair.subset}.",
            "worse": f"{run.name} makes more word errors than {baseline.name} on {pair.subset}.",
            "same": f"No difference is shown between {run.name} and {baseline.name} on {pair.subset}.",
        }[kind]
    else:
        text += ", no interval from a single speaker or utterance"
    if p is not None:
        text += f", p {p_value(p) if p < 0.001 else f'= {p_value(p)}'}"
    over_seeds = mean_difference(
        *([rate.wer for rate in experiment.rates(pair.subset)] for experiment in (run, baseline))
    )
    if over_seeds.low is not None and over_seeds.high is not None:
        text += f"; 95 % interval over seeds {_signed(over_seeds.low)} to {_signed(over_seeds.high)}"
        if kind in ("better", "worse") and over_seeds.low <= 0 <= over_seeds.high:
            comparison = "fewer" if kind == "better" else "more"
            lead = (
                f"{run.name} made {comparison} word errors than {baseline.name} on {pair.subset}, "
                "but seeds differ as much."
            )
            kind = "same"
    return {"lead": lead, "text": f"{text}.", "run": run.name, "subset": pair.subset, "kind": kind}


def _rate_entry(experiment: Experiment, subset: str) -> dict[str, str | None]:
    rates = [100 * rate.wer for rate in experiment.rates(subset)]
    seeds = f", mean of {len(rates)} seeds ({min(rates):.2f} to {max(rates):.2f})" if len(rates) > 1 else ""
    text = f"{_mean_rate(experiment, subset)} WER{_epochs(experiment, experiment, subset)}{seeds}."
    lead = f"{experiment.name} on {subset}"
    return {"lead": lead, "text": text, "run": experiment.name, "subset": subset, "kind": "rate"}


def _mean_rate(experiment: Experiment, subset: str) -> str:
    return f"{100 * statistics.fmean(rate.wer for rate in experiment.rates(subset)):.2f} %"


def _signed(rate: float) -> str:
    text = f"{100 * rate:+.2f}".replace("-", "−")
    return "0.00" if text in ("+0.00", "−0.00") else text


def _seeds(run: Experiment, baseline: Experiment, subset: str) -> str:
    count, baseline_count = (len(experiment.rates(subset)) for experiment in (run, baseline))
    if count == baseline_count == 1:
        return ", one seed each"
    return f", means of {count} seeds" if count == baseline_count else f", means of {count} and {baseline_count} seeds"


def _epochs(run: Experiment, baseline: Experiment, subset: str) -> str:
    ranges = []
    for experiment in (run, baseline):
        epochs = [rate.epoch for rate in experiment.rates(subset)]
        first, last = min(epochs), max(epochs)
        if not last:
            return ""
        ranges.append(str(last) if first == last else f"{first} to {last}")  # seeds that are still training
    run_range, baseline_range = ranges
    return (
        f" after {run_range if run_range == baseline_range else f'{run_range} and {baseline_range}'}"
        f" epoch{'s' * ((run_range, baseline_range) != ('1', '1'))}"
    )


def facts(experiments: Sequence[Experiment], configs: Mapping[str, Data]) -> Data:
    """Return a table with a line per experiment: seeds, epochs, parameters, data, time and date of the training."""
    head = ["run", "seeds", "epochs", "parameters", "data", "speech per epoch, h", "training time, h", "date"]
    rows = []
    for experiment in experiments:
        epochs = max((rate.epoch for run in experiment.runs for rate in run.rates.values()), default=0)
        seconds, speed = experiment.training_seconds, experiment.audio_seconds_per_second
        rows.append(
            [
                experiment.name,
                ", ".join(run.seed for run in experiment.runs if run.seed) or str(len(experiment.runs)),
                str(epochs),
                MISSING if experiment.parameters is None else f"{experiment.parameters:,}",
                _data_of(configs[experiment.name]),
                MISSING if seconds is None or speed is None or not epochs else f"{seconds * speed / epochs / 3600:.2f}",
                MISSING if seconds is None else f"{seconds / 3600:.2f}",
                _date(experiment.runs),
            ]
        )
    return {"title": "Runs", "head": head, "rows": rows, "notes": []}


def _shared_facts(table: Data) -> list[str]:
    """Return a text for each column of the table of facts: what all runs have, or the least and the greatest value."""
    texts = []
    for column, cells in zip(table["head"], zip(*table["rows"], strict=True), strict=True):
        known = list(dict.fromkeys(cell for cell in cells if cell not in (MISSING, "0")))
        if column == "run" or not known:
            continue
        ordered = sorted(known, key=lambda cell: (len(cell.partition(".")[0]), cell))  # numbers by size
        if len(known) == 1 or column not in ("seeds", "data"):
            known = [ordered[0]] if ordered[0] == ordered[-1] else [f"{ordered[0]} to {ordered[-1]}"]
        texts.append(f"{column}: {' / '.join(known) if len(known) < 4 else 'as below'}")
    return texts


def _data_of(config: Data) -> str:
    data = config.get("data")
    if not isinstance(data, dict):
        return MISSING
    arguments = data.get("init_args")
    subsets = arguments.get("train_subsets") if isinstance(arguments, dict) else None
    name = str(data.get("class_path") or MISSING).rpartition(".")[2]
    return f"{name}: {', '.join(map(str, subsets))}" if isinstance(subsets, list) and subsets else name


def _date(runs: Sequence[Run]) -> str:
    files = [file for run in runs for file in run.folder.glob("*error_rates.csv")]
    return time.strftime("%Y-%m-%d", time.localtime(max(file.stat().st_mtime for file in files))) if files else MISSING


def read_config(folder: Path) -> Data:
    """Return the configuration of a run's last training, or of its last start if it has not trained here.

    It is empty if the run has none that can be read.
    """
    try:
        starts = versions(folder)
        trained = [start for start in starts if SECONDS in regular(start).read_text("utf-8").partition("\n")[0]]
        config = load_yaml(regular((trained or starts)[-1].with_name("config.yaml")).read_text("utf-8"))
    except (InputError, OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def differing_keys(configs: Mapping[str, Data]) -> Data | None:
    """Return a table of the configuration keys in which experiments differ; None if there are none.

    Args:
        configs: By the name of the experiment; an empty one is left out.
    """
    flat = {name: dict(_flat(config)) for name, config in configs.items() if config}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    differing = [
        key
        for key in keys
        if not key.startswith(NOT_COMPARED) and len({values.get(key, MISSING) for values in flat.values()}) > 1
    ]
    if len(flat) < 2 or not differing:
        return None
    rows = [
        [key.replace("init_args.", ""), *(values.get(key, MISSING) for values in flat.values())]
        for key in differing[:KEYS]
    ]
    notes = ["Keys of the runs' config.yaml, without `init_args`; of the first seed of each run."]
    if len(differing) > KEYS:
        notes.append(f"{len(differing) - KEYS} more keys differ; compare the config.yaml of the runs.")
    return {
        "title": "Configuration keys that differ",
        "head": ["key", *flat],
        "rows": rows,
        "notes": notes,
        "text": True,
    }


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - whatever a YAML file holds
    """Yield dotted keys and values; an item of a list with a class is named by its class."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}".strip("."))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            name = str(item.get("class_path", index)).rpartition(".")[2] if isinstance(item, dict) else str(index)
            yield from _flat(item, f"{key}.{name}")
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield key, text.rpartition(".")[2] if key.endswith("class_path") else text


def commands_of_run(run: Run) -> list[str]:
    """Return the commands that make a run again: as it was started, or from the configuration that it kept."""
    try:
        started = json.loads(regular(run.folder / "finished.json").read_text("utf-8"))
        return [shlex.join(["python", *map(str, command)]) for command in started]
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    try:
        config = versions(run.folder)[-1].with_name("config.yaml")
    except InputError:
        return []
    return [f"lightning fit --config {shlex.quote(str(config))}"] if config.exists() else []


def gather_training(experiments: Sequence[Experiment]) -> list[Data]:
    """Return curves of losses and norms: means over the steps of each epoch, by experiment and seed.

    Experiments whose log lacks a quantity, or cannot be read, have no curve of it.
    """
    series: dict[str, dict[str, dict[str, list[list[float]]]]] = {}
    for experiment in experiments:
        for run in experiment.runs:
            for name, points in _training_curves(run.folder).items():
                series.setdefault(name, {}).setdefault(experiment.name, {})[run.seed] = points
    return [
        {"name": name, "runs": [{"name": run, "seeds": seeds} for run, seeds in by_run.items()]}
        for name, by_run in series.items()
    ]


def _training_curves(folder: Path) -> dict[str, list[list[float]]]:
    try:
        rows = [row for path in versions(folder) for row in read_metrics(path)]
    except InputError:
        return {}
    columns = dict.fromkeys(key for row in rows for key in row if key and key.endswith("/loss"))
    names = {key: f"loss on {key.removesuffix('/loss')}" for key in columns} | SERIES
    curves = {}
    for column, name in names.items():
        by_epoch: dict[int, list[float]] = {}
        for row in rows:
            if row.get(column) and row.get("epoch"):
                try:
                    [value], epoch = numbers([row], column), int(float(row["epoch"]))
                except (ValueError, OverflowError):  # a damaged line
                    continue
                if abs(value) < float("inf"):
                    by_epoch.setdefault(epoch + 1, []).append(value)
        if by_epoch:
            curves[name] = [[epoch, round(statistics.fmean(values), 5)] for epoch, values in sorted(by_epoch.items())]
    return curves


def paper_curves(paper: Mapping[str, Mapping[str, float]]) -> list[Data]:
    """Return the rates of a paper by epoch, from columns such as `test-clean WER, epoch 5`."""
    points: dict[tuple[str, str, str], list[list[float]]] = {}
    for column, rates in paper.items():
        title, _, epoch = column.partition(", epoch ")
        subset, _, metric = title.rpartition(" ")
        for run, rate in rates.items() if epoch.isdigit() else ():
            points.setdefault((run, subset, metric.lower().replace(" ", "_")), []).append([int(epoch), rate])
    return [
        {"name": run, "subset": subset, "metric": metric, "points": sorted(values)}
        for (run, subset, metric), values in points.items()
    ]
