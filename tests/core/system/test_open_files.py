"""Files that others have open, on systems where that keeps them in their place."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest
from tests.fixtures.open_files import keep_open_files

from luthier.core.system import files
from luthier.core.system.files import file_lock, forbid_writing, remove_locked, replace_file


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_open_files(monkeypatch)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    new, old = tmp_path / "new", tmp_path / "old"
    new.write_text("new", encoding="utf-8")
    old.write_text("old", encoding="utf-8")
    return new, old


def test_a_file_is_replaced_once_its_reader_is_done(
    windows: None, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = pair
    with old.open(encoding="utf-8") as reader:
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                assert reader.read() == "old"
                reader.close()

        monkeypatch.setattr(files.time, "sleep", pause)
        replace_file(new, old)
    assert len(pauses) == 3
    assert old.read_text(encoding="utf-8") == "new"
    assert not new.exists()


def test_a_file_that_stays_open_is_an_error_and_keeps_its_content(
    windows: None, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = pair
    monkeypatch.setattr(files, "_REPLACE_SECONDS", 0.0)
    with old.open(encoding="utf-8") as reader, pytest.raises(PermissionError, match="in use"):
        replace_file(new, old)
    assert reader.closed
    assert [one.read_text(encoding="utf-8") for one in pair] == ["new", "old"]


def test_elsewhere_nobody_waits_for_missing_rights(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("not allowed")

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited"))
    with pytest.raises(PermissionError, match="not allowed"):
        replace_file(*pair)


def test_elsewhere_an_open_file_is_replaced_under_its_reader(pair: tuple[Path, Path]) -> None:
    new, old = pair
    with old.open(encoding="utf-8") as reader:
        replace_file(new, old)
        assert reader.read() == "old"
    assert old.read_text(encoding="utf-8") == "new"


def test_a_file_that_nobody_may_write_can_be_removed_everywhere(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = pair
    new.chmod(0o640)
    forbid_writing(new)
    assert stat.S_IMODE(new.stat().st_mode) == 0o440
    keep_open_files(monkeypatch)
    old.chmod(0o640)
    forbid_writing(old)
    assert stat.S_IMODE(old.stat().st_mode) == 0o640  # with the attribute of Windows it could not be removed


@pytest.mark.parametrize("is_windows", [False, True])
def test_a_folder_goes_while_its_lock_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_windows: bool
) -> None:
    if is_windows:
        keep_open_files(monkeypatch)
    folder = tmp_path / "parts"
    with file_lock(folder / "lock", what="it", timeout_seconds=0):
        (folder / "deep").mkdir()
        for part in (folder / "a.part", folder / "deep" / "b.part"):
            part.write_text("half", encoding="utf-8")
        remove_locked(folder, folder / "lock")
        left = [path.name for path in folder.rglob("*")] if folder.exists() else None
    assert left == (["lock"] if is_windows else None)
