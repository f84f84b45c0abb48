"""The options that every command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", help="Where Luthier keeps its things [default: LUTHIER_HOME, or ~/.luthier].", metavar="DIR"
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set one value of the recipe, as training.epochs=3. Repeatable.", metavar="KEY=VALUE"),
]
