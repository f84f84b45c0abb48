"""What a killed process leaves behind is removed by the next one, and what a living one holds is not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from luthier.core.system.files import (
    FolderRegister,
    remove_abandoned_temporary,
    remove_if_abandoned,
    scratch_folder,
)

_SCRATCH = """
import sys
from pathlib import Path
from luthier.core.system.files import scratch_folder
with scratch_folder(Path(sys.argv[1]), "work-") as folder:
    (folder / "half").write_bytes(b"0" * 1000)
    print(folder, flush=True)
    sys.stdin.read()
"""
_ENTERED = """
import sys
from pathlib import Path
from luthier.core.system.files import FolderRegister
folder = Path(sys.argv[2])
with FolderRegister(Path(sys.argv[1])).entered(folder):
    folder.mkdir()
    (folder / "half").write_bytes(b"0" * 1000)
    print(folder, flush=True)
    sys.stdin.read()
"""


@contextmanager
def child(code: str, *arguments: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that makes a folder, says which, and waits."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_the_folder_of_a_killed_process_is_gone_when_the_next_is_made(tmp_path: Path) -> None:
    (tmp_path / "work-of somebody else").mkdir()
    with child(_SCRATCH, tmp_path) as (process, abandoned):
        with scratch_folder(tmp_path, "work-") as other:
            assert abandoned.is_dir(), "its process lives"
            assert other.parent == tmp_path
        kill(process)
        assert (abandoned / "half").is_file(), "a killed process clears nothing away"
        with scratch_folder(tmp_path, "work-") as mine:
            assert {path.name for path in tmp_path.iterdir()} == {"work-of somebody else", mine.name}
            assert re.fullmatch("work-[0-9a-f]{16}", mine.name)
            assert mine.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in tmp_path.iterdir()] == ["work-of somebody else"]


def test_abandoned_folders_of_every_kind_of_work_are_removed_and_nothing_else(tmp_path: Path) -> None:
    names = [f"luthier-{kind}-{'0f' * 8}" for kind in ("vllm", "sandbox", "export-rehearsal")]
    others = ["luthier-vllm-of-mine", f"other-vllm-{'0f' * 8}", f"luthier-vllm-{'0f' * 9}"]
    for name in (*names, *others):
        (tmp_path / name).mkdir()
    with scratch_folder(tmp_path, "luthier-probe-") as held:
        removed = remove_abandoned_temporary(tmp_path, tmp_path, tmp_path / "nowhere")
        assert sorted(path.name for path in removed) == sorted(names)
        assert {path.name for path in tmp_path.iterdir()} == {*others, held.name}


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with scratch_folder(tmp_path, "work-") as folder:
            (folder / "half").touch()
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_register_finds_what_a_killed_process_left_anywhere(tmp_path: Path) -> None:
    register, place = FolderRegister(tmp_path / "home" / "partial"), tmp_path / "elsewhere"
    assert register.remove_abandoned() == [], "there is none yet"
    place.mkdir()
    with child(_ENTERED, tmp_path / "home" / "partial", place / "out") as (process, abandoned):
        assert register.remove_abandoned() == []
        assert abandoned.is_dir(), "its process lives"
        kill(process)
        assert register.remove_abandoned() == [abandoned]
    assert list(place.iterdir()) == []
    assert list((tmp_path / "home" / "partial").iterdir()) == []


def test_an_entry_of_a_folder_that_was_never_made_goes_too(tmp_path: Path) -> None:
    register = FolderRegister(tmp_path)
    (tmp_path / "0123456789abcdef").write_text(str(tmp_path / "never"), encoding="utf-8")
    assert register.remove_abandoned() == []
    assert list(tmp_path.iterdir()) == []


def test_a_link_and_a_file_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    assert not remove_if_abandoned(tmp_path / "link")
    assert not remove_if_abandoned(tmp_path / "file")
    assert not remove_if_abandoned(tmp_path / "nothing")
    assert (tmp_path / "real").is_dir()
