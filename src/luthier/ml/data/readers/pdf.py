"""PDF, page by page, by PDFium (through pypdfium2), without running titles, page numbers and tables of contents.

Pages are separate, so that a row knows its page. A running title is the first or last line of at least three pages
(or the next one inwards, where that is one), and of at least half of the pages between its first and its last one.
Numbers in it are the same everywhere, or it begins or ends with one that rises by one a page. A line that is a number
alone, or a number with the word for page, is a page number where it rises by one a page on three pages or more. A table
of contents is a run of lines that end in page numbers, in the order of pages: three lines or more under a heading such
as Contents, or five or more with dot leaders. All that is left out is named.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pypdfium2

from luthier.core.errors import DataError, library_reason
from luthier.core.text.counted import counted
from luthier.core.text.names import shortened
from luthier.ml.data.readers.document import Document, Section
from luthier.ml.data.readers.pdf_columns import page_text

FEWEST_PAGES: Final = 3
FEWEST_LINES: Final = 4
"""Pages with fewer lines show nothing: all of them are at an edge."""
EDGE_LINES: Final = 2
FEWEST_ENTRIES: Final = 3
FEWEST_LEADERS: Final = 5
MAX_FRONT_PAGES: Final = 30
"""Page numbers of a table of contents may exceed the number of pages by this many: a file may be a part."""
_NUM_SHOWN: Final = 5
_MAX_SHOWN: Final = 60
_NUMBER: Final = re.compile(r"\d+")
_ROMAN: Final = re.compile(r"[ivxlc]{1,9}", re.IGNORECASE)
_PAGE_WORD: Final = re.compile(
    r"(?:pages?|p\.?|pg\.?|seite|s\.|página|pág\.?|pagina|pag\.?|blatt|folio|of|von|de|di|sur|/|[-–—|·•()\[\]])",
    re.IGNORECASE,
)
_ENTRY: Final = re.compile(r"(?P<title>.*?\S)(?P<leader>\s*(?:[.…·_]\s?){3,}|\s+)(?P<page>\d{1,4}|[ivxlc]{1,7})")
_CONTENTS: Final = re.compile(
    r"(?:table of )?contents|inhalt(?:sverzeichnis)?|table des matières|sommaire|[íi]ndice|sommario|contenido|inhoud",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """Pages without their furniture.

    Attributes:
        pages: the lines of each page that are text.
        left_out: what was left out, one short clause a sort.
    """

    pages: tuple[tuple[str, ...], ...]
    left_out: tuple[str, ...]


def without_furniture(pages: Sequence[Sequence[str]]) -> Cleaned:
    """The lines of each page, without running titles, page numbers and tables of contents.

    Args:
        pages: the lines of each page in their order; blank ones may be among them.
    """
    dropped, notes = _running_lines(pages)
    kept = [[line for at, line in enumerate(page) if at not in dropped[n]] for n, page in enumerate(pages)]
    entries = _contents(kept, len(pages))
    if any(entries.values()):
        lines = [kept[n][at] for n in sorted(entries) for at in sorted(entries[n])]
        where = _pages_in_words([n + 1 for n in sorted(entries) if entries[n]])
        notes.append(
            f"a table of contents was left out: {counted(len(lines), 'line')} on {where}, "
            f"from {_short(lines[0])} to {_short(lines[-1])}"
        )
        kept = [[line for at, line in enumerate(page) if at not in entries[n]] for n, page in enumerate(kept)]
    return Cleaned(tuple(map(tuple, kept)), tuple(notes))


def _running_lines(pages: Sequence[Sequence[str]]) -> tuple[dict[int, set[int]], list[str]]:
    """The places of running titles and page numbers on each page, and notes that name them.

    From the edges inwards: a line counts where all lines outside of it are left out.
    """
    dropped: dict[int, set[int]] = {number: set() for number in range(len(pages))}
    titles: Counter[str] = Counter()
    numbered: set[int] = set()
    for is_top in (True, False):
        # Only pages whose outer line was left out are looked at one line further inwards.
        outside = set(dropped)
        for _ in range(EDGE_LINES):
            places: dict[str, dict[int, int]] = defaultdict(dict)
            for number in sorted(outside):
                if (at := _edge(pages[number], dropped[number], is_top=is_top)) is not None:
                    places[_form(pages[number][at])][number] = at
            outside = set()
            for form, found in places.items():
                lines = {number: pages[number][at] for number, at in found.items()}
                if len(lines) < FEWEST_PAGES:
                    continue
                if _is_page_number(form):
                    run = _rising(lines)
                    numbered |= run
                elif _is_title(form, lines):
                    run = set(lines)
                    titles[next(iter(lines.values()))] += len(lines)
                else:
                    continue
                outside |= run
                for number in run:
                    dropped[number].add(found[number])
    return dropped, [*_titles_in_words(titles), *_numbers_in_words(numbered, len(pages))]


def _titles_in_words(titles: Counter[str]) -> list[str]:
    shown = [f"{_short(line)} ({num:,})" for line, num in titles.most_common(_NUM_SHOWN)]
    more = f" and {len(titles) - _NUM_SHOWN:,} more" if len(titles) > _NUM_SHOWN else ""
    what = "running titles were left out, with the number of their pages"
    return [f"{what}: {', '.join(shown)}{more}"] if titles else []


def _numbers_in_words(numbered: set[int], num_pages: int) -> list[str]:
    return [f"page numbers were left out on {len(numbered):,} of {num_pages:,} pages"] if numbered else []


def _edge(page: Sequence[str], dropped: set[int], *, is_top: bool) -> int | None:
    """The place of the outermost line that is not dropped; None on pages with too few lines."""
    filled = [at for at, line in enumerate(page) if line.strip()]
    if len(filled) < FEWEST_LINES:
        return None
    return next((at for at in (filled if is_top else reversed(filled)) if at not in dropped), None)


def _form(line: str) -> str:
    """The line with # for numbers, and for a Roman number that is alone."""
    form = " ".join(_NUMBER.sub("#", line).casefold().split())
    return "#" if _ROMAN.fullmatch(form.strip("-–— ")) else form


def _is_page_number(form: str) -> bool:
    return "#" in form and not _PAGE_WORD.sub("", form.replace("#", "")).strip(" .,:")


def _is_title(form: str, lines: dict[int, str]) -> bool:
    """Whether lines of one form, by page, are a running title: words, on half of the pages from first to last."""
    num_words = sum(any(letter.isalpha() for letter in word) for word in form.split())
    if not num_words or 2 * len(lines) < max(lines) - min(lines) + 1:
        return False
    if len({" ".join(line.split()) for line in lines.values()}) == 1:
        return True
    has_end = form.startswith("#") or form.endswith("#")
    return has_end and num_words > 1 and len(_rising(lines)) * 10 >= 9 * len(lines)


def _rising(lines: dict[int, str]) -> set[int]:
    """The pages on which a number of the line is the page's plus a constant; none where these are under three."""
    shifts: Counter[int] = Counter()
    of_page: dict[int, set[int]] = {}
    for number, line in lines.items():
        # The number less the page's index is constant on pages that are numbered in order, from any number.
        values = {int(value) for value in _NUMBER.findall(line) if len(value) < 6} or {_roman(line.strip("-–— "))}
        of_page[number] = {value - number for value in values}
        shifts.update(of_page[number])
    found: set[int] = set()
    for shift, num in shifts.items():  # front pages may be numbered by themselves
        if num >= FEWEST_PAGES:
            found |= {number for number in lines if shift in of_page[number]}
    return found


def _roman(text: str) -> int:
    values = [{"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}.get(letter, 0) for letter in text.casefold()]
    return sum(-one if one < after else one for one, after in zip(values, [*values[1:], 0], strict=True))


def _contents(pages: Sequence[Sequence[str]], num_pages: int) -> dict[int, set[int]]:
    """The places of the lines of tables of contents on each page."""
    found: dict[int, set[int]] = {number: set() for number in range(len(pages))}
    goes_on = False
    for number, page in enumerate(pages):
        was_contents, goes_on = goes_on, False
        for whole, heading in _runs(page):
            is_next = was_contents and not any(line.strip() for line in page[: whole[0]])
            run, entries = _in_order(page, whole)
            if heading is None and not is_next:
                least = FEWEST_LEADERS
                if num_pages < FEWEST_PAGES or any(not entry["leader"].strip() for entry in entries):
                    continue
            else:
                least = FEWEST_ENTRIES
            # A list of prices or years also ends in rising numbers; page numbers cannot be far beyond the document.
            last = next((int(entry["page"]) for entry in reversed(entries) if entry["page"].isdigit()), 0)
            is_varied = len({entry["page"] for entry in entries}) > 1
            if len(entries) >= least and is_varied and last <= num_pages + MAX_FRONT_PAGES:
                found[number].update(run if heading is None else [heading, *run])
                goes_on = not any(line.strip() for line in page[run[-1] + 1 :])
    return found


def _runs(page: Sequence[str]) -> Iterator[tuple[list[int], int | None]]:
    """Runs of lines that end in page numbers, with one line between that may begin an entry; and their heading."""
    filled = [at for at, line in enumerate(page) if line.strip()]
    run: list[int] = []
    heading: int | None = None
    between: int | None = None
    last_heading: int | None = None
    for at in [*filled, None]:
        line = "" if at is None else page[at].strip()
        if at is not None and _ENTRY.fullmatch(line):
            if not run:
                heading = last_heading
            elif between is not None:
                run.append(between)
            run.append(at)
            between = last_heading = None
        elif at is not None and run and between is None:
            between = at
        else:
            if run:
                yield run, heading
            run, between = [], None
        if at is not None and _CONTENTS.fullmatch(line.rstrip(": ")):
            if run:
                yield run, heading
                run, between = [], None
            last_heading = at
        elif not run:
            last_heading = None


def _in_order(page: Sequence[str], run: Sequence[int]) -> tuple[list[int], list[re.Match[str]]]:
    """The lines of a run, and its entries, up to where page numbers fall; Roman ones come first."""
    kept: list[int] = []
    entries: list[re.Match[str]] = []
    before = (0, 0)
    for place, at in enumerate(run):
        entry = _ENTRY.fullmatch(page[at].strip())
        if entry is None:
            continue
        number = entry["page"]
        now = (1, int(number)) if number.isdigit() else (0, _roman(number))
        if now < before:
            break
        before = now
        entries.append(entry)
        kept = list(run[: place + 1])
    return kept, entries


def _short(line: str) -> str:
    return repr(shortened(" ".join(line.split()), _MAX_SHOWN))


def _pages_in_words(pages: Sequence[int]) -> str:
    if len(pages) == 1:
        return f"page {pages[0]}"
    return f"pages {', '.join(map(str, pages[:_NUM_SHOWN]))}" + (" ..." if len(pages) > _NUM_SHOWN else "")


_PASSWORD = 4  # FPDF_ERR_PASSWORD in fpdfview.h
# PDFium marks a hyphen at the end of a line, where a word was divided, by one of the first two. A soft hyphen is no
# sign of the text.
_DIVIDED = re.compile(r"[\x02\ufffe][ \t]*(?:\r?\n)?")
_SOFT_HYPHEN = re.compile(r"\u00ad[ \t]*(?:\r?\n)?")
_MARK = "\x02"
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
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
            f"broken PDF: {library_reason(error)}", expected="a complete PDF", do="download or print it again"
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
    cleaned = without_furniture(with_whole_words(pages))
    texts = [_unwrap(lines) for lines in cleaned.pages]
    sections = [Section(text, number) for number, text in enumerate(texts, start=1) if text]
    if not sections:
        how_many = f"{num_pages} {'page' if num_pages == 1 else 'pages'}"
        if broken:
            raise DataError(
                f"broken PDF: none of its {how_many} can be read", expected="text", do="download or print it again"
            )
        raise DataError(f"{how_many}, no text: scanned", expected="a text layer", do="run OCR such as ocrmypdf first")
    warnings = []
    if without_text:
        have = f"{len(without_text)} of {num_pages} pages {'has' if len(without_text) == 1 else 'have'} no text"
        warnings.append(f"{have} ({_numbers(without_text)}): scanned?")
    if broken:
        are = f"{len(broken)} of {num_pages} pages {'is' if len(broken) == 1 else 'are'} broken and not read"
        warnings.append(f"{are} ({_numbers(broken)})")
    return Document(tuple(sections), (*warnings, *cleaned.left_out))


def _page_lines(pdf: pypdfium2.PdfDocument, index: int) -> list[str]:
    page = _with_typed_text(pdf, index)
    try:
        text_page = page.get_textpage()
        try:
            found = _SOFT_HYPHEN.sub("", page_text(text_page))
            text = _DIVIDED.sub(_MARK, found).replace("\r", "")
            return [_SPACES.sub(" ", line).strip() for line in text.split("\n")]
        finally:
            text_page.close()
    finally:
        page.close()


def _with_typed_text(pdf: pypdfium2.PdfDocument, index: int) -> pypdfium2.PdfPage:
    """A page with what was typed into its fields and onto it as part of its text: PDFium reads no annotations."""
    page = pdf[index]
    if not _has_typed_text(page):
        return page
    pypdfium2.raw.FPDFPage_Flatten(page, pypdfium2.raw.FLAT_NORMALDISPLAY)
    # The text of a page is that of when it was loaded.
    page.close()
    return pdf[index]


def _has_typed_text(page: pypdfium2.PdfPage) -> bool:
    raw = pypdfium2.raw
    for number in range(raw.FPDFPage_GetAnnotCount(page)):
        if annotation := raw.FPDFPage_GetAnnot(page, number):
            kind = raw.FPDFAnnot_GetSubtype(annotation)
            raw.FPDFPage_CloseAnnot(annotation)
            if kind in (raw.FPDF_ANNOT_WIDGET, raw.FPDF_ANNOT_FREETEXT):
                return True
    return False


def with_whole_words(pages: Sequence[Sequence[str]]) -> list[list[str]]:
    """The lines of each page with divided words put together, without their hyphen where it only divides.

    A hyphen at the end of a line belongs to the word itself where what follows begins with a capital or a digit
    (`Baden-Württemberg`), or where the document has the word with it elsewhere and never without.

    Args:
        pages: the lines of each page, with \\x02 where a word was divided.
    """
    if not any(_MARK in line for page in pages for line in page):
        return [list(page) for page in pages]
    words = {word.casefold() for page in pages for line in page for word in _WORD.findall(line)}

    def put_together(line: str) -> str:
        found, *parts = line.split(_MARK)
        for part in parts:
            found += ("-" if _has_own_hyphen(_last_word(found), _first_word(part), words) else "") + part
        return found

    return [[put_together(line) for line in page] for page in pages]


def _has_own_hyphen(before: str, after: str, words: Collection[str]) -> bool:
    if not before or not after:
        return False
    is_divided_capitals = before.isupper() and len(after) > 1 and after.isupper()
    if after[0].isdigit() or (after[0].isupper() and not is_divided_capitals):
        return True
    return f"{before}-{after}".casefold() in words and f"{before}{after}".casefold() not in words


def _first_word(text: str) -> str:
    end = next((at for at, sign in enumerate(text) if not (sign.isalnum() or sign == "-")), len(text))
    return text[:end].rstrip("-")


def _last_word(text: str) -> str:
    return _first_word(text[::-1])[::-1]


def _unwrap(lines: Sequence[str]) -> str:
    """Join the lines of a paragraph: a line is full, or the next one continues in lower case."""
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
