"""Terminal display of a chat: one answer streamed, or several in columns; plain text without a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.live import Live
from rich.table import Table
from rich.text import Text

from luthier.platform.cli.console import is_terminal, stderr_console, visible

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.serving.chat import Reply, Turn

    Show = Callable[[list[Reply]], None]

_COLOURS = ("cyan", "magenta", "yellow", "green")
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_LINES_AROUND = 8
_REASONS = {"length": "cut at --max-tokens", "stopped": "stopped"}


class ChatScreen:
    """Displays a chat. is_quiet: shows only errors."""

    def __init__(self, console: Console, *, is_quiet: bool = False) -> None:
        self._console, self._is_quiet = console, is_quiet
        self._is_watched = is_terminal(console) and not is_quiet

    def greet(self, names: Sequence[str], words: str) -> None:
        """The introduction, for interactive use."""
        title = Text(" against ").join(Text(visible(name), style=f"bold {_colour(n)}") for n, name in enumerate(names))
        self._console.print(title, soft_wrap=True)
        self.note(words)

    def note(self, words: str) -> None:
        """A note about an action; omitted without a terminal."""
        if self._is_watched:
            self._console.print(Text(visible(words), style="dim"), soft_wrap=True)

    def question(self, words: str) -> None:
        """A question that was not typed in this terminal."""
        if self._is_watched:
            self._console.print(Text.assemble("\n", ("› ", "bold"), visible(words)), soft_wrap=True)

    @contextmanager
    def answering(self, names: Sequence[str]) -> Iterator[Show]:
        """During generation: yields a function that shows progress."""
        if not self._is_watched:
            yield lambda _: None
        elif len(names) == 1:
            # A single answer is printed as it arrives, so that it stays in the terminal's history.
            with self._console.status(Text(f"waiting for {visible(names[0])}", style="dim")) as status:
                written = thought = 0

                def show_one(replies: list[Reply]) -> None:
                    nonlocal written, thought
                    text, thinking = replies[0].text, replies[0].reasoning
                    if len(thinking) > thought:
                        status.stop()
                        self._console.print(Text(visible(thinking[thought:]), style="dim"), end="", soft_wrap=True)
                        thought = len(thinking)
                    # An empty line between reasoning and answer.
                    if text and thinking and not written:
                        self._console.print("\n")
                    if len(text) > written:
                        status.stop()
                        self._console.print(Text(visible(text[written:])), end="", soft_wrap=True)
                        written = len(text)

                yield show_one
        else:
            # Redrawn as a whole, and removed at the end, when `answered` prints the columns for good.
            with Live(console=self._console, auto_refresh=False, transient=True) as live:
                yield lambda replies: live.update(self._columns(replies, is_live=True), refresh=True)

    def answered(self, turn: Turn) -> None:
        """Show all answers of a turn, or their remaining text, and errors."""
        if self._is_watched and len(turn.replies) == 1:
            self._console.print("\n" if turn.replies[0].text else "", end="")
            self._console.print(Text(_figures(turn.replies[0]), style="dim"), soft_wrap=True)
        elif self._is_watched:
            self._console.print(self._columns(turn.replies, is_live=False))
        # No terminal: plain text for another program.
        elif not self._is_quiet:
            for reply in turn.replies:
                if len(turn.replies) > 1:
                    self._console.print(f"{visible(reply.name)}:", soft_wrap=True)
                if reply.error is None:
                    self._console.print(visible(reply.text), soft_wrap=True)
        for reply in turn.replies:
            if reply.error is not None:
                words = Text.assemble((f"{visible(reply.name)}: ", "bold red"), visible(str(reply.error)))
                # Errors must not get into piped output.
                (self._console if self._is_watched else stderr_console()).print(words, soft_wrap=True)

    def _columns(self, replies: Sequence[Reply], *, is_live: bool) -> Table:
        """Side by side; during generation, only as many of the last lines as fit."""
        table = Table(box=box.SIMPLE, expand=True, pad_edge=False, show_edge=False, header_style="bold")
        width = max(10, (self._console.width - 3 * (len(replies) - 1)) // len(replies))
        for number, reply in enumerate(replies):
            table.add_column(Text(visible(reply.name), style=_colour(number)), ratio=1, overflow="fold")
        texts = []
        for reply in replies:
            text = Text(visible(reply.text))
            if is_live:
                # Wrapped here: the limit counts screen lines, not text lines.
                lines = text.wrap(self._console, width)
                room = max(3, self._console.height - _LINES_AROUND)
                text = Text("\n").join(list(lines)[-room:])
            texts.append(text)
        table.add_row(*texts)
        table.add_row(*(Text(_figures(reply), style="dim") for reply in replies))
        return table


def _figures(reply: Reply) -> str:
    if reply.error is not None:
        return "no answer"
    if not reply.has_started and not reply.has_ended:
        return f"{_SPINNER[int(time.monotonic() * 10) % len(_SPINNER)]} waiting"
    parts = [f"{reply.num_new_tokens:,} tokens"]
    if (speed := reply.tokens_per_second) is not None:
        parts.append(f"{speed:,.1f}/s")
    if reply.first_seconds is not None:
        parts.append(f"first after {reply.first_seconds:.2f} s")
    if reply.reason in _REASONS:
        parts.append(_REASONS[reply.reason])
    return " · ".join(parts)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]
