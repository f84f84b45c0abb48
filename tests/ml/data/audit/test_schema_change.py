"""A schema that changes in the middle of a file: named with the rows where it does, by this process and by workers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.fixtures.pickled_workers import PickledWorkers

from luthier.core.errors import DataError
from luthier.core.results.audit import Audit
from luthier.ml.data.audit.base import AuditRequest
from luthier.ml.data.audit.run import run_audit
from luthier.ml.data.audit.table import build_table
from luthier.ml.data.files.row_workers import IN_PROCESS
from luthier.ml.data.rows import row_batches
from luthier.ml.data.rows.formats import load_file

NUM_BEFORE, NUM_AFTER = 30, 10


def write(path: Path, before: dict[str, Any], after: dict[str, Any]) -> Path:
    rows = [before] * NUM_BEFORE + [after] * NUM_AFTER
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


SIZES = (1, 7, NUM_BEFORE, NUM_BEFORE + NUM_AFTER)


def audited(path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...] = SIZES) -> Audit:
    """By this process; workers find the same, wherever the change is in their parts."""
    here = run_audit(AuditRequest(build_table(path, workers=IN_PROCESS)), ["schema"])
    for num_records in sizes:
        monkeypatch.setattr(row_batches, "BATCH_RECORDS", num_records)
        there = run_audit(AuditRequest(build_table(path, workers=PickledWorkers())), ["schema"])
        assert there.model_dump_json() == here.model_dump_json()
        assert [finding.lines for finding in there.findings] == [finding.lines for finding in here.findings]
    return here


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_other_columns_from_a_row_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / name, {"prompt": "a", "completion": "b"}, {"messages": [{"role": "user", "content": "a"}]})
    audit = audited(path, monkeypatch)
    said = f"{name} mixes shapes: row 1 is prompt_completion, row {NUM_BEFORE + 1} is chat"
    (finding,) = audit.findings
    assert (finding.severity, audit.grade) == ("error", "F")
    assert finding.message == said
    assert finding.examples[0].row == f"{name}:{NUM_BEFORE + 1}"
    with pytest.raises(DataError) as caught:
        load_file(path)
    assert caught.value.came.startswith(said)
    assert caught.value.do == "split the file by shape, or convert the rows to one shape"


def test_another_type_of_a_column_from_a_row_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": {"b": 1}})
    (finding,) = audited(path, monkeypatch).findings
    assert (finding.severity, finding.count) == ("error", NUM_AFTER)
    assert list(finding.lines) == list(range(NUM_BEFORE + 1, NUM_BEFORE + NUM_AFTER + 1))
    assert finding.details["fields"] == {"completion": NUM_AFTER}
    with pytest.raises(DataError, match=f"rows.jsonl:{NUM_BEFORE + 1} field 'completion'"):
        load_file(path)


def test_a_column_of_parquet_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    completions = ["b"] * NUM_BEFORE + [None] * NUM_AFTER
    frame = pl.DataFrame({"prompt": ["a"] * (NUM_BEFORE + NUM_AFTER), "completion": completions})
    frame.write_parquet(path, row_group_size=NUM_BEFORE)
    (finding,) = audited(path, monkeypatch, sizes=(7,)).findings  # a process decodes the file for each pass
    assert (finding.severity, finding.count) == ("error", NUM_AFTER)
    with pytest.raises(DataError, match=f"rows.parquet:{NUM_BEFORE + 1} field 'completion'"):
        load_file(path)
