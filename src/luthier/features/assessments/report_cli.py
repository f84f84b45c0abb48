"""`luthier report`: the report of a run again, with what it was evaluated by since."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from luthier.platform.cli.command import Answer, HomeOption, JsonOption, open_context

if TYPE_CHECKING:
    from rich.console import Console


def report(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Rewrite the report of a run with its newest suites, its safety check, and the result of the gate."""
    from luthier.features.assessments.service import rewrite_run_report
    from luthier.platform.cli.console import visible

    with open_context(home) as context:
        pages = [str(path) for path in rewrite_run_report(context, run_id)]

    def show(console: Console) -> None:
        for page in pages:
            console.print(visible(page), soft_wrap=True)

    return Answer(as_json, {"run_id": run_id, "pages": pages}, show)
