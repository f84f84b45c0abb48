"""A server gives way by the weight of its session, and touches no session but its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

GROUP = Path("/proc/self/autogroup")
SHOW = """
from pathlib import Path
from luthier.core.system.process_setup import lower_session_priority
group = Path("/proc/self/autogroup")
before = group.read_text().strip()
lower_session_priority()
print(before, group.read_text().strip(), sep=chr(10))
"""


@pytest.mark.skipif(not GROUP.is_file(), reason="this kernel has no autogroups")
@pytest.mark.parametrize("is_leader", [True, False])
def test_its_own_session_alone_weighs_less(is_leader: bool) -> None:
    told = subprocess.run(
        [sys.executable, "-c", SHOW], start_new_session=is_leader, capture_output=True, text=True, check=True
    )
    before, after, _ = told.stdout.split("\n")
    if is_leader:
        assert (before.split()[-1], after.split()[-1]) == ("0", "10")
    assert is_leader or after == before, "empty for both, in a session that is as old as the kernel"


def test_without_autogroups_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from luthier.core.system import process_setup as lower_session_priority

    monkeypatch.setattr(lower_session_priority, "_GROUP", tmp_path / "not" / "there")
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid())
    lower_session_priority.lower_session_priority()
