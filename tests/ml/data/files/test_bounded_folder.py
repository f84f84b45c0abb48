"""A cache keeps below its limit by removing what was used longest ago."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from luthier.ml.data.files.bounded_folder import IN_USE_SECONDS, entries_of, mark_used, remove_least_used


def fill(folder: Path, **ages: float) -> None:
    """Entries of 100 bytes that were used so many hours ago."""
    for name, hours in ages.items():
        (folder / name).mkdir(parents=True)
        file = folder / name / "rows.jsonl"
        file.write_bytes(b"x" * 100)
        used = time.time() - 3600 * hours
        os.utime(file, (used, used))


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_entries_that_were_used_longest_ago_go_first(tmp_path: Path) -> None:
    fill(tmp_path, a=9, b=30, c=5, d=20)
    assert [one.path.name for one in entries_of(tmp_path)] == ["b", "d", "a", "c"]
    assert remove_least_used(tmp_path, 400) == []
    removed = remove_least_used(tmp_path, 250)
    assert [(one.path.name, one.num_bytes) for one in removed] == [("b", 100), ("d", 100)]
    assert left(tmp_path) == {"a", "c"}


def test_what_is_needed_stays(tmp_path: Path) -> None:
    fill(tmp_path, newest=40, held=30, old=20, recent=0.5)
    removed = remove_least_used(tmp_path, 0, newest=tmp_path / "newest" / "rows.jsonl", is_held="held".__eq__)
    assert [one.path.name for one in removed] == ["old"]
    assert left(tmp_path) == {"newest", "held", "recent"}
    assert IN_USE_SECONDS == 3600


def test_a_use_makes_an_entry_the_newest(tmp_path: Path) -> None:
    fill(tmp_path, a=9, b=5)
    mark_used(tmp_path / "a" / "rows.jsonl")
    mark_used(tmp_path / "gone" / "rows.jsonl")
    assert [one.path.name for one in entries_of(tmp_path)] == ["b", "a"]
    assert entries_of(tmp_path / "missing") == []


def test_an_entry_that_another_process_removes_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, a=9, b=5)
    really = Path.is_dir

    def removed_behind(path: Path) -> bool:
        is_there = really(path)
        if path.name == "a":
            shutil.rmtree(path)
        return is_there

    monkeypatch.setattr(Path, "is_dir", removed_behind)
    assert [one.path.name for one in entries_of(tmp_path)] == ["b"]
