"""A data file before it is read: that it is there, how it is packed, and whether its content fits its name."""

from __future__ import annotations

import difflib
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from luthier.core.errors import DataError, NotFoundError
from luthier.core.library_errors import library_reason
from luthier.ml.data.files.bounded_gzip import open_gzip
from luthier.ml.data.files.text_encoding import wide_encoding

Format = Literal["jsonl", "json", "csv", "parquet", "xlsx"]

_EXTENSIONS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
}
_ACCEPTED = ".jsonl, .ndjson, .json, .csv, .tsv or .parquet, each also with .gz, or in .xlsx"
_OLD_SHEETS = (".xls", ".xlsm", ".xlsb", ".ods", ".numbers")
_SNIFFED_BYTES = 65_536
_BYTE_ORDER_MARKS = (
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
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
    """

    path: Path
    format: Format
    is_gzip: bool
    shown_name: str | None = None

    @property
    def name(self) -> str:
        """What messages call the file; it begins the ids of its rows."""
        return self.shown_name or self.path.name

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The unpacked bytes, up to the limit of `bounded_gzip`.

        Raises:
            DataError: the gzip data are damaged, or unpack to more than the limit; also while the block reads.
        """
        try:
            with open_gzip(self.path) if self.is_gzip else self.path.open("rb") as file:
                yield file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{self.name} is damaged gzip data: {library_reason(error)}",
                expected="a whole gzip file",
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
    if kind is None and named and named[-1] in _OLD_SHEETS:
        raise DataError(
            f"{name} is a spreadsheet of another format",
            expected=f"a file that ends in {_ACCEPTED}",
            do="save it as .xlsx or CSV: File, Save As",
        )
    if kind == "xlsx" and is_gzip:
        raise DataError(
            f"{name} is a packed .xlsx", expected="the .xlsx itself, which is packed already", do="unpack it first"
        )
    if kind is None:
        raise DataError(
            f"{name} has an extension that names no known format",
            expected=f"a file that ends in {_ACCEPTED}",
            do="rename the file to what it holds, or convert it",
        )
    source = Source(path, kind, is_gzip, shown_name)
    _check_content(source)
    return source


def _check_is_file(path: Path) -> None:
    try:
        exists, is_folder, is_file = path.exists(), path.is_dir(), path.is_file()
    except OSError as error:
        raise _unreadable(path, error) from error
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


def _check_content(source: Source) -> None:
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
                do="rename the file to what it holds, or write it again",
            )
        return
    if source.format == "xlsx":
        _check_is_workbook(source, head)
        return
    if source.format == "csv" and wide_encoding(head) is not None:
        return  # its reader converts it
    _check_is_text(source, head)
    _check_first_character(source, head)


def _check_is_workbook(source: Source, head: bytes) -> None:
    if head.startswith(b"PK"):
        return
    is_old = head.startswith(b"\xd0\xcf\x11\xe0")
    raise DataError(
        f"{source.name} is named .xlsx but holds "
        + ("an old workbook (.xls), or one with a password" if is_old else "something else"),
        expected="a workbook as Excel has saved it since 2007, without a password",
        do="save it again as .xlsx without a password" if is_old else "give it the extension of what it holds",
    )


def _check_is_text(source: Source, head: bytes) -> None:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            raise _wrong_encoding(source, f"begins with the byte order mark of {encoding}", encoding)
    for signature, what, instead in _SIGNATURES:
        if head.startswith(signature):
            raise DataError(
                f"{source.name} is named .{source.format} but holds {what}",
                expected=f"{source.format.upper()} text in UTF-8",
                do=f"give it the extension of what it holds, or use {instead}",
            )
    if b"\0" in head:
        # Latin text in UTF-16 has a NUL in nearly every second byte: even positions big-endian, odd ones little-endian.
        if max(head[0::2].count(0), head[1::2].count(0)) * 2 > 0.4 * len(head):
            raise _wrong_encoding(source, "has a NUL in every second byte, as UTF-16 has", "UTF-16LE")
        offset = head.index(0)
        raise DataError(
            f"{source.name} is binary: byte {offset} (line {head.count(10, 0, offset) + 1}) is NUL",
            expected=f"{source.format.upper()} text in UTF-8",
            do="check that this is the right file, and how it was written",
        )


def _wrong_encoding(source: Source, came: str, encoding: str) -> DataError:
    return DataError(
        f"{source.name} {came}",
        expected="UTF-8",
        do=f"convert it: iconv -f {encoding} -t UTF-8 {source.name} > utf8-{source.name}",
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
