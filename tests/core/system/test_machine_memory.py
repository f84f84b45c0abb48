"""Memory of the machine, and of a container on it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from luthier.core.system import machine_memory


def test_the_limit_of_a_container_counts_where_it_is_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used, statistics = (tmp_path / name for name in ("memory.max", "memory.current", "memory.stat"))
    monkeypatch.setattr(machine_memory, "_CGROUP_LIMIT", limit)
    monkeypatch.setattr(machine_memory, "_CGROUP_USED", used)
    monkeypatch.setattr(machine_memory, "_CGROUP_STATISTICS", statistics)
    total = psutil.virtual_memory().total
    assert machine_memory.memory_bytes()[0] == total
    used.write_text("600\n")
    limit.write_text("max\n")
    assert machine_memory.memory_bytes()[0] == total
    limit.write_text("1000\n")
    assert machine_memory.memory_bytes() == (1000, 400)
    statistics.write_text("anon 100\ninactive_file 300\nactive_file 200\n")
    assert machine_memory.memory_bytes() == (1000, 700), "files that are kept as long as there is room take none"
    statistics.unlink()
    used.write_text("1200\n")
    assert machine_memory.memory_bytes() == (1000, 0)
