"""What W&B would be sent: its own objects make it, and only the call to its server is replaced."""

import json
from typing import Any

import pytest
import wandb
import wandb_workspaces.reports.v2.interface as report_interface
import wandb_workspaces.workspaces.internal as workspace_internal

from asr_lightning.errors import InputError
from asr_lightning.report import dashboard

GROUPS = ["demo/rnnt_random", "demo/rnnt_ws"]
SUBSETS = ["test-clean", "test-other"]
LAYERS = ["encoder.lstm", "joint"]
LOGGED = {
    **{f"{subset}/{value}": "number" for subset in SUBSETS for value in ("wer", "cer", "loss")},
    **{name: "number" for name in ("epoch", "train/loss", "train/audio_seconds_per_second")},
    **{"grad_norm/encoder": "number", "update_norm/encoder": "number", "neighbours": "table-file"},
    **{f"tsne/{layer}/order": "image-file" for layer in LAYERS},
    **{f"tsne/{layer}/phone": "images/separated" for layer in LAYERS},
}


class Server:
    """A stand-in for W&B's server: it keeps what it is sent."""

    default_entity = "somebody"

    def __init__(self) -> None:
        self.views: dict[str, dict[str, Any]] = {}
        self.projects_made: list[tuple[str, str]] = []

    def projects(self, entity: str) -> list[Any]:
        return []

    def create_project(self, name: str, entity: str) -> None:
        self.projects_made.append((name, entity))

    def answer(self, api: object, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        assert "upsertView" in query
        kind = variables["type"]
        self.views[kind] = variables | {"spec": json.loads(variables["spec"])}
        view = {"id": "1", "name": variables["name"], "spec": variables["spec"], "displayName": "", "description": ""}
        view |= {"type": kind, "project": {"name": variables["projectName"], "entityName": variables["entityName"]}}
        return {"upsertView": {"view": view | {"createdAt": None, "updatedAt": None}, "inserted": True}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    stand_in = Server()
    monkeypatch.setattr(wandb, "Api", lambda: stand_in)
    for module in (report_interface, workspace_internal):
        monkeypatch.setattr(module, "execute_graphql", stand_in.answer)
    monkeypatch.setattr(report_interface, "get_app_url", lambda api: "https://wandb.example")
    monkeypatch.setattr("wandb_workspaces.workspaces.interface.get_app_url", lambda api: "https://wandb.example")
    return stand_in


def sections() -> dashboard.Sections:
    return dashboard.make_sections(SUBSETS, LAYERS)


def parts(specification: Any, key: str) -> list[Any]:
    """All values of a key, at any depth."""
    if isinstance(specification, list):
        return [part for item in specification for part in parts(item, key)]
    if not isinstance(specification, dict):
        return []
    values = [specification[key]] if key in specification else []
    return values + [part for value in specification.values() for part in parts(value, key)]


def panels(specification: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for section in parts(specification, "panels") for panel in section if "viewType" in panel]


def test_nothing_is_asked_of_wandb_before_something_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("W&B was asked")

    monkeypatch.setattr(wandb, "Api", refuse)
    monkeypatch.setattr(report_interface, "execute_graphql", refuse)
    dashboard.make_workspace("us", "asr", GROUPS, sections())
    report = dashboard.make_report("us", "asr", GROUPS, sections())
    assert report._to_model().display_name == "Recognition, demo-rnnt_random, demo-rnnt_ws"


@pytest.mark.parametrize(
    ("make", "kind"), [(dashboard.make_workspace, "project-view"), (dashboard.make_report, "runs")]
)
def test_what_is_sent_shows_the_training_runs_of_the_groups(make: Any, kind: str, server: Server) -> None:
    make("us", "asr", GROUPS, sections()).save()
    view = server.views[kind]
    assert (view["entityName"], view["projectName"]) == ("us", "asr")
    run_sets = [run_set for view_sets in parts(view["spec"], "runSets") for run_set in view_sets]
    assert run_sets
    for run_set in run_sets:
        leaves = [(leaf["key"]["name"], leaf["op"], leaf["value"]) for leaf in run_set["filters"]["filters"]]
        assert leaves == [("group", "IN", GROUPS), ("jobType", "=", "fit")]
        assert [leaf.get("connector", "AND") for leaf in run_set["filters"]["filters"]] == ["AND", "AND"]
        assert not any(leaf["disabled"] for leaf in run_set["filters"]["filters"])
        assert [key["name"] for key in run_set["grouping"]] == ["group", "displayName"]
        assert run_set.get("project") is None  # the report's own


@pytest.mark.parametrize(
    ("make", "kind"), [(dashboard.make_workspace, "project-view"), (dashboard.make_report, "runs")]
)
def test_what_is_sent_has_the_panels_over_the_right_axes(make: Any, kind: str, server: Server) -> None:
    make("us", "asr", GROUPS, sections()).save()
    sent = panels(server.views[kind]["spec"])
    lines = {panel["config"]["chartTitle"]: panel["config"] for panel in sent if "xAxis" in panel["config"]}
    assert lines["WER per epoch"]["metrics"] == ["test-clean/wer", "test-other/wer"]
    assert {title: config["xAxis"] for title, config in lines.items()} == {
        "WER per epoch": "epoch",
        "CER per epoch": "epoch",
        "Loss per epoch": "epoch",
        "Training loss": "epoch",
        "Seconds of audio per second": "epoch",
        "Gradient norms, before clipping": "epoch",
        "Sizes of updates": "epoch",
    }
    for config in lines.values():  # over the seeds of a group
        assert (config["groupBy"], config["groupAgg"], config["groupArea"]) == ("group", "mean", "minmax")
    patterns = [config["metricRegex"] for config in lines.values() if config.get("useMetricRegex")]
    assert patterns == ["grad_norm/.*", "update_norm/.*"]
    media = [panel["config"]["mediaKeys"] for panel in sent if panel["viewType"] == "Media Browser"]
    assert media == [[f"tsne/{layer}/order", f"tsne/{layer}/phone"] for layer in LAYERS]
    [table] = [panel for panel in sent if panel["viewType"] == "Weave"]
    assert '"neighbours"' in json.dumps(table)


def test_panels_of_the_report_do_not_overlap(server: Server) -> None:
    dashboard.make_report("us", "asr", GROUPS, sections()).save()
    grids = [block for block in server.views["runs"]["spec"]["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == len(sections())
    for grid in grids:
        layouts = [panel["layout"] for panel in panels(grid)]
        covered = [
            (x, y)
            for layout in layouts
            for x in range(layout["x"], layout["x"] + layout["w"])
            for y in range(layout["y"], layout["y"] + layout["h"])
        ]
        assert covered and len(covered) == len(set(covered)) and max(x for x, _ in covered) < 24


def test_a_project_that_is_not_there_is_made(server: Server) -> None:
    dashboard.make_report("us", "asr", GROUPS, sections()).save()
    assert server.projects_made == [("asr", "us")]


@pytest.mark.parametrize("name", ["", "it's", 'a "b"', "a\\b"])
def test_a_group_that_no_filter_can_name_is_refused(name: str) -> None:
    for make in (dashboard.make_workspace, dashboard.make_report):
        with pytest.raises(InputError, match="expected the name of a W&B group"):
            make("us", "asr", ["demo/rnnt_ws", name], sections())


def test_a_long_title_is_cut(server: Server) -> None:
    groups = [f"demo/experiment_{number}" for number in range(20)]
    report = dashboard.make_report("us", "asr", groups, sections()).save()
    assert len(report.title) == 128 and report.title.endswith("...")


def test_the_title_is_one_part_of_the_address(server: Server) -> None:
    report = dashboard.make_report("us", "asr", ["demo/a?b#c%d"], sections()).save()
    assert report.url == "https://wandb.example/us/asr/reports/Recognition,-demo-a-b-c-d--1"


def missing(logged: dict[str, str]) -> set[str]:
    all_panels = [panel for section in sections().values() for panel in section]
    return {name for panel in all_panels for name in dashboard.missing_names(panel, logged)}


def test_nothing_is_missing_where_everything_is_logged() -> None:
    assert missing(LOGGED) == set()


@pytest.mark.parametrize("name", sorted(LOGGED))
def test_whatever_is_not_logged_is_missing(name: str) -> None:
    rest = {other: kind for other, kind in LOGGED.items() if other != name}
    part = name.split("/")[0]
    expected = f"{part}/.*" if part in ("grad_norm", "update_norm") else name
    assert missing(rest) == {expected}


@pytest.mark.parametrize("name", ["test-clean/wer", "grad_norm/encoder", "tsne/joint/order", "neighbours"])
def test_what_is_logged_as_something_else_is_missing(name: str) -> None:
    other = "table-file" if LOGGED[name] != "table-file" else "number"
    assert len(missing(LOGGED | {name: other})) == 1


def test_callbacks_of_which_an_experiment_may_go_without_are_optional() -> None:
    optional = {name.split("/")[0] for name in LOGGED if dashboard.is_optional(name)}
    assert optional == {"update_norm", "tsne", "neighbours"}
    assert dashboard.is_optional("update_norm/.*") and not dashboard.is_optional("grad_norm/.*")
