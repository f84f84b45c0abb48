"""How many threads pay where hardware threads share cores and cores differ in speed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.system import process_setup
from luthier.core.system.core_topology import ALL_CORES, CoreKinds, core_kinds


def described(folder: Path, siblings: Mapping[int, str], **files: Mapping[int, int]) -> Path:
    """Processors as Linux describes them."""
    for number, text in siblings.items():
        own = folder / f"cpu{number}"
        (own / "topology").mkdir(parents=True)
        (own / "topology" / "thread_siblings_list").write_text(f"{text}\n", encoding="ascii")
    for name, values in files.items():
        for number, value in values.items():
            file = folder / f"cpu{number}" / name.replace("__", "/")
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{value}\n", encoding="ascii")
    return folder


def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    root = described(tmp_path, {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"})
    kinds = core_kinds(frozenset(range(8)), root)
    assert kinds == CoreKinds(8, (1.0,) * 4)
    assert kinds.num_that_pay == 4
    assert kinds.why == "one for each core (4): the 8 hardware threads share arithmetic units"
    # A process that is kept to one thread of each of two cores.
    assert core_kinds(frozenset({0, 1}), root) == CoreKinds(2, (1.0, 1.0))


def test_plain_cores_all_count(tmp_path: Path) -> None:
    root = described(tmp_path, {0: "0", 1: "1"}, cpu_capacity={0: 1024, 1: 1000})
    kinds = core_kinds(None, root)
    assert kinds is not None
    assert (kinds.num_that_pay, kinds.why) == (2, ALL_CORES)


def test_slow_cores_are_left_out_where_the_fast_ones_would_wait_for_them(tmp_path: Path) -> None:
    root = described(
        tmp_path,
        {number: str(number) for number in range(8)},
        cpu_capacity={number: 1024 if number < 4 else 400 for number in range(8)},
    )
    kinds = core_kinds(frozenset(range(8)), root)
    assert kinds is not None
    assert kinds.num_that_pay == 4
    assert kinds.why == "the 4 fastest of 8 cores: the next one has 39% of their speed, and all would wait for it"


def test_slower_cores_help_where_together_they_do_more(tmp_path: Path) -> None:
    root = described(
        tmp_path,
        {number: str(number) for number in range(8)},
        cpufreq__cpuinfo_max_freq={number: 5_000_000 if number < 4 else 3_500_000 for number in range(8)},
    )
    kinds = core_kinds(frozenset(range(8)), root)
    assert kinds is not None
    assert kinds.num_that_pay == 8
    assert "70% of the speed of the fastest" in kinds.why


def test_nothing_is_said_where_the_system_does_not_describe_its_cores(tmp_path: Path) -> None:
    assert core_kinds(None, tmp_path) is None
    assert core_kinds(frozenset({0}), tmp_path) is None
    root = described(tmp_path, {0: "0", 1: "1"}, cpu_capacity={0: 1024})
    assert core_kinds(frozenset({0, 1}), root) == CoreKinds(2, (1.0, 1.0)), "a speed of some cores alone says nothing"


@given(st.lists(st.floats(0.05, 1.0), min_size=1, max_size=12))
def test_no_other_number_of_threads_does_more(speeds: list[float]) -> None:
    ordered = (1.0, *sorted(speeds, reverse=True))
    num = CoreKinds(len(ordered), ordered).num_that_pay
    work = [count * min(ordered[:count]) for count in range(1, len(ordered) + 1)]
    assert work[num - 1] == max(work)


def test_threads_are_those_that_pay_and_what_the_user_sets_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = CoreKinds(16, (1.0,) * 8)
    monkeypatch.setattr(process_setup, "core_kinds", lambda usable: kinds)
    monkeypatch.setattr(process_setup, "num_usable_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert process_setup.usable_threads() == 8
    assert process_setup.why_threads(8) == kinds.why
    assert process_setup.why_threads(3) == ALL_CORES
    # A share of a container that is smaller.
    monkeypatch.setattr(process_setup, "num_usable_cores", lambda: 3)
    assert process_setup.usable_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "12")
    assert process_setup.usable_threads() == 12
    assert process_setup.why_threads(12) == ALL_CORES
