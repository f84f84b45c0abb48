"""Rich Text Format (.rtf), as text by striprtf."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from striprtf.striprtf import rtf_to_text

from luthier.core.errors import DataError, library_reason
from luthier.core.text.counted import counted
from luthier.ml.data.readers.document import Document, Section

_DELETED: Final = re.compile(rb"\{[^{}]*\\deleted(?![a-z0-9])[^{}]*\}")
_MARKS: Final = (
    (re.compile(rb"\\deleted(?![a-z0-9])"), "deleted passage", "read with the rest: accept or reject the changes"),
    (re.compile(rb"\\v(?![a-z0-9])"), "hidden passage", "read with the rest"),
    (re.compile(rb"\{\\(?:\*\\)?annotation(?![a-z])"), "comment", "not read"),
    (re.compile(rb"\\pict(?![a-z])"), "picture", "not read"),
)
_EMPTY_LINES: Final = re.compile(r"\n[ \t]*(?:\n[ \t]*)+\n")
_BULLET: Final = re.compile(r"^[ \t]*[\uf0b7\uf0a7\u2022][ \t]+", re.MULTILINE)
"""A sign of a list, in the font Symbol or Wingdings too."""
_CELLS_END: Final = re.compile(r"\|[ \t]*$", re.MULTILINE)


def read(path: Path) -> Document:
    """One section without headings: RTF has only their look. Cells of a table are separated by `|`.

    Headers, footers and comments are left out; of comments, pictures, hidden and deleted passages a warning says how
    many there are.

    Raises:
        DataError: the file cannot be read as RTF.
    """
    # A deleted run is a group of its own, as Word and LibreOffice write it.
    data, num_deleted = _DELETED.subn(b"", path.read_bytes())
    text = rtf_text(data)
    warnings = [f"{counted(num_deleted, 'deleted passage')} not read"] if num_deleted else []
    warnings += [
        f"{counted(num, noun)} {what}" for pattern, noun, what in _MARKS if (num := len(pattern.findall(data)))
    ]
    return Document((Section(text),) if text.strip() else (), tuple(warnings))


def rtf_text(data: bytes) -> str:
    """The text of RTF.

    Raises:
        DataError: it cannot be read.
    """
    # RTF is ASCII; bytes above are of its code page, as Windows-1252 nearly always.
    document = data.decode("cp1252", "replace")
    try:
        text: str = rtf_to_text(document, errors="replace")
    except (ValueError, LookupError, OverflowError, TypeError) as error:
        raise DataError(
            f"it cannot be read as RTF: {library_reason(error)}",
            expected="a whole RTF file",
            do="open it in a word processor and save it as .docx",
        ) from error
    # \u writes what is beyond 16 bits as two halves.
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = _CELLS_END.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _EMPTY_LINES.sub("\n\n", _BULLET.sub("- ", text)).strip("\n")
