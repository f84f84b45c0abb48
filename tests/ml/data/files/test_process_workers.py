"""Workers on the cores of this machine find what this process finds, byte for byte, also where one of them dies."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from tests.ml.data.many_rows import write_many

from luthier.core.errors import DataError, StorageFullError
from luthier.features.datasets.row_workers import row_workers
from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.run import run_audit
from luthier.ml.data.audit.table import build_table
from luthier.ml.data.files import process_workers as of_processes
from luthier.ml.data.files.process_workers import ProcessWorkers, num_process_workers, process_workers
from luthier.ml.data.files.row_workers import IN_PROCESS, RowWorkers
from luthier.ml.data.files.spill import Spill
from luthier.ml.data.repair.request import RepairRequest, choose_actions
from luthier.ml.data.repair.run import repair_file
from luthier.ml.data.split.split_file import split_file
from luthier.ml.data.split.split_request import SplitRequest
from luthier.ml.inference.models.token_counter import token_counter
from luthier.platform.home.context import Context


def doubled(item: int, added: int) -> int:
    return 2 * item + added


def process_of(item: int) -> tuple[int, int]:
    return item, os.getpid()


def fails(item: int) -> int:
    if item == 3:
        raise DataError("a bad part", expected="a good one", do="correct it")
    return item // (item - 5)


def dies(item: int, marker: Path) -> int:
    """The first process that gets here is killed; whoever comes after it does the work."""
    if item == 4 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def large(item: int) -> bytes:
    return bytes(100_000) if item == 2 else b""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def workers(folder: Path) -> Iterator[ProcessWorkers]:
    with process_workers(2, folder / "scratch") as made:
        # Until both have their libraries this process does the work itself.
        while not all(worker.is_ready for worker in made._workers):
            made._receive(None)
        yield made


@pytest.fixture(scope="module")
def rows(folder: Path) -> Path:
    return write_many(folder / "rows.jsonl", 5_200, most_words=25)


@pytest.fixture(scope="module")
def held_out(folder: Path) -> Path:
    return write_many(folder / "held.jsonl", 100, most_words=25)


def findings(rows: Path, held_out: Path, workers: RowWorkers, spill: Spill | None = None) -> str:
    table = build_table(rows, spill=spill, workers=workers)
    assert table.rows.is_spilled == (spill is not None)
    request = AuditRequest(table, build_table(held_out, spill=spill, workers=workers))
    return run_audit(request).model_dump_json(indent=1)


@pytest.fixture(scope="module")
def found_here(rows: Path, held_out: Path) -> str:
    """What one process finds, with all rows in memory."""
    return findings(rows, held_out, IN_PROCESS)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_both_work_and_results_come_in_the_order_of_the_parts(workers: ProcessWorkers) -> None:
    assert list(workers.map(doubled, iter(range(50)), 7)) == [2 * number + 7 for number in range(50)]
    found = list(workers.map(process_of, range(50)))
    assert [number for number, _ in found] == list(range(50))
    processes = {process for _, process in found}
    assert len(processes) == 2
    assert os.getpid() not in processes


def is_imported(name: str) -> bool:
    return name in sys.modules


def test_workers_have_imported_the_modules_that_they_need_before_the_first_part(
    workers: ProcessWorkers, tmp_path: Path
) -> None:
    with process_workers(1, tmp_path, ["tabnanny"]) as made:
        while not made._workers[0].is_ready:
            made._receive(None)
        assert list(made.map(is_imported, ["tabnanny"])) == [True]
    assert list(workers.map(is_imported, ["tabnanny"])) == [False]


def test_maps_may_be_read_by_turns(workers: ProcessWorkers) -> None:
    both = list(zip(workers.map(doubled, range(30), 0), workers.map(doubled, range(30), 1), strict=True))
    assert both == [(2 * number, 2 * number + 1) for number in range(30)]


def test_a_map_that_is_left_early_leaves_the_workers_to_the_next(workers: ProcessWorkers) -> None:
    first = workers.map(doubled, range(1_000), 0)
    assert next(first) == 0
    first.close()  # type: ignore[attr-defined]
    assert list(workers.map(doubled, range(9), 3)) == [2 * number + 3 for number in range(9)]


def test_nothing_is_taken_that_is_not_needed_yet(workers: ProcessWorkers) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    made = workers.map(doubled, items(), 0)
    assert next(made) == 0
    assert len(taken) == of_processes._PARTS_PER_WORKER * workers.num_cores


def test_an_audit_has_the_same_findings(rows: Path, held_out: Path, workers: ProcessWorkers, found_here: str) -> None:
    there = findings(rows, held_out, workers)
    assert there == found_here
    for check in ("exact_duplicate", "near_duplicate", "conflicting_completion", "personal_data", "contamination"):
        assert f'"check": "{check}"' in there


def test_a_repair_writes_the_same_bytes(rows: Path, held_out: Path, workers: ProcessWorkers, tmp_path: Path) -> None:
    made = []
    for number, one in enumerate((workers, IN_PROCESS)):
        folder = tmp_path / str(number)
        folder.mkdir()
        audit = AuditRequest(build_table(rows, workers=one), build_table(held_out, workers=one))
        actions = choose_actions(None, None, has_held_out=True)
        repair_file(RepairRequest(output=folder / "clean.jsonl", actions=actions, audit=audit))
        made.append(files_of(folder))
    assert len(made[0]) >= 3
    assert made[0] == made[1]


def test_a_split_writes_the_same_bytes(rows: Path, workers: ProcessWorkers, tmp_path: Path) -> None:
    made = []
    for number, one in enumerate((workers, IN_PROCESS)):
        folder = tmp_path / str(number)
        split_file(SplitRequest(rows, folder, validation=0.1, held_out=0.1), workers=one)
        made.append(files_of(folder))
    assert len(made[0]) >= 3
    assert made[0] == made[1]


def test_tokens_are_counted_by_the_tokenizer_of_the_command(
    held_out: Path, tiny_model: Path, workers: ProcessWorkers
) -> None:
    counted = [
        build_table(held_out, count_tokens=token_counter(tiny_model), workers=one).rows.column("num_tokens").to_list()
        for one in (workers, IN_PROCESS)
    ]
    assert min(counted[0]) > 0
    assert counted[0] == counted[1]


def test_an_error_of_a_part_comes_where_this_process_would_meet_it(workers: ProcessWorkers) -> None:
    seen: list[int] = []
    with pytest.raises(DataError) as caught:
        seen.extend(workers.map(fails, range(5)))
    assert seen == [0, -1, -1]
    assert caught.value.as_json() == DataError("a bad part", expected="a good one", do="correct it").as_json()


def test_an_error_that_is_a_fault_is_raised_as_it_is(tmp_path: Path) -> None:
    with process_workers(1, tmp_path) as one, pytest.raises(ZeroDivisionError):
        list(one.map(fails, [5]))


def test_parts_of_a_worker_that_dies_are_done_by_others(tmp_path: Path) -> None:
    marker = tmp_path / "died"
    with process_workers(2, tmp_path / "scratch") as made:
        while not all(worker.is_ready for worker in made._workers):
            made._receive(None)
        assert list(made.map(dies, range(30), marker)) == list(range(30))
        assert marker.exists()
        assert made.num_cores == 1
        assert list(made.map(doubled, range(9), 0)) == [2 * number for number in range(9)]


def test_without_workers_this_process_does_it(tmp_path: Path) -> None:
    with process_workers(1, tmp_path) as made:
        made._workers[0].child.kill()
        made._workers[0].child.wait()
        assert list(made.map(process_of, range(9))) == [(number, os.getpid()) for number in range(9)]


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with suppress(DataError), process_workers(2, tmp_path) as made:
        assert len({child.pid for child in psutil.Process().children(recursive=True)} - before) == 2
        list(made.map(fails, range(5)))
        raise AssertionError
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    assert list(tmp_path.iterdir()) == []


@contextmanager
def small_disk(num_bytes: int) -> Iterator[None]:
    """No file of this process and those that it starts grows beyond this, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("side", ["part", "result"])
def test_a_full_disk_is_named(side: str, tmp_path: Path) -> None:
    function, items = (len, [bytes(100_000)]) if side == "part" else (large, list(range(6)))
    with small_disk(50_000), process_workers(1, tmp_path) as made:
        while not made._workers[0].is_ready:
            made._receive(None)
        with pytest.raises(StorageFullError):
            list(made.map(function, items))  # type: ignore[arg-type]


def test_small_files_and_small_machines_have_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_processes, "num_usable_cores", lambda: 6)
    monkeypatch.setattr(of_processes, "memory_bytes", lambda: (64 << 30, 32 << 30))
    assert num_process_workers(1 << 20) == 1
    assert num_process_workers(1 << 30) == 6
    assert num_process_workers(1 << 30, most=3) == 3
    monkeypatch.setattr(of_processes, "memory_bytes", lambda: (4 << 30, 2 << 30))
    assert num_process_workers(1 << 30) == 2
    monkeypatch.setattr(of_processes, "memory_bytes", lambda: (1 << 30, 1 << 29))
    assert num_process_workers(1 << 30) == 1


@pytest.mark.parametrize("given", [None, "1", "2"])
def test_a_command_shares_the_rows_of_a_large_file(
    given: str | None, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is not None:
        monkeypatch.setenv("LUTHIER_DATA_WORKERS", given)
    monkeypatch.setattr(of_processes, "MIN_FILE_BYTES", 1)
    monkeypatch.setattr(of_processes, "num_usable_cores", lambda: 2)
    with Context.open(tmp_path) as context, row_workers(context, None, rows) as found:
        assert found.are_remote == (given != "1")


def test_rows_beyond_the_budget_are_sent_as_well(
    rows: Path, held_out: Path, workers: ProcessWorkers, found_here: str, tmp_path: Path
) -> None:
    assert findings(rows, held_out, workers, Spill(0, tmp_path)) == found_here
