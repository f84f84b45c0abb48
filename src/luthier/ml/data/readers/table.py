"""Which reader reads which kind of document. A new kind is one line here and one file beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from luthier.core.errors import DataError
from luthier.core.import_string import import_string
from luthier.core.library_errors import library_reason
from luthier.ml.data.readers.document import Document

Read = Callable[[Path], Document]

_HERE: Final = "luthier.ml.data.readers"
READERS: Final[Mapping[str, str]] = {
    ".pdf": f"{_HERE}.pdf:read",
    ".docx": f"{_HERE}.docx:read",
    ".pptx": f"{_HERE}.pptx:read",
    ".xlsx": f"{_HERE}.xlsx:read",
    ".epub": f"{_HERE}.epub:read",
    ".html": f"{_HERE}.html:read",
    ".htm": f"{_HERE}.html:read",
    ".xhtml": f"{_HERE}.html:read",
    ".md": f"{_HERE}.markdown:read",
    ".markdown": f"{_HERE}.markdown:read",
    ".txt": f"{_HERE}.text:read",
    ".text": f"{_HERE}.text:read",
    ".eml": f"{_HERE}.email:read",
}
# Documents that are known and cannot be read: what to do with them.
CONVERT_FIRST: Final[Mapping[str, str]] = {
    ".doc": "soffice --headless --convert-to docx",
    ".dot": "soffice --headless --convert-to docx",
    ".rtf": "soffice --headless --convert-to docx",
    ".odt": "soffice --headless --convert-to docx",
    ".ppt": "soffice --headless --convert-to pptx",
    ".odp": "soffice --headless --convert-to pptx",
    ".xls": "soffice --headless --convert-to xlsx",
    ".ods": "soffice --headless --convert-to xlsx",
    ".msg": "save it from the mail program as .eml",
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
            do="install what it needs (`pip install --force-reinstall luthier`)",
        ) from error
    return found
