"""Markdown, in sections by its headings; also what other readers and markitdown turn into Markdown first.

`tidy` takes pictures and links into the document itself out of what markitdown makes of Office documents and books.
"""

from __future__ import annotations

import re
from pathlib import Path

from luthier.ml.data.readers.document import Document, Section
from luthier.ml.data.readers.text import decode

_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_BLOCK = re.compile(r" {0,3}(?:[-*+>|]|\d+[.)])")


def read(path: Path) -> Document:
    """A section for each heading. A front matter (between --- at the top) is left out, with a warning.

    Raises:
        DataError: the file is binary, or breaks the encoding that its byte order mark names.
    """
    text, warnings = decode(path.read_bytes())
    text, num_lines = _without_front_matter(text)
    if num_lines:
        warnings = (*warnings, f"a front matter of {num_lines} lines was left out")
    return Document(tuple(sections_of(text)), warnings)


def sections_of(markdown: str, page: int | None = None) -> list[Section]:
    """Sections by `#` headings and underlined ones, each with the path of its headings; fenced code has none.

    A heading without text under it, but with headings below, is only part of their path; else it is a section's text.
    """
    sections: list[Section] = []
    path: list[tuple[int, str]] = []
    lines: list[str] = []
    fence = ""

    def close(next_level: int) -> None:
        text = "\n".join(lines).strip("\n")
        lines.clear()
        if text.strip():
            sections.append(Section(text, page, tuple(title for _, title in path)))
        elif path and path[-1][0] >= next_level:
            sections.append(Section(path[-1][1], page, tuple(title for _, title in path[:-1])))

    for line in markdown.split("\n"):
        mark = _FENCE.match(line)
        if fence:
            # A fence is closed by one of the same sign that is at least as long, with nothing after it (CommonMark
            # 4.5).
            if mark and mark[1].startswith(fence) and not line.strip(" `~"):
                fence = ""
            lines.append(line)
            continue
        if mark:
            fence = mark[1]
            lines.append(line)
            continue
        found = _heading(line, lines)
        if found is None:
            lines.append(line)
            continue
        level, title = found
        close(level)
        while path and path[-1][0] >= level:
            path.pop()
        path.append((level, title))
    close(0)
    return sections


def _heading(line: str, lines: list[str]) -> tuple[int, str] | None:
    """Level and title where this line makes a heading; takes an underlined title off the lines before."""
    if (match := _HEADING.match(line)) and (title := (match[2] or "").strip()):
        return len(match[1]), title
    below = _UNDERLINE.match(line)
    if below is None or not lines or not lines[-1].strip() or _BLOCK.match(lines[-1]) or lines[-1].startswith("    "):
        return None
    if len(lines) > 1 and lines[-2].strip():  # the last line of a longer paragraph: rather a rule than its title
        return None
    return (1 if below[1].startswith("=") else 2), lines.pop().strip()


def _without_front_matter(text: str) -> tuple[str, int]:
    lines = text.split("\n")
    if lines[0].rstrip() != "---":
        return text, 0
    for number, line in enumerate(lines[1:400], start=1):
        if line.rstrip() in ("---", "..."):
            is_front = any(":" in inside for inside in lines[1:number])
            return ("\n".join(lines[number + 1 :]), number + 1) if is_front else (text, 0)
    return text, 0


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


# Underscores and stars in running text are not Markdown: no backslash goes before them.
PLAIN = {"escape_asterisks": False, "escape_underscores": False, "escape_misc": False}
