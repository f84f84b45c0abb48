"""The child's side of the protocol: what a function in a child process sends, receives and answers.

A child runs one function `module:function`, called with the document of its parent and a `Channel`. What the function
returns is the result. A warm child calls `Channel.serve` and answers requests until its parent closes the channel.

Both directions are lines of JSON over one socket, so stdout and stderr belong to libraries. The parent sends the start
(`Start`), then requests. The child sends objects with one of these keys:

    {"event": ...}                    progress, as the two sides agree on it
    {"result": ...}                   of the function, or of one request
    {"error": LuthierError.as_json}   raised in the parent as the same class
    {"disk_full": [errno, words, file]}, {"out_of_memory": limit in bytes}      OSError and MemoryError there

With "is_last" in a result or error message the child ends after it. Any other exception ends the child with a traceback
on stderr, which the parent quotes.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypedDict

from luthier.core.child_process.handover import CREDENTIAL, connect
from luthier.core.errors import LuthierError
from luthier.core.import_string import import_string
from luthier.core.system import facilities
from luthier.core.system.files import disk_full_reason, is_disk_full
from luthier.core.system.process_setup import end_with, wait_briefly, watch_memory

_ERROR_EXIT_CODE: Final = 1


class Start(TypedDict):
    """The first line that a parent sends.

    Attributes:
        document: the argument of the function.
        parent: process id with which the child dies; None where it outlives its parent.
        memory_bytes: most address space of the child; None for no limit.
        python_path: PYTHONPATH of the parent. The child starts with another one, which would mislead a program of
            a different environment that it starts.
    """

    document: Any
    parent: int | None
    memory_bytes: int | None
    python_path: str | None


class Channel:
    """The child's end of the socket. `emit` may be called from any thread, `requests` from one."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._lines = connection, connection.makefile("rb")
        self._send_lock = threading.Lock()
        self._memory_bytes: int | None = None

    def limit_memory(self, memory_bytes: int) -> None:
        """Take at most this much address space from here on; what needs more gets a MemoryError.

        Where the system cannot limit that, the child ends above this much resident memory, with the same error.
        """
        if not facilities.limit_address_space(memory_bytes):
            message = json.dumps({"out_of_memory": memory_bytes, "is_last": True})
            watch_memory(memory_bytes, lambda: self._send(message))
        facilities.write_no_core_dumps()
        self._memory_bytes = memory_bytes

    def emit(self, event: Any) -> None:
        """Send an event. Without a listener it is dropped: whether the parent's death ends the work is its decision."""
        self.emit_json(json.dumps(event))

    def emit_json(self, event: str) -> None:
        """As `emit`, for an event that is JSON already. It must not contain a line break."""
        # Written around the JSON, which is not parsed and encoded again.
        self._send(f'{{"event": {event}}}')

    def requests(self) -> Iterator[Any]:
        """The requests of the parent, until it closes the channel or dies."""
        with suppress(ConnectionResetError):
            for line in self._lines:
                if not line.endswith(b"\n"):  # the parent died in the middle of it
                    return
                yield json.loads(line)

    def serve(
        self, answer: Callable[[Any], Any], *, max_resident_bytes: int | None = None, allow_nan: bool = True
    ) -> None:
        """Answer requests one after the other until the parent closes the channel.

        Args:
            answer: called with each request; what it returns is the result.
            max_resident_bytes: the child ends after an answer that leaves more than this in memory. It also ends after
                one that met its memory limit: what is left may be in pieces, and a new process begins afresh.
            allow_nan: whether results may hold NaN and infinities; if not, they are a ValueError.
        """
        for request in self.requests():
            message = self.outcome(partial(answer, request))
            is_large = max_resident_bytes is not None and _resident_bytes() > max_resident_bytes
            # Memory that the allocator holds in pieces does not go back to the system: only a new process is small
            # again.
            if is_large or "out_of_memory" in message:
                message["is_last"] = True
            self._send(json.dumps(message, allow_nan=allow_nan))
            if "is_last" in message:
                return

    def outcome(self, work: Callable[[], Any]) -> dict[str, Any]:
        """The message about one piece of work: its result, or the error if it is one that the protocol carries."""
        try:
            return {"result": work()}
        except LuthierError as error:
            return {"error": error.as_json()}
        except MemoryError:
            # Without a limit of ours the machine itself is out of memory: nothing that an answer could say helps.
            if self._memory_bytes is None:
                raise
            return {"out_of_memory": self._memory_bytes}
        except Exception as error:
            if not is_disk_full(error):
                raise
            place = getattr(error, "filename", None)
            code = getattr(error, "errno", None) or errno.ENOSPC
            return {"disk_full": [code, disk_full_reason(error), None if place is None else os.fsdecode(place)]}

    def send_outcome(self, message: dict[str, Any]) -> None:
        """Send the message of `outcome`."""
        self._send(json.dumps(message))

    def _send(self, line: str) -> None:
        # One lock for each line: events come from several threads, and lines must not interleave.
        with self._send_lock, suppress(BrokenPipeError, ConnectionResetError):
            self._connection.sendall(line.encode() + b"\n")


def main(argument: str, function: str) -> None:
    """Run one child: read the start, apply its limits, call the function, send its outcome.

    Args:
        argument: Where its end of the channel is, as `handover` has it.
        function: "module:function".
    """
    connection = connect(argument, os.environ.pop(CREDENTIAL, ""))
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # else it lands below a traceback
    wait_briefly()  # before torch is loaded
    channel = Channel(connection)
    start: Start | None = next(channel.requests(), None)
    if start is None:  # the parent died before it could say what to do
        raise SystemExit(_ERROR_EXIT_CODE)
    # Before anything long begins, and with a check that the parent has not died already.
    if start["parent"] is not None:
        end_with(start["parent"])
    os.environ.pop("PYTHONPATH", None)
    if start["python_path"] is not None:
        os.environ["PYTHONPATH"] = start["python_path"]
    if start["memory_bytes"] is not None:
        channel.limit_memory(start["memory_bytes"])
    message = channel.outcome(lambda: import_string(function)(start["document"], channel))
    channel.send_outcome(message)
    if "result" not in message:
        raise SystemExit(_ERROR_EXIT_CODE)


def _resident_bytes() -> int:
    """What this process holds now. Not the most it ever held: Linux counts what its parent had before the exec."""
    import psutil

    return int(psutil.Process().memory_info().rss)
