"""Marks on tokens."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from luthier.features.datasets.cli.token_format import bracketed, legend, token_text
from luthier.ml.data.tokenise.preview import Span


def spans(*pieces: tuple[str, bool]) -> list[Span]:
    return [Span(text, learned, (0,)) for text, learned in pieces]


def test_brackets_open_and_close_around_runs() -> None:
    row = spans(("a", False), ("b", True), ("c\n", True), ("d", False), ("e", True))
    assert bracketed(row, "$") == "a[[b|c$\n]]d[[e]]"


def test_context_keeps_its_line_breaks_and_shows_its_control_characters() -> None:
    assert bracketed(spans(("a\n\x1b[0m", False))) == "a\n␛[0m"


@given(st.lists(st.tuples(st.text("ab", min_size=1), st.booleans())))
def test_taking_the_marks_away_gives_the_text(pieces: list[tuple[str, bool]]) -> None:
    marked = bracketed(spans(*pieces))
    assert marked.replace("[[", "").replace("]]", "").replace("|", "") == "".join(text for text, _ in pieces)
    assert marked.count("[[") == marked.count("]]")


def test_a_terminal_gets_colour_instead_of_brackets() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", markup=False, _environ={"TERM": "xterm"})
    console.print(legend(console))
    console.print(token_text(console, spans(("a", False), ("b", True))))
    assert "[[" not in out.getvalue()
    assert "\x1b[" in out.getvalue()


def test_no_color_gets_brackets_even_on_a_terminal() -> None:
    out = io.StringIO()
    environment = {"TERM": "xterm", "NO_COLOR": "1"}
    console = Console(file=out, force_terminal=True, markup=False, _environ=environment)
    console.print(token_text(console, spans(("a", False), ("b", True))))
    assert "a[[b]]" in out.getvalue()
