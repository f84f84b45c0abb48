"""E-mail addresses (RFC 5321 4.1.2 without quoted local parts; letters beyond ASCII as RFC 6531 allows).

Not found: addresses that are written to avoid being found ("name [at] firm [dot] com").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from luthier.data.personal_data.span import Span

_ADDRESS: Final = re.compile(
    r"(?<![\w.+%'-])([^\W_][\w.+%'-]{0,63}|_[\w.+%'-]{1,63})@((?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24})(?![\w@-])"
)
_RESERVED_DOMAINS: Final = re.compile(
    r"(?i)(?:^|\.)(?:example\.(?:com|org|net|edu)|test|invalid|example|localhost|local)$"
)
_NOBODY: Final = frozenset(("git", "noreply", "no-reply", "donotreply", "do-not-reply", "mailer-daemon"))
_FILE_ENDINGS: Final = frozenset(
    ("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "json", "html", "php", "py", "exe", "zip", "pdf")
)


def find_emails(text: str) -> Iterator[Span]:
    """Each address. Reserved: example.com and its kin, .test, .invalid (RFC 2606, 6761), noreply@ and git@ remotes."""
    if "@" not in text:
        return
    for match in _ADDRESS.finditer(text):
        local, domain = match[1], match[2]
        if local.endswith(".") or ".." in local or domain.rpartition(".")[2].lower() in _FILE_ENDINGS:
            continue
        if _is_password_of_url(text, match.start()):
            continue
        is_reserved = local.lower() in _NOBODY or _RESERVED_DOMAINS.search(domain) is not None
        yield Span(match.start(), match.end(), "email", match[0], is_reserved)


def _is_password_of_url(text: str, start: int) -> bool:
    """Whether this is the end of `scheme://user:password@host`, which is a secret and no address."""
    head = text[max(0, start - 120) : start]
    scheme = head.rfind("://")
    return scheme >= 0 and not any(character.isspace() or character in "/?\"'" for character in head[scheme + 3 :])
