"""A file is replaced whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO

import pytest

from luthier.core.errors import StorageFullError
from luthier.core.system import files
from luthier.core.system.files import replace_bytes, replace_text, replacing


def test_a_new_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace_bytes(path, b"one")
    replace_text(path, "zw\u00f6i")
    assert path.read_bytes() == "zw\u00f6i".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace_text(path, "old")

    def broken() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_explained_by_the_name_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(StorageFullError, match=r"no room left while writing .*a\.json"), replacing(tmp_path / "a.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "a.json", list[tuple[str, bool]]()

    def sync_file(file: IO[bytes]) -> None:
        file.flush()
        seen.append((Path(file.name).read_text(), path.exists()))

    monkeypatch.setattr(files, "sync_file", sync_file)
    monkeypatch.setattr(files, "sync", lambda folder: seen.append((folder.name, path.exists())))
    replace_text(path, "new")
    assert seen == [("new", False), (tmp_path.name, True)]
