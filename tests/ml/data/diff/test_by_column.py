from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.ml.data.diff.row_changes import changed_columns


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_fields_are_counted_in_the_pairs_only(tmp_path: Path) -> None:
    old = write(tmp_path / "old.jsonl", [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}, {"a": 3, "b": "z"}])
    new = write(tmp_path / "new.jsonl", [{"a": 9, "b": "n"}, {"a": 1, "b": "X"}, {"a": 2, "b": "Y", "c": None}])
    assert changed_columns(old, new, [(1, 2), (2, 3)]) == {"b": 2, "c": 1}
    assert changed_columns(old, new, []) == {}


def test_one_is_not_true(tmp_path: Path) -> None:
    old = write(tmp_path / "old.jsonl", [{"a": 1}])
    new = write(tmp_path / "new.jsonl", [{"a": True}])
    assert changed_columns(old, new, [(1, 1)]) == {"a": 1}
