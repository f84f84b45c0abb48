"""Documents and their readers: what a reader returns, which reader reads which file, and whether a file fits its name.

A reader is a function from a path to a `Document`: text in sections, and warnings. A new kind of document is one line
in `READERS` and one file next to this one. `check_signature` decides by the bytes whether a file is what its name says.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.errors import DataError, library_reason
from luthier.core.import_string import import_string
from luthier.core.text.counted import counted
from luthier.ml.data.files.compound_file import SIGNATURE
from luthier.ml.data.files.untrusted_input import check_archive

# Halves of surrogate pairs are no characters; NUL breaks what reads the rows later.
_NO_TEXT = re.compile("[\ud800-\udfff\x00]")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a document under one heading.

    Attributes:
        text: of the section, without its headings.
        page: page of a PDF or slide, from 1; None for other documents.
        headings: outermost first.
    """

    text: str
    page: int | None = None
    headings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A document as text.

    Attributes:
        sections: in the order of the document.
        warnings: what was left out, guessed or put right, one short clause each.
    """

    sections: tuple[Section, ...]
    warnings: tuple[str, ...] = ()


def well_formed(document: Document) -> Document:
    """The same with every character that a row cannot hold replaced by U+FFFD, which a warning counts.

    Soft hyphens, which show only where a line ends, are left out: inside of words they would make other words of them.
    """
    num_bad = 0

    def put_right(text: str) -> str:
        nonlocal num_bad
        text, num = _NO_TEXT.subn("\ufffd", text.replace("\u00ad", ""))
        num_bad += num
        return text

    sections = tuple(
        Section(put_right(section.text), section.page, tuple(" ".join(put_right(h).split()) for h in section.headings))
        for section in document.sections
    )
    if not num_bad:
        return Document(sections, document.warnings)
    replaced = counted(num_bad, "character that is none was", "characters that are none were")
    return Document(sections, (*document.warnings, f"{replaced} replaced by U+FFFD"))


Read = Callable[[Path], Document]

_HERE: Final = "luthier.ml.data.readers"
READERS: Final[Mapping[str, str]] = {
    ".pdf": f"{_HERE}.pdf:read",
    ".docx": f"{_HERE}.office:read_docx",
    ".pptx": f"{_HERE}.office:read_pptx",
    ".docm": f"{_HERE}.office:read_docx",
    ".dotx": f"{_HERE}.office:read_docx",
    ".doc": f"{_HERE}.doc:read",
    ".dot": f"{_HERE}.doc:read",
    ".rtf": f"{_HERE}.rtf:read",
    ".odt": f"{_HERE}.opendocument:read_odt",
    ".odp": f"{_HERE}.opendocument:read_odp",
    ".xlsx": f"{_HERE}.xlsx:read",
    ".xlsm": f"{_HERE}.xlsx:read",
    ".xls": f"{_HERE}.xlsx:read_xls",
    ".ods": f"{_HERE}.xlsx:read_ods",
    ".epub": f"{_HERE}.office:read_epub",
    ".html": f"{_HERE}.html:read",
    ".htm": f"{_HERE}.html:read",
    ".xhtml": f"{_HERE}.html:read",
    ".md": f"{_HERE}.markdown:read",
    ".markdown": f"{_HERE}.markdown:read",
    ".txt": f"{_HERE}.text:read",
    ".text": f"{_HERE}.text:read",
    ".eml": f"{_HERE}.email:read",
    ".msg": f"{_HERE}.outlook:read",
    ".vtt": f"{_HERE}.transcript:read",
    ".srt": f"{_HERE}.transcript:read",
}
# Documents that are known and cannot be read: what to do with them.
CONVERT_FIRST: Final[Mapping[str, str]] = {
    ".ppt": "save it as .pptx",
    ".xlsb": "save it as .xlsx",
    ".pptm": "save it as .pptx",
    ".ppsx": "save it as .pptx",
    ".mht": "save it as .html",
    ".mhtml": "save it as .html",
    ".mbox": "luthier data conversations FILE --output rows.jsonl",
    ".mobi": "convert it to .epub with Calibre's ebook-convert",
    ".azw3": "convert it to .epub with Calibre's ebook-convert",
    ".djvu": "convert it to .pdf with ddjvu",
    ".pages": "export it as .docx",
    ".key": "export it as .pptx",
    ".numbers": "export it as .xlsx",
}


def load_reader(name: str) -> Read:
    """The reader behind `module:function`.

    Raises:
        DataError: it cannot be imported.
    """
    try:
        found: Read = import_string(name)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"the reader {name} cannot be loaded: {library_reason(error)}",
            expected="module:function of an installed package",
            do="install the missing package, or Luthier again from its wheel",
        ) from error
    return found


_HEAD_BYTES = 2**12
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
# Parts that identify the kind of document in a ZIP file.
_PARTS = {
    "word/document.xml": "DOCX",
    "ppt/presentation.xml": "PPTX",
    "xl/workbook.xml": "XLSX",
    "META-INF/container.xml": "EPUB",
}
_OPEN_DOCUMENT: Final = "application/vnd.oasis.opendocument."
_OPEN_DOCUMENTS: Final = {".odt": "text", ".odp": "presentation", ".ods": "spreadsheet"}
_MAGIC = (
    (b"PK\x03\x04", "a ZIP archive or an Office document"),
    (SIGNATURE, "an old Office document (.doc, .xls, .ppt) or an Outlook message"),
    (b"{\\rtf", "RTF"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"PAR1", "Parquet data"),
)
_ARCHIVES: Final = {
    ".docx": "DOCX",
    ".docm": "DOCX",
    ".dotx": "DOCX",
    ".pptx": "PPTX",
    ".xlsx": "XLSX",
    ".xlsm": "XLSX",
    ".epub": "EPUB",
}
_COMPOUND_FILES: Final = (".doc", ".dot", ".xls", ".msg")


def check_signature(path: Path) -> None:
    """Check that a file is what its extension says, before a reader opens it.

    Raises:
        DataError: it is empty, an archive that is not safe, protected by a password, or of another kind.
    """
    extension = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise DataError("it is empty (0 bytes)", expected="a document", do="check how it was written")
    if extension in _ARCHIVES:
        _check_archive_kind(path, head, _ARCHIVES[extension])
    elif extension in _OPEN_DOCUMENTS:
        _check_open_document(path, head, _OPEN_DOCUMENTS[extension])
    elif extension in _COMPOUND_FILES:
        if not head.startswith(SIGNATURE):
            raise _other(extension, _what(head) or "something else, such as text or HTML")
    elif extension == ".rtf":
        if not head.lstrip().startswith(b"{\\rtf"):
            raise _other(extension, _what(head) or "no RTF (it does not begin with {\\rtf)")
    elif extension == ".pdf":
        # Readers of PDF accept other bytes before the header, up to 1,024 of them.
        if b"%PDF-" not in head[:1024]:
            raise _other(extension, _what(head) or "no PDF (it does not begin with %PDF-)")
    elif (what := _what(head)) is not None:
        raise _other(extension, what)


def _check_archive_kind(path: Path, head: bytes, expected: str) -> None:
    if head.startswith(SIGNATURE):
        if _has_encrypted_package(path):
            raise DataError(
                "it is protected by a password",
                expected=f"{expected} without password",
                do="save it without a password",
            )
        raise _other(path.suffix, "an old Office document (.doc, .xls, .ppt) or an Outlook message (.msg)")
    if not head.startswith(b"PK"):
        raise _other(path.suffix, _what(head) or f"no {expected}, which is a ZIP archive")
    names = check_archive(path)
    kinds = [kind for part, kind in _PARTS.items() if part in names]
    kinds += ["OpenDocument"] if "content.xml" in names and "mimetype" in names else []
    if expected not in kinds and kinds:
        raise _other(path.suffix, f"{kinds[0]}")
    if expected not in kinds and not (expected != "EPUB" and "[Content_Types].xml" in names):
        raise _other(path.suffix, f"a ZIP archive that is no {expected}")


def _check_open_document(path: Path, head: bytes, expected: str) -> None:
    if not head.startswith(b"PK"):
        raise _other(path.suffix, _what(head) or f"no OpenDocument {expected}, which is a ZIP archive")
    names = check_archive(path)
    if "mimetype" in names:
        with zipfile.ZipFile(path) as archive, archive.open("mimetype") as file:
            kind = file.read(200).decode("ascii", "replace").strip().removeprefix(_OPEN_DOCUMENT)
        if kind.removesuffix("-template") != expected:
            raise _other(path.suffix, f"OpenDocument of another kind ({kind})" if kind else "no OpenDocument file")
    elif "content.xml" not in names:
        raise _other(path.suffix, next((kind for part, kind in _PARTS.items() if part in names), "a ZIP archive"))


def _has_encrypted_package(path: Path) -> bool:
    """An encrypted Office document is a compound file with a stream of this name (MS-OFFCRYPTO, section 2.3.1)."""
    tail = b""
    with path.open("rb") as file:
        while block := file.read(2**20):
            if _ENCRYPTED in tail + block:
                return True
            tail = block[-64:]
    return False


def _what(head: bytes) -> str | None:
    if b"%PDF-" in head[:8]:
        return "PDF"
    return next((what for magic, what in _MAGIC if head.startswith(magic)), None)


def _other(extension: str, what: str) -> DataError:
    return DataError(
        f"it is named {extension} but holds {what}",
        expected="content that fits the extension",
        do="give it the extension of its content",
    )
