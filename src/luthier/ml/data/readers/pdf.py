"""PDF, page by page, by PDFium (through pypdfium2), so that a row knows its page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pypdfium2

from luthier.core.errors import DataError
from luthier.core.library_errors import library_reason
from luthier.ml.data.readers.document import Document, Section
from luthier.ml.data.readers.page_furniture import without_furniture

_PASSWORD = 4  # FPDF_ERR_PASSWORD in fpdfview.h
# PDFium marks a hyphen at the end of a line, where a word was divided, by one of these.
_DIVIDED = re.compile(r"(?:[\x02\ufffe]|\u00ad)[ \t]*(?:\r?\n)?")
_SPACES = re.compile(r"[ \t\u00a0]+")
_BULLET = re.compile(r"(?:[-*•‣◦–▪]|\(?\d{1,3}[.)]|\(?[a-z][.)])\s")
_FULL_LINE = 0.7
_SHOWN_PAGES = 10


def read(path: Path) -> Document:
    """A section a page with text; wrapped lines are joined. Pages without text are counted in a warning, and what is
    left out (running titles, page numbers, tables of contents: `page_furniture`) is named in others.

    Raises:
        DataError: a broken or password-protected file, and where no page has text (a scan).
    """
    try:
        pdf = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if error.err_code == _PASSWORD:
            raise DataError(
                "it is protected by a password",
                expected="a PDF that opens without one",
                do="remove it: qpdf --password=... --decrypt IN OUT",
            ) from error
        raise DataError(
            f"broken PDF: {library_reason(error)}", expected="a whole PDF", do="get or print it again"
        ) from error
    try:
        num_pages = len(pdf)
        pages: list[list[str]] = []
        without_text, broken = [], []
        for index in range(num_pages):
            pages.append([])
            try:
                pages[-1] = _page_lines(pdf, index)
            except pypdfium2.PdfiumError:
                broken.append(index + 1)
                continue
            if not any(pages[-1]):
                without_text.append(index + 1)
    finally:
        pdf.close()
    cleaned = without_furniture(pages)
    texts = [_unwrap(lines) for lines in cleaned.pages]
    sections = [Section(text, number) for number, text in enumerate(texts, start=1) if text]
    if not sections:
        how_many = f"{num_pages} {'page' if num_pages == 1 else 'pages'}"
        if broken:
            raise DataError(
                f"broken PDF: none of its {how_many} can be read", expected="text", do="get or print it again"
            )
        raise DataError(f"{how_many}, no text: scanned", expected="a text layer", do="run OCR such as ocrmypdf first")
    warnings = []
    if without_text:
        warnings.append(f"{len(without_text)} of {num_pages} pages have no text ({_numbers(without_text)}): scanned?")
    if broken:
        warnings.append(f"{len(broken)} of {num_pages} pages are broken and were not read ({_numbers(broken)})")
    return Document(tuple(sections), (*warnings, *cleaned.left_out))


def _page_lines(pdf: pypdfium2.PdfDocument, index: int) -> list[str]:
    page = pdf[index]
    try:
        text_page = page.get_textpage()
        try:
            text = _DIVIDED.sub("", text_page.get_text_bounded()).replace("\r", "")
            return [_SPACES.sub(" ", line).strip() for line in text.split("\n")]
        finally:
            text_page.close()
    finally:
        page.close()


def _unwrap(lines: Sequence[str]) -> str:
    """Join the lines of a paragraph: a line is full, or the next one goes on in lower case."""
    longest = max(map(len, lines), default=0)
    out: list[str] = []
    was_full = False
    for line in lines:
        goes_on = bool(line) and bool(out) and bool(out[-1]) and not _BULLET.match(line)
        # A short line ends a paragraph; a full one was wrapped by the layout.
        if goes_on and (was_full or line[0].islower()):
            out[-1] += " " + line
        else:
            out.append(line)
        was_full = len(line) >= _FULL_LINE * longest
    return "\n".join(out).strip()


def _numbers(pages: list[int]) -> str:
    shown = ", ".join(map(str, pages[:_SHOWN_PAGES]))
    return shown + (" ..." if len(pages) > _SHOWN_PAGES else "")
