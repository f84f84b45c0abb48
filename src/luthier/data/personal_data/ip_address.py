"""Internet addresses of version 4 and 6 that belong to somebody.

Four small numbers with dots (all below 20) are as likely a version or a section and count only after a word that says
address. Not reported: special-purpose addresses, which reach nobody from outside (RFC 6890, 5737, 3849).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Final

from luthier.data.personal_data.span import Span

_V4: Final = re.compile(r"(?<![\w.\-])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)(?![\w\-])")
_V6: Final = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4})?(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])(?!\.\d)")
_VERSION_BEFORE: Final = re.compile(
    r"(?i)(?:\b(?:v|ver|version\w*|release\w*|firmware\w*|build\w*|update\w*|patch\w*|chapter|section|sec|clause|paragraph|"
    r"kapitel|abschnitt|chapitre|sección|capítulo|sezione|capitolo|schema|driver|software|app)\b|§)[\w .:]{0,16}$"
)
_ADDRESS_BEFORE: Final = re.compile(
    r"(?i)\b(?:ip\w*|host\w*|server\w*|address\w*|adresse|dirección|indirizzo|ping|ssh|gateway|dns)\b[^.\n]{0,24}$"
)
_SMALL: Final = 20
_PUBLIC_SERVICES: Final = frozenset(("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9"))


def find_ip_addresses(text: str) -> Iterator[Span]:
    """Each address. Reserved: special-purpose ones and the public name servers that everybody uses."""
    for match in _V4.finditer(text):
        parts = match[0].split(".")
        if any(len(part) > 1 and part[0] == "0" for part in parts) or any(int(part) > 255 for part in parts):
            continue
        before = text[max(0, match.start() - 40) : match.start()]
        is_small = all(int(part) < _SMALL for part in parts)
        if _VERSION_BEFORE.search(before) or (is_small and not _ADDRESS_BEFORE.search(before)):
            continue
        yield _span(match)
    if "::" not in text and text.count(":") < 7:
        return
    for match in _V6.finditer(text):
        groups = [part for part in match[0].split(":") if part]
        if len(groups) >= 3 and any(c.isdigit() for c in match[0]) and _is_v6(match[0]):
            yield _span(match)


def _span(match: re.Match[str]) -> Span:
    address = ipaddress.ip_address(match[0])
    is_reserved = not address.is_global or address.is_multicast or match[0] in _PUBLIC_SERVICES
    return Span(match.start(), match.end(), "ip_address", match[0], is_reserved)


def _is_v6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
