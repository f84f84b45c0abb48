"""Records of a file as pieces of work: what they give is what the reader gives."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.dataset import Row
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows import row_batches as module
from luthier.ml.data.rows.row_batches import row_batches
from luthier.ml.data.rows.rows import read_rows

LINE = st.one_of(
    st.dictionaries(st.sampled_from(["prompt", "completion", "text"]), st.text(max_size=20)).map(
        lambda row: json.dumps(row).encode()
    ),
    st.sampled_from([b"", b"  ", b"{broken", b"[1]", b"\xff\xfe"]),
)


@given(lines=st.lists(LINE, max_size=20), records=st.integers(1, 5), has_mark=st.booleans(), is_packed=st.booleans())
def test_lines_of_jsonl_are_read_as_by_the_reader(
    lines: list[bytes], records: int, has_mark: bool, is_packed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = (b"\xef\xbb\xbf" if has_mark else b"") + b"\n".join([b'{"text": "first"}', *lines])
    path = tmp_path_factory.mktemp("rows") / ("rows.jsonl.gz" if is_packed else "rows.jsonl")
    path.write_bytes(gzip.compress(content) if is_packed else content)
    source = open_source(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH_RECORDS", records)
        batches = pickle.loads(pickle.dumps(list(row_batches(source))))
    assert [row for batch in batches for row in batch.rows()] == list(read_rows(source))
    assert [len(batch.records) for batch in batches[:-1]] == [records] * (len(batches) - 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "prompt,completion\na,b\nc\nd,e\n"),
        ("rows.json", json.dumps([{"messages": [{"role": "user", "content": "hello"}]}, 3, {"text": "x"}])),
    ],
)
def test_records_of_other_formats_are_read_first(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    source = open_source(path)
    (batch,) = row_batches(source)
    assert list(batch.rows()) == list(read_rows(source))
    assert len(batch.records) == 3


def test_long_rows_make_short_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_BATCH_BYTES", 1_000)
    rows = [{"messages": [{"role": "user", "content": "x" * 600}]} for _ in range(5)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    batches = list(row_batches(open_source(path)))
    assert [len(batch.records) for batch in batches] == [2, 2, 1]
    assert all(isinstance(row, Row) for batch in batches for row in batch.records)


def test_a_line_that_is_too_long_is_a_problem_in_its_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from luthier.ml.data.files import untrusted_input

    monkeypatch.setattr(untrusted_input.bounded_lines, "__defaults__", (100,))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "x" * 300}) + "\n" + json.dumps({"text": "short"}) + "\n", encoding="utf-8")
    (batch,) = row_batches(open_source(path))
    problem, row = batch.rows()
    assert "more than the" in getattr(problem, "reason", "")
    assert isinstance(row, Row)
    assert row.fields == {"text": "short"}
