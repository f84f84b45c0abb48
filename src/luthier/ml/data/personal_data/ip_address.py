"""Internet addresses of version 4 and 6 that belong to somebody.

Four small numbers with dots (all below 20) are as likely a version or a section and count only after a word that says
address. Certain are those beside such a word, port or URL, and those whose form nothing else has. Not reported:
special-purpose addresses, which reach nobody from outside (RFC 6890, 5737, 3849).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Final

from luthier.ml.data.personal_data.span import Span

_V4: Final = re.compile(r"(?<![\w.\-])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)(?![\w\-])")
_V6: Final = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4})?(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])(?!\.\d)")
_VERSION_BEFORE: Final = re.compile(
    r"(?i)(?:\b(?:v|ver|version\w*|release\w*|firmware\w*|build\w*|update\w*|patch\w*|chapter|section|sec|clause|paragraph|"
    r"kapitel|abschnitt|chapitre|sección|capítulo|sezione|capitolo|schema|driver|software|app)\b|§)[\w .:]{0,16}$"
)
_ADDRESS_BEFORE: Final = re.compile(
    r"(?i)\b(?:ip\w*|host\w*|server\w*|address\w*|adresse|dirección|indirizzo|ping|ssh|gateway|dns)\b[^.\n]{0,24}$"
)
# The version of a product, as in a User-Agent header (RFC 9110, 10.1.5); a URL has a second slash.
_PRODUCT_BEFORE: Final = re.compile(r"(?<![/\w])\w[\w\-]*/$")
_CERTAIN_BEFORE: Final = re.compile(
    r"(?i)(?:\b(?:ip|ips|ipv[46]|ip[ _-]?addr\w*|hosts?|hostname|servers?|address(?:es)?|addr|adresse|dirección|"
    r"indirizzo|ping|ssh|telnet|gateway|router|proxy|firewall|nameserver|dns|inet6?|peer|remote|client|clients|subnet|"
    r"(?:log-?ins?|logged in|requests?|connections?|connected|connect|access|traffic|visits?|attacks?|banned|blocked) "
    r"(?:from|to|by|of)|x-forwarded-for|connect(?:ed|ing)? to|resolves to)\b[^.\n;]{0,16}|://|@)$"
)
_CERTAIN_AFTER: Final = re.compile(r":\d{2,5}\b|/(?:[89]|[12]\d|3[0-2])\b|,? port \d| - - \[|\]:\d")
_LARGE: Final = 100
_SMALL: Final = 20
_PUBLIC_SERVICES: Final = frozenset(("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9"))


def find_ip_addresses(text: str) -> Iterator[Span]:
    """Each address. Reserved: special-purpose ones and the public name servers that everybody uses."""
    for match in _V4.finditer(text):
        parts = match[0].split(".")
        # A leading zero is octal to some programs: no address is written so.
        if any(len(part) > 1 and part[0] == "0" for part in parts) or any(int(part) > 255 for part in parts):
            continue
        before = text[max(0, match.start() - 40) : match.start()]
        is_small = all(int(part) < _SMALL for part in parts)
        if _VERSION_BEFORE.search(before) or (is_small and not _ADDRESS_BEFORE.search(before)):
            continue
        if _PRODUCT_BEFORE.search(before) and match[0].endswith(".0.0"):
            continue
        yield _span(match, is_certain=_is_certain(text, match) or _has_form_of_its_own(parts))
    if "::" not in text and text.count(":") < 7:
        return
    for match in _V6.finditer(text):
        groups = [part for part in match[0].split(":") if part]
        if len(groups) >= 3 and any(c.isdigit() for c in match[0]) and _is_v6(match[0]):
            is_unicast = len(groups[0]) == 4 and groups[0][0] in "23"  # 2000::/3, all that is given out (RFC 4291)
            yield _span(match, is_certain=is_unicast or len(groups) == 8 or _is_certain(text, match))


def _is_certain(text: str, match: re.Match[str]) -> bool:
    """Whether the words and signs beside it say that it is an address."""
    before = text[max(0, match.start() - 40) : match.start()].rstrip(" [(\"'`")
    if _CERTAIN_AFTER.match(text, match.end()):
        return True
    return _CERTAIN_BEFORE.search(before) is not None


def _has_form_of_its_own(parts: list[str]) -> bool:
    """Whether two of the four are large, as no chapter's and hardly a version's are."""
    return sum(int(part) >= _LARGE for part in parts) >= 2


def _span(match: re.Match[str], *, is_certain: bool) -> Span:
    address = ipaddress.ip_address(match[0])
    is_reserved = not address.is_global or address.is_multicast or match[0] in _PUBLIC_SERVICES
    return Span(match.start(), match.end(), "ip_address", match[0], is_reserved, is_certain)


def _is_v6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
