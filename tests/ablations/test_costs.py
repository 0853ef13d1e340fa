"""Wall time and memory of the commands of runs, with commands whose own are known."""

import math
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from asr_lightning.ablations.costs import Cost, commits, measured_costs_section, read_costs, total
from asr_lightning.ablations.execution import Execution, finished_commands
from asr_lightning.ablations.plan import PlannedRun
from asr_lightning.files import source_commit
from asr_lightning.tools import ablate

LARGE = "import time; block = bytearray(300_000_000); time.sleep(0.5)"
OF_A_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LARGE!r}], check=True)"


def planned(folder: Path, *codes: str, seed: int = 1) -> PlannedRun:
    commands = tuple(("-c", code) for code in codes)
    return PlannedRun("variant", seed, folder / "variant" / f"seed{seed}", {}, commands, (), 0)


def test_seconds_and_memory_are_those_of_each_command(tmp_path: Path) -> None:
    run = planned(tmp_path, "pass", LARGE, OF_A_CHILD)
    code = (  # in another process: a child begins with the memory of its parent, and pytest's is large
        "import pathlib\n"
        "from asr_lightning.ablations.execution import Execution\n"
        "from asr_lightning.ablations.plan import PlannedRun\n"
        f"run = PlannedRun({run.name!r}, 1, pathlib.Path({str(run.folder)!r}), {{}}, {run.commands!r}, (), 0)\n"
        "assert Execution([run]).run() == {}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
    small, large, child = read_costs(run.folder)
    assert 0.003 < small.gigabytes < 0.2 and 0 <= small.seconds < 100  # in tenths
    for cost in (large, child):
        assert 0.3 < cost.gigabytes < 0.5, "the block, and what Python needs"
        assert cost.seconds >= 0.5 and cost.status == 0
    assert len(finished_commands(run)) == 3


def test_a_command_that_fails_or_is_stopped_has_costs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned(tmp_path, "import sys; sys.exit(3)")
    assert "status 3" in Execution([run]).run()[run.folder]
    assert "status 3" in Execution([run]).run()[run.folder]
    assert [cost.status for cost in read_costs(run.folder)] == [3, 3] and finished_commands(run) == []
    assert commits(run.folder) == [source_commit()], "that of both starts, once"
    waiting = planned(tmp_path, "open('begun', 'w'); import time; time.sleep(100)", seed=2)
    monkeypatch.chdir(tmp_path)
    stop = threading.Thread(target=interrupt_after, args=(tmp_path / "begun",))
    stop.start()
    with pytest.raises(KeyboardInterrupt):
        Execution([waiting]).run()
    stop.join()
    [cost] = read_costs(waiting.folder)
    assert cost.status == -signal.SIGTERM and cost.seconds < 90


def interrupt_after(path: Path) -> None:
    while not path.exists():
        threading.Event().wait(0.05)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def test_costs_of_before_commits_were_noted_are_read(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text('[{"command": "lightning fit", "seconds": 1, "gigabytes": 1, "status": 0}]')
    assert len(read_costs(tmp_path)) == 1 and commits(tmp_path) == []


def test_starts_of_a_command_are_one_line(tmp_path: Path) -> None:
    run = planned(tmp_path, "import sys; sys.exit(3)")
    assert measured_costs_section([run]) is None
    for _ in range(2):
        Execution([run]).run()
    section = measured_costs_section([run, planned(tmp_path, "pass", seed=2)])
    assert section is not None
    head, line = section.table
    assert head == ["run", "command", "starts", "minutes", "peak GB"]
    assert line[0] == "variant/seed1" and line[2] == "2"
    assert sorted(section.write(tmp_path)) == ["costs.csv", "costs.md"]


def test_hours_are_added_and_memory_is_the_largest() -> None:
    costs = [Cost("lightning fit", 1800.0, 2.0, -15), Cost("lightning fit", 3600.0, 1.5, 0)]
    assert total(costs) == (1.5, 2.0)
    assert total([]) is None


def test_runs_of_other_seeds_tell_what_a_new_one_takes() -> None:
    assert ablate._mean([(1.0, 2.0), (2.0, 3.0)]) == (1.5, 3.0)
    assert ablate._mean([]) == (None, None)
    hours, gigabytes = ablate._mean([(1.0, math.nan)])
    assert hours == 1.0 and gigabytes is not None and math.isnan(gigabytes)


@pytest.mark.parametrize("content", ["", "[1]", "{}", '[{"seconds": 1}]', "\x00"])
def test_costs_that_cannot_be_read_are_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text(content)
    assert read_costs(tmp_path) == []
