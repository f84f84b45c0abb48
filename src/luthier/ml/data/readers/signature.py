"""Whether a file is what its name says: the bytes decide."""

from __future__ import annotations

from pathlib import Path

from luthier.core.errors import DataError
from luthier.ml.data.files.archive_safety import check_archive

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_HEAD_BYTES = 2**12
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
# Parts by which a ZIP file shows what kind of document it is.
_PARTS = {
    "word/document.xml": "DOCX",
    "ppt/presentation.xml": "PPTX",
    "xl/workbook.xml": "XLSX",
    "META-INF/container.xml": "EPUB",
    "content.xml": "OpenDocument",
}
_MAGIC = (
    (b"PK\x03\x04", "a ZIP archive or an Office document"),
    (_OLE, "an old Office document (.doc, .xls, .ppt) or an Outlook message"),
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
_ARCHIVES = {".docx": "DOCX", ".pptx": "PPTX", ".xlsx": "XLSX", ".epub": "EPUB"}


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
    elif extension == ".pdf":
        # Readers of PDF accept other bytes before the header, up to 1,024 of them.
        if b"%PDF-" not in head[:1024]:
            raise _other(extension, _what(head) or "no PDF (it does not begin with %PDF-)")
    elif (what := _what(head)) is not None:
        raise _other(extension, what)


def _check_archive_kind(path: Path, head: bytes, expected: str) -> None:
    if head.startswith(_OLE):
        if _has_encrypted_package(path):
            raise DataError(
                "it is protected by a password",
                expected=f"{expected} without password",
                do="save it without a password",
            )
        raise _other(path.suffix, "an old Office document: convert it with `soffice --headless --convert-to`")
    if not head.startswith(b"PK"):
        raise _other(path.suffix, _what(head) or f"no {expected}, which is a ZIP archive")
    names = check_archive(path)
    kinds = [kind for part, kind in _PARTS.items() if part in names]
    if expected not in kinds and kinds:
        raise _other(path.suffix, f"{kinds[0]}")
    if expected not in kinds and not (expected != "EPUB" and "[Content_Types].xml" in names):
        raise _other(path.suffix, f"a ZIP archive that is no {expected}")


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
        do="give it the extension of what it holds",
    )
