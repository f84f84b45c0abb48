"""Files that are written together."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from luthier.core.errors import ConflictError, RequestError, StorageFullError
from luthier.ml.data.rows.outputs import check_outputs, publish, working_folder


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
    with pytest.raises(ConflictError, match="final-b is there already"):
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
