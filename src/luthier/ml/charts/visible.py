"""Text of unknown origin, fit for a page: what a browser would hide, drop or turn around shows as what it is."""

from __future__ import annotations

import re
from typing import Any, Final

from markupsafe import Markup

# C0 but tab and line feed, C1, soft hyphen, zero-width and directional marks, line separators, lone surrogates,
# byte order mark, non-characters.
_HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)


def visible(text: str) -> str:
    """The text with hidden characters as pictures (C0) or code points (`⟨U+202E⟩`); all else unchanged."""
    return _HIDDEN.sub(_picture, text)


def shown(value: Any) -> Any:
    """What a template prints: strings made visible, markup and all other values as they are."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else f"\u27e8U+{code:04X}\u27e9"
