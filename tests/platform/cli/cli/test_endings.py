"""What an error means to the one who typed the command."""

from __future__ import annotations

import errno
import io
import json
import math
import sys

import pytest

from luthier.platform.cli.command import Answer, Ending, end_of


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


def test_a_number_that_json_does_not_have_does_not_lose_the_document() -> None:
    """The work behind it may have taken hours."""
    out = io.StringIO()
    document = {"loss": math.nan, "bounds": (-math.inf, 0.5), "rows": [{"loss": 1.5, "note": "NaN"}]}
    Ending(1, Answer(True, document, lambda _: None)).write_json(out)
    expected = {"loss": None, "bounds": [None, 0.5], "rows": [{"loss": 1.5, "note": "NaN"}]}
    assert json.loads(out.getvalue()) == expected
