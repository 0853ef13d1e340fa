"""The YAML of an ablation: a question, variants of a base experiment, and the paper's numbers.

    question: Does a student learn faster from selected weights?
    source: Han et al. 2024, Table 1
    base: {demo: experiments/demo/rnnt_random.yaml, full: experiments/rnnt_random.yaml}
    needs:
      teacher: {base: {demo: experiments/demo/rnnt_teacher.yaml, full: experiments/rnnt_teacher.yaml}}
    variants:
      random: {}
      selected:
        base: {demo: experiments/demo/rnnt_ws.yaml, full: experiments/rnnt_ws.yaml}
        values: {weight_selection.teacher: "{teacher}/checkpoints/last.ckpt"}
    paper:
      test-clean WER: {random: 3.52, selected: 3.53}

The first variant is the one that the others are tested against. `docs/ablations.md` tells all keys.
"""

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from asr_lightning.errors import InputError, shown
from asr_lightning.files import read_yaml
from asr_lightning.scoring import Metric

SCALES = ("demo", "full")
TEXT, TEXTS, BY_NAME, EITHER = (str,), (list,), (dict,), (str, dict)  # what the value of a key may be
KEYS = {
    **{"question": TEXT, "source": TEXT, "base": EITHER, "values": BY_NAME, "seeds": TEXTS, "metrics": TEXTS},
    **{"subsets": TEXTS, "needs": BY_NAME, "variants": BY_NAME, "after": TEXTS, "inside": EITHER, "outputs": TEXTS},
    **{"paper": BY_NAME, "reference": TEXT},
}
RUN_KEYS = {
    **{"base": EITHER, "values": BY_NAME, "network": TEXT, "command": EITHER, "after": TEXTS, "inside": EITHER},
    **{"scales": TEXTS, "note": TEXT},
}
PLACEHOLDER = re.compile(r"\{([a-z]\w*)\}")
NAME = re.compile(r"[a-z]\w*")
# Placeholders that stand for no run.
OWN = ("folder", "experiment", "inside", "checkpoint", "seed", "scale", "output", "runs", "root")


@dataclass(frozen=True)
class Variant:
    """A run of an ablation, or what a run needs first; over seeds.

    Attributes:
        name: Of its folder, and its row in tables.
        base: Path of the experiment, by scale.
        values: New values by dotted key of the experiment; see `overrides.override`.
        network: Name of the variant or need whose network is tested in place of training one; empty to train.
        command: A tool that makes what is needed, in place of training, maybe by scale; empty to train.
        after: Commands after training, as `hybrid tune --config {experiment} …`, maybe by scale.
        inside: YAML whose callbacks look into the first seed's network after training, by scale; may be empty.
        scales: Those at which it exists.
        note: What a reader of the table should know.
    """

    name: str
    base: Mapping[str, str]
    values: Mapping[str, Any] = field(default_factory=dict)
    network: str = ""
    command: str | Mapping[str, str] = ""
    after: tuple[str | Mapping[str, str], ...] = ()
    inside: Mapping[str, str] = field(default_factory=dict)
    scales: tuple[str, ...] = SCALES
    note: str = ""

    def names(self, scale: str) -> list[str]:
        """Return the runs that it refers to by placeholders or as its network, each once."""
        texts = texts_in(at_scale([self.values, self.command, list(self.after)], scale))
        names = [name for text in texts for name in PLACEHOLDER.findall(text) if name not in OWN]
        return list(dict.fromkeys([*([self.network] if self.network else []), *names]))


@dataclass(frozen=True)
class Ablation:
    """An ablation.

    Attributes:
        name: Of its file, and of its folder of runs.
        question: What it answers, a sentence.
        source: Authors, year and table or section.
        seeds: Of every variant, unless others are asked for.
        metrics: Error rates of its table, as `wer`.
        subsets: Those of its table; all that there are if empty.
        needs: What runs before the variants, with one seed, by name; a text is another ablation's `ablation/variant`.
        variants: By name, likewise; the first is the baseline.
        outputs: Commands at the end, over all runs; each a text, or `command` and `each_seed` (words that are added for
            every seed); those that name a variant which is not there are left out.
        reference: Name of a need that tables and pictures show too, such as the teacher; may be empty.
        paper: Rates of the source in per cent, by column (`test-clean WER`, `test-clean WER, epoch 5`) and variant.
        scales: Those that `base` has; variants of other ablations exist at these.
    """

    name: str
    question: str
    source: str
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]
    subsets: tuple[str, ...]
    needs: Mapping[str, "Variant | str"]
    variants: Mapping[str, "Variant | str"]
    outputs: tuple[str | Mapping[str, Any], ...]
    reference: str
    paper: Mapping[str, Mapping[str, float]]
    scales: tuple[str, ...]

    def names(self, scale: str) -> list[str]:
        """Return the names of the variants at a scale."""
        return [
            name
            for name, variant in self.variants.items()
            if scale in (self.scales if isinstance(variant, str) else variant.scales)
        ]

    @property
    def baseline(self) -> str:
        """The variant that the others are tested against."""
        return next(iter(self.variants))


def at_scale(value: Any, scale: str) -> Any:  # noqa: ANN401 - any value of a YAML
    """Return a value with all `{demo: …, full: …}` in it replaced by that of one scale."""
    if isinstance(value, Mapping):
        if set(value) == set(SCALES):
            return at_scale(value[scale], scale)
        return {key: at_scale(member, scale) for key, member in value.items()}
    if isinstance(value, list):
        return [at_scale(member, scale) for member in value]
    return value


def texts_in(value: object) -> Iterator[str]:
    """Yield all texts within a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from texts_in(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from texts_in(member)


def read_ablation(path: Path) -> Ablation:
    """Read and check the YAML of an ablation.

    Raises:
        InputError: It cannot be read, a key is unknown or missing, or a placeholder names nothing.
    """
    content = _content(path)
    _check_keys(path, "the ablation", content, KEYS, {"question", "source", "base", "variants"})
    shared: dict[str, Any] = {key: content[key] for key in ("base", "values", "after", "inside") if key in content}
    needs = _runs(path, "needs", content.get("needs") or {}, {"base": content["base"]})
    variants = _runs(path, "variants", content["variants"], shared)
    for name, variant in variants.items():
        if isinstance(variant, str) and variant.rpartition("/")[2] != name:
            raise InputError(
                f"{path}: {name}: expected the name of the variant {variant}, since its results are stored under it"
            )
    ablation = Ablation(
        path.stem,
        str(content["question"]),
        str(content["source"]),
        tuple(content.get("seeds") or (1, 2, 3)),
        tuple(content.get("metrics") or ("wer",)),
        tuple(content.get("subsets") or ()),
        needs,
        variants,
        tuple(content.get("outputs") or ()),
        str(content.get("reference") or ""),
        content.get("paper") or {},
        tuple(scale for scale in SCALES if isinstance(content["base"], str) or scale in content["base"]),
    )
    _check(path, ablation)
    return ablation


def _runs(path: Path, section: str, content: object, shared: Mapping[str, Any]) -> dict[str, Variant | str]:
    """Read variants or needs; a text is `ablation/variant`."""
    if not isinstance(content, dict) or (section == "variants" and not content):
        raise InputError(f"{path}: {section}: expected names with values, found {shown(repr(content))}")
    runs: dict[str, Variant | str] = {}
    for name, run in content.items():
        runs[name] = run if isinstance(run, str) else _variant(path, name, run or {}, shared)
        if isinstance(run, str) and not re.fullmatch(r"\w+/\w+", run):
            raise InputError(
                f"{path}: {name}: expected keys, or another ablation's variant as ablation/variant, found {run}"
            )
    return runs


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise InputError(f"no ablation at {path} (looked for {path.absolute()}); in that folder: {names}")
    return read_yaml(path, "the ablation")


def _check_keys(
    path: Path, location: str, content: object, allowed: Mapping[str, tuple[type, ...]], needed: Set[str]
) -> None:
    if not isinstance(content, dict):
        raise InputError(f"{path}: {location}: expected keys with values, found {shown(repr(content))}")
    if unknown := [str(key) for key in content if key not in allowed]:
        raise InputError(
            f"{path}: {location}: unknown {', '.join(unknown)}; expected some of {', '.join(sorted(allowed))}"
        )
    if missing := sorted(needed - set(content)):
        raise InputError(f"{path}: {location}: {', '.join(missing)} is missing")
    for key, value in content.items():
        if value is not None and not isinstance(value, allowed[key]):
            kinds: dict[type, str] = {str: "a text", list: "a list", dict: "names with values"}
            expected = " or ".join(kinds[kind] for kind in allowed[key])
            raise InputError(f"{path}: {location}: {key}: expected {expected}, found {shown(repr(value))}")


def _variant(path: Path, name: str, content: object, shared: Mapping[str, Any]) -> Variant:
    _check_keys(path, str(name), content, RUN_KEYS, set())
    assert isinstance(content, dict)
    if not NAME.fullmatch(str(name)) or name in OWN:
        raise InputError(
            f"{path}: {name}: expected a name of small letters, digits and _ that is none of {', '.join(OWN)}"
        )
    merged = {**shared, **content}
    base = merged["base"]
    by_scale = dict.fromkeys(SCALES, base) if isinstance(base, str) else base
    scales = tuple(merged.get("scales") or [scale for scale in SCALES if scale in by_scale])
    if (
        not isinstance(by_scale, dict)
        or not scales
        or not set(scales) <= set(by_scale)
        or not set(by_scale) <= set(SCALES)
    ):
        raise InputError(f"{path}: {name}: base: expected the path of an experiment at the scales {', '.join(SCALES)}, "
                         f"found {shown(repr(base))}")  # fmt: skip
    inside = merged.get("inside") or {}
    return Variant(
        str(name),
        by_scale,
        {**shared.get("values", {}), **(content.get("values") or {})},
        str(merged.get("network") or ""),
        merged.get("command") or "",
        tuple(merged.get("after") or ()),
        dict.fromkeys(SCALES, inside) if isinstance(inside, str) else inside,
        scales,
        str(merged.get("note") or ""),
    )


def _check(path: Path, ablation: Ablation) -> None:
    """Check references between runs, seeds, metrics and the paper's columns."""
    if duplicates := sorted(set(ablation.needs) & set(ablation.variants)):
        raise InputError(
            f"{path}: {', '.join(duplicates)}: expected another name for what is needed than for a variant"
        )
    if ablation.reference and ablation.reference not in ablation.needs:
        raise InputError(f"{path}: reference: expected something that is needed, found {ablation.reference}")
    known = {*ablation.needs, *ablation.variants}
    for run in [
        run for runs in (ablation.variants, ablation.needs) for run in runs.values() if isinstance(run, Variant)
    ]:
        for scale in run.scales:
            if unknown := [name for name in run.names(scale) if name not in known]:
                raise InputError(
                    f"{path}: {run.name}: expected placeholders with the name of a run, {', '.join(sorted(known))}, or "
                    f"one of {', '.join(OWN)}; found {', '.join(f'{{{name}}}' for name in unknown)}"
                )
    if not all(type(seed) is int and seed >= 0 for seed in ablation.seeds):
        raise InputError(f"{path}: seeds: expected whole numbers from 0, found {shown(repr(ablation.seeds))}")
    if unknown := [metric for metric in ablation.metrics if metric not in get_args(Metric)]:
        raise InputError(f"{path}: metrics: expected some of {', '.join(get_args(Metric))}, found {', '.join(unknown)}")
    for column, rates in ablation.paper.items():
        if not isinstance(rates, dict) or not all(type(rate) in (int, float) for rate in rates.values()):
            raise InputError(f"{path}: paper: {column}: expected a number by variant, found {shown(repr(rates))}")
        if unknown := [str(name) for name in rates if name not in known]:
            expected = ", ".join(sorted(known))
            raise InputError(f"{path}: paper: {column}: expected names of runs, {expected}; found {', '.join(unknown)}")
