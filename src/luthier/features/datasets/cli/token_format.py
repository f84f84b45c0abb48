"""Tokens as text with the learned ones marked: by colour where there is colour, by brackets where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.text import Text

from luthier.platform.cli.console import visible

# Neighbours differ, so that the borders of tokens are seen.
_LEARNED = ("bold green underline", "bold bright_green underline")
_CONTEXT = ("dim", "")
_OPEN, _CLOSE, _BORDER = "[[", "]]", "|"
_NEW_LINE = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"


class Span(Protocol):
    """A token, or some that share a character."""

    @property
    def text(self) -> str: ...
    @property
    def learned(self) -> bool: ...


def legend(console: Console) -> Text:
    """What the marks mean."""
    if _has_colour(console):
        return Text.assemble("legend: ", ("learned", _LEARNED[0]), " (the loss counts it), ", ("context", _CONTEXT[0]))
    return Text(f"legend: {_OPEN}learned{_BORDER}tokens{_CLOSE} (the loss counts them); the rest is context")


def token_text(console: Console, spans: Sequence[Span]) -> Text:
    """The text of a row, line breaks kept and made visible where they are learned."""
    return _coloured(spans, console) if _has_colour(console) else Text(bracketed(spans, _arrow(console)))


def bracketed(spans: Sequence[Span], arrow: str = _NEW_LINE) -> str:
    """`context[[learned|tokens]]context`, fit for a pipe."""
    pieces, is_open = [], False
    for span in spans:
        if span.learned:
            # Neighbouring learned tokens share one pair of brackets, with a bar at each token's border.
            pieces.append(_BORDER if is_open else _OPEN)
        elif is_open:
            pieces.append(_CLOSE)
        is_open = span.learned
        pieces.append(_marked(span, arrow))
    return "".join(pieces) + (_CLOSE if is_open else "")


def _coloured(spans: Sequence[Span], console: Console) -> Text:
    text = Text()
    for index, span in enumerate(spans):
        styles = _LEARNED if span.learned else _CONTEXT
        text.append(_marked(span, _arrow(console)), styles[index % 2])
    return text


def _marked(span: Span, arrow: str) -> str:
    shown = visible(span.text)
    # A learned line break is a token that the loss counts; unmarked, it would be invisible whether it is learned.
    return shown.replace("\n", f"{arrow}\n") if span.learned else shown


def _arrow(console: Console) -> str:
    return _NEW_LINE if console.encoding.lower().startswith("utf") else "\\n"


def _has_colour(console: Console) -> bool:
    return console.is_terminal and not console.no_color and console.color_system is not None
