"""In a process of its own: what workers of Ray find, beside what the process itself finds. Prints one JSON document.

    python ray_child.py FOLDER MODEL

FOLDER has rows.jsonl, few.jsonl and held.jsonl, and takes Ray's temporary files; MODEL has a tokenizer.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError, LuthierError
from luthier.core.ports import SilentProgress, SilentTask
from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.run import run_audit
from luthier.ml.data.audit.table import build_table
from luthier.ml.data.files import ray_workers
from luthier.ml.data.files.ray_workers import RayWorkers
from luthier.ml.data.files.row_workers import IN_PROCESS, RowWorkers
from luthier.ml.data.files.spill import Spill
from luthier.ml.data.repair.request import RepairRequest, choose_actions
from luthier.ml.data.repair.run import repair_file
from luthier.ml.data.split.split_file import split_file
from luthier.ml.data.split.split_request import SplitRequest
from luthier.ml.inference.models.token_counter import token_counter

LIMIT_BYTES = 50_000
DEATHS = (2, 7)


def doubled(item: int, added: int) -> int:
    return 2 * item + added


def fails(item: int) -> int:
    if item == 1:
        raise DataError("a bad part", expected="a good one", do="correct it")
    return 1 // item


def dies(item: Any, marker: Path, function: Callable[..., Any], *shared: Any) -> Any:
    """The first worker that gets here is killed; whoever comes after it does the work."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return function(item, *shared)


class DyingWorkers:
    """Of two maps one worker each dies: while rows are read, and in a check. Others would take a second each."""

    are_remote = True

    def __init__(self, workers: RayWorkers, folder: Path) -> None:
        self._workers, self._folder, self.num_maps = workers, folder, 0

    def map(self, function: Callable[..., Any], items: Iterable[Any], *shared: Any) -> Iterator[Any]:
        self.num_maps += 1
        marker = self._folder / f"died-{self.num_maps}"
        if self.num_maps not in DEATHS:
            marker.touch()
        return self._workers.map(dies, items, marker, function, *shared)


class ChangesFile(SilentProgress):
    """While the rows are read a row is appended."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> SilentTask:
        if title == "read rows":
            with self._file.open("a", encoding="utf-8") as file:
                file.write('{"prompt": "one more", "completion": "row"}\n')
        return super().task(title, total, unit, done)


def findings(folder: Path, name: str, workers: RowWorkers, spill: Spill | None = None) -> str:
    table = build_table(folder / name, spill=spill, workers=workers)
    held_out = build_table(folder / "held.jsonl", spill=spill, workers=workers)
    return run_audit(AuditRequest(table, held_out)).model_dump_json()


def tokens(folder: Path, model: Path, workers: RowWorkers) -> list[int]:
    table = build_table(folder / "few.jsonl", count_tokens=token_counter(model), workers=workers)
    found: list[int] = table.rows.column("num_tokens").to_list()
    return found


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_bytes().hex() for path in sorted(folder.iterdir())}


def repaired(folder: Path, out: Path, workers: RowWorkers) -> dict[str, str]:
    table = build_table(folder / "few.jsonl", workers=workers)
    held_out = build_table(folder / "held.jsonl", workers=workers)
    actions = choose_actions(None, None, has_held_out=True)
    repair_file(RepairRequest(output=out / "clean.jsonl", actions=actions, audit=AuditRequest(table, held_out)))
    return files_of(out)


def parted(folder: Path, out: Path, workers: RowWorkers) -> dict[str, str]:
    split_file(SplitRequest(folder / "few.jsonl", out, validation=0.1, held_out=0.1), workers=workers)
    return files_of(out)


def error_of(function: Callable[[], object]) -> dict[str, Any]:
    try:
        function()
    except LuthierError as error:
        return error.as_json()
    return {}


@contextmanager
def small_disk() -> Iterator[None]:
    """No file of this process grows beyond 50 KB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def disk_full(folder: Path, workers: RowWorkers) -> dict[str, Any]:
    scratch = folder / "scratch"
    scratch.mkdir()
    with small_disk():
        error = error_of(lambda: findings(folder, "few.jsonl", workers, Spill(0, scratch)))
    gc.collect()
    return error | {"left": [path.name for path in scratch.iterdir()]}


def changed(folder: Path, workers: RowWorkers) -> dict[str, Any]:
    file = folder / "growing.jsonl"
    file.write_bytes((folder / "held.jsonl").read_bytes())
    return error_of(lambda: build_table(file, progress=ChangesFile(file), workers=workers))


def found_by(workers: RayWorkers, folder: Path, model: Path) -> Iterator[tuple[str, Any]]:
    yield "num_cores", workers.num_cores
    yield "doubled", list(workers.map(doubled, iter(range(50)), 7))
    yield "luthier_error", error_of(lambda: list(workers.map(fails, [2, 1])))
    yield "other_error", error_of(lambda: list(workers.map(fails, [0])))
    yield "findings", findings(folder, "rows.jsonl", workers)
    yield "findings_after_deaths", findings(folder, "few.jsonl", DyingWorkers(workers, folder))
    yield "num_deaths", sum((folder / f"died-{number}").exists() for number in DEATHS)
    yield "repaired", repaired(folder, folder / "repaired-there", workers)
    yield "parted", parted(folder, folder / "parted-there", workers)
    yield "tokens", tokens(folder, model, workers)
    yield "disk_full", disk_full(folder, workers)
    yield "changed", changed(folder, workers)
    workers._versions += ", one more 1.0"
    yield "versions", error_of(lambda: list(workers.map(doubled, [1], 1)))


def lost(item: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return item


def main() -> None:
    folder, model = map(Path, sys.argv[1:])
    ray_workers._TEMPORARY = folder  # type: ignore[misc]
    with ray_workers.ray_workers() as workers:
        there = dict(found_by(workers, folder, model))
        ray_workers.MAX_RETRIES = 0  # type: ignore[misc]
        there["lost"] = error_of(lambda: list(RayWorkers().map(lost, [1])))
    here = {
        "findings": findings(folder, "rows.jsonl", IN_PROCESS),
        "findings_after_deaths": findings(folder, "few.jsonl", IN_PROCESS),
        "repaired": repaired(folder, folder / "repaired-here", IN_PROCESS),
        "parted": parted(folder, folder / "parted-here", IN_PROCESS),
        "tokens": tokens(folder, model, IN_PROCESS),
    }
    left = [path.name for path in folder.glob("*ray*")]
    print(json.dumps({"there": there, "here": here, "left": left}))  # noqa: T201


if __name__ == "__main__":
    main()
