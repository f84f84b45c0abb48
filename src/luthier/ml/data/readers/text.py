"""Plain text, and bytes to text: UTF-8 and what byte order marks name.

Lines that are neither are read as Windows-1252, a text as a whole as Windows-1250 where its letters are those of
Central Europe, with a warning.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from luthier.core.errors import DataError
from luthier.ml.data.files.single_bytes import single_byte_encoding
from luthier.ml.data.readers.document import Document, Section

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode(data: bytes) -> tuple[str, tuple[str, ...]]:
    """The text with \\n as line end, and warnings.

    Line by line, so that a file of mixed encodings comes out right: a line that is not UTF-8 is taken as Windows-1252.

    Raises:
        DataError: the data are binary (a NUL byte, or a tenth control characters), or break the encoding that their
            byte order mark names.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                text = data[len(mark) :].decode(encoding)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"it begins with the byte order mark of {encoding.upper()} and breaks it at byte "
                    f"{error.start + len(mark):,}",
                    expected="text in one encoding",
                    do="save it again as UTF-8",
                ) from error
            return _unix(text), ()
    _check_is_text(data)
    try:
        return _unix(data.decode("utf-8")), ()
    except UnicodeDecodeError:
        return _by_line(data)


def _by_line(data: bytes) -> tuple[str, tuple[str, ...]]:
    if single_byte_encoding(data.split(b"\n")) == "cp1250":
        return _unix(data.decode("cp1250")), ("its lines are no UTF-8, read as Windows-1250",)
    lines, wrong, num_unknown = [], [], 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            wrong.append(number)
            text = line.decode("cp1252", errors="replace")
            num_unknown += text.count("\ufffd")
            lines.append(text)
    num_lines = len(lines) - (not lines[-1])
    warning = f"{len(wrong):,} of {num_lines:,} lines are not UTF-8, read as Windows-1252 (first: line {wrong[0]})"
    if num_unknown:
        warning += f"; {num_unknown:,} bytes that are not characters there became U+FFFD"
    return _unix("\n".join(lines)), (warning,)


def _check_is_text(data: bytes) -> None:
    if (at := data.find(b"\0")) >= 0:
        raise DataError(f"it is binary: byte {at:,} is NUL", expected="text", do="check its content")
    head = data[: 2**16]
    num_controls = len(head) - len(head.translate(None, bytes(set(range(32)) - set(b"\t\n\r\f\x1b"))))
    if num_controls * 10 > len(head):
        raise DataError(
            f"it is binary: {num_controls:,} of its first {len(head):,} bytes are control characters",
            expected="text",
            do="check its content",
        )


def _unix(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def read(path: Path) -> Document:
    """One section with all text.

    Raises:
        DataError: binary data.
    """
    text, warnings = decode(path.read_bytes())
    return Document((Section(text),), warnings)
