"""W&B workspace and report of groups of runs. W&B is contacted only when they are saved."""

import re
from collections.abc import Mapping, Sequence

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.expr import And

from asr_lightning.errors import InputError

Panel = wr.LinePlot | wr.MediaBrowser | wr.WeavePanelSummaryTable
Sections = dict[str, list[Panel]]

EPOCH = "epoch"  # 1 is the end of the first
TRAINING = "fit"  # the job type of runs that train, as opposed to tests of a checkpoint of another folder
PICTURES = ("order", "phone")  # of a layer: its frames colored by order in the utterance, and by phone
OPTIONAL = ("update_norm/", "tsne/", "neighbours")  # of callbacks that an experiment may go without
LINES = 100  # W&B draws ten otherwise
KINDS = {wr.LinePlot: {"number"}, wr.MediaBrowser: {"image-file", "images/separated"}}
TABLE = {"table-file"}

# of a panel in a report, which has 24 columns
WHOLE = {"w": 24, "h": 10}
HALF = {"w": 12, "h": 8}

READING = (
    "One line per group: the mean over its seeds, and a band from the least to the greatest. Error rates are "
    "fractions, 0.1 is 10 %, and epoch 1 is the first that is finished. Runs that only test are left out."
)


def make_sections(subsets: Sequence[str], layers: Sequence[str] = ()) -> Sections:
    """Return the panels of a dashboard, by section.

    Args:
        subsets: Parts of the corpus whose error rates lie over each other in a plot, as `test-clean`.
        layers: Layers with t-SNE pictures logged under `tsne/<layer>/`; W&B takes no pattern for pictures.
    """
    rates: list[Panel] = [
        _lines("WER per epoch", WHOLE, EPOCH, [f"{subset}/wer" for subset in subsets]),
        _lines("CER per epoch", HALF, EPOCH, [f"{subset}/cer" for subset in subsets]),
        _lines("Loss per epoch", HALF, EPOCH, [f"{subset}/loss" for subset in subsets]),
    ]
    training: list[Panel] = [
        _lines("Training loss", HALF, EPOCH, ["train/loss"]),
        _lines("Seconds of audio per second", HALF, EPOCH, ["train/audio_seconds_per_second"]),
        _lines("Gradient norms, before clipping", HALF, EPOCH, pattern="grad_norm/.*"),
        _lines("Sizes of updates", HALF, EPOCH, pattern="update_norm/.*"),
    ]
    layer_panels: list[Panel] = [
        wr.MediaBrowser(
            title=f"t-SNE of {layer}",
            media_keys=[f"tsne/{layer}/{picture}" for picture in PICTURES],
            num_columns=len(PICTURES),
            layout=wr.Layout(**WHOLE),
        )
        for layer in layers
    ]
    layer_panels.append(wr.WeavePanelSummaryTable(table_name="neighbours", layout=wr.Layout(**WHOLE)))
    return {"Error rates": rates, "Training": training, "Looking inside": layer_panels}


def _lines(
    title: str, size: dict[str, int], x: str, names: Sequence[str] = (), pattern: str | None = None
) -> wr.LinePlot:
    return wr.LinePlot(
        title=title,
        x=x,
        y=list(names),
        metric_regex=pattern,
        groupby="Group",
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=LINES,
        layout=wr.Layout(**size),
    )


def make_workspace(entity: str, project: str, groups: Sequence[str], sections: Sections) -> ws.Workspace:
    """Return a workspace; its `save` makes it at W&B.

    Args:
        entity: User or team.
        project: As the runs'.
        groups: W&B's groups, one for all seeds of an experiment, as `demo/rnnt_ws`.
        sections: Of `make_sections`.

    Raises:
        InputError: A group's name cannot be written in a filter.
    """
    return ws.Workspace(
        entity=entity,
        project=project,
        name=make_title(groups),
        sections=[ws.Section(name=name, panels=[*panels], is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(max_runs=LINES),
        runset_settings=ws.RunsetSettings(filters=_filters(groups), groupby=[ws.Metric("Group"), ws.Metric("Name")]),
    )


def make_report(entity: str, project: str, groups: Sequence[str], sections: Sections) -> wr.Report:
    """Return a report; its `save` makes it at W&B. Arguments and errors are those of `make_workspace`."""
    blocks: list[wr.H2 | wr.P | wr.PanelGrid] = [wr.P(READING), wr.P(f"Groups: {', '.join(groups)}")]
    for name, panels in sections.items():
        # Without a project, a run set takes that of the report, and no server is asked for the number of a project.
        runs = wr.Runset(name="Runs", filters=_filters(groups), groupby=["run.Group", "run.Name"])
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=[*panels])]
    return wr.Report(entity=entity, project=project, title=make_title(groups), blocks=[*blocks], width="fluid")


def make_title(groups: Sequence[str]) -> str:
    """Return the title of workspace and report: part of an address, at most 128 characters."""
    title = re.sub(r"[^\w., -]", "-", f"Recognition, {', '.join(groups)}")
    return title if len(title) <= 128 else f"{title[:125]}..."


def _filters(groups: Sequence[str]) -> And:
    for group in groups:
        if not group or set(group) & set("'\"\\"):
            raise InputError(f"expected the name of a W&B group without quotes and backslashes, got {group!r}")
    return And(ws.Metric("Group").isin(list(groups)), ws.Metric("JobType") == TRAINING)


def names_of(panel: Panel) -> list[str]:
    """Return the logged names that a panel shows; the last may be a regular expression."""
    if isinstance(panel, wr.LinePlot):
        return [*(str(name) for name in panel.y), *([panel.metric_regex] if panel.metric_regex else [])]
    return list(panel.media_keys) if isinstance(panel, wr.MediaBrowser) else [panel.table_name]


def describe_workspace(sections: Sections) -> list[str]:
    """Return a line for each section and panel: its title, the names that it shows, and its axis."""
    lines = []
    for section, panels in sections.items():
        lines.append(section)
        for panel in panels:
            title = "Table" if isinstance(panel, wr.WeavePanelSummaryTable) else panel.title
            over = f" over {panel.x}" if isinstance(panel, wr.LinePlot) else ""
            lines.append(f"  {title}: {', '.join(names_of(panel))}{over}")
    return lines


def missing_names(panel: Panel, logged: Mapping[str, str]) -> list[str]:
    """Return the names that a panel shows and a run has not logged, or logged as another kind.

    Args:
        panel: With its axis, which must be logged too.
        logged: From each name to its kind: `number`, or what W&B calls the type of a picture or table.
    """
    kinds = KINDS.get(type(panel), TABLE)
    usable = [name for name, kind in logged.items() if kind in kinds]
    names = names_of(panel)
    if isinstance(panel, wr.LinePlot):
        pattern = panel.metric_regex
        if pattern and any(re.fullmatch(pattern, name) for name in usable):
            names.remove(pattern)
        names.append(str(panel.x))
    return [name for name in names if name not in usable]


def is_optional(name: str) -> bool:
    """Whether a run need not log this name."""
    return name.startswith(OPTIONAL)
