"""A POST to an address chosen by a user: it reaches only global unicast addresses (no SSRF).

The name is resolved here, every address that it leads to is checked, and the connection goes to one of these: a name
that leads elsewhere a moment later gains nothing (DNS rebinding). No redirect is followed, no proxy is used, only the
status of the answer is read, and all of it ends within a bounded time. Addresses that are not listed as reachable are
refused, so that a range that IANA assigns tomorrow needs no line here. IPv6 forms of an IPv4 address are unwrapped, and
each intended address must be allowed.

Sources: IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890), RFC 4291 (IPv6 forms), RFC 6052 and RFC 8215
(NAT64), RFC 3056 (6to4), RFC 4380 (Teredo), RFC 5214 (ISATAP), RFC 3879 (site-local).
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address

_NAT64: Final = IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR: Final = IPv6Network("2002::/16")
_IPV6_GLOBAL: Final = IPv6Network("2000::/3")
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
"""The upper half of an ISATAP interface identifier, which holds the IPv4 address in its lower half."""

_PRIVATE: Final = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("100.64.0.0/10"),  # carrier-grade NAT
    IPv4Network("127.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv6Network("::1/128"),
    IPv6Network("fc00::/7"),  # unique local
)
"""What the operator's setting opens: this machine and private networks."""

_SPECIAL: Final = (
    IPv4Network("0.0.0.0/8"),
    IPv4Network("169.254.0.0/16"),
    IPv4Network("192.0.0.0/24"),
    IPv4Network("192.0.2.0/24"),
    IPv4Network("192.31.196.0/24"),
    IPv4Network("192.52.193.0/24"),
    IPv4Network("192.88.99.0/24"),
    IPv4Network("192.175.48.0/24"),
    IPv4Network("198.18.0.0/15"),
    IPv4Network("198.51.100.0/24"),
    IPv4Network("203.0.113.0/24"),
    IPv4Network("224.0.0.0/4"),
    IPv4Network("240.0.0.0/4"),
    IPv6Network("2001::/23"),  # protocol assignments, Teredo and ORCHID among them
    IPv6Network("2001:db8::/32"),
    IPv6Network("2620:4f:8000::/48"),
    IPv6Network("3fff::/20"),
)
"""Within the unicast space, and not for traffic of the public internet. Everything outside of it is not listed."""

_METADATA: Final = (
    IPv4Network("100.100.100.200/32"),  # Alibaba Cloud, in the range of carrier-grade NAT
    IPv4Network("168.63.129.16/32"),  # Azure's virtual public address of the host
    IPv4Network("192.0.0.192/32"),  # Oracle Cloud Classic
    IPv6Network("fd00:ec2::/32"),  # AWS: metadata, time, names, identities of pods
    IPv6Network("fd00:c1::/32"),  # Oracle Cloud
    IPv6Network("fd20:ce::/32"),  # Google Cloud
    IPv6Network("fd00:42::42/128"),  # Scaleway
)
"""Services of clouds that give out credentials, outside of the link-local ranges. No setting opens them."""


def why_forbidden(address: Address, *, may_reach_private: bool) -> str | None:
    """Why an address must not be called, as text; None where it may.

    Args:
        address: where a connection would go to. The scope of an IPv6 address does not matter.
        may_reach_private: whether the operator's setting opens this machine and private networks. Link-local addresses
            and metadata services of clouds stay closed.
    """
    # All of them: a wrapped address may reach something else than the one that it looks like.
    meant = _meant_by(address)
    if any(_is_in(one, _METADATA) or not (_is_global(one) or _is_in(one, _PRIVATE)) for one in meant):
        return f"{address}, which no webhook may call"
    if not may_reach_private and not all(_is_global(one) for one in meant):
        return f"{address}, which is not on the public internet"
    return None


def is_own(address: Address) -> bool:
    """Whether an address is one of this machine's own: what is sent there never leaves it, in any range.

    The kernel picks the source of a datagram socket when it is connected, without sending anything; for an address of
    this machine it picks the address itself.
    """
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            # Port 9 (discard) is arbitrary: a datagram socket sends nothing when it connects.
            probe.connect((str(address), 9))
            return bool(probe.getsockname()[0] == str(address))
    except OSError:  # no route: the real connection fails in the same way
        return False


def _meant_by(address: Address) -> tuple[Address, ...]:
    """All addresses that may be reached by one: itself, or what it wraps.

    Deprecated or local wrappings (IPv4-compatible, 64:ff9b:1::/48, Teredo, IPv4-translated) are not unwrapped: they are
    outside the list, and are refused with any content.
    """
    if isinstance(address, IPv4Address):
        return (address,)
    plain = IPv6Address(int(address))  # without its scope
    lower = IPv4Address(int(plain) & 0xFFFF_FFFF)
    if plain.ipv4_mapped is not None or plain in _NAT64:
        return (lower,)
    if plain in _SIX_TO_FOUR:
        # 2002:AABB:CCDD::/48: the 32 bits behind the prefix are the relay's IPv4 address, which gets the packets.
        inner = IPv4Address((int(plain) >> 80) & 0xFFFF_FFFF)
        return (inner, *((lower,) if _is_isatap(plain) else ()))
    return (plain, lower) if _is_isatap(plain) else (plain,)


def _is_isatap(address: IPv6Address) -> bool:
    return (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP


def _is_global(address: Address) -> bool:
    """Both this list and Python's must allow it: each may be the older one."""
    if isinstance(address, IPv6Address) and address not in _IPV6_GLOBAL:
        return False
    return address.is_global and not _is_in(address, (*_SPECIAL, *_PRIVATE, *_METADATA))


def _is_in(address: Address, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


_CONNECT_SECONDS: Final = 5.0
MAX_SECONDS: Final = 15.0


class UnreachableError(Exception):
    """There was no answer; the words say why, and hold nothing secret."""


class ForbiddenAddressError(UnreachableError):
    """A host leads to an address that must not be connected to."""


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
        address = vetted_address(host, port, may_reach_private=may_reach_private)
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


def vetted_address(host: str, port: int, *, may_reach_private: bool) -> tuple[int, tuple[object, ...]]:
    """Family and socket address of a host, all of whose addresses may be called.

    An address that a name leads to is not shown: a caller could read names of private networks by it.

    Raises:
        UnreachableError: the name is not known.
        ForbiddenAddressError: it leads to an address that may not be called.
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
            raise ForbiddenAddressError(
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
        """Abort, from another thread: callers that wait for the other side stop waiting."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)  # TLS would wait for its turn first
