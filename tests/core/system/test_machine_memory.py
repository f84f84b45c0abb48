"""Memory of the machine, and of a container on it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from luthier.core.system import control_groups, machine_memory


def test_the_limit_of_a_container_counts_where_it_is_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used, statistics = (tmp_path / name for name in ("memory.max", "memory.current", "memory.stat"))
    monkeypatch.setattr(control_groups, "_ROOT", tmp_path)
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


@pytest.mark.parametrize(
    ("own", "root", "names"),
    [
        ("0::/job/step\n", "", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:cpu,memory:/job/step\n3:pids:/other\n0::/\n",
            "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
    ids=["v2", "v1"],
)
def test_the_limits_of_all_groups_that_a_process_is_in_count(
    own: str, root: str, names: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a job of a cluster, and of a container on a system with the first version of control groups."""
    monkeypatch.setattr(control_groups, "_ROOT", tmp_path)
    monkeypatch.setattr(control_groups, "_OWN", tmp_path / "own")
    (tmp_path / "own").write_text(own)
    limit, used, idle = names
    step, other = tmp_path / root / "job" / "step", tmp_path / root / "other"
    for folder in (step, other):
        folder.mkdir(parents=True)
    (other / limit).write_text("10\n")
    (other / used).write_text("5\n")
    (step / used).write_text("300\n")
    (step / "memory.stat").write_text(f"anon 100\n{idle} 100\n")
    (step / limit).write_text("1000\n")
    assert machine_memory.memory_bytes() == (1000, 800)
    (step.parent / limit).write_text("700\n")  # of the job, whatever its steps may have
    (step.parent / used).write_text("600\n")
    assert machine_memory.memory_bytes() == (700, 100)
    (step.parent / limit).write_text(f"{2**63 - 4096}\n")  # as version 1 says that there is none
    (step / limit).write_text("max\n")
    assert machine_memory.memory_bytes()[0] == psutil.virtual_memory().total


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
