from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.errors import DataError
from luthier.ml.data.readers.document import check_signature

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)
Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", b"", "empty"),
        ("a.docx", b"%PDF-1.7\n", r"named \.docx but holds PDF"),
        ("a.pdf", b"PK\x03\x04", "a ZIP archive"),
        ("a.pdf", b"hello", "no PDF"),
        ("a.docx", OLE, "an old Office document"),
        ("a.xlsx", OLE + "EncryptedPackage".encode("utf-16-le"), "protected by a password"),
        ("a.docx", b"hello", "no DOCX, which is a ZIP archive"),
        ("a.txt", b"%PDF-1.7\n", "PDF"),
        ("a.md", b"\x89PNG\r\n", "a PNG picture"),
        ("a.html", b"\x1f\x8b\x08", "gzip"),
        ("a.eml", OLE, "an Outlook message"),
        ("a.docx", b"PK\x03\x04broken", "broken"),
    ],
)
def test_what_does_not_fit_its_name(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=reason):
        check_signature(tmp_path / name)


@pytest.mark.parametrize(("name", "data"), [("a.pdf", b"\n%PDF-1.4"), ("a.txt", b"hi"), ("a.HTML", b"<p>")])
def test_what_fits(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    check_signature(tmp_path / name)


def test_one_office_document_named_as_another(
    make_docx: Make, make_xlsx: Make, make_epub: Make, make_zip: Make
) -> None:
    check_signature(make_docx([("", "text")]))
    check_signature(make_epub(["<p>x</p>"]))
    wrong = make_xlsx({"a": [[1]]}).rename(make_docx([("", "x")]).with_name("wrong.docx"))
    with pytest.raises(DataError, match=r"named \.docx but holds XLSX"):
        check_signature(wrong)
    with pytest.raises(DataError, match="a ZIP archive that is no PPTX"):
        check_signature(make_zip("a.pptx", {"x.txt": "y"}))
