"""Rows of versions by their place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.errors import DataError, NotFoundError
from luthier.features.datasets import rows as dataset_index
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.rows import columns_of, index_state, open_rows, rows_page
from luthier.features.datasets.store import DatasetVersion
from luthier.ml.data.rows import row_index
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.testing.servers import wait_for

CALLER = Caller()


def bring(context: Context, content: bytes, filename: str) -> DatasetVersion:
    file = dataset_versions.keep_rows(context, CALLER, [content], filename)
    return dataset_versions.create_dataset(context, CALLER, filename, file)[1]


def test_a_file_is_proved_once_and_then_only_looked_at(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    version = bring(context, b'{"a": 1}\n{"b": 2}\n', "rows.jsonl")
    assert columns_of(open_rows(context, CALLER, version)) == ["a", "b"]
    monkeypatch.setattr(files, "sha256_file", lambda path: pytest.fail(f"{path} was read whole"))
    assert open_rows(context, CALLER, version).num_rows == 2


def test_a_document_is_read_by_a_process_of_its_own(context: Context) -> None:
    version = bring(context, json.dumps([{"prompt": "p", "completion": "c"}] * 3).encode(), "rows.json")
    index = open_rows(context, CALLER, version)
    assert (index.num_rows, index.is_copy) == (3, True)
    assert index == open_rows(context, CALLER, version)


def test_what_cannot_be_read_is_told(context: Context) -> None:
    broken = bring(context, b"[{", "rows.json")
    with pytest.raises(DataError, match=r"rows\.json is not JSON"):
        open_rows(context, CALLER, broken)
    with pytest.raises(NotFoundError):
        open_rows(context, Caller(project_id="other"), broken)


def test_the_index_goes_with_its_file(context: Context) -> None:
    version = bring(context, b'{"a": 1}\n', "rows.jsonl")
    index = open_rows(context, CALLER, version)
    assert index.entries.is_file()
    dataset_versions.remove_dataset(context, CALLER, version.dataset_id)
    files.sweep_files(context)
    assert not index.entries.exists()


@pytest.mark.parametrize("filename", ["rows.jsonl", "rows.csv"])
def test_a_large_file_is_indexed_beside_the_request(
    context: Context, monkeypatch: pytest.MonkeyPatch, filename: str
) -> None:
    monkeypatch.setattr(dataset_index, "SMALL_BYTES", 5)
    begun, made = [], dataset_index.start_computation
    monkeypatch.setattr(dataset_index, "start_computation", lambda *given: begun.append(given[1].kind) or made(*given))
    rows = b"a\n1\n2\n3\n" if filename.endswith("csv") else b'{"a": 1}\n{"a": 2}\n{"a": 3}\n'
    version = bring(context, rows, filename)
    assert index_state(context, CALLER, version).state == "running"
    wait_for(lambda: index_state(context, CALLER, version).state == "answered")
    assert [kind for kind in begun if kind != "look"] == ["index"], "once a file"
    assert open_rows(context, CALLER, version).num_rows == 3


def test_no_page_of_rows_reads_what_stands_before_it(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_index, "SMALL_BYTES", 10)
    version = bring(context, b"".join(b'{"a": %d}\n' % n for n in range(1, 1001)), "rows.jsonl")
    parsed, read = [], row_index.read_line
    monkeypatch.setattr(row_index, "read_line", lambda *given: parsed.append(given[1]) or read(*given))
    page = rows_page(context, CALLER, version, start=980, num=20)
    assert ([row["line"] for row in page["rows"]], page["has_more"]) == (list(range(981, 1001)), False)
    assert parsed == list(range(981, 1001))
    named = rows_page(context, CALLER, version, start=1, num=2, lines=[7, 500, 999, 1000])
    assert ([row["line"] for row in named["rows"]], named["has_more"]) == ([500, 999], True)
    assert len(parsed) == 22
    assert rows_page(context, CALLER, version, start=5000, num=20) == {"rows": [], "has_more": False}


def test_a_large_file_that_cannot_be_read_says_so(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_index, "SMALL_BYTES", 1)
    version = bring(context, b"[{", "rows.json")
    wait_for(lambda: index_state(context, CALLER, version).state == "failed")
    assert "is not JSON" in str(index_state(context, CALLER, version).error)


def test_a_page_of_a_million_rows_costs_its_own_rows_alone(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    num_rows = 1_000_000
    version = bring(context, b"".join(b'{"a":%d}\n' % n for n in range(num_rows)), "rows.jsonl")
    assert open_rows(context, CALLER, version).num_rows == num_rows
    parsed, steps, read, entry = [], [0], row_index.read_line, row_index._ENTRY

    class Counted:
        """The struct of the index, which counts what is read of it."""

        size = entry.size

        def unpack(self, data: bytes) -> tuple[Any, ...]:
            steps[0] += 1
            return entry.unpack(data)

        def unpack_from(self, data: Any, offset: int) -> tuple[Any, ...]:
            steps[0] += 1
            return entry.unpack_from(data, offset)

    monkeypatch.setattr(row_index, "_ENTRY", Counted())
    monkeypatch.setattr(row_index, "read_line", lambda *given: parsed.append(given[1]) or read(*given))
    monkeypatch.setattr(row_index, "bounded_lines", lambda _: pytest.fail("the file is read from its beginning"))
    monkeypatch.setattr(files, "sha256_file", lambda path: pytest.fail(f"{path} is read whole"))
    for start in (0, num_rows // 2, num_rows - 20):
        parsed.clear()
        steps[0] = 0
        page = rows_page(context, CALLER, version, start=start, num=20)
        assert parsed == [row["line"] for row in page["rows"]] == list(range(start + 1, start + 21))
        assert steps[0] == 20, "one entry of the index a row"
    # Rows of a finding, by their lines: a binary search each.
    lines = list(range(7, num_rows, 50_001))
    parsed.clear()
    steps[0] = 0
    page = rows_page(context, CALLER, version, num=20, lines=lines)
    assert parsed == lines[:20]
    assert steps[0] <= 20 * (20 + 1), "2 to the power of 20 is more than a million"
