"""A small fault drill on both databases; benchmarks/fault_drill.py is the large one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DRILL = Path(__file__).parents[3] / "benchmarks" / "fault_drill.py"


@pytest.mark.drill
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_whatever_is_killed_every_job_ends_as_if_undisturbed(database: str, tmp_path: Path) -> None:
    options = {"--jobs": 6, "--recipes": 2, "--requests": 1, "--workers": 2, "--lease": 15, "--minutes": 15}
    command = [sys.executable, str(DRILL), "--database", database, "--work", str(tmp_path / "drill")]
    command += [str(word) for option in options.items() for word in option]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "{" in done.stdout, done.stderr[-3000:]
    drill = json.loads(done.stdout[done.stdout.index("{") :])["drills"][0]
    if "skipped" in drill:
        pytest.skip(drill["skipped"])
    assert drill["is_well"], json.dumps(drill, indent=2)
    assert (done.returncode, drill["num_as_undisturbed"]) == (0, 6)
    assert sum(drill["faults"].values()) >= 3
