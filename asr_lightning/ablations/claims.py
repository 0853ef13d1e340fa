"""Claims of the papers, each decided by two variants of an ablation: `experiments/claims/papers.yaml`.

- claim: A student learns faster from selected weights than from random ones.
  source: Han et al. 2024, Table 1
  paper: 4.86 beside 8.15 % after epoch 5
  ablation: weight_selection
  lower: selected
  higher: random
  measure: wer
  subset: test-clean
  epoch: {demo: 1, full: 5}
"""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from asr_lightning.ablations.costs import commits, read_costs, total
from asr_lightning.ablations.definition import SCALES, at_scale
from asr_lightning.ablations.execution import state
from asr_lightning.ablations.plan import Plan, PlannedRun, plan_ablation
from asr_lightning.analysis.training_curves import early_and_late
from asr_lightning.errors import InputError, shown
from asr_lightning.files import read_yaml
from asr_lightning.report.figures import ErrorRate
from asr_lightning.report.gradient_figure import read_gradient_norms
from asr_lightning.report.run_folders import RATE_FILES, Run, read_rates, read_run
from asr_lightning.report.run_pairs import PairComparison, compare_pairs
from asr_lightning.scoring import RATES
from asr_lightning.scoring.significance import MeanDifference, mean_difference, paired_difference

Measure = Literal["wer", "cer", "ser", "swer", "unspaced_cer", "gradient_change", "purity", "order", "silence", "probe"]
LAYERS = ("purity", "order", "silence", "probe")  # measures of layers, of the callback TSNE
Verdict = Literal["confirmed", "not confirmed", "undecided", "not run"]
VERDICTS: tuple[Verdict, ...] = ("not confirmed", "confirmed", "undecided", "not run")  # in this order in tables
FEWEST = 3  # seeds or speakers that a verdict needs
TEXTS = ("claim", "source", "paper", "ablation", "lower", "higher", "measure")
OPTIONAL = ("subset", "epoch", "layers")
# Files of a run that its digest covers.
HASHED = ("experiment.yaml", "*error_rates.csv", "transcripts/*.jsonl", "logs/*/metrics.csv", "tsne/test/figures.csv")


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, and what decides it at one scale.

    Attributes:
        claim: The sentence.
        source: Authors, year, table.
        paper: The paper's numbers, in words.
        ablation: Name of the ablation.
        lower: Variant that has the lower value of the measure if the claim is right.
        higher: Variant that has the higher value.
        measure: An error rate; `gradient_change`, the mean |ln(next / norm)| in the first tenth of the steps; or a
            measure of layers.
        subset: Of error rates; empty for other measures.
        epoch: Of validation; None for final rates.
        layers: Which layer of `lower` and of `higher`, `first` or `last`; empty for other measures.
    """

    claim: str
    source: str
    paper: str
    ablation: str
    lower: str
    higher: str
    measure: Measure
    subset: str = ""
    epoch: int | None = None
    layers: tuple[str, ...] = ()

    @property
    def measured(self) -> str:
        """In words, as `WER, test-clean, epoch 1`."""
        measure = self.measure.upper() if self.measure in RATES else self.measure
        parts = [measure.replace("_", " "), self.subset, f"epoch {self.epoch}" if self.epoch else ""]
        return ", ".join([part for part in parts if part] + ([" and ".join(self.layers)] if self.layers else []))


@dataclass(frozen=True)
class Evidence:
    """Values of a claim's finished runs, and the verdict.

    Attributes:
        claim: The claim.
        verdict: `confirmed` where every interval is on the claimed side of 0, `not confirmed` where every one is on
            the other side, `undecided` else, or where there are fewer than three seeds or speakers; `not run` without
            runs of both variants.
        lower: Values of its variant, one a seed or speaker; rates are fractions.
        higher: Those of the other.
        difference: Of their means, lower minus higher, with its interval; None without values of both.
        units: `seeds` or `speakers`.
        pair: Comparison of the two over utterances, for final word error rates whose transcripts were kept.
        runs: Runs that gave the values.
        needed: Runs that those needed, such as a teacher.
        command: Makes these runs.
        reason: Why there is no verdict; may be empty.
    """

    claim: Claim
    verdict: Verdict
    lower: tuple[float, ...] = ()
    higher: tuple[float, ...] = ()
    difference: MeanDifference | None = None
    units: str = "seeds"
    pair: PairComparison | None = None
    runs: tuple[PlannedRun, ...] = ()
    needed: tuple[PlannedRun, ...] = ()
    command: str = ""
    reason: str = ""

    @property
    def hours(self) -> float | None:
        """Wall time of all commands of the runs; None where it was not measured."""
        hours = [costs[0] for run in self.runs if (costs := total(read_costs(run.folder)))]
        return sum(hours) if hours else None

    @property
    def commits(self) -> list[str]:
        """Commits that the commands of the runs were started at, as far as noted, each once."""
        return list(dict.fromkeys(commit for run in self.runs for commit in commits(run.folder)))


def read_claims(path: Path, scale: str) -> list[Claim]:
    """Read the claims.

    Args:
        path: YAML with the key `claims`, a list.
        scale: `demo` or `full`.

    Raises:
        InputError: It cannot be read, or a claim has unknown or missing keys or values that are not expected.
    """
    content = read_yaml(path, "the claims")
    entries = content.get("claims")
    if set(content) != {"claims"} or not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: expected a list with the key claims, and no other, found {shown(repr(content))}")
    claims = [_read_claim(f"{path}, claim {number}", entry, scale) for number, entry in enumerate(entries, 1)]
    for number, claim in enumerate(claims, 1):
        if claim in claims[: number - 1]:
            raise InputError(f"{path}, claim {number}: expected every claim once, found this one again: {claim.claim}")
    return claims


def _read_claim(location: str, entry: object, scale: str) -> Claim:
    if not isinstance(entry, dict):
        raise InputError(f"{location}: expected keys with values, found {shown(repr(entry))}")
    if unknown := [str(key) for key in entry if key not in (*TEXTS, *OPTIONAL)]:
        raise InputError(f"{location}: unknown {', '.join(unknown)}; expected some of {', '.join((*TEXTS, *OPTIONAL))}")
    if missing := [key for key in TEXTS if key not in entry]:
        raise InputError(f"{location}: expected the keys {', '.join(TEXTS)}; {', '.join(missing)} is missing")
    values: dict[str, Any] = {key: at_scale(value, scale) for key, value in entry.items()}
    for key in (*TEXTS, *(["subset"] if "subset" in values else [])):
        if not isinstance(values.get(key), str) or not values[key].strip():
            raise InputError(f"{location}: {key}: expected a text, found {shown(repr(values.get(key)))}")
    if values["measure"] not in get_args(Measure):
        expected = ", ".join(get_args(Measure))
        raise InputError(f"{location}: measure: expected one of {expected}, found {shown(values['measure'])}")
    epoch, layers = values.get("epoch"), values.get("layers", [])
    if epoch is not None and (type(epoch) is not int or epoch < 1):
        raise InputError(f"{location}: epoch: expected a whole number from 1, or one for each of "
                         f"{', '.join(SCALES)}, found {shown(repr(epoch))}")  # fmt: skip
    if not isinstance(layers, list) or any(layer not in ("first", "last") for layer in layers):
        raise InputError(
            f"{location}: layers: expected first or last for lower and for higher, found {shown(repr(layers))}"
        )
    if (values["measure"] in RATES) != ("subset" in values):
        expected = (
            "a subset, as test-clean, for" if "subset" not in values else "no subset, which error rates have, for"
        )
        raise InputError(f"{location}: expected {expected} the measure {values['measure']}")
    if len(layers) != (2 if values["measure"] in LAYERS else 0):
        expected = "two layers, as [last, first], for" if values["measure"] in LAYERS else "no layers for"
        raise InputError(f"{location}: expected {expected} the measure {values['measure']}, found {len(layers)}")
    if values["lower"] == values["higher"] and len(set(layers)) < 2:
        raise InputError(
            f"{location}: expected two variants, or two layers of one, found {values['lower']} as lower and as higher"
        )
    return Claim(**{**values, "layers": tuple(layers)})


def weigh_claims(claims: Sequence[Claim], folder: Path, scale: str, output: Path) -> list[Evidence]:
    """Weigh claims by the runs that are finished, of all seeds; contradicted claims come first.

    Args:
        claims: As `read_claims` returns them.
        folder: Of the YAMLs of ablations.
        scale: `demo` or `full`.
        output: Folder of all runs.

    Raises:
        InputError: There are no runs of the scale, or an ablation cannot be planned or has no such variant.
    """
    if not (output / scale).is_dir():
        raise InputError(
            f"expected runs in {(output / scale).absolute()}, found no such folder: run an ablation first, as `asr "
            f"ablate {claims[0].ablation}`, or give --runs, the folder that has {scale} in it"
        )
    weighed = [_weigh_claim(claim, folder / f"{claim.ablation}.yaml", scale, output) for claim in claims]
    return sorted(weighed, key=lambda evidence: VERDICTS.index(evidence.verdict))


def _weigh_claim(claim: Claim, path: Path, scale: str, output: Path) -> Evidence:
    names = list(dict.fromkeys([claim.lower, claim.higher]))
    plan = plan_ablation(path, scale, output, variants=names)
    if (seeds := _seeds(plan)) != sorted({run.seed for run in plan.compared}):
        plan = plan_ablation(path, scale, output, seeds, names)
    command = f"asr ablate {claim.ablation} --variants {' '.join(names)}" + f" --scale {scale}" * (scale != SCALES[0])
    finished = tuple(run for run in plan.compared if state(run) == "finished")
    if missing := [name for name in names if name not in {run.name for run in finished}]:
        return Evidence(claim, "not run", command=command, reason=f"no finished run of {' and '.join(missing)}")
    needed = tuple(run for run in plan.runs if run not in plan.compared)
    evidence = Evidence(claim, "not run", runs=finished, needed=needed, command=command)
    try:
        if claim.measure in LAYERS:
            lower, higher = _by_speaker(claim, finished)
            difference, units = paired_difference(lower, higher), "speakers"
        else:
            lower, higher = (_by_seed(claim, plan, finished, name) for name in (claim.lower, claim.higher))
            difference, units = mean_difference(lower, higher), "seeds"
    except ValueError as error:  # InputError, or a rate that is no finite number
        return replace(evidence, reason=str(error))
    pair = _pair(claim, finished)
    shortages = [f"{name} has {len(values)} {units if len(values) > 1 else units[:-1]}"
           for name, values in ((claim.lower, lower), (claim.higher, higher)) if len(values) < FEWEST]  # fmt: skip
    reason = f"{', '.join(dict.fromkeys(shortages))}; {FEWEST} are needed" if shortages else ""
    return replace(
        evidence,
        verdict="undecided" if shortages else _verdict(difference, pair),
        lower=tuple(lower),
        higher=tuple(higher),
        difference=difference,
        units=units,
        pair=pair,
        reason=reason,
    )


def _seeds(plan: Plan) -> list[int]:
    """Return the seeds of an ablation, and all others that its variants have folders of."""
    folders = {folder for run in plan.compared for folder in run.folder.parent.glob("seed*")}
    numbers = {folder.name.removeprefix("seed") for folder in folders}
    return sorted({run.seed for run in plan.compared} | {int(number) for number in numbers if number.isdecimal()})


def _verdict(difference: MeanDifference, pair: PairComparison | None) -> Verdict:
    intervals = [(difference.low, difference.high)]
    if pair is not None:
        intervals.append((pair.bootstrap.low, pair.bootstrap.high))
    if all(high is not None and high < 0 for _, high in intervals):
        return "confirmed"
    return "not confirmed" if all(low is not None and low > 0 for low, _ in intervals) else "undecided"


def _by_seed(claim: Claim, plan: Plan, finished: Sequence[PlannedRun], name: str) -> list[float]:
    folders = [run.folder for run in finished if run.name == name]
    if claim.measure == "gradient_change":
        return [_gradient_change(folder) for folder in folders]
    rows = [_rates(folder, claim) for folder in folders]
    chosen = [
        [rate for rate in rates if rate.subset == claim.subset and claim.epoch in (None, rate.epoch)] for rates in rows
    ]
    values = [getattr(rates[0], claim.measure) for rates in chosen if rates]
    if len(values) < len(folders):
        available = {
            f"{rate.subset}, epoch {rate.epoch}" if claim.epoch else rate.subset for rates in rows for rate in rates
        }
        raise InputError(
            f"{plan.folder / name}: expected {claim.measured} of every seed, found it for {len(values)} of "
            f"{len(folders)}; there are {'; '.join(sorted(available)) or 'no rates'}"
        )
    return values


def _rates(folder: Path, claim: Claim) -> list[ErrorRate]:
    """Return the final rates of a run, or those of every validation where the claim is of one."""
    if claim.epoch is None:
        return list(read_run(folder).rates.values())
    path = folder / RATE_FILES["validation"]
    return read_rates(path) if path.exists() else []


def _gradient_change(folder: Path) -> float:
    norms = read_gradient_norms(folder)
    if "total" not in norms:
        raise InputError(f"{folder}: expected the norm of all gradients together, grad_norm/total, found none")
    return early_and_late(*norms["total"])[0].relative_change


def _by_speaker(claim: Claim, finished: Sequence[PlannedRun]) -> tuple[list[float], list[float]]:
    """Return the measure of each speaker, in the layer of `lower` and in that of `higher`."""
    measures = []
    for name, layer in zip((claim.lower, claim.higher), claim.layers, strict=True):
        run = next(run for run in finished if run.name == name)  # the first seed: only its layers are measured
        path = run.folder / "tsne" / "test" / "figures.csv"
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["space"] == "original"]
            layer_name = list(dict.fromkeys(row["layer"] for row in rows))[0 if layer == "first" else -1]
            measures.append({row["speaker"]: float(row[claim.measure]) for row in rows if row["layer"] == layer_name})
        except (OSError, ValueError, LookupError) as error:
            raise InputError(f"{path}: expected the figures of layers, as the callback TSNE writes them") from error
    shared = [speaker for speaker in measures[0] if speaker in measures[1]]
    if not shared:
        raise InputError(
            f"{claim.lower} and {claim.higher}: expected figures of the same speakers, found none in common"
        )
    return [measures[0][speaker] for speaker in shared], [measures[1][speaker] for speaker in shared]


def _pair(claim: Claim, finished: Sequence[PlannedRun]) -> PairComparison | None:
    """Compare the two over utterances, where the claim is of final word error rates."""
    if claim.measure != "wer" or claim.epoch is not None:
        return None
    runs: dict[str, list[Run]] = {}
    for run in finished:
        runs.setdefault(run.name, []).append(read_run(run.folder))
    by_experiment = {seeds[0].name: seeds for seeds in runs.values()}
    pairs = compare_pairs(by_experiment, runs[claim.higher][0].name)
    matches = [pair for pair in pairs if isinstance(pair, PairComparison) and pair.subset == claim.subset]
    return matches[0] if matches else None


def digest(folder: Path) -> str:
    """Return twelve digits of the SHA-256 of what a verdict may rest on: experiment, rates, transcripts, logs."""
    hashed = hashlib.sha256()
    for path in (path for pattern in HASHED for path in sorted(folder.glob(pattern))):
        hashed.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return hashed.hexdigest()[:12]
