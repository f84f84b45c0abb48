"""One end of a connection, or of a stream, for a child process that is about to be started.

Where children inherit open files, that end is one: a number on the command line. Elsewhere (Windows) the child connects
to a port of the loopback, which is open until then, and shows a secret that it alone was given.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import IO, Final

from luthier.core.system import facilities

CREDENTIAL: Final = "LUTHIER_CHANNEL_SECRET"
"""The environment variable with the secret of a child's channel."""
_SECRET_BYTES: Final = 32
_HOST: Final = "127.0.0.1"
_CONNECT_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.2
_SPEAK_SECONDS: Final = 5.0
"""The time in which whoever connects has to show the secret."""


class Handover:
    """A connection of which the other end is for a child process.

    Attributes:
        argument: Says the child where its end is; no secret.
        secret: What it has to show; empty where it inherits its end.
        pass_fds: What it has to inherit.
    """

    def __init__(self) -> None:
        self._ours: socket.socket | None = None
        self._theirs: socket.socket | None = None
        self._listener: socket.socket | None = None
        self.secret, self.pass_fds = "", tuple[int, ...]()
        if facilities.inherits_descriptors():
            self._ours, self._theirs = socket.socketpair()
            self.argument, self.pass_fds = str(self._theirs.fileno()), (self._theirs.fileno(),)
            return
        self.secret = secrets.token_hex(_SECRET_BYTES)
        self._listener = socket.socket()
        self._listener.bind((_HOST, 0))
        self._listener.listen()
        self.argument = f":{self._listener.getsockname()[1]}"

    def connected(self, is_running: Callable[[], bool]) -> socket.socket:
        """Our end, once the child has been started; the child's own is closed here.

        Args:
            is_running: Whether the child still runs. The end of one that ended before it connected is closed.
        """
        if self._listener is None:
            assert self._ours is not None
            self.close_theirs()
            ours, self._ours = self._ours, None
            return ours
        with self._listener as listener:
            deadline = time.monotonic() + _CONNECT_SECONDS
            listener.settimeout(_LOOK_SECONDS)
            while is_running() and time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    found, _ = listener.accept()
                    if _has_secret(found, self.secret):
                        return found
                    found.close()
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours

    def close_theirs(self) -> None:
        """Close the child's end here: the child's death would otherwise not close the connection."""
        if self._theirs is not None:
            self._theirs.close()
            self._theirs = None

    def close(self) -> None:
        """Close all of it, where no child was started."""
        for one in (self._ours, self._theirs, self._listener):
            if one is not None:
                one.close()


def _has_secret(connection: socket.socket, secret: str) -> bool:
    connection.settimeout(_SPEAK_SECONDS)
    said = b""
    with contextlib.suppress(OSError):
        while len(said) < len(secret) and (more := connection.recv(len(secret) - len(said))):
            said += more
    connection.settimeout(None)
    return hmac.compare_digest(said, secret.encode())


def connect(argument: str, secret: str = "") -> socket.socket:
    """The child's end, from the argument and the secret of a `Handover`.

    Raises:
        OSError: the parent is gone.
    """
    if not argument.startswith(":"):
        connection = socket.socket(fileno=int(argument))
        connection.set_inheritable(False)  # a process that this one starts must not keep the channel open
        return connection
    connection = socket.create_connection((_HOST, int(argument[1:])), timeout=_CONNECT_SECONDS)
    connection.sendall(secret.encode())
    connection.settimeout(None)
    return connection


class ChildOutput:
    """A stream of bytes from a child process, besides its channel.

    Attributes:
        document: What the child opens its end by, with `open_output`.
        pass_fds: What it has to inherit.
    """

    def __init__(self) -> None:
        self._handover: Handover | None = None
        self._reading = self._writing = -1
        self.pass_fds: tuple[int, ...] = ()
        if facilities.inherits_descriptors():
            # A pipe: bytes go through it faster than through a socket.
            self._reading, self._writing = os.pipe()
            self.document, self.pass_fds = [str(self._writing), ""], (self._writing,)
        else:
            self._handover = Handover()
            self.document = [self._handover.argument, self._handover.secret]

    def opened(self, is_running: Callable[[], bool]) -> IO[bytes]:
        """The stream, once the child has been started; `is_running` as `Handover.connected` has it."""
        if self._handover is not None:
            connection = self._handover.connected(is_running)
            try:
                return connection.makefile("rb")
            finally:
                connection.close()  # the file keeps it open
        # The child has its own copy: while this end is open, reading would never see the end of the stream.
        os.close(self._writing)
        reading, self._reading, self._writing = self._reading, -1, -1
        return os.fdopen(reading, "rb")

    def close(self) -> None:
        """Close all of it, where no child was started."""
        if self._handover is not None:
            self._handover.close()
        for descriptor in (self._reading, self._writing):
            if descriptor >= 0:
                os.close(descriptor)
        self._reading = self._writing = -1


def open_output(document: list[str]) -> IO[bytes]:
    """The child's end of a `ChildOutput`, by its document."""
    argument, secret = document
    if not argument.startswith(":"):
        return os.fdopen(int(argument), "wb")
    connection = connect(argument, secret)
    try:
        return connection.makefile("wb")
    finally:
        connection.close()
