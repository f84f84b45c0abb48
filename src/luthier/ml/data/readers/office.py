"""What markitdown makes of Office documents and books, tidied: no pictures, no links into the document itself."""

from __future__ import annotations

import re

_PICTURE = re.compile(r"!\[([^\]\n]*)\]\([^)\n]*\)")
_INNER_LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\((?!https?://|mailto:)[^)\s]*\)")
_EMPTY_LINES = re.compile(r"\n{3,}")


def tidy(markdown: str) -> tuple[str, tuple[str, ...]]:
    """The text without inner links and pictures (their alternative text stays), and a warning that counts these."""
    text, num_pictures = _PICTURE.subn(r"\1", markdown)
    text = _EMPTY_LINES.sub("\n\n", _INNER_LINK.sub(r"\1", text)).strip()
    return text, (
        f"{num_pictures:,} pictures: only their names or alternative texts were read",
    ) if num_pictures else ()


# Underscores and stars in running text are not meant as Markdown: no backslash goes before them.
PLAIN = {"escape_asterisks": False, "escape_underscores": False, "escape_misc": False}
