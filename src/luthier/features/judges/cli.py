"""`luthier judge`: hold a model that judges against people, and look at what came of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.features.human_eval.cli.panels import ProjectOption
from luthier.platform.cli.command import Answer, HomeOption, JsonOption, caller_of, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.records.calibration import Calibration


def calibrate(
    judge: Annotated[
        str,
        typer.Option(
            "--judge",
            metavar="ENGINE",
            help="The judge: a base model, a run, a GGUF file, or http(s)://host:port/v1#MODEL.",
        ),
    ],
    ratings: Annotated[
        Path | None,
        typer.Option("--ratings", metavar="FILE", help="Ratings by people, as written by `luthier human-eval export`."),
    ] = None,
    panel: Annotated[
        str | None, typer.Option("--panel", metavar="ID", help="Use the ratings of this panel instead of a file.")
    ] = None,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Compare a judge with people on the same answers: how far they agree, and whether it may be used in a gate."""
    from luthier.features.judges import service

    with open_context(home) as context:
        project_id = caller_of(context, project).project_id
        found = service.calibrate(context, project_id, judge, ratings=ratings, panel=panel)
    return _answer(found, as_json)


def list_calibrations(
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="ENGINE", help="Only comparisons of this judge.")
    ] = None,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """List the comparisons of judges with people, newest first."""
    from luthier.features.judges import service

    with open_context(home) as context:
        name = None if judge is None else service.lasting_name(context, judge)
        found = service.calibrations(context, caller_of(context, project).project_id, name)
    document = [one.model_dump(mode="json") for one in found]

    def tell(console: Console) -> None:
        from luthier.features.judges.format import show_list

        show_list(console, found)

    return Answer(as_json, document, tell)


def _answer(found: tuple[Calibration, ...], as_json: bool) -> Answer:
    def tell(console: Console) -> None:
        from luthier.features.judges.format import show_calibration

        for number, one in enumerate(found):
            if number:
                console.print()
            show_calibration(console, one)

    return Answer(as_json, [one.model_dump(mode="json") for one in found], tell)


COMMANDS: dict[str, Callable[..., Answer]] = {"calibrate": calibrate, "list": list_calibrations}
