"""What an error means to the one who typed the command."""

from __future__ import annotations

import errno
import sys

import pytest

from luthier.platform.cli.command import end_of


@pytest.mark.parametrize("filename", [None, "/disk/out.jsonl"])
def test_a_full_disk_is_no_bug_of_luthier(filename: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Python names no file where a write fails, only where an opening does."""
    error = OSError(errno.ENOSPC, "No space left on device", filename)
    ending = end_of(error)
    assert ending.error is not None
    assert (ending.exit_code, ending.error["type"]) == (1, "StorageFullError")
    assert ending.error["came"].startswith("no room left")
    assert (filename or "") in ending.error["came"]
    assert "free some disk space" in ending.error["do"]
    assert capsys.readouterr().err == ""


def test_another_error_of_the_system_keeps_its_own_words() -> None:
    ending = end_of(PermissionError(errno.EACCES, "Permission denied", "/root/x"))
    assert ending.error is not None
    assert ending.error["type"] == "PermissionError"
    assert sys.exc_info() == (None, None, None)
