"""What all OpenDocument files share (ISO/IEC 26300): names of elements, the text of a paragraph, and safe parsing."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import DataError, library_reason

_URN: Final = "urn:oasis:names:tc:opendocument:xmlns"
OFFICE: Final = f"{{{_URN}:office:1.0}}"
TEXT: Final = f"{{{_URN}:text:1.0}}"
TABLE: Final = f"{{{_URN}:table:1.0}}"
DRAW: Final = f"{{{_URN}:drawing:1.0}}"
STYLE: Final = f"{{{_URN}:style:1.0}}"
PRESENTATION: Final = f"{{{_URN}:presentation:1.0}}"
SVG: Final = f"{{{_URN}:svg-compatible:1.0}}"
_MANIFEST: Final = "META-INF/manifest.xml"
_MAX_SPACES: Final = 1_000
_BESIDE: Final = frozenset(
    (f"{OFFICE}annotation", f"{OFFICE}annotation-end", f"{TEXT}note", f"{TEXT}tracked-changes", f"{TEXT}ruby-text")
)
"""What stands inside of a paragraph and is none of its text."""


def check_open(path: Path) -> None:
    """Raise DataError where the parts of a file are encrypted by a password."""
    with zipfile.ZipFile(path) as archive:
        manifest = archive.read(_MANIFEST) if _MANIFEST in archive.namelist() else b""
    if b"encryption-data" in manifest:
        raise DataError(
            "it is protected by a password",
            expected="an OpenDocument file without password",
            do="save it without a password",
        )


def content(path: Path, part: str = "content.xml") -> Any:
    """The root element of a part.

    Raises:
        DataError: the file is damaged, or protected by a password.
    """
    from lxml import etree

    check_open(path)
    try:
        with zipfile.ZipFile(path) as archive:
            # The document is untrusted: no entities, no network, no external DTD.
            parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
            return etree.fromstring(archive.read(part), parser)
    except (KeyError, zipfile.BadZipFile, etree.XMLSyntaxError) as error:
        raise damaged(error) from error


def damaged(error: Exception) -> DataError:
    """The error about a file whose parts cannot be parsed."""
    return DataError(
        f"it is damaged: {library_reason(error)}",
        expected="a whole OpenDocument file",
        do="open it in the program that made it and save it again",
    )


def plain_text(element: Any, inside: Callable[[Any], str] = lambda _: "") -> str:
    """The text of a paragraph: blanks, tabs and line breaks as its elements say them.

    Args:
        element: a paragraph or heading.
        inside: what is read of a note, comment, picture or frame inside of it.
    """
    return "".join(_pieces(element, inside))


def _pieces(element: Any, inside: Callable[[Any], str]) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        if isinstance(child.tag, str):
            if child.tag == f"{TEXT}s":
                yield " " * min(int(child.get(f"{TEXT}c", "1")), _MAX_SPACES)
            elif child.tag == f"{TEXT}tab":
                yield "\t"
            elif child.tag == f"{TEXT}line-break":
                yield "\n"
            elif child.tag in _BESIDE or child.tag.startswith(DRAW):
                yield inside(child)
            else:
                yield from _pieces(child, inside)
        yield child.tail or ""
