"""The socket that a server listens on, and who can reach it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from luthier.core.errors import ConflictError, LuthierError, RequestError
from luthier.core.system import facilities

_MOST_WAITING: Final = 2048


@dataclass(frozen=True, slots=True)
class Listener:
    """An open socket that listens.

    Attributes:
        socket: The socket.
        host: The address as requested.
        port: The port that it got.
        near_host: The address for clients on this machine.
        is_loopback: Whether only this machine can reach it.
    """

    socket: socket.socket
    host: str
    port: int
    near_host: str
    is_loopback: bool

    @property
    def url(self) -> str:
        """Where clients find it, without `/v1`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


@contextmanager
def listen(host: str, port: int) -> Iterator[Listener]:
    """Listen on an address while the block runs.

    Args:
        host: A name or an address of this machine.
        port: The port; 0 takes any that is free.

    Raises:
        ConflictError: The port is taken.
        RequestError: This machine has no such address, or the user no right to that port.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, number)
    except (OSError, UnicodeError) as error:
        raise _no_address(host, str(error)) from error
    with opened:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where reusing lets any program take the port over
            opened.setsockopt(socket.SOL_SOCKET, facilities.sockets.SO_EXCLUSIVEADDRUSE, 1)
        else:
            # Else a restart would fail for a minute, while connections of the old process are in TIME_WAIT.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind(address)
            opened.listen(_MOST_WAITING)  # now: two sockets may be bound to one port until the first one listens
        except (OSError, OverflowError) as error:
            raise _explained(host, port, error) from error
        # 0.0.0.0 and :: are no addresses to connect to: this machine reaches the server by loopback.
        found = ip_address(opened.getsockname()[0])
        near = ("::1" if family == socket.AF_INET6 else "127.0.0.1") if found.is_unspecified else str(found)
        yield Listener(opened, host, opened.getsockname()[1], near, found.is_loopback)


def lend(listener: Listener) -> tuple[str, tuple[int, ...]]:
    """What a process needs that serves in place of this one: its argument, and the descriptors that it inherits.

    Where none can be inherited, the socket is closed here, and the process listens on the same address.
    """
    if facilities.inherits_descriptors():
        return str(listener.socket.fileno()), (listener.socket.fileno(),)
    listener.socket.close()
    return f"{listener.host}:{listener.port}", ()


@contextmanager
def lent(argument: str) -> Iterator[socket.socket]:
    """The socket of the argument that `lend` gave.

    Raises:
        ConflictError: The port is taken.
        RequestError: This machine has no such address, or the user no right to that port.
    """
    host, colon, port = argument.rpartition(":")
    if colon:
        with listen(host, int(port)) as listener:
            yield listener.socket
        return
    with socket.socket(fileno=int(argument)) as opened:
        yield opened


def _explained(host: str, port: int, error: Exception) -> LuthierError:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return ConflictError(
            f"port {port} of {host} is in use by another program",
            expected="a free port",
            do=f"choose another with --port (0: any that is free), or end that program (`ss -ltnp 'sport = :{port}'` "
            f"names it)",
        )
    if number == errno.EACCES:
        return RequestError(
            f"port {port} may not be used by this user", expected="a port from 1024 on", do="choose one with --port"
        )
    return _no_address(host, str(error))


def _no_address(host: str, why: str) -> RequestError:
    return RequestError(
        f"cannot listen on {host!r}: {why}",
        expected="an address of this machine: 127.0.0.1 for itself alone, 0.0.0.0 for all of its networks",
        do="correct --host",
    )
