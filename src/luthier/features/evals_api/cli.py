"""`luthier evals`: evals of OpenAI's API as suites of this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.core.text.counted import counted
from luthier.core.text.printed_commands import in_home
from luthier.platform.cli.command import Answer, ForceOption, HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.evals_api.importer import ImportedEval


def import_file(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON with an eval or a list of evals; - reads stdin.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The folder for the suites and their rows.")
    ] = Path(),
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="ROWS", help='Rows: JSON lines {"item": {...}}.', show_default="of a run"),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="FIELD", help="The field of the items with the prompt.", show_default="of a run"
        ),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Turn evals of OpenAI's API into suites for `luthier eval MODEL --suite`; lists what has no counterpart."""
    del home  # every command takes one; this one works on files alone
    from luthier.core.errors import NotFoundError
    from luthier.core.text.utf8 import read_utf8, utf8_lines
    from luthier.features.evals_api.importer import import_evals
    from luthier.platform.cli.progress import make_progress

    if file == "-":
        text = "".join(utf8_lines(sys.stdin, "what is on stdin"))
    elif not (path := Path(file)).is_file():
        raise NotFoundError(
            f"no file {file}", expected="the JSON of an eval", do="correct the path, or give - for stdin"
        )
    else:
        text = read_utf8(path, "the JSON of an eval,")
    found = import_evals(text, out, data=data, prompt=prompt, force=force, progress=make_progress())
    return Answer(as_json, {"suites": [one.document() for one in found]}, lambda console: _show(console, found))


def _show(console: Console, found: list[ImportedEval]) -> None:
    from luthier.platform.cli.console import visible

    for one in found:
        graders = ", ".join(one.graders)
        console.print(visible(f"{one.suite}: {counted(one.num_rows, 'row')}, graders {graders}"), soft_wrap=True)
        for note in one.notes:
            console.print(visible(f"Note: {note}"), soft_wrap=True, style="yellow")
    following = f"Next: luthier eval MODEL --suite {shlex.quote(str(found[0].suite))}"
    console.print(visible(in_home(following)), soft_wrap=True)


COMMANDS: dict[str, Callable[..., Any]] = {"import": import_file}
