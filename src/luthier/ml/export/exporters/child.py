"""Work done by a child process: its memory is given back whole, and what it prints or crashes of stays with it."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from luthier.core.errors import RequestError, WorkError
from luthier.core.ports import Progress
from luthier.core.system.parent_death import dying_with_parent

_SHOWN_LINES = 8
_FULL = ("No space left", "StorageFull", "Disk quota exceeded")


def run_child(module: str, arguments: Sequence[str], title: str, progress: Progress) -> str:
    """Run `python -m module arguments...` to its end; returns the last line that it wrote to stdout.

    A child that has something to say to the user writes one line of JSON: an error as `LuthierError.as_json` has it.

    Raises RequestError or WorkError for what the child says, OSError where the disk is full, WorkError where it died.
    """
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile() as log, progress.task(title, None, ""):
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=dying_with_parent(),
        ) as child:
            try:
                answer = child.communicate()[0].strip()
            except BaseException:
                child.kill()
                raise
        last = answer.splitlines()[-1] if answer else ""
        if child.returncode == 0:
            return last
        log.seek(0)
        said = log.read().decode(errors="replace").strip().splitlines()
    if last.startswith("{"):
        error = json.loads(last)
        kind = RequestError if error["type"] == "RequestError" else WorkError
        raise kind(error["came"], expected=error["expected"], do=error["do"])
    if any(word in line for line in said for word in _FULL):
        raise OSError(errno.ENOSPC, "No space left on device")
    raise WorkError(
        "\n    ".join([f"{title} ended with exit code {child.returncode}; it said:", *said[-_SHOWN_LINES:]]),
        expected="a child process that runs to its end",
        do="exit code -9 means that memory ran out: free some; otherwise report this",
    )
