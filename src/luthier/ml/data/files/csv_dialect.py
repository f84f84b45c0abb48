"""How a CSV file is written: its encoding, and what is between the values of a record; found in the file itself.

The encoding is decided by all bytes (`text_encoding`), the delimiter by the first records: it splits the header, and
splits the most records into as many values as the header has. Where several do so equally, the rarer character in
prose and numbers wins: tab, semicolon, bar, comma. So decimal commas and commas in texts split nothing in a file with
semicolons. A header that nothing splits makes a file of one column. A first line `sep=;`, as Excel writes it, decides.

Titles above the header, as reports have them, are passed over where nothing else can be meant: lines with a first value
alone, then a blank line or a header of three names or more that pads them, which nearly all records fit.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, Final

from luthier.core.system.process_setup import large_csv_cells
from luthier.core.text.names import shortened
from luthier.ml.data.files.source import NAMES, Encoding, Source, as_utf8, encoding_of
from luthier.ml.data.files.untrusted_input import bounded_lines

_DELIMITERS: Final = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas"}
ONE_COLUMN: Final = "\x1f"
"""The delimiter that the csv module needs where there is none: a control character; the reader joins what it splits."""
_SAMPLE_BYTES: Final = 1 << 18
_SAMPLE_LINES: Final = 500
_MARK: Final = b"\xef\xbb\xbf"
_SEPARATOR_LINE: Final = re.compile(rb'"?sep=([^\r\n])"?\r?\n?', re.IGNORECASE)
_NUM_REMEMBERED: Final = 64
MAX_TITLES: Final = 8
"""Lines that may be above the names of columns."""
PADDED_COLUMNS: Final = 3
"""From so many named columns on, a line with a first value alone is a title and no header."""
TABLE_SHARE: Final = 0.9
"""This share of the records below a title has to fit the names."""
_MAX_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class CsvDialect:
    """How a CSV file is written.

    Attributes:
        encoding: of its bytes.
        delimiter: one character, `ONE_COLUMN` where values are not split.
        bare_returns: whether lines end in a carriage return alone.
        num_lines_before: lines in front of the header (`sep=;`, titles).
        titles: what the titles say.
    """

    encoding: Encoding
    delimiter: str
    bare_returns: bool = False
    num_lines_before: int = 0
    titles: tuple[str, ...] = ()

    @property
    def separated(self) -> str:
        """What is between values, as text; empty for one column."""
        if self.delimiter == ONE_COLUMN:
            return ""
        return _DELIMITERS.get(self.delimiter, repr(self.delimiter))

    def in_words(self) -> str:
        """`semicolons, Windows-1252`; empty for what CSV is by itself: commas (or one column) and UTF-8."""
        if self.encoding == "utf-8" and self.delimiter in (",", ONE_COLUMN) and not self.titles:
            return ""
        written = f"{self.separated or 'one column'}, {NAMES[self.encoding]}"
        return written + titles_note("line", self.num_lines_before + 1, self.titles)

    def open(self, file: IO[bytes], name: str) -> IO[bytes]:
        """The bytes of the file as UTF-8 with line feeds.

        Args:
            file: its unpacked bytes.
            name: of the file, for messages.

        Raises:
            DataError: while it is read, for bytes that break the encoding.
        """
        return as_utf8(file, name, self.encoding, bare_returns=self.bare_returns)


def titles_note(noun: str, number: int, titles: Sequence[str]) -> str:
    """`, column names on line 3 below 'Report'`; empty without titles.

    Args:
        noun: what is numbered, line or row.
        number: of the one with the names of the columns.
        titles: what is above it and is not read.
    """
    if not titles:
        return ""
    return f", column names on {noun} {number} below {', '.join(repr(shortened(one, _MAX_SHOWN)) for one in titles)}"


def csv_dialect(source: Source) -> CsvDialect:
    """The dialect of a CSV file, cached for the current file.

    Raises:
        DataError: damaged gzip data.
    """
    # Inode, size and time are keys of the cache, so that a changed file is looked at again.
    stat = source.path.stat()
    return _dialect(source, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=_NUM_REMEMBERED)
def _dialect(source: Source, _inode: int, _num_bytes: int, _changed_ns: int) -> CsvDialect:
    encoding = encoding_of(source.open)
    with source.open() as file:
        head = as_utf8(file, source.name, encoding).read(_SAMPLE_BYTES)
    bare_returns = b"\r" in head and b"\n" not in head
    with source.open() as file:
        plain = as_utf8(file, source.name, encoding, bare_returns=bare_returns)
        lines, is_cut = _sample(plain)
    if lines and (named := _SEPARATOR_LINE.fullmatch(lines[0].removeprefix(_MARK))):
        return CsvDialect(encoding, named[1].decode("latin-1"), bare_returns, num_lines_before=1)
    text = [line.decode("utf-8", "replace") for line in lines]
    if text:
        text[0] = text[0].removeprefix("\ufeff")
    if (below := _below_titles(text, is_cut)) is not None:
        delimiter, num_lines, titles = below
        return CsvDialect(encoding, delimiter, bare_returns, num_lines, titles)
    return CsvDialect(encoding, _delimiter(text, is_cut), bare_returns)


def _sample(file: IO[bytes]) -> tuple[list[bytes], bool]:
    """The first whole lines, and whether more follow."""
    lines: list[bytes] = []
    num_bytes = 0
    for line, length in bounded_lines(file):
        if len(lines) == _SAMPLE_LINES or num_bytes > _SAMPLE_BYTES:
            return lines, True
        lines.append(line)
        num_bytes += length
    return lines, False


def _delimiter(lines: list[str], is_cut: bool) -> str:
    best, most = ONE_COLUMN, -1.0
    for delimiter in _DELIMITERS:
        fits = _fitting_share(lines, delimiter, is_cut)
        # Only a strictly better share replaces an earlier delimiter: that is the order of precedence of _DELIMITERS.
        if fits is not None and fits > most:
            best, most = delimiter, fits
    return best


def _below_titles(lines: list[str], is_cut: bool) -> tuple[str, int, tuple[str, ...]] | None:
    """The delimiter, how many lines are above the header, and what they say; None where the header is the first."""
    best: tuple[str, int, tuple[str, ...]] | None = None
    most = TABLE_SHARE
    for delimiter in _DELIMITERS:
        above = _lines_above(lines, delimiter)
        header = _single(lines[len(above)], delimiter) if above else None
        if header is None or not are_names(header):
            continue
        is_padded = len(header) >= PADDED_COLUMNS and all(len(one) in (0, len(header)) for one in above)
        if not is_padded and any(above[-1]):
            continue  # it may be a header of one column
        fits = _fitting_share(lines[len(above) :], delimiter, is_cut)
        if fits is not None and fits >= most and len(lines) > len(above) + 1 and (best is None or fits > most):
            best, most = (delimiter, len(above), tuple(one[0] for one in above if any(one))), fits
    return best


def _lines_above(lines: list[str], delimiter: str) -> list[list[str]]:
    """The values of the first lines, which have a first value alone or none at all; nothing where there is no title."""
    above: list[list[str]] = []
    for line in lines[: MAX_TITLES + 1]:
        values = _single(line, delimiter)
        if values is None or any(values[1:]):
            return above if any(map(any, above)) else []
        above.append(values)
    return []  # too many: rows of a single column


def _single(line: str, delimiter: str) -> list[str] | None:
    """The values of a line without outer spaces; None where the line is no record by itself."""
    try:
        found = list(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return [value.strip() for value in found[0]] if found else []


def are_names(values: Sequence[str]) -> bool:
    """Whether values below a title may be names of columns: two or more, all different, each with a letter."""
    names = [value for value in values if value]
    return 2 <= len(names) == len(set(names)) and all(any(map(str.isalpha, name)) for name in names)


def _fitting_share(lines: list[str], delimiter: str, is_cut: bool) -> float | None:
    """The share of the records that have as many values as the header; None where it does not split the header."""
    with large_csv_cells():
        found = [one for one in records(csv.reader(iter(lines), delimiter=delimiter, strict=True)) if one]
    if is_cut and len(found) > 1:
        found.pop()  # it may continue after the sample
    if not found or isinstance(found[0], csv.Error) or len(found[0]) < 2:
        return None
    others, width = found[1:], len(found[0])
    num_fit = sum(not isinstance(one, csv.Error) and len(within(one, width)) == width for one in others)
    return num_fit / len(others) if others else 1.0


def within(record: list[str], num_columns: int) -> list[str]:
    """The record without empty values behind its last column, which spreadsheets write in some rows."""
    return record if any(record[num_columns:]) else record[:num_columns]


def records(reader: Any) -> Iterator[Any]:
    """Each record, or the csv.Error in its place: the reader can continue after an error."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield error
