"""Paragraphs with their levels as sections, for readers of formats that know headings as such."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from luthier.ml.data.readers.document import Section


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph, a list item, or a table as Markdown.

    Attributes:
        text: without its end.
        level: of a heading, from 1; 0 for other paragraphs.
    """

    text: str
    level: int = 0


def sections_by_headings(paragraphs: Iterable[Paragraph], page: int | None = None) -> Iterator[Section]:
    """A section for each heading, with the path of its headings; paragraphs are a blank line apart.

    A heading without text under it, but with headings below, is only part of their path; else it is a section's text.

    Args:
        paragraphs: in the order of the document.
        page: of all of them, where the document has pages.
    """
    path: list[Paragraph] = []
    texts: list[str] = []

    def ended(next_level: int) -> Iterator[Section]:
        if texts:
            yield Section("\n\n".join(texts), page, tuple(one.text for one in path))
        elif path and path[-1].level >= next_level:
            yield Section(path[-1].text, page, tuple(one.text for one in path[:-1]))
        texts.clear()

    for one in paragraphs:
        if not one.text.strip():
            continue
        if not one.level:
            texts.append(one.text)
            continue
        yield from ended(one.level)
        while path and path[-1].level >= one.level:
            path.pop()
        path.append(Paragraph(" ".join(one.text.split()), one.level))
    yield from ended(0)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, the first row as its header; empty where no cell has text.

    Args:
        rows: texts of cells; shorter rows are filled up.
    """
    if not any(cell.strip() for row in rows for cell in row):
        return ""
    width = max(map(len, rows))
    lines = [f"| {' | '.join([_cell(cell) for cell in row] + [''] * (width - len(row)))} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * width}", *lines[1:]])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
