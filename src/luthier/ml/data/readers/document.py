"""What a reader returns: the text of a document in sections, and what a person should know about it."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Halves of surrogate pairs are no characters; NUL breaks what reads the rows later.
_NO_TEXT = re.compile("[\ud800-\udfff\x00]")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a document under one heading.

    Attributes:
        text: of the section, without its headings.
        page: page of a PDF or slide, from 1; None for other documents.
        headings: outermost first.
    """

    text: str
    page: int | None = None
    headings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A document as text.

    Attributes:
        sections: in the order of the document.
        warnings: what was left out, guessed or put right, one short clause each.
    """

    sections: tuple[Section, ...]
    warnings: tuple[str, ...] = ()


def well_formed(document: Document) -> Document:
    """The same with every character that a row cannot hold replaced by U+FFFD, which a warning counts."""
    num_bad = 0

    def put_right(text: str) -> str:
        nonlocal num_bad
        text, num = _NO_TEXT.subn("\ufffd", text)
        num_bad += num
        return text

    sections = tuple(
        Section(put_right(section.text), section.page, tuple(" ".join(put_right(h).split()) for h in section.headings))
        for section in document.sections
    )
    if not num_bad:
        return Document(sections, document.warnings)
    return Document(sections, (*document.warnings, f"{num_bad:,} characters that are none were replaced by U+FFFD"))
