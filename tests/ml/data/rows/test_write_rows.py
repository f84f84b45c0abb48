"""Rows are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import StorageFullError
from luthier.ml.data.rows.outputs import write_rows


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
