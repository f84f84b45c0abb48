"""Whole or not at all: whatever goes wrong while a folder is written, nothing of it is left."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.fixtures.open_files import keep_open_files

from luthier.core.errors import ConflictError, RequestError, StorageFullError
from luthier.core.system.files import FolderRegister
from luthier.features.exports.folders import open_to_readers, staged_folder

Usage = namedtuple("Usage", "total used free")


def staged(final: Path, needed_bytes: int = 1):
    return staged_folder(final, needed_bytes=needed_bytes, what="gguf in q8_0")


def write_and_fail(final: Path, error: BaseException) -> None:
    with staged(final) as folder:
        (folder / "model").write_bytes(b"half")
        (folder.parent / "scratch").mkdir()
        raise error


def test_it_is_there_when_all_is_written(tmp_path):
    final = tmp_path / "new" / "out"
    with staged(final) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "model").write_bytes(b"whole")
        (folder.parent / "scratch").mkdir()
        assert not final.exists()
    assert (final / "deep" / "model").read_bytes() == b"whole"
    assert [path.name for path in final.parent.iterdir()] == ["out"]


def test_an_empty_folder_is_taken_and_a_full_one_is_not_touched(tmp_path):
    (tmp_path / "empty").mkdir()
    with staged(tmp_path / "empty") as folder:
        (folder / "model").touch()
    assert (tmp_path / "empty" / "model").is_file()
    for taken in ("empty", "empty/model"):
        with pytest.raises(ConflictError, match="already exists"), staged(tmp_path / taken):
            pytest.fail("not reached")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_what_somebody_else_wrote_there_meanwhile_stays(tmp_path):
    with ExitStack() as stack:
        folder = stack.enter_context(staged(tmp_path / "out"))
        (folder / "model").write_bytes(b"ours")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
        with pytest.raises(ConflictError, match="has files in it"):
            stack.close()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


class FromRustError(Exception):
    """What libraries that are not written in Python raise."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        FromRustError(
            'Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "No space left" }'
        ),
    ],
    ids=["disk", "quota", "rust"],
)
def test_a_disk_that_runs_full_half_way_leaves_nothing(tmp_path, error):
    with pytest.raises(StorageFullError, match="nothing was left there") as caught:
        write_and_fail(tmp_path / "a" / "b" / "out", error)
    assert "larger disk" in caught.value.do
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug")], ids=["interrupt", "bug"])
def test_whatever_else_happens_leaves_nothing_either(tmp_path, error):
    with pytest.raises(type(error)):
        write_and_fail(tmp_path / "out", error)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_the_room_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 << 20, 90 << 20, 10 << 20))
    with pytest.raises(StorageFullError, match="10 MiB are free") as caught, staged(tmp_path / "out", 20 << 20):
        pytest.fail("not reached")
    assert "about 20 MiB" in caught.value.expected
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot be written"), staged(tmp_path / "file" / "out"):
        pytest.fail("not reached")


def test_what_a_killed_export_left_is_cleared_and_a_living_one_is_not(tmp_path):
    dead, living = (tmp_path / f".out.partial-{name}" for name in ("dead", "living"))
    for folder in (dead, living):
        (folder / "export").mkdir(parents=True)
    descriptor = os.open(living, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with staged(tmp_path / "out"):
        assert not dead.exists()
    assert living.is_dir()
    os.close(descriptor)


def test_others_may_read_what_a_library_wrote_for_its_owner_alone(tmp_path):
    (tmp_path / "model").touch(mode=0o600)
    before = os.umask(0o022)
    open_to_readers(tmp_path)
    os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o644


def test_what_a_killed_export_left_in_another_place_is_cleared_by_the_next(tmp_path):
    """Nobody exports into the same place again, so that place alone is not where to look."""
    register = FolderRegister(tmp_path / "home" / "partial")
    code = """
import sys
from pathlib import Path
from luthier.core.system.files import FolderRegister
from luthier.core.system.files import FolderRegister
from luthier.features.exports.folders import staged_folder
register = FolderRegister(Path(sys.argv[1]))
with staged_folder(Path(sys.argv[2]), needed_bytes=1, what="merged", register=register) as folder:
    (folder / "model.safetensors").write_bytes(bytes(100_000))
    print("ready", flush=True)
    sys.stdin.read()
"""
    place = tmp_path / "first" / "out"
    command = [sys.executable, "-c", code, str(tmp_path / "home" / "partial"), str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        assert register.remove_abandoned() == [], "its process lives"
        process.kill()
        process.wait()
    assert sum(file.stat().st_size for file in place.parent.rglob("*") if file.is_file()) == 100_000
    with staged_folder(tmp_path / "second" / "out", needed_bytes=1, what="merged", register=register) as folder:
        (folder / "model.safetensors").touch()
        assert list(place.parent.iterdir()) == []
    assert (tmp_path / "second" / "out" / "model.safetensors").is_file()
    assert list((tmp_path / "home" / "partial").iterdir()) == []


def test_an_empty_folder_is_taken_where_no_folder_replaces_another(tmp_path, monkeypatch):
    keep_open_files(monkeypatch)
    rename = os.rename

    def refuse_taken_names(source, target):
        if Path(target).exists():
            raise FileExistsError(errno.EEXIST, "it exists", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_taken_names)
    final = tmp_path / "out"
    final.mkdir()
    with staged(final) as folder:
        (folder / "model").write_bytes(b"whole")
    assert (final / "model").read_bytes() == b"whole"
    with ExitStack() as stack:
        folder = stack.enter_context(staged(tmp_path / "late"))
        (folder / "model").touch()
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "theirs").touch()
        with pytest.raises(ConflictError, match="already exists"):
            stack.close()
    assert [path.name for path in (tmp_path / "late").iterdir()] == ["theirs"]
