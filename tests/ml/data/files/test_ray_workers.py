"""Workers of Ray find what this process finds, byte for byte, also where one of them dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.ml.data.many_rows import write_many

import luthier
from luthier.core.errors import RequestError
from luthier.ml.data.files import ray_workers as workers_of_ray
from luthier.ml.data.files.ray_workers import ray_workers
from luthier.ml.data.personal_data.find import SPACY_MODELS

_HAS_RAY = find_spec("ray") is not None


def needs_ray(test: Any) -> Any:
    """A drill: Ray needs a minute of processor time to start, and gives some of its processes 15 seconds for it."""
    return pytest.mark.drill(pytest.mark.skipif(not _HAS_RAY, reason="the extra `ray` is not installed")(test))


Document = dict[str, Any]


def run_child(num_rows: int, model: Path) -> Document:
    """What `ray_child.py` prints about so many rows."""
    # Ray's sockets are below it: the folders of pytest have names too long for that.
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as name:
        folder = Path(name)
        # The grammar of IRIs, which schemathesis brings, takes each process of Ray more than a second to load, by
        # jsonschema, which does without it; and Ray gives some of its processes 15 seconds to start.
        (folder / "hidden").mkdir()
        (folder / "hidden" / "rfc3987_syntax.py").write_text('raise ImportError("hidden")', encoding="utf-8")
        for name_of_file, num in (("rows.jsonl", num_rows), ("few.jsonl", 400), ("held.jsonl", 100)):
            write_many(folder / name_of_file, num, most_words=25)
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("ray_child.py")), name, str(model)],
            env={**os.environ, "PYTHONPATH": _python_path(folder / "hidden"), "RAY_ADDRESS": "local"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        document: Document = json.loads(done.stdout.splitlines()[-1])
        return document


def _python_path(first: Path) -> str:
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(first), str(Path(luthier.__file__).parents[1]), *([given] if given else [])])


@pytest.fixture(scope="module")
def document(tiny_model: Path) -> Document:
    return run_child(NUM_ROWS, tiny_model)


@pytest.fixture(scope="module")
def there(document: Document) -> Document:
    found: Document = document["there"]
    return found


NUM_ROWS = 20_000


@needs_ray
def test_20_000_rows_have_the_same_findings(document: Document) -> None:
    assert document["there"]["findings"] == document["here"]["findings"]
    audit = json.loads(document["here"]["findings"])
    assert audit["num_rows"] == NUM_ROWS
    checks = {finding["check"] for finding in audit["findings"]}
    assert checks >= {"exact_duplicate", "near_duplicate", "conflicting_completion", "personal_data", "contamination"}


@needs_ray
@pytest.mark.drill
def test_200_000_rows_have_the_same_findings(tiny_model: Path) -> None:
    found = run_child(200_000, tiny_model)
    assert found["there"]["findings"] == found["here"]["findings"]
    assert json.loads(found["here"]["findings"])["num_rows"] == 200_000


@needs_ray
def test_a_part_whose_worker_dies_is_done_again(document: Document) -> None:
    assert document["there"]["num_deaths"] == 2
    assert document["there"]["findings_after_deaths"] == document["here"]["findings_after_deaths"]


@needs_ray
@pytest.mark.parametrize("work", ["repaired", "parted"])
def test_a_repair_and_a_split_write_the_same_bytes(document: Document, work: str) -> None:
    assert len(document["here"][work]) >= 3
    assert document["there"][work] == document["here"][work]


@needs_ray
def test_tokens_are_counted_by_the_tokenizer_of_the_command(document: Document) -> None:
    assert min(document["here"]["tokens"]) > 0
    assert document["there"]["tokens"] == document["here"]["tokens"]


@needs_ray
def test_results_come_in_the_order_of_the_parts(there: Document) -> None:
    assert there["num_cores"] >= 1
    assert there["doubled"] == [2 * number + 7 for number in range(50)]


@needs_ray
def test_an_error_of_a_part_ends_the_work(there: Document) -> None:
    assert there["luthier_error"] == {
        "type": "DataError", "came": "a bad part", "expected": "a good one", "do": "correct it", "problems": [],
    }  # fmt: skip
    assert there["other_error"]["type"] == "WorkError"
    assert "by zero" in there["other_error"]["came"]


@needs_ray
def test_a_part_that_is_lost_again_and_again_is_an_error(there: Document) -> None:
    assert there["lost"]["type"] == "WorkError"
    assert "a part of the rows was lost with its worker" in there["lost"]["came"]
    assert "memory" in there["lost"]["do"]


def test_versions_name_what_finds_people() -> None:
    """A row that a worker calls untouched is written as it is, so its model must be that of this process."""
    for name in ("presidio-analyzer", "spacy", *SPACY_MODELS):
        assert f"{name} " in workers_of_ray.versions()


@needs_ray
def test_workers_with_other_versions_are_refused(there: Document) -> None:
    assert there["versions"]["type"] == "WorkError"
    assert "the same versions on all machines" in there["versions"]["expected"]


@needs_ray
def test_a_disk_that_runs_full_while_rows_spill_leaves_nothing(there: Document) -> None:
    error = there["disk_full"]
    assert error["type"] == "StorageFullError"
    assert error["came"].startswith("no room left")
    assert error["expected"]
    assert "free some" in error["do"]
    assert error["left"] == []


@needs_ray
def test_a_file_that_changes_while_it_is_read_is_refused(there: Document) -> None:
    assert there["changed"]["type"] == "DataError"
    assert there["changed"]["came"] == "growing.jsonl was changed while it was read"


@needs_ray
def test_ray_leaves_no_files(document: Document) -> None:
    assert document["left"] == []


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.core.system.extras.missing_modules", lambda _: ("ray",))
    with pytest.raises(RequestError, match=r"--on ray needs the package ray[\s\S]*luthier\[ray\]"), ray_workers():
        raise AssertionError


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have owners on POSIX systems")
def test_a_cluster_that_another_user_has_named_gets_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert workers_of_ray._cluster_of_this_machine() == ""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379\n")
    assert workers_of_ray._cluster_of_this_machine() == "10.0.0.1:6379"
    owner = (tmp_path / "ray" / "ray_current_cluster").stat()
    monkeypatch.setattr(os, "fstat", lambda _: os.stat_result((*owner[:4], 4_242_424, *owner[5:10])))
    with pytest.raises(RequestError, match="belongs to another user of this machine"):
        workers_of_ray._cluster_of_this_machine()
