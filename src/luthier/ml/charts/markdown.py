"""Text of unknown origin inside Markdown: it stays text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>|#~&])")
_HIDDEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]")
_MARKER: Final = re.compile(r"^(\d*)([-+=.)])")  # what would begin a list or a heading
_MAX_CHARACTERS: Final = 300


def text(value: str, limit: int = _MAX_CHARACTERS) -> str:
    """One line that Markdown shows unchanged; longer ones are cut, and hidden characters show as their code points."""
    line = _HIDDEN.sub(lambda match: f"U+{ord(match[0]):04X}", " ".join(value.split()))
    escaped = _SPECIAL.sub(r"\\\1", line if len(line) <= limit else f"{line[: limit - 1]}…")
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
