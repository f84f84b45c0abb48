"""Waiting threads sleep soon, unless the user wants otherwise."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import psutil
import pytest

from luthier.core.errors import BusyError
from luthier.core.system import control_groups, process_setup
from luthier.core.system.process_setup import (
    cores_of_quota,
    num_usable_cores,
    start_daemon,
    usable_threads,
    wait_briefly,
    wait_longer,
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


def test_sets_a_short_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "20000"
    # Also where two pools of threads (torch, llama.cpp) are more than the cores.
    assert os.environ["OMP_WAIT_POLICY"] == "active"


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")])
def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    wait_briefly()
    assert os.environ[name] == value
    other = {"GOMP_SPINCOUNT": "OMP_WAIT_POLICY", "OMP_WAIT_POLICY": "GOMP_SPINCOUNT"}[name]
    assert other not in os.environ


def test_a_process_that_writes_answers_spins_longer_also_where_its_parent_has_set_the_short_spin() -> None:
    wait_longer()
    assert (os.environ["GOMP_SPINCOUNT"], os.environ["OMP_WAIT_POLICY"]) == ("200000", "active")
    del os.environ["GOMP_SPINCOUNT"], os.environ["OMP_WAIT_POLICY"]
    wait_briefly()
    wait_longer()
    assert (os.environ["GOMP_SPINCOUNT"], os.environ["OMP_WAIT_POLICY"]) == ("200000", "active")


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "passive")])
def test_a_spin_that_the_user_set_is_not_made_longer(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    before = dict(os.environ)
    wait_briefly()
    wait_longer()
    assert dict(os.environ) == before


def test_a_thread_that_cannot_be_started_is_an_error_of_a_busy_system(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    assert start_daemon(done.set, "one").daemon
    assert done.wait(60)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(BusyError, match="no more threads"):
        start_daemon(done.set, "two")


def test_cores_are_those_of_this_process_and_not_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_setup, "control_groups", lambda _: ())
    monkeypatch.setattr(process_setup.os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    monkeypatch.setattr(process_setup.os, "cpu_count", lambda: 64)
    assert num_usable_cores() == 3
    monkeypatch.delattr(process_setup.os, "sched_getaffinity")
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda _: [1, 2, 3, 4])
    assert num_usable_cores() == 4, "those of Windows"
    monkeypatch.delattr(psutil.Process, "cpu_affinity")
    assert num_usable_cores() == 64
    monkeypatch.setattr(process_setup.os, "cpu_count", lambda: None)
    assert num_usable_cores() == 1


@pytest.mark.parametrize(
    ("limit", "num"),
    [("200000 100000", 2), ("250000 100000", 3), ("5000 100000", 1), ("900000 100000", 4), ("max 100000", 4), ("", 4)],
)
def test_a_container_has_as_many_cores_as_its_share_of_their_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, num: int
) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    monkeypatch.setattr(process_setup.facilities, "usable_cores", lambda: frozenset(range(4)))
    monkeypatch.setattr(control_groups, "_ROOT", tmp_path)
    monkeypatch.setattr(control_groups, "_OWN", tmp_path / "own")
    assert num_usable_cores() == num
    monkeypatch.setattr(control_groups, "_ROOT", tmp_path / "none")
    assert num_usable_cores() == 4


def _quota_files(cores: float, *, is_first: bool) -> dict[str, str]:
    micros = round(cores * 100_000) if cores > 0 else -1
    if is_first:
        return {"cpu.cfs_quota_us": f"{micros}\n", "cpu.cfs_period_us": "100000\n"}
    return {"cpu.max": f"{micros if micros > 0 else 'max'} 100000\n"}


@pytest.mark.parametrize(
    ("own", "root"),
    [("0::/user.slice/job/step\n", ""), ("5:memory:/other\n4:cpu,cpuacct:/user.slice/job/step\n0::/\n", "cpu")],
    ids=["v2", "v1"],
)
@pytest.mark.parametrize(
    ("quotas", "num"),
    # Of the step, of the job, of the slice: the lowest of them counts, a part of a core as one; 0: none.
    [
        ((3, 0, 0), 3),
        ((0, 2, 0), 2),
        ((0, 0, 1.5), 2),
        ((6, 5, 4), 4),
        ((0.2, 4, 0), 1),
        ((0, 0, 0), 8),
        ((20, 0, 9), 8),
    ],
)
def test_the_quotas_of_all_groups_that_a_process_is_in_count(
    own: str, root: str, quotas: tuple[float, ...], num: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As of a service of systemd, of a job of a cluster, and of a system with the first version of control groups."""
    monkeypatch.setattr(process_setup.facilities, "usable_cores", lambda: frozenset(range(8)))
    monkeypatch.setattr(process_setup, "core_kinds", lambda usable: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(control_groups, "_ROOT", tmp_path)
    monkeypatch.setattr(control_groups, "_OWN", tmp_path / "own")
    (tmp_path / "own").write_text(own)
    step = tmp_path / root / "user.slice" / "job" / "step"
    other = tmp_path / root / "other"
    for folder, cores in zip((step, step.parent, step.parent.parent, other), (*quotas, 1), strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in _quota_files(cores, is_first=bool(root)).items():
            (folder / name).write_text(text)
    assert num_usable_cores() == num
    assert usable_threads() == num, "of llama.cpp"
    assert cores_of_quota() == (math.ceil(min(cores for cores in quotas if cores)) if any(quotas) else None)


@pytest.mark.parametrize(
    ("asked", "num"),
    [(None, 6), ("", 6), ("1", 1), ("4,2", 4), (" 2 ", 2), ("16", 16), ("0", 6), ("-1", 6), ("all", 6)],
)
def test_threads_are_as_many_as_torch_takes(monkeypatch: pytest.MonkeyPatch, asked: str | None, num: int) -> None:
    monkeypatch.setattr(process_setup, "num_usable_cores", lambda: 6)
    monkeypatch.setattr(process_setup, "core_kinds", lambda usable: None)
    monkeypatch.setenv("OMP_NUM_THREADS", asked or "")
    if asked is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    assert usable_threads() == num
