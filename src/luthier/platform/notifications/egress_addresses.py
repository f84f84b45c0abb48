"""Which IP addresses a remote caller may make this server connect to: an allow-list of global unicast.

What is not listed as reachable is refused, so that a range that IANA assigns tomorrow needs no line here. IPv6 forms
that stand for an IPv4 address are unwrapped, and each address that is meant must be allowed.

Sources: IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890), RFC 4291 (IPv6 forms), RFC 6052 and RFC 8215
(NAT64), RFC 3056 (6to4), RFC 4380 (Teredo), RFC 5214 (ISATAP), RFC 3879 (site-local).
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

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
    """In words, what forbids to call an address; None where nothing does.

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
    """Whether an address is one of this machine's own: what is sent there never leaves it, whatever its range.

    The kernel picks the source of a datagram socket when it is connected, without sending anything; for an address of
    this machine it picks the address itself.
    """
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            # Port 9 (discard) is arbitrary: a datagram socket sends nothing when it connects.
            probe.connect((str(address), 9))
            return bool(probe.getsockname()[0] == str(address))
    except OSError:  # no route: whoever connects in earnest learns the same
        return False


def _meant_by(address: Address) -> tuple[Address, ...]:
    """All addresses that may be reached by one: itself, or what it wraps.

    Deprecated or local wrappings (IPv4-compatible, 64:ff9b:1::/48, Teredo, IPv4-translated) are not unwrapped: they lie
    outside of what is listed, and are refused whatever they hold.
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
    """Both this list and Python's must say so: each may be the older one."""
    if isinstance(address, IPv6Address) and address not in _IPV6_GLOBAL:
        return False
    return address.is_global and not _is_in(address, (*_SPECIAL, *_PRIVATE, *_METADATA))


def _is_in(address: Address, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    return any(address in network for network in networks if network.version == address.version)
