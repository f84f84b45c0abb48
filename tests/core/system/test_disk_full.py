"""A full disk is one error, whoever says it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from luthier.core.errors import DataError, StorageFullError
from luthier.core.system.files import disk_full_explained, is_disk_full, storage_full


def _chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_of_any_sort_is_storage_full(number: int, tmp_path: Path) -> None:
    def write() -> None:
        with disk_full_explained(tmp_path / "out.jsonl", expected="about 5 bytes"):
            raise OSError(number, os.strerror(number))

    with pytest.raises(StorageFullError) as caught:
        write()
    assert caught.value.came == f"no room left while writing {tmp_path / 'out.jsonl'} ({os.strerror(number)})"
    assert caught.value.expected == "about 5 bytes"
    assert "free some disk space" in caught.value.do


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (RuntimeError("Error while serializing: IoError(Os { code: 28, kind: StorageFull })"), True),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), True),
        (_chained(ValueError("wrapped"), OSError(errno.ENOSPC, "No space left on device")), True),
        (StorageFullError("x", expected="y", do="z"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("full"), False),
        (_chained(DataError("x", expected="y", do="z"), OSError(errno.ENOSPC, "No space left on device")), False),
    ],
)
def test_what_says_that_the_disk_is_full(error: Exception, is_full: bool) -> None:
    assert is_disk_full(error) == is_full


def test_other_errors_and_errors_with_words_of_their_own_pass(tmp_path: Path) -> None:
    for error in (PermissionError(errno.EACCES, "no"), StorageFullError("own", expected="words", do="kept")):
        with pytest.raises(type(error)) as caught, disk_full_explained(tmp_path):
            raise error
        assert caught.value is error


def test_an_error_without_a_place_names_the_file_of_the_system() -> None:
    assert "while writing /x/y" in storage_full(OSError(errno.ENOSPC, "No space left on device", "/x/y")).came
    assert storage_full(OSError(errno.ENOSPC, "No space left")).came == "no room left (No space left)"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (_chained(RuntimeError(), OSError(errno.EDQUOT, "Disk quota exceeded")), "Disk quota exceeded"),
        (RuntimeError(" \n"), os.strerror(errno.ENOSPC)),
        (_chained(RuntimeError("a tensor\nnot written"), OSError(errno.ENOSPC, "full")), "not written"),
    ],
)
def test_an_error_without_words_has_those_of_its_cause(error: Exception, reason: str) -> None:
    assert storage_full(error).came == f"no room left ({reason})"
