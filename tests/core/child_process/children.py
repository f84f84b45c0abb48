"""Functions that the tests of `core.child_process` run in child processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from typing import Any

from luthier.core.child_process.channel import Channel
from luthier.core.errors import DataError, RowProblem


def double(document: Any, channel: Channel) -> Any:
    """Prints, counts up to the document in events, and returns its double."""
    sys.stdout.write('{"result": "printed"}\n')
    os.write(1, b'{"result": "written"}\n')
    for number in range(document):
        channel.emit({"at": number})
    return document * 2


def after_file(document: Any, channel: Channel) -> str:
    """Emits an event, waits for the file that the document names, and is done."""
    channel.emit({"waits": True})
    while not os.path.exists(document):  # noqa: PTH110 - a name from JSON
        time.sleep(0.01)
    return "done"


def fail(document: Any, channel: Channel) -> Any:
    """Ends in the way that the document names."""
    if document == "rows":
        problem = RowProblem("a.jsonl", 3, "text", "7", "no text")
        raise DataError("bad rows", expected="text", do="fill them", problems=[problem])
    if document == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere")
    if document == "full below":
        raise RuntimeError from OSError(errno.ENOSPC, "No space left on device")
    if document == "library":
        raise ValueError("a shape of no use")
    if document == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if document == "memory":
        return len(bytearray(4 << 30))
    time.sleep(600)
    return None


def answer(document: Any, channel: Channel) -> None:
    """Answers requests by the function `document` of this module, with the process id beside."""

    def one(request: Any) -> Any:
        if request == "again":
            raise DataError("wrong", expected="right", do="ask right")
        return [os.getpid(), fail(request, channel) if isinstance(request, str) else request]

    channel.serve(one, max_resident_bytes=document)


def environment(document: Any, channel: Channel) -> dict[str, str | None]:
    """The variables that the document names, as a program started from here would see them."""
    command = [sys.executable, "-c", f"import os, json; print(json.dumps([os.environ.get(n) for n in {document!r}]))"]
    import json

    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def grow(document: Any, channel: Channel) -> int:
    """Takes more memory than the document allows, where no system call limits it."""
    from luthier.core.system import facilities, process_setup

    facilities.limit_address_space = lambda _: False  # type: ignore[assignment]
    process_setup._MEMORY_LOOK_SECONDS = 0.001  # type: ignore[misc]
    channel.limit_memory(document)
    held = bytearray(2 * document)
    for place in range(0, len(held), 4096):
        held[place] = 1
    time.sleep(600)
    return len(held)


def linger(document: Any, channel: Channel) -> None:
    """Says who it is and goes on; ignores SIGTERM where the document says so."""
    if document == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    channel.emit([os.getpid(), grandchild.pid])
    time.sleep(600)
