"""Check the claims of the papers with the ablations that have been run: table and page.

Example:
    asr verdicts
    asr verdicts --scale full --output reports

It trains nothing: `asr ablate` runs ablations. A claim is confirmed or not confirmed where the 95 % intervals over
seeds, and over utterances, leave no doubt; else it is undecided. The exit status is 1 if finished runs lack what a
claim needs. docs/ablations.md explains the rules.
"""

import argparse
import shlex
import sys
from pathlib import Path

from asr_lightning.ablations.definition import SCALES
from asr_lightning.asr import main
from asr_lightning.errors import InputError
from asr_lightning.tools.ablate import FOLDER

CLAIMS = Path("experiments/claims/papers.yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--claims", type=Path, default=CLAIMS, metavar="YAML", help=f"default: {CLAIMS}")
    parser.add_argument("--scale", choices=SCALES, default="demo", help="of the runs (default: demo)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER",
                        help="`--output` of asr ablate (default: runs)")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FOLDER",
                        help="of verdicts.md, verdicts.csv, runs.md, runs.csv and page.html (default: "
                        "<runs>/<scale>/verdicts)")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Weigh the claims, and write what was found; return the exit status."""
    from asr_lightning.ablations.claims import read_claims, weigh_claims
    from asr_lightning.ablations.verdicts import digests, runs_section, verdicts_page, verdicts_section
    from asr_lightning.files import write_atomically
    from asr_lightning.report.tables import MISSING

    if not options.claims.is_file():
        raise InputError(
            f"no claims at {options.claims} (looked for {options.claims.absolute()}): run this in the project's "
            "folder, or give --claims"
        )
    folder = options.output or options.runs / options.scale / "verdicts"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output: expected a folder, found the file {folder}")
    evidence = weigh_claims(read_claims(options.claims, options.scale), FOLDER, options.scale, options.runs)
    run_digests = digests(evidence)
    section, runs = verdicts_section(evidence), runs_section(evidence, run_digests)
    files = section.write(folder) + runs.write(folder)
    page = verdicts_page(
        evidence,
        run_digests,
        options.scale,
        options.runs / options.scale,
        shlex.join(["asr", "verdicts", *options.typed]),
    )
    write_atomically(folder / "page.html", page)
    for result, row in zip(evidence, section.table[1:], strict=True):
        cells = dict(zip(section.table[0], row, strict=True))
        print(f"{result.verdict:15}{cells['claim']}")
        if result.difference:
            print(f"{'':15}{cells['measure']}: {cells['lower']} against {cells['higher']}, {cells['over']}; difference "
                  f"{cells['difference']} ({cells['95 % interval']})")  # fmt: skip
        if result.reason and result.runs:
            print(f"{'':15}{result.reason}")
    changed = [line[0] for line in runs.table[1:] if line[-1] != MISSING]
    if changed:
        print(
            f"runs whose values differ from those of the experiments now, see runs.md: {', '.join(changed)}",
            file=sys.stderr,
        )
    if missing := list(dict.fromkeys(result.command for result in evidence if not result.runs)):
        print("\nnot run yet:\n" + "\n".join(f"  {command}" for command in missing))
    print(f"\nWritten to {folder.absolute()}: {', '.join([*files, 'page.html'])}")
    return int(any(result.verdict == "not run" and result.runs for result in evidence))


if __name__ == "__main__":
    sys.exit(main(["verdicts", *sys.argv[1:]]))
