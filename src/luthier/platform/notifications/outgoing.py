"""A POST to an address that a stranger has chosen: it reaches nothing that is none of the stranger's business.

The name is looked up here, every address that it leads to is looked at, and the connection goes to one of these: a
name that leads elsewhere a moment later gains nothing (DNS rebinding). No redirect is followed, no proxy is used,
only the status of the answer is read, and all of it ends within a bounded time.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from luthier.platform.notifications.egress_addresses import is_own, why_forbidden

_CONNECT_SECONDS: Final = 5.0
MAX_SECONDS: Final = 15.0


class UnreachableError(Exception):
    """There was no answer; the words say why, and hold nothing secret."""


def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    may_reach_private: bool,
    most_seconds: float = MAX_SECONDS,
) -> int:
    """Send a body.

    Args:
        url: An http or https URL.
        headers: Sent with it.
        body: The bytes to send.
        may_reach_private: Whether this machine and private networks may be called.
        most_seconds: The time for connection, request and status together, after the name was looked up.

    Returns:
        The HTTP status of the answer.

    Raises:
        UnreachableError: There was no answer, or the address may not be called.
    """
    parts = urlsplit(url)
    host, is_secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if is_secure else 80)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        address = _vetted(host, port, may_reach_private=may_reach_private)
        connection = _Connection(host, port, address, ssl.create_default_context() if is_secure else None)
        # Each single wait is bounded by the socket; a stranger that sends a byte now and then is stopped by this.
        alarm = threading.Timer(most_seconds, connection.cut)
        alarm.daemon = True
        alarm.start()
        try:
            connection.request("POST", target, body=body, headers=dict(headers))
            return connection.getresponse().status
        finally:
            alarm.cancel()
            connection.close()
    except TimeoutError:
        raise UnreachableError(f"no answer within {most_seconds:g} s") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnreachableError(f"{type(error).__name__}: {error}"[:200]) from error


def _vetted(host: str, port: int, *, may_reach_private: bool) -> tuple[int, tuple[object, ...]]:
    """Family and socket address of a host, all of whose addresses may be called.

    An address that a name leads to is not shown: a caller could read names of private networks by it.
    """
    try:
        # Looked up once: the very addresses that were checked are connected to, so a second answer of the DNS is never
        # used.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UnreachableError(f"{host} is not known: {error}"[:200]) from error
    # All of them must be allowed: with one public and one private address a name could still be steered.
    for *_, address in found:
        plain = ip_address(str(address[0]).partition("%")[0])
        why = why_forbidden(plain, may_reach_private=may_reach_private)
        if why is None and not may_reach_private and is_own(plain):
            why = f"{plain}, which is an address of this machine itself"
        if why is not None:
            raise UnreachableError(
                f"{host} leads to {why if host == str(plain) else f'an address{why[len(str(plain)) :]}'}"
            )
    return found[0][0], found[0][4]


class _Connection(http.client.HTTPConnection):
    """To an address that was looked up already; with TLS, to who proves to be that host."""

    def __init__(
        self, host: str, port: int, address: tuple[int, tuple[object, ...]], tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(host, port)
        self.default_port = 80 if tls is None else 443  # which the header Host leaves out
        self._address, self._tls = address, tls

    def connect(self) -> None:
        """Connect to the address that was looked at."""
        family, address = self._address
        plain = socket.socket(family, socket.SOCK_STREAM)
        self.sock = plain
        plain.settimeout(_CONNECT_SECONDS)
        plain.connect(address)
        plain.settimeout(MAX_SECONDS)
        if self._tls is not None:
            # self.sock is set before the handshake, so that `cut` can end a handshake that hangs. The certificate is
            # checked for the name, not for the address.
            secure = self._tls.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = secure
            secure.do_handshake()

    def cut(self) -> None:
        """Break off, from another thread: whoever waits for the other side stops waiting."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)  # TLS would wait for its turn first
