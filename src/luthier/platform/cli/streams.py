"""Stdout and stderr whose other end is gone: `head` has seen enough, Ctrl-C has ended `tee`, the terminal is closed.

What a command was asked for goes to stdout, so a command that writes there ends. Stderr has progress and warnings: the
work continues without them.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any, Final, TextIO

from luthier.core.errors import WorkError

_GONE: Final = (errno.EPIPE, errno.EIO)
"""What a write says where no one can read it any more, now or later: a pipe without a reader, a closed terminal."""


class NoReaderError(BrokenPipeError):
    """No one reads stdout any more. Without an errno: at EPIPE Typer ends the process with exit code 1, silently."""


class Stderr:
    """The current stderr, with other errors of writing to it left out.

    Work must not end, and least of all before its checkpoint, because its progress cannot be shown: Ctrl-C reaches all
    processes of a pipeline, so `luthier train recipe.yaml 2>&1 | tee log` has lost its reader when it is to pause.
    """

    def __init__(self) -> None:
        # A bar replaces sys.stderr by rich's proxy while it is shown, which keeps the stream under this name.
        self._stream: TextIO | None = getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, if it can be written."""
        try:
            if self._stream is not None:
                self._stream.write(text)
        except OSError as error:
            self._note(error)
        return len(text)

    def flush(self) -> None:
        """Flush what was written, if it can be written."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError as error:
            self._note(error)

    def _note(self, error: OSError) -> None:
        if error.errno in _GONE and self._stream is not None:
            discard(self._stream)


def discard(stream: TextIO) -> None:
    """Send to nowhere what is written to a stream from now on, and what its buffer holds, which would fail at exit."""
    # A stream of a test or a notebook has no descriptor (io.UnsupportedOperation is an OSError and a ValueError).
    with suppress(OSError, ValueError):
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def closed_elsewhere() -> WorkError:
    """The error of a connection, or of a pipe to a program, that its other end has closed."""
    return WorkError(
        "a connection, or a pipe to another program, was closed at its other end",
        expected="the other end to be there until the work is done",
        do="run the command again; if it happens again, look at the log of the server or program that it talks to",
    )
