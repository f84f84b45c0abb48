"""Weights of processes as Linux's scheduler has them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from luthier.core.system import facilities, free_cores
from luthier.core.system.free_cores import LighterProcesses, Priority, weight

# `sched_prio_to_weight` of the kernel, kernel/sched/core.c
KERNEL = {-20: 88761, -10: 9548, -1: 1277, 0: 1024, 1: 820, 5: 335, 10: 110, 15: 36, 19: 15}
WAIT = "import os, sys\nos.nice({})\nprint(1, flush=True)\nsys.stdin.read()"


@pytest.mark.parametrize(("nice", "kernel"), KERNEL.items())
def test_weights_are_those_of_the_kernel_but_for_its_rounding(nice: int, kernel: int) -> None:
    assert weight(nice) == pytest.approx(kernel, rel=0.04)


@pytest.mark.parametrize(
    ("own", "other", "share"),
    [
        (Priority(0), Priority(0), 1.0),
        (Priority(0), Priority(5), 1.25**-5),
        (Priority(10), Priority(15), 1.25**-5),
        (Priority(10), Priority(0), 1.0),  # a heavier one takes no more than all that it uses
        # Among sessions the weights of these count, and not those of their processes.
        (Priority(0, "/autogroup-1", 0), Priority(19, "/autogroup-2", 0), 1.0),
        (Priority(0, "/autogroup-1", 0), Priority(0, "/autogroup-2", 10), 1.25**-10),
        (Priority(0, "/autogroup-1", 0), Priority(5, "/autogroup-1", 0), 1.25**-5),
    ],
)
def test_the_share_that_another_process_takes(own: Priority, other: Priority, share: float) -> None:
    assert own.share_taken_by(other) == pytest.approx(share)


@pytest.mark.skipif(not facilities.is_linux(), reason="weights of Linux")
def test_a_niced_process_is_lighter_and_one_like_us_is_not() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    if own >= 19:
        pytest.skip("no process can be lighter than this one")
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    commands = [[sys.executable, "-c", WAIT.format(nice)] for nice in (1, 0)]
    with subprocess.Popen(commands[0], **pipes) as niced, subprocess.Popen(commands[1], **pipes) as plain:
        for one in (niced, plain):
            assert one.stdout is not None
            one.stdout.readline()
        found = {process.pid: share for process, share, _ in free_cores._lighter()}
        for one in (niced, plain):
            one.communicate()  # closes what it waits for
    assert found[niced.pid] == pytest.approx(1 / 1.25)
    assert plain.pid not in found


@pytest.mark.skipif(not facilities.is_linux(), reason="weights of Linux")
def test_time_on_other_cores_is_not_taken_off_that_of_these(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = {0: {0, 1}, 7: {0}, 8: {0, 1}, 9: {1, 2}}
    kept = SimpleNamespace(
        PRIO_PROCESS=0,
        getpriority=lambda _, pid: 19 if pid in cores else 0,
        sched_getaffinity=lambda pid: cores[pid],
    )
    monkeypatch.setattr(facilities, "posix", kept)
    monkeypatch.setattr(free_cores, "_priority", lambda pid: Priority(kept.getpriority(0, pid)))
    monkeypatch.setattr(psutil, "pids", lambda: [7, 8, 9])
    times = SimpleNamespace(user=1.0, system=0.0)
    monkeypatch.setattr(psutil, "Process", lambda pid: SimpleNamespace(pid=pid, cpu_times=lambda: times))
    assert [process.pid for process, _, _ in free_cores._lighter()] == [7, 8]


def test_time_counts_by_the_share_and_a_process_that_has_ended_in_full() -> None:
    used = {1: 10.0, 2: 20.0}

    def times(pid: int) -> SimpleNamespace:
        if pid not in used:
            raise psutil.NoSuchProcess(pid)
        return SimpleNamespace(user=used[pid], system=0.0)

    processes = [SimpleNamespace(cpu_times=lambda pid=pid: times(pid)) for pid in (1, 2)]
    lighter = LighterProcesses()
    lighter._began = tuple((one, 0.25, 10.0) for one in processes)  # type: ignore[misc]
    assert lighter.given_way_seconds() == pytest.approx(0.75 * 10)
    used[1] = 14.0
    del used[2]
    assert lighter.given_way_seconds() == pytest.approx(0.75 * 4)


@pytest.mark.parametrize(
    ("enabled", "group", "has_weight", "expected"),
    [
        ("1", "0::/", False, True),
        ("0", "0::/", False, False),
        ("1", "0::/a.slice", True, False),
        (None, "", False, False),
    ],
)
def test_sessions_count_where_the_kernel_groups_by_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, enabled: str | None, group: str, has_weight: bool, expected: bool
) -> None:
    monkeypatch.setattr(free_cores, "_PROC", tmp_path)
    monkeypatch.setattr(free_cores, "_GROUPS", tmp_path / "cgroup")
    if enabled is not None:
        for name, text in (("sys/kernel/sched_autogroup_enabled", enabled), ("self/cgroup", group)):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
    if has_weight:
        place = tmp_path / "cgroup" / group.removeprefix("0::/")
        place.mkdir(parents=True)
        (place / "cpu.weight").write_text("100\n")
    assert free_cores._has_session_groups() is expected


def test_nice_values_count_within_one_control_group_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two services share a core by the weights of their groups, whatever the nice values of their processes are."""
    monkeypatch.setattr(free_cores, "_PROC", tmp_path)
    monkeypatch.setattr(free_cores, "_GROUPS", tmp_path / "cgroup")
    nices = {1: 0, 2: 19, 3: 19}
    monkeypatch.setattr(facilities, "posix", SimpleNamespace(PRIO_PROCESS=0, getpriority=lambda _, pid: nices[pid]))
    for pid, group in ((1, "system.slice/a.service"), (2, "system.slice/b.service"), (3, "system.slice/a.service/x")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(f"0::/{group}\n")
    for group in ("system.slice", "system.slice/a.service", "system.slice/b.service"):
        (tmp_path / "cgroup" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / group / "cpu.weight").write_text("100\n")
    own, service, child = (free_cores._priority(pid) for pid in nices)
    assert own.share_taken_by(service) == 1.0
    assert own.share_taken_by(child) == pytest.approx(1.25**-19)
