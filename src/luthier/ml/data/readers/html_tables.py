"""HTML to Markdown by markitdown, for tables with cells over several rows.

Markdown has no such cells: markdownify leaves them out of all rows but the first, so that the cells behind them move
under the wrong heading. Here each row is made whole first. A sign `|` in a cell would begin another cell, too.
"""

from __future__ import annotations

import io
from contextlib import suppress
from typing import IO, Any, Final

from bs4 import BeautifulSoup
from bs4.element import NavigableString, Tag
from markitdown import StreamInfo
from markitdown.converters import HtmlConverter

_MAX_REPEATED: Final = 200
"""Characters of a cell that is repeated: of a longer one there are empty cells, so that no table grows without end."""
_MAX_SPAN: Final = 1000


class WholeRows:
    """In place of markitdown's `HtmlConverter`, also inside of its other converters."""

    def __init__(self) -> None:
        self._converter = HtmlConverter()

    def convert(self, file_stream: IO[bytes], stream_info: StreamInfo, **_options: Any) -> Any:
        """As markitdown's."""
        data = file_stream.read()
        charset = stream_info.charset or "utf-8"
        if b"rowspan" in data.lower() or (b"|" in data and b"<t" in data.lower()):
            # Nested too deep: the converter takes the text alone, and warns.
            with suppress(RecursionError):
                data, charset = _whole(data, charset), "utf-8"
        info = StreamInfo(mimetype="text/html", extension=".html", charset=charset)
        return self._converter.convert(io.BytesIO(data), info, **_options)

    def convert_string(self, html_content: str, **_options: Any) -> Any:
        """As markitdown's."""
        info = StreamInfo(mimetype="text/html", extension=".html", charset="utf-8")
        return self.convert(io.BytesIO(html_content.encode()), info, **_options)


def _whole(data: bytes, charset: str) -> bytes:
    page = BeautifulSoup(data, "html.parser", from_encoding=charset)
    for table in page.find_all("table"):
        rows = [row for row in table.find_all("tr") if row.find_parent("table") is table]
        _fill(page, rows)
    for text in [one for one in page.find_all(string=True) if type(one) is NavigableString and "|" in one]:
        if text.find_parent(["td", "th"]) is not None:
            text.replace_with(NavigableString(text.replace("|", "\\|")))
    return str(page).encode()


def _fill(page: BeautifulSoup, rows: list[Tag]) -> None:
    """Put a cell into each row that a cell of a row above reaches into: with its text, unless that is long."""
    # By the column where they begin: for how many more rows, over how many columns, name of the element, and text.
    reaching: dict[int, tuple[int, int, str, str]] = {}
    for row in rows:
        waiting = list(row.find_all(["td", "th"], recursive=False))
        column = 0
        while waiting or any(begin >= column for begin in reaching):
            if column in reaching:
                num_rows, width, name, text = reaching.pop(column)
                made = page.new_tag(name)
                made.string = text
                made["colspan"] = str(width)
                if waiting:
                    waiting[0].insert_before(made)
                else:
                    row.append(made)
                if num_rows > 1:
                    reaching[-column - 1] = (num_rows - 1, width, name, text)
            elif waiting:
                cell = waiting.pop(0)
                width, num_rows = _span(cell, "colspan"), _span(cell, "rowspan")
                if num_rows > 1:
                    text = " ".join(cell.get_text(" ").split())
                    reaching[-column - 1] = (num_rows - 1, width, cell.name, text if len(text) <= _MAX_REPEATED else "")
            else:
                row.append(page.new_tag("td"))
                width = 1
            column += width
        # Negative while the row is read: what begins in it does not reach into itself.
        reaching = {-begin - 1: one for begin, one in reaching.items() if begin < 0}


def _span(cell: Tag, name: str) -> int:
    value = str(cell.get(name, "1")).strip()
    return max(1, min(_MAX_SPAN, int(value))) if value.isascii() and value.isdigit() else 1
