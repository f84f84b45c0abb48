"""Text of unknown origin, fit for a page or for Markdown: what would be hidden, dropped or turned around is shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from markupsafe import Markup

from luthier.core.text.names import shortened

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


_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>|#~&])")
_MARKER: Final = re.compile(r"^(\d*)([-+=.)])")  # what would begin a list or a heading
_MAX_CHARACTERS: Final = 300


def text(value: str, limit: int = _MAX_CHARACTERS) -> str:
    """One line that Markdown shows unchanged; longer ones are cut, and hidden characters show as their code points."""
    line = _HIDDEN.sub(lambda match: f"U+{ord(match[0]):04X}", " ".join(value.split()))
    escaped = _SPECIAL.sub(r"\\\1", shortened(line, limit))
    return _MARKER.sub(r"\1\\\2", escaped)


def code(value: str) -> str:
    """Inline code, with any backticks in it."""
    line = _HIDDEN.sub(lambda match: f"U+{ord(match[0]):04X}", " ".join(value.split())).replace("|", "\\|")
    # CommonMark: a fence must be longer than any run of backticks inside it.
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, num_text_columns: int = 1) -> str:
    """A table whose cells are Markdown already; the first columns are aligned left, the others right."""
    rule = [":---" if index < num_text_columns else "---:" for index in range(len(headers))]
    lines = [headers, rule, *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
