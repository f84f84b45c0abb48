"""PDF, page by page, by PDFium (through pypdfium2), so that a row knows its page."""

from __future__ import annotations

import re
from pathlib import Path

import pypdfium2

from luthier.core.errors import DataError
from luthier.core.library_errors import library_reason
from luthier.data.readers.document import Document, Section

_PASSWORD = 4  # FPDF_ERR_PASSWORD in fpdfview.h
# PDFium marks a hyphen at the end of a line, where a word was divided, by one of these.
_DIVIDED = re.compile(r"(?:[\x02\ufffe]|\u00ad)[ \t]*(?:\r?\n)?")
_SPACES = re.compile(r"[ \t\u00a0]+")
_BULLET = re.compile(r"(?:[-*•‣◦–▪]|\(?\d{1,3}[.)]|\(?[a-z][.)])\s")
_FULL_LINE = 0.7
_SHOWN_PAGES = 10


def read(path: Path) -> Document:
    """A section a page with text; wrapped lines are joined. Pages without text are counted in a warning.

    Raises DataError for a broken or password-protected file, and where no page has text (a scan).
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
            f"broken PDF: {library_reason(error)}", expected="a whole PDF", do="get or print it anew"
        ) from error
    try:
        num_pages = len(pdf)
        sections, without_text, broken = [], [], []
        for index in range(num_pages):
            try:
                text = _page_text(pdf, index)
            except pypdfium2.PdfiumError:
                broken.append(index + 1)
                continue
            if text:
                sections.append(Section(text, index + 1))
            else:
                without_text.append(index + 1)
    finally:
        pdf.close()
    if not sections:
        pages = f"{num_pages} {'page' if num_pages == 1 else 'pages'}"
        if broken:
            raise DataError(f"broken PDF: none of its {pages} can be read", expected="text", do="get or print it anew")
        raise DataError(f"{pages}, no text: scanned", expected="a text layer", do="run OCR such as ocrmypdf first")
    warnings = []
    if without_text:
        warnings.append(f"{len(without_text)} of {num_pages} pages have no text ({_numbers(without_text)}): scanned?")
    if broken:
        warnings.append(f"{len(broken)} of {num_pages} pages are broken and were not read ({_numbers(broken)})")
    return Document(tuple(sections), tuple(warnings))


def _page_text(pdf: pypdfium2.PdfDocument, index: int) -> str:
    page = pdf[index]
    try:
        text_page = page.get_textpage()
        try:
            return _unwrap(text_page.get_text_bounded())
        finally:
            text_page.close()
    finally:
        page.close()


def _unwrap(text: str) -> str:
    """Join the lines of a paragraph: a line is full, or the next one goes on in lower case."""
    lines = [_SPACES.sub(" ", line).strip() for line in _DIVIDED.sub("", text).replace("\r", "").split("\n")]
    longest = max(map(len, lines), default=0)
    out: list[str] = []
    was_full = False
    for line in lines:
        goes_on = bool(line) and bool(out) and bool(out[-1]) and not _BULLET.match(line)
        if goes_on and (was_full or line[0].islower()):
            out[-1] += " " + line
        else:
            out.append(line)
        was_full = len(line) >= _FULL_LINE * longest
    return "\n".join(out).strip()


def _numbers(pages: list[int]) -> str:
    shown = ", ".join(map(str, pages[:_SHOWN_PAGES]))
    return shown + (" ..." if len(pages) > _SHOWN_PAGES else "")
