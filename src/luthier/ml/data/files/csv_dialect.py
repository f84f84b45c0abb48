"""How a CSV file is written: its encoding, and what is between the values of a record; found in the file itself.

The encoding is decided by all bytes (`text_encoding`), the delimiter by the first records: it splits the header, and
splits the most records into as many values as the header has. Where several do so equally, the rarer character in
prose and numbers wins: tab, semicolon, bar, comma. So decimal commas and commas in texts split nothing in a file with
semicolons. A header that nothing splits makes a file of one column. A first line `sep=;`, as Excel writes it, decides.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, Final

from luthier.core.system.process_setup import large_csv_cells
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


@dataclass(frozen=True, slots=True)
class CsvDialect:
    """How a CSV file is written.

    Attributes:
        encoding: of its bytes.
        delimiter: one character, `ONE_COLUMN` where values are not split.
        bare_returns: whether lines end in a carriage return alone.
        num_lines_before: lines in front of the header (`sep=;`).
    """

    encoding: Encoding
    delimiter: str
    bare_returns: bool = False
    num_lines_before: int = 0

    @property
    def separated(self) -> str:
        """What is between values, as text; empty for one column."""
        if self.delimiter == ONE_COLUMN:
            return ""
        return _DELIMITERS.get(self.delimiter, repr(self.delimiter))

    def in_words(self) -> str:
        """`semicolons, Windows-1252`; empty for what CSV is by itself: commas (or one column) and UTF-8."""
        if self.encoding == "utf-8" and self.delimiter in (",", ONE_COLUMN):
            return ""
        return ", ".join(part for part in (self.separated or "one column", NAMES[self.encoding]) if part)

    def open(self, file: IO[bytes], name: str) -> IO[bytes]:
        """The bytes of the file as UTF-8 with line feeds.

        Args:
            file: its unpacked bytes.
            name: of the file, for messages.

        Raises:
            DataError: while it is read, for bytes that break the encoding.
        """
        return as_utf8(file, name, self.encoding, bare_returns=self.bare_returns)


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


def _fitting_share(lines: list[str], delimiter: str, is_cut: bool) -> float | None:
    """The share of the records that have as many values as the header; None where it does not split the header."""
    with large_csv_cells():
        found = [one for one in records(csv.reader(iter(lines), delimiter=delimiter, strict=True)) if one]
    if is_cut and len(found) > 1:
        found.pop()  # it may continue after the sample
    if not found or isinstance(found[0], csv.Error) or len(found[0]) < 2:
        return None
    others = found[1:]
    num_fit = sum(not isinstance(record, csv.Error) and len(record) == len(found[0]) for record in others)
    return num_fit / len(others) if others else 1.0


def records(reader: Any) -> Iterator[Any]:
    """Each record, or the csv.Error in its place: the reader can continue after an error."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield error
