"""Check that runs have logged what a W&B dashboard shows, and publish it."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

import wandb

from asr_lightning.errors import InputError
from asr_lightning.report import dashboard
from asr_lightning.report.wandb_runs import LoggedRun, find_wandb_runs, layers_of

ANSWER_SECONDS = 60  # where there is no server, W&B's client at times waits for ever
NO_LOGIN = (
    "nothing was sent: W&B needs a login. Log in with `wandb login` or set WANDB_API_KEY, do not set WANDB_MODE to "
    "offline or disabled, and say --save again."
)


def choose_shown(runs: Sequence[LoggedRun], project: str, groups: Sequence[str]) -> list[LoggedRun]:
    """Return the runs that the dashboard's filters let through.

    Raises:
        InputError: A group has none.
    """
    shown = [
        run for run in runs if run.project == project and run.group in groups and run.job_type == dashboard.TRAINING
    ]
    missing = [group for group in groups if group not in {run.group for run in shown}]
    if missing:
        names = sorted({f"{run.project}: {run.group or 'no group'} ({run.job_type or 'no job type'})" for run in runs})
        raise InputError(
            f"no run of group {missing[0]} with job type {dashboard.TRAINING} in project {project}; there are "
            f"{'; '.join(names)}. `lightning fit` gives both: the group is named by the two folders above the seed's"
        )
    return shown


def check(runs: Sequence[LoggedRun], sections: dashboard.Sections) -> tuple[list[str], bool]:
    """Check whether runs have logged what a dashboard shows.

    Returns:
        A line for each run, all starts of one seed together, and whether all that is not optional has been logged.
    """
    lines, complete = [], True
    panels = [panel for of_section in sections.values() for panel in of_section]
    for group, name in dict.fromkeys((run.group, run.name) for run in runs):
        starts = [run for run in runs if (run.group, run.name) == (group, name)]
        logged = {key: kind for run in starts for key, kind in run.logged.items()}
        absent = list(dict.fromkeys(key for panel in panels for key in dashboard.missing_names(panel, logged)))
        needed = [key for key in absent if not dashboard.is_optional(key)]
        optional = [key for key in absent if dashboard.is_optional(key)]
        lines.append(f"  {name}: " + (f"not logged: {', '.join(needed)}" if needed else "logged what is needed"))
        if optional:
            lines.append(f"    without what is optional: {', '.join(optional)}")
        if any(key.endswith("/wer") for key in needed):
            subsets = sorted(key.removesuffix("/wer") for key in logged if key.endswith("/wer"))
            lines.append(f"    error rates are of {', '.join(subsets) or 'nothing'}: say so with --subsets")
        complete = complete and not needed
    return lines, complete


def _raise_timeout(*_: object) -> None:
    raise TimeoutError(f"no answer within {ANSWER_SECONDS} s")


def publish(entity: str | None, project: str, groups: Sequence[str], sections: dashboard.Sections) -> list[str]:
    """Make a report and a workspace at W&B, each time new ones, and return their addresses.

    Args:
        entity: User or team; the login's own if None.
        project: Made if it is not there.
        groups: Of the runs.
        sections: What is shown.

    Raises:
        InputError: There is no login, or W&B does not answer or refuses.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    handler = signal.signal(signal.SIGALRM, _raise_timeout)
    signal.alarm(ANSWER_SECONDS)
    try:
        if not wandb.login(prompt=False):
            raise InputError(NO_LOGIN)
        entity = entity or wandb.Api().default_entity
        if entity is None:
            raise InputError("W&B has no user or team for this login: name one with --entity")
        report = dashboard.make_report(entity, project, groups, sections).save()  # makes the project
        workspace = dashboard.make_workspace(entity, project, groups, sections).save()
    except InputError:
        raise
    except Exception as error:  # W&B's have no class in common
        raise InputError(f"W&B refused the dashboard of {entity or 'you'}/{project}: {error}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    return [f"report:    {report.url}", f"workspace: {workspace.url}"]


def run(options: argparse.Namespace) -> int:
    """Print what a dashboard shows, check runs, and publish it as the options ask; return the exit status."""
    runs = choose_shown(find_wandb_runs(options.runs), options.project, options.group) if options.runs else []
    sections = dashboard.make_sections(options.subsets, options.layers or layers_of(runs))
    # made before anything is printed, so that a name which no filter can express ends the command
    dashboard.make_workspace(options.entity or "", options.project, options.group, sections)
    print(f"Groups {', '.join(options.group)} of project {options.project}\n")
    print("\n".join(dashboard.describe_workspace(sections)))
    if not options.layers and not layers_of(runs):
        print("  no pictures: name the layers with --layers, or give --runs that have logged pictures")
    if runs:
        lines, complete = check(runs, sections)
        print("\n".join(["", "Runs", *lines]))
        if not complete:
            print("\nNothing was sent, since panels would be empty.", file=sys.stderr)
            return 1
    if not options.save:
        print("\nNothing was sent. --save makes a report and a workspace of this; `wandb sync` sends offline runs.")
        return 0
    print("\n".join(["", *publish(options.entity, options.project, options.group, sections)]))
    return 0
