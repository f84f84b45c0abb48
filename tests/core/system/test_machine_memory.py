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


def test_nothing_else_decides_by_the_memory_of_the_whole_machine() -> None:
    """In a container it would take what the container does not have, and be killed."""
    package = Path(machine_memory.__file__).parents[2]
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "virtual_memory(" in path.read_text(encoding="utf-8")
    }
    # The second one shows what the machine does.
    assert found == {"core/system/machine_memory.py", "core/system/machine_usage.py"}


def test_an_error_without_memory_is_known_by_what_caused_it() -> None:
    class OutOfMemoryError(RuntimeError):  # torch's, of an accelerator
        pass

    wrapped = ValueError("no answer")
    wrapped.__cause__ = OutOfMemoryError("CUDA out of memory")
    for error in (MemoryError(), wrapped, RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        assert machine_memory.is_out_of_memory(error)
        short = machine_memory.memory_short(error, what="memory ran out", do="wait")
        assert machine_memory.is_out_of_memory(short)
        assert "GB of the machine are free now" in short.came
    assert not machine_memory.is_out_of_memory(RuntimeError("shapes differ"))
