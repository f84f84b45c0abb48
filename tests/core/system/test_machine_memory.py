"""Memory of the machine, and of a container on it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from luthier.core.system import machine_memory


def test_the_limit_of_a_container_counts_where_it_is_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(machine_memory, "_CGROUP_LIMIT", limit)
    monkeypatch.setattr(machine_memory, "_CGROUP_USED", used)
    total = psutil.virtual_memory().total
    assert machine_memory.memory_bytes()[0] == total
    used.write_text("600\n")
    limit.write_text("max\n")
    assert machine_memory.memory_bytes()[0] == total
    limit.write_text("1000\n")
    assert machine_memory.memory_bytes() == (1000, 400)
    used.write_text("1200\n")
    assert machine_memory.memory_bytes() == (1000, 0)
