"""Web pages: the main text without menus and footers, by trafilatura (Barbaresi, 2021, ACL demo track)."""

from __future__ import annotations

from pathlib import Path

import trafilatura

from luthier.core.errors import DataError
from luthier.ml.data.readers.document import Document
from luthier.ml.data.readers.markdown import sections_of

_SHARE_TOLD = 0.99


def read(path: Path) -> Document:
    """A section a heading, of the main text of a page. A warning says how much of all its text is left out.

    Where trafilatura finds no main text, all text of the page is taken, with a warning.

    Raises:
        DataError: a page without text.
    """
    data = path.read_bytes()
    found = trafilatura.extract(
        data,
        output_format="markdown",
        include_comments=False,
        include_tables=True,
        include_formatting=True,
        include_links=False,
        favor_recall=True,
    )
    everything = trafilatura.html2txt(data).strip()
    if found and found.strip():
        # Without white space, since Markdown and plain text differ in it.
        share = len("".join(found.split())) / max(len("".join(everything.split())), 1)
        left_out = f"{1 - share:.0%} of the page's text was left out as menus, footers and the like"
        return Document(tuple(sections_of(found)), (left_out,) if share < _SHARE_TOLD else ())
    if everything:
        return Document(tuple(sections_of(everything)), ("no main text was found: all text of the page was taken",))
    raise DataError(
        "no text in the page",
        expected="HTML with text in it",
        do="a page that a script fills must be saved from the browser",
    )
