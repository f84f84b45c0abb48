"""A data file before it is read: that it exists, how it is packed, its encoding, and whether its content fits its name.

The encoding is decided from all bytes of a file, and the content is passed on as UTF-8. It is UTF-8 wherever the bytes
allow it; UTF-16 and UTF-32 by their byte order mark, UTF-16 also by NUL in every second byte; Windows-1252 where no
line with letters beyond ASCII is UTF-8, every byte has a meaning there, and the letters are distributed as in Western
languages, Windows-1250 where they are as in those of Central Europe (`single_bytes`). A file that mixes encodings stays
UTF-8: its reader names the lines that are not.
"""

from __future__ import annotations

import codecs
import difflib
import gzip
import io
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final, Literal

from luthier.core.errors import DataError, NotFoundError, library_reason
from luthier.ml.data.files.single_bytes import single_byte_encoding
from luthier.ml.data.files.untrusted_input import bounded_lines, open_gzip

Encoding = Literal["utf-8", "cp1252", "cp1250", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
Open = Callable[[], AbstractContextManager[IO[bytes]]]

NAMES: Final[dict[Encoding, str]] = {
    "utf-8": "UTF-8",
    "cp1252": "Windows-1252",
    "cp1250": "Windows-1250",
    "utf-16-le": "UTF-16",
    "utf-16-be": "UTF-16",
    "utf-32-le": "UTF-32",
    "utf-32-be": "UTF-32",
}
_MARKS: Final[tuple[tuple[bytes, Encoding], ...]] = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BLOCK_BYTES: Final = 1 << 20
_HEAD_BYTES: Final = 65_536
_NUL_FRACTION: Final = 0.4


def wide_encoding(head: bytes) -> Encoding | None:
    """UTF-16 or UTF-32 where the first bytes of a file show it, else None."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    even, odd = head[0::2].count(0), head[1::2].count(0)
    # NULs on one side only: binary data has them on both.
    if max(even, odd) * 2 > _NUL_FRACTION * len(head) and min(even, odd) * 10 < max(even, odd):
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def encoding_of(open_file: Open) -> Encoding:
    """The encoding of a file. Reads all of it where it is not UTF-16 or UTF-32, with memory for one line."""
    # Incremental, so that a character across two blocks is no error.
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_file() as file:
        head = file.read(_HEAD_BYTES)
        if (wide := wide_encoding(head)) is not None:
            return wide
        try:
            block = head
            while block:
                decoder.decode(block)
                block = file.read(_BLOCK_BYTES)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            pass
        else:
            return "utf-8"
    with open_file() as file:
        return single_byte_encoding(line for line, _ in bounded_lines(file)) or "utf-8"


class Utf8Bytes(io.RawIOBase):
    """The bytes of a file in another encoding as UTF-8, without the byte order mark; to be read in order.

    Args:
        file: the bytes.
        name: of the file, for messages.
        encoding: of the bytes.
        bare_returns: lines end in a carriage return alone, which becomes a line feed.

    Raises:
        DataError: while it is read, for bytes that break the encoding; names their line and offset.
    """

    def __init__(self, file: IO[bytes], name: str, encoding: Encoding, *, bare_returns: bool = False) -> None:
        self._file, self._name, self._encoding = file, name, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._bare_returns = bare_returns
        self._ready = b""
        self._num_bytes, self._num_lines, self._is_first = 0, 0, True

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: object) -> int:
        """Fill a buffer, see `io.RawIOBase`."""
        view = memoryview(buffer)  # type: ignore[arg-type]
        # A block may decode to nothing (the mark, or half of a character): 0 would mean the end of the file.
        while not self._ready:
            block = self._file.read(_BLOCK_BYTES)
            self._ready = self._recoded(block)
            if not block:
                break
        part, self._ready = self._ready[: len(view)], self._ready[len(view) :]
        view[: len(part)] = part
        return len(part)

    def _recoded(self, block: bytes) -> bytes:
        # Bytes of an unfinished character from the block before: the error's offset counts from them.
        held: bytes = self._decoder.getstate()[0]
        try:
            text = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            before = error.object[: error.start].decode(self._encoding, "replace").count("\n")
            line = self._num_lines + before + 1
            raise DataError(
                f"{self._name} breaks its encoding {NAMES[self._encoding]} on line {line} "
                f"(byte {self._num_bytes - len(held) + error.start}): {error.reason}",
                expected=f"{NAMES[self._encoding]} to the end of the file, as at its beginning",
                do="save it again as UTF-8; a file that was cut short must be copied again",
            ) from error
        self._num_bytes += len(block)
        if self._is_first and text:
            text, self._is_first = text.removeprefix("\ufeff"), False
        if self._bare_returns:
            text = text.replace("\r", "\n")
        self._num_lines += text.count("\n")
        return text.encode("utf-8")


def as_utf8(file: IO[bytes], name: str, encoding: Encoding, *, bare_returns: bool = False) -> IO[bytes]:
    """The file itself where it is UTF-8 with usual line ends, else its bytes as UTF-8 (`Utf8Bytes`).

    Args:
        file: the bytes.
        name: of the file, for errors.
        encoding: of the bytes.
        bare_returns: whether lines end in a carriage return alone, which becomes a line feed.
    """
    if encoding == "utf-8" and not bare_returns:
        return file
    return io.BufferedReader(Utf8Bytes(file, name, encoding, bare_returns=bare_returns))


Format = Literal["jsonl", "json", "csv", "parquet", "xlsx", "xls", "ods"]
WORKBOOKS: Final[tuple[Format, ...]] = ("xlsx", "xls", "ods")
"""Formats with sheets."""

_EXTENSIONS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".xls": "xls",
    ".ods": "ods",
}
_ACCEPTED = ".jsonl, .ndjson, .json, .csv, .tsv or .parquet, each also with .gz, or in .xlsx, .xlsm, .xls or .ods"
_OTHER_SHEETS = (".xlsb", ".xltx", ".numbers")
_SNIFFED_BYTES = 65_536
_SIGNATURES = (
    (b"PAR1", "a Parquet file", ".parquet"),
    (b"\x1f\x8b", "gzip data", ".gz"),
    (b"PK\x03\x04", "a zip archive (or an office document)", "the file inside it"),
    (b"%PDF", "a PDF document", "rows taken out of it"),
    (b"SQLite format 3\x00", "an SQLite database", "rows exported from it"),
    (b"\x28\xb5\x2f\xfd", "zstd data", "the unpacked file"),
    (b"BZh", "bzip2 data", "the unpacked file"),
    (b"\xfd7zXZ", "xz data", "the unpacked file"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """A data file whose format is decided.

    Attributes:
        path: where it is.
        format: of its unpacked content.
        is_gzip: whether it is packed.
        shown_name: what messages call it, where that is not the last part of the path, as of an uploaded file.
        encoding: of JSONL and JSON, which `open` gives as UTF-8; that of a CSV file its dialect says.
    """

    path: Path
    format: Format
    is_gzip: bool
    shown_name: str | None = None
    encoding: Encoding = "utf-8"

    @property
    def name(self) -> str:
        """What messages call the file; it begins the ids of its rows."""
        return self.shown_name or self.path.name

    @property
    def is_as_stored(self) -> bool:
        """Whether `open` gives the very bytes of the file, so that a place in the one is a place in the other."""
        return not self.is_gzip and self.encoding == "utf-8"

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The unpacked bytes, up to the limit of `bounded_gzip`, as UTF-8 where the encoding is another.

        Raises:
            DataError: the gzip data are damaged, or unpack to more than the limit, or the bytes break the encoding;
                also while the block reads.
        """
        try:
            with open_gzip(self.path) if self.is_gzip else self.path.open("rb") as file:
                yield as_utf8(file, self.name, self.encoding)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{self.name} is damaged gzip data: {library_reason(error)}",
                expected="a complete gzip file",
                do="copy or download the file again; `gzip -t FILE` tests it",
            ) from error


def open_source(path: Path, *, shown_name: str | None = None) -> Source:
    """Decide what a file is by its extension and check the content against it.

    Args:
        path: The file.
        shown_name: What messages and row ids call it; the last part of its path where None.

    Raises:
        NotFoundError: there is no such file.
        DataError: it is a folder, has an unknown extension, is empty, wrongly encoded, or holds another format than its
            name says.
    """
    _check_is_file(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_gzip = bool(suffixes) and suffixes[-1] == ".gz"
    named = suffixes[:-1] if is_gzip else suffixes
    kind = _EXTENSIONS.get(named[-1]) if named else None
    name = shown_name or path.name
    if kind is None and named and named[-1] in _OTHER_SHEETS:
        raise DataError(
            f"{name} is a spreadsheet of another format",
            expected=f"a file that ends in {_ACCEPTED}",
            do="save it as .xlsx or CSV: File, Save As",
        )
    if kind in WORKBOOKS and is_gzip:
        raise DataError(f"{name} is a packed workbook", expected="the workbook itself", do="unpack it first")
    if kind is None:
        raise DataError(
            f"{name} has an extension that names no known format",
            expected=f"a file that ends in {_ACCEPTED}",
            do="rename the file to match its content, or convert it",
        )
    source = Source(path, kind, is_gzip, shown_name)
    return replace(source, encoding=_checked_encoding(source))


def changed_while_read(name: str) -> DataError:
    """The error about a file whose content is not what it was when the reading began.

    Args:
        name: What messages call it.
    """
    return DataError(
        f"{name} was changed while it was read",
        expected="a file that does not change",
        do="wait until the program that writes the file has finished, then start again",
    )


def _check_is_file(path: Path) -> None:
    try:
        # Not by `exists`: since Python 3.14 it says of a file that cannot be reached that there is none.
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        mode = 0
    except OSError as error:
        raise _unreadable(path, error) from error
    exists, is_folder, is_file = mode != 0, stat.S_ISDIR(mode), stat.S_ISREG(mode)
    if is_folder:
        raise DataError(
            f"{path} is a folder", expected="one data file", do=f"name one file in it, such as {path / 'train.jsonl'}"
        )
    if not exists:
        near = _near_names(path)
        raise NotFoundError(
            f"no file {path}",
            expected="an existing data file" + (f"; nearest: {', '.join(near)}" if near else ""),
            do="check the path (a relative path in a recipe starts at the recipe's folder)",
        )
    if not is_file:
        raise DataError(
            f"{path} is a pipe or a device", expected="a file on disk: it is read twice", do="write it to a file first"
        )


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path} cannot be read: {error.strerror}", expected="a readable file", do="check the path and its permissions"
    )


def _near_names(path: Path) -> list[str]:
    if not path.parent.is_dir():
        return []
    return difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=3)


def _checked_encoding(source: Source) -> Encoding:
    """The encoding in which `Source.open` reads the file, after its content is checked against its name."""
    try:
        with source.path.open("rb") as file:
            packed = file.read(16)
    except OSError as error:
        raise _unreadable(source.path, error) from error
    if not packed:
        raise DataError(f"{source.name} is empty (0 bytes)", expected="at least one row", do="check how it was written")
    if source.is_gzip and not packed.startswith(b"\x1f\x8b"):
        raise DataError(
            f"{source.name} ends in .gz but does not hold gzip data",
            expected="a gzip file",
            do=f"rename it to {source.name.removesuffix('.gz')}, or compress it",
        )
    with source.open() as file:
        head = file.read(_SNIFFED_BYTES)
    if not head:
        raise DataError(f"{source.name} holds no bytes", expected="at least one row", do="check how it was written")
    if source.format == "parquet":
        if not head.startswith(b"PAR1"):
            raise DataError(
                f"{source.name} ends in .parquet but does not begin with PAR1",
                expected="a Parquet file",
                do="rename the file to match its content, or write it again",
            )
        return "utf-8"
    if source.format in WORKBOOKS:
        _check_is_workbook(source, head)
        return "utf-8"
    wide = wide_encoding(head)
    if wide is not None and source.format == "csv":
        return "utf-8"  # its reader converts it
    _check_signature(source, head)
    if wide is not None:
        head = head.decode(wide, "ignore").encode()
    _check_no_nul(source, head)
    _check_first_character(source, head)
    return wide or "utf-8"


def _check_is_workbook(source: Source, head: bytes) -> None:
    is_archive, is_old = head.startswith(b"PK"), head.startswith(b"\xd0\xcf\x11\xe0")
    if is_old if source.format == "xls" else is_archive:
        return
    if source.format == "xls":
        holds = "a workbook of another format (.xlsx or .ods)" if is_archive else "something else, such as CSV or HTML"
        expected = "a workbook of Excel 97 to 2003"
    else:
        holds = "an old workbook (.xls), or one with a password" if is_old else "something else"
        expected = "a workbook as its program saves it, without a password"
    raise DataError(
        f"{source.name} is named {source.path.suffix.lower() or '.' + source.format} but holds {holds}",
        expected=expected,
        do="save it again without a password" if is_old else "give it the extension of its content",
    )


def _check_signature(source: Source, head: bytes) -> None:
    for signature, what, instead in _SIGNATURES:
        if head.startswith(signature):
            raise DataError(
                f"{source.name} is named .{source.format} but holds {what}",
                expected=f"{source.format.upper()} text in UTF-8",
                do=f"give it the extension of its content, or use {instead}",
            )


def _check_no_nul(source: Source, head: bytes) -> None:
    if b"\0" in head:
        offset = head.index(0)
        raise DataError(
            f"{source.name} is binary: byte {offset} (line {head.count(10, 0, offset) + 1}) is NUL",
            expected=f"{source.format.upper()} text in UTF-8",
            do="check that this is the right file, and how it was written",
        )


def _check_first_character(source: Source, head: bytes) -> None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    first_line = start.split(b"\n", 1)[0].strip()
    if source.format == "jsonl" and (start.startswith(b"[") or first_line == b"{"):
        raise DataError(
            f"{source.name} is named .jsonl but begins like one JSON document over many lines",
            expected="one JSON object on each line",
            do="rename it to .json, or write one object a line",
        )
    if source.format == "csv" and start[:1] in (b"{", b"["):
        raise DataError(
            f"{source.name} is named .csv but begins like JSON",
            expected="a header line with column names",
            do="rename it to .json (an array) or .jsonl (one object a line)",
        )
