"""Where text goes: answers to stdout, progress and errors to stderr. Colour on a terminal only, NO_COLOR honoured."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO, cast

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from luthier.platform.cli.streams import NoReaderError, Stderr

# Text that is no terminal's has no width: a table in a pipe is never cut.
_PIPE_WIDTH = 10_000


def stdout_console() -> Console:
    """For the answer."""
    return _console(is_stderr=False)


def stderr_console() -> Console:
    """For progress, warnings and errors."""
    return _console(is_stderr=True)


def is_terminal(console: Console) -> bool:
    """Whether a person watches: a terminal that can move its cursor."""
    return console.is_terminal and not console.is_dumb_terminal


def make_table(headers: Sequence[str], *, num_text_columns: int = 1) -> Table:
    """An empty table: the first columns hold text (left), the others figures (right)."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for index, header in enumerate(headers):
        is_text = index < num_text_columns
        table.add_column(header, justify="left" if is_text else "right", overflow="fold")
    return table


def facts(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Names and values, one a line, aligned."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        console.print(Text.assemble((f"{name:<{width}}  ", "bold"), visible(value)), soft_wrap=True)


def visible(text: str) -> str:
    """Text of unknown origin, fit for a terminal: control characters become pictures, but for line breaks and tabs."""
    return "".join(_picture(character) for character in text)


def _picture(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return character
    # Unicode's control pictures have the same offsets as the controls: an escape sequence becomes text.
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd" if 0x80 <= code < 0xA0 else character


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would leave with exit code 1; `cli.main` knows better. Of stderr no such error comes here."""
        raise NoReaderError


def _console(*, is_stderr: bool) -> Console:
    file = cast(TextIO, Stderr()) if is_stderr else sys.stdout
    # No markup: square brackets in names and rows are text.
    console = _Console(file=file, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console
