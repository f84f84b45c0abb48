"""`luthier data audit|repair|split --on ray`: the option reaches the workers, and the outcome is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.pickled_workers import PickledWorkers
from tests.ml.data.many_rows import write_many

from luthier.ml.data.files import ray_workers
from luthier.ml.data.files.row_workers import IN_PROCESS

Luthier = Any


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_many(tmp_path / "rows.jsonl", 120)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> PickledWorkers:
    """In place of a cluster; Ray itself: tests/ml/data/files/test_ray_workers.py."""
    made = PickledWorkers()

    @contextmanager
    def connected() -> Iterator[PickledWorkers]:
        yield made

    monkeypatch.setattr(ray_workers, "ray_workers", connected)
    return made


def test_an_audit_is_the_same_document(luthier: Luthier, file: Path, workers: PickledWorkers) -> None:
    here = luthier("data", "audit", file, "--against", file, "--json").document
    assert workers.num_parts == 0
    there = luthier("data", "audit", file, "--against", file, "--on", "ray", "--json").document
    assert workers.num_parts > 0
    assert there == here
    assert here["findings"]


def test_a_page_is_written_on_the_way(luthier: Luthier, file: Path, workers: PickledWorkers, tmp_path: Path) -> None:
    pages = [tmp_path / "here.html", tmp_path / "there.html"]
    for page, on in zip(pages, ([], ["--on", "ray"]), strict=True):
        assert luthier("data", "audit", file, "--html", page, *on).code == 0
    assert workers.num_parts > 0
    assert pages[0].read_bytes() == pages[1].read_bytes()


@pytest.mark.parametrize("command", [["repair", "-o", "clean.jsonl"], ["split", "-o", "sides"]])
def test_a_repair_and_a_split_write_the_same_files(
    luthier: Luthier, file: Path, workers: PickledWorkers, tmp_path: Path, command: list[str]
) -> None:
    name, option, output = command
    written = []
    for folder, on in (("here", []), ("there", ["--on", "ray"])):
        (tmp_path / folder).mkdir()
        assert luthier("data", name, file, option, tmp_path / folder / output, *on).code == 0
        files = [path for path in sorted((tmp_path / folder).rglob("*")) if path.is_file()]
        written.append({path.name: path.read_bytes() for path in files})
    assert workers.num_parts > 0
    assert len(written[0]) >= 3
    assert written[0] == written[1]


@pytest.mark.parametrize("command", ["audit", "repair", "split"])
def test_another_word_is_refused_before_anything_is_read(
    luthier: Luthier, file: Path, tmp_path: Path, command: str
) -> None:
    output = ["-o", tmp_path / "out.jsonl"] if command == "repair" else []
    done = luthier("data", command, file, *output, "--on", "ray://head:8265", "--json")
    assert done.code == 2
    assert done.document["error"]["came"] == "--on ray://head:8265"
    assert "RAY_ADDRESS" in done.document["error"]["do"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []


def test_without_ray_the_extra_is_named(luthier: Luthier, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.core.system.extras.missing_modules", lambda _: ("ray",))
    done = luthier("data", "audit", file, "--on", "ray", "--json")
    assert done.code == 2
    assert done.document["error"]["came"].startswith("--on ray needs the package ray")
    assert "luthier[ray]" in done.document["error"]["do"]


def test_the_table_of_an_audit_outlives_the_cluster(context: Any, file: Path, workers: PickledWorkers) -> None:
    from luthier.features.datasets.data_files import AuditOptions, audit

    found = audit(context, file, AuditOptions(on="ray"))
    assert found.table.rows.workers is IN_PROCESS
    assert json.loads(json.dumps(found.as_json()))["num_rows"] == 120
