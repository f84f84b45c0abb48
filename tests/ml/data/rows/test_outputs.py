"""Files that are written together, and rows: whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.dataset import Row
from luthier.core.errors import ConflictError, RequestError, RowProblem, StorageFullError
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows.outputs import check_outputs, json_line, publish, working_folder, write_rows
from luthier.ml.data.rows.rows import read_records


def test_a_folder_for_work_goes_away_with_what_is_in_it(tmp_path: Path) -> None:
    beside = tmp_path / "new" / "out.jsonl"

    def interrupted() -> None:
        with working_folder(beside) as work:
            (work / "half").write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(beside.parent.iterdir()) == []


def test_nothing_moves_where_one_file_is_in_the_way(tmp_path: Path) -> None:
    made = {name: tmp_path / f"made-{name}" for name in "ab"}
    finals = {name: tmp_path / f"final-{name}" for name in "ab"}
    for name, path in made.items():
        path.write_text(name, encoding="utf-8")
    finals["b"].write_text("theirs", encoding="utf-8")
    moves = {made[name]: finals[name] for name in "ab"}
    with pytest.raises(ConflictError, match="final-b already exists"):
        publish(moves, force=False)
    assert not finals["a"].exists()
    publish(moves, force=True)
    assert [finals[name].read_text(encoding="utf-8") for name in "ab"] == ["a", "b"]


def test_a_dangling_link_is_in_the_way_too(tmp_path: Path) -> None:
    made, final = tmp_path / "made", tmp_path / "final"
    made.write_text("x", encoding="utf-8")
    final.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConflictError):
        publish({made: final}, force=False)


def test_an_input_or_a_folder_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is a folder"):
        check_outputs([tmp_path], [])
    file = tmp_path / "f"
    file.touch()
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(RequestError, match="the file that is read"):
        check_outputs([tmp_path / "link"], [file])


def test_a_full_disk_leaves_nothing_of_the_folder(tmp_path: Path) -> None:
    def write() -> None:
        with working_folder(tmp_path / "out.jsonl") as work:
            (work / "half").write_text("half", encoding="utf-8")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageFullError, match=r"no room left while writing .*out\.jsonl"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_at_the_end_moves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {tmp_path / f"made-{name}": tmp_path / f"final-{name}" for name in "ab"}
    for path in made:
        path.write_text("x", encoding="utf-8")

    def full(_: int) -> None:
        if not (tmp_path / "final-a").exists() and len(synced) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced.append(1)

    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        publish(made, force=False)
    assert not any(final.exists() for final in made.values())


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    rows = [{"text": "é 日本\nline"}, {"n": 1}]
    path = tmp_path / "a" / "rows.jsonl"
    assert write_rows(rows, path) == 2
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == rows
    assert list(path.parent.iterdir()) == [path]


def test_half_of_a_surrogate_pair_is_written_as_an_escape(tmp_path: Path) -> None:
    rows = [{"text": "é \ud83d"}, {"text": "é"}]
    assert write_rows(rows, tmp_path / "rows.jsonl") == 2
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert lines == ['{"text": "\\u00e9 \\ud83d"}', '{"text": "é"}']


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows([{"n": 1}], path)

    def broken() -> Iterator[dict[str, Any]]:
        yield {"n": 2}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(broken(), path)
    assert path.read_text() == '{"n": 1}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, int]]:
        yield {"n": 1}
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageFullError, match=r"no room left while writing .*rows\.jsonl"):
        write_rows(rows(), tmp_path / "rows.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_lines_keep_their_bytes_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a":  1}\r\n\n  {"a": "\\u00e9"} \n{broken\n{"a": "\xe9"}')
    found = list(read_records(open_source(path)))
    assert [(record.line, record.raw) for record in found] == [
        (1, b'{"a":  1}'), (3, b'  {"a": "\\u00e9"} '), (4, b"{broken"), (5, b'{"a": "\xe9"}'),
    ]  # fmt: skip
    assert [type(record.item) for record in found] == [Row, Row, RowProblem, RowProblem]


def test_rows_of_other_formats_are_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text('b,a\n"x\ny",é\nragged\n', encoding="utf-8")
    found = list(read_records(open_source(path)))
    assert [record.raw for record in found] == ['{"b": "x\\ny", "a": "é"}'.encode(), None]


def test_dates_and_halves_of_characters_can_be_written() -> None:
    when = {"d": date(2026, 1, 2), "t": time(3, 4), "dt": datetime(2026, 1, 2, 3, 4)}
    assert json.loads(json_line(when)) == {"d": "2026-01-02", "t": "03:04:00", "dt": "2026-01-02T03:04:00"}
    assert json_line({"half": "\ud800"}) == b'{"half": "\\ud800"}'
    with pytest.raises(TypeError, match="raw bytes"):
        json_line({"raw": b"x"})
    with pytest.raises(ValueError, match="JSON"):
        json_line({"n": float("nan")})


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=5))
def test_a_written_row_is_one_line_that_reads_the_same(row: dict[str, object]) -> None:
    line = json_line(row)
    assert b"\n" not in line
    assert list(json.loads(line).items()) == list(row.items())
