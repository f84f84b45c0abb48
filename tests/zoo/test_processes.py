"""Families in processes: one that hangs or dies is written down where it did, and nothing of it goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.zoo import processes, stages
from tests.zoo.__main__ import progress
from tests.zoo.processes import walked
from tests.zoo.table import table

from luthier.core.system.facilities import fork


def _walked(scratch: Path, seconds: float) -> list[dict[str, Any]]:
    ((name, outcomes),) = walked(["llama"], ["plan", "reach", "score"], 1, scratch, seconds)
    assert name == "llama"
    return outcomes


def test_a_stage_that_hangs_is_killed_with_what_it_has_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid_file = tmp_path / "grandchild"

    def hangs(*_: object) -> None:
        if (pid := fork()) == 0:
            time.sleep(600)
            os._exit(0)
        pid_file.write_text(str(pid), encoding="utf-8")
        time.sleep(600)

    def clock() -> float:
        """Ten minutes go by once the stage hangs: nobody waits for them, and however long it takes to get there."""
        hangs_now = pid_file.is_file() and pid_file.read_text(encoding="utf-8") != ""
        return time.monotonic() + 600.0 * hangs_now

    monkeypatch.setattr(stages, "plan", lambda going, context: None)
    monkeypatch.setattr(stages, "reach", hangs)
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=clock, sleep=time.sleep))
    (tmp_path / "scratch").mkdir()
    found = _walked(tmp_path / "scratch", 600.0)
    assert [(one["stage"], one["status"]) for one in found] == [("reach", "killed"), ("score", "not run")]
    assert "not done after 600 s" in found[0]["reason"]
    grandchild = int(pid_file.read_text(encoding="utf-8"))
    for _ in range(100):
        if not _lives(grandchild):
            break
        time.sleep(0.1)
    assert not _lives(grandchild)
    text = table({"llama": found})
    assert "1 KILLED" in text
    assert "1 not run" in text
    assert "killed: killed: not done after 600 s" in text


def _lives(pid: int) -> bool:
    """Whether it runs; one that waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_stage_that_ends_its_process_is_written_down_where_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(stages, "plan", dies)
    found = _walked(tmp_path, 600.0)
    ends = [(one["stage"], one["status"]) for one in found]
    assert ends == [("plan", "raw exception"), ("reach", "not run"), ("score", "not run")]
    assert "status 9" in found[0]["reason"]


def test_progress_says_about_how_long_it_takes() -> None:
    assert progress(3, 12, 180.0) == "[3/12, about 9 min left]"
    assert progress(12, 12, 180.0) == "[12/12]"
