"""`luthier glossary`: the words of the pages, explained in a terminal."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.core.text.glossary import TERMS, Term, find_term
from luthier.platform.cli.command import Answer, HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console


def glossary(
    term: Annotated[
        list[str] | None, typer.Argument(metavar="[TERM]", help="One term, such as: loss mask.", show_default="all")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,  # noqa: ARG001 - as every command; the words are the same in each home
) -> Answer:
    """Explain the terms of pages and commands in plain words."""
    found = [find_term(" ".join(term))] if term else list(TERMS)
    return Answer(as_json, {"terms": [asdict(one) for one in found]}, lambda console: _show(console, found))


def _show(console: Console, found: list[Term]) -> None:
    topic = ""
    for one in found:
        if one.topic != topic and len(found) > 1:
            topic = one.topic
            console.print(f"\n{topic}")
        console.print(f"{one.name}: {one.meaning}")
