"""Rows out of JSONL (streamed, one line in memory at a time) and JSON (an array, or an object with one array)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem
from luthier.ml.data.files.bad_field import name_of_type, shorten
from luthier.ml.data.files.source import Source
from luthier.ml.data.files.untrusted_input import StrictJsonError, bounded_lines, strict_loads, too_long
from luthier.ml.data.rows.chat_exports import NOTES, export_field, exported_chat
from luthier.ml.data.rows.shapes import fitting_shapes

MAX_DOCUMENT_BYTES = 1 << 30
_PIECE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 1 << 20


def read_jsonl(source: Source, is_wanted: Callable[[int, int], bool] | None = None) -> Iterator[Row | RowProblem]:
    """One Row or RowProblem for each line that is not blank. A UTF-8 byte order mark is not part of the text.

    Args:
        source: the file.
        is_wanted: whether to parse a record, by its index among the records (from 0) and its line; None parses all.
    """
    file = source.name
    for place, line in enumerate(lines_of_jsonl(source)):
        if is_wanted is None or is_wanted(place, line.number):
            yield line.row(file)


class JsonLine(NamedTuple):
    """One line of a JSONL file that is not blank, not yet parsed.

    A tuple, which is made and pickled in a fraction of the time that a dataclass takes: there are millions of them.

    Attributes:
        number: from 1.
        body: its bytes without a byte order mark; of a line that is too long only the beginning.
        length: all bytes of the line.
        offset: of `body` in the file.
        is_whole: whether `body` holds all of it.
    """

    number: int
    body: bytes
    length: int
    offset: int
    is_whole: bool

    @property
    def raw(self) -> bytes | None:
        """The line without its end; None where it is too long."""
        return self.body.rstrip(b"\r\n") if self.is_whole else None

    def row(self, file: str) -> Row | RowProblem:
        """What is on it.

        Args:
            file: name of the file, for messages.
        """
        if not self.is_whole:
            start = shorten(self.body[:200].decode("utf-8", "replace"))
            return RowProblem(file, self.number, "", start, too_long(self.length))
        return read_line(file, self.number, self.body, self.offset)


def lines_of_jsonl(source: Source, *, num_lines: int = 0, offset: int = 0) -> Iterator[JsonLine]:
    """The lines that are not blank, in order.

    Args:
        source: the file.
        num_lines: lines before the first one that is wanted, blank ones included.
        offset: bytes of the unpacked file before it.
    """
    with source.open() as file:
        _skip(file, offset, is_seekable=source.is_as_stored)
        for number, (line, length) in enumerate(bounded_lines(file), start=num_lines + 1):
            body = line.removeprefix(_BOM) if number == 1 else line
            # `length` counts all bytes of the line, `line` at most the bound: a longer line is never blank.
            is_whole = length == len(line)
            if not is_whole or body.strip():
                yield JsonLine(number, body, length, offset + len(line) - len(body), is_whole)
            offset += length


def _skip(file: IO[bytes], num_bytes: int, *, is_seekable: bool) -> None:
    """Move to a place in an unpacked file; of packed bytes all before it are unpacked."""
    if is_seekable:
        file.seek(num_bytes)
        return
    while num_bytes and (piece := file.read(min(num_bytes, _PIECE_BYTES))):
        num_bytes -= len(piece)


def read_line(file: str, number: int, line: bytes, offset: int) -> Row | RowProblem:
    """What is on one line of JSONL.

    Args:
        file: name of the file, for messages.
        number: of the line, from 1.
        line: its bytes, with or without the line end.
        offset: of the line in the file in bytes, for messages about its bytes.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return undecodable(file, number, line, error.start, offset)
    if "\0" in text:
        return RowProblem(file, number, "", "", nul_at(offset + line.index(0)), "encoding")
    try:
        value = strict_loads(text.rstrip("\r\n"))
    except StrictJsonError as error:
        where = f" (column {error.column})" if error.column else ""
        return RowProblem(file, number, "", _excerpt(text, error.column), f"is not JSON: {error.reason}{where}")
    if not isinstance(value, dict):
        return RowProblem(file, number, "", shorten(value), f"is {name_of_type(value)} where an object is expected")
    return Row(file, number, value)


def undecodable(file: str, line: int, data: bytes, start: int, offset: int) -> RowProblem:
    """The problem of bytes that are not UTF-8: says which byte of the (unpacked) file, and what it looks like.

    Args:
        file: the name of the file.
        line: the line, from 1.
        data: the bytes of the line, or of the whole file.
        start: the wrong byte in `data`.
        offset: where `data` begins in the file, in bytes.
    """
    near = data[max(0, start - 20) : start + 20].decode("latin-1").strip()
    return RowProblem(
        file,
        line,
        "",
        shorten(near),
        f"byte {offset + start} of the file (0x{data[start]:02x}) is not UTF-8; the text is shown as Latin-1: "
        "if it reads right, convert the file with iconv -f LATIN1 -t UTF-8",
        "encoding",
    )


def nul_at(offset: int) -> str:
    """What is wrong with a text that has a NUL byte, as the reason of a RowProblem."""
    return f"byte {offset} of the file is NUL: binary or damaged"


def _excerpt(text: str, column: int) -> str:
    start = max(0, column - 31)
    return shorten(text.rstrip("\r\n")[start : start + 56])


def read_json(source: Source) -> Iterator[Row | RowProblem]:
    """One Row or RowProblem for each element; `line` is the row's number.

    Raises:
        DataError: the document is broken, not UTF-8, larger than 1 GiB, or holds no single array of rows.
    """
    for number, value in enumerate(_rows_of(source.name, json_document(source)), start=1):
        if isinstance(value, dict):
            yield exported_chat(Row(source.name, number, value))
        else:
            reason = f"is {name_of_type(value)} where an object is expected"
            yield RowProblem(source.name, number, "", shorten(value), reason)


def json_document(source: Source) -> Any:
    """The one document of a JSON file.

    Raises:
        DataError: the document is broken, not UTF-8, or larger than 1 GiB.
    """
    pieces, num_bytes = [], 0
    with source.open() as file:
        while num_bytes <= MAX_DOCUMENT_BYTES and (piece := file.read(_PIECE_BYTES)):  # asking for all reserves all
            pieces.append(piece)
            num_bytes += len(piece)
    data = b"".join(pieces)
    # The pieces and the joined bytes together would be twice the document.
    pieces.clear()
    if num_bytes > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"{source.name} is a JSON document of more than {MAX_DOCUMENT_BYTES:,} bytes",
            expected="a smaller one: it is read whole, and takes several times its size in memory",
            do=f"write one object a line, which is streamed: jq -c '.[]' {source.path.stem} > rows.jsonl",
        )
    data = data.removeprefix(_BOM)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = undecodable(source.name, line, data, error.start, 0)
        raise DataError(
            f"{source.name} is not UTF-8", expected="UTF-8", do="convert the file with iconv", problems=[problem]
        ) from error
    try:
        return strict_loads(text)
    except StrictJsonError as error:
        raise _broken(source.name, text, error) from error


def export_note(source: Source) -> str:
    """Which program the conversations were exported from, by the beginning of the file; else empty."""
    with source.open() as file:
        head = file.read(_HEAD_BYTES).removeprefix(_BOM).lstrip()
    if not head.startswith(b"["):
        return ""
    # The first row may be cut off, so the names of its fields have to do.
    if b'"mapping"' in head and b'"content_type"' in head and b'"parent"' in head:
        return NOTES["mapping"]
    return NOTES["chat_messages"] if b'"chat_messages"' in head and b'"sender"' in head else ""


def _broken(file: str, text: str, error: StrictJsonError) -> DataError:
    column = f" (line {error.line}, column {error.column})" if error.line else ""
    line = text.split("\n")[error.line - 1] if error.line else ""
    problem = RowProblem(file, error.line, "", _excerpt(line, error.column) if line else "", error.reason + column)
    do = "repair the document at that place"
    if error.reason == "extra data":
        do = (
            "if the file holds one JSON object a line, rename it to .jsonl; otherwise repair the document at that place"
        )
    return DataError(
        f"{file} is not JSON: {error.reason}{column}",
        expected="one JSON document: an array of objects, or an object with one array",
        do=do,
        problems=[problem],
    )


def _rows_of(file: str, document: Any) -> list[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict):
        if fitting_shapes(document) or export_field(
            document
        ):  # the object is itself one row: its own array holds turns, not rows
            return [document]
        arrays = [key for key, value in document.items() if isinstance(value, list)]
        if len(arrays) == 1:
            rows: list[Any] = document[arrays[0]]
            return rows
        came = f"an object with {len(arrays)} arrays" + (f" ({', '.join(arrays)})" if arrays else "")
    else:
        came = name_of_type(document)
    raise DataError(
        f"{file} holds {came}",
        expected="an array of objects, or an object with one array of objects",
        do="write the rows as one JSON array, or as JSONL",
    )
