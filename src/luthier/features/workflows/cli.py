"""`luthier pipelines`: how far showdowns, autos and retrainings are, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from luthier.platform.cli.answer import Answer
from luthier.platform.cli.opening import caller_of, open_context
from luthier.platform.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.access import Caller
    from luthier.core.workflows.pipeline import PipelineKind
    from luthier.features.workflows.views import PipelineView, StageView
    from luthier.platform.home.context import Context

_KINDS: Final[tuple[PipelineKind, ...]] = ("showdown", "auto", "retrain")
ProjectOption = Annotated[str, typer.Option("--project", metavar="P", help="The project that they belong to.")]


def list_pipelines(
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="|".join(_KINDS), help="Only these.", show_default="all")
    ] = None,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """List showdowns, autos and retrainings, newest first, at most 100."""
    from luthier.features.workflows import views as pipeline_views

    asked = _kind(kind)
    with open_context(home) as context:
        found = pipeline_views.list_pipelines(context, caller_of(context, project), asked)
    return Answer(as_json, [_summary(one) for one in found], lambda console: _show_all(console, found))


def show(
    pipeline_id: Annotated[str, typer.Argument(metavar="ID", help="Of one, from `luthier pipelines list`.")],
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Show one: each stage, why it ended, its result, and its report, which is rewritten if the file is missing."""
    from luthier.features.workflows import views as pipeline_views

    with open_context(home) as context:
        caller = caller_of(context, project)
        view = pipeline_views.view_pipeline(context, caller, pipeline_id)
        document = _details(view, _report(context, caller, view))
    return Answer(as_json, document, lambda console: _show(console, view, document))


COMMANDS: dict[str, Callable[..., Any]] = {"list": list_pipelines, "show": show}


def _kind(given: str | None) -> PipelineKind | None:
    from luthier.core.errors import RequestError

    found = next((kind for kind in _KINDS if kind == given), None)
    if given is not None and found is None:
        raise RequestError(f"--kind {given!r}", expected=f"one of {', '.join(_KINDS)}", do="correct it")
    return found


def _report(context: Context, caller: Caller, view: PipelineView) -> Path | None:
    """None where it has none, and where it is gone with all that it could be written from."""
    from luthier.core.errors import NotFoundError
    from luthier.features.workflows.reports import report_file

    if not view.has_report:
        return None
    try:
        return report_file(context, caller, view.pipeline.pipeline_id)
    except NotFoundError:
        return None


def _summary(view: PipelineView) -> dict[str, Any]:
    pipeline = view.pipeline
    return {
        "pipeline_id": pipeline.pipeline_id,
        "kind": pipeline.kind,
        "asked_in_words": view.asked,
        "status": view.status,
        "stage": view.stage,
        "created_at": pipeline.created_at,
        "ended_at": view.ended_at,
        "seconds": view.seconds,
        "part_of": view.part_of,
    }


def _details(view: PipelineView, report: Path | None) -> dict[str, Any]:
    return {
        **_summary(view),
        "asked": view.pipeline.asked,
        "answer": view.answer or None,
        "stages": [_stage(stage) for stage in view.stages],
        "report_path": None if report is None else str(report),
        "command": view.command,
    }


def _stage(stage: StageView) -> dict[str, Any]:
    made = [{"kind": thing, "id": made_id} for thing, made_id in stage.made]
    return {
        "name": stage.name,
        "status": stage.status,
        "reason": stage.reason or None,
        "found": list(stage.found),
        "made": made,
        "began_at": stage.began_at,
        "seconds": stage.seconds,
    }


def _show_all(console: Console, found: Sequence[PipelineView]) -> None:
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import make_table, visible

    if not found:
        console.print("None yet; they begin with luthier compare-models, luthier automl and luthier retrain.")
        return
    table = make_table(["id", "kind", "asked", "status", "stage", "began", "took"], num_text_columns=6)
    for view in found:
        one = view.pipeline
        cells = [one.pipeline_id, one.kind, view.asked, view.status, view.stage or "-", _when(one.created_at)]
        table.add_row(*(visible(cell) for cell in cells), figures.duration(view.seconds))
    console.print(table)


def _show(console: Console, view: PipelineView, document: dict[str, Any]) -> None:
    from luthier.features.workflows.format import NOUNS
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import visible

    def say(line: str) -> None:
        console.print(visible(line), soft_wrap=True)

    one = view.pipeline
    say(f"{one.pipeline_id}: {NOUNS[one.kind]}, {view.status}")
    say(f"asked: {view.asked}")
    say(f"began {_when(one.created_at)}; worked {figures.duration(view.seconds)}")
    for number, stage in enumerate(view.stages, start=1):
        took = "" if stage.seconds is None else f", {figures.duration(stage.seconds)}"
        say(f"  {number}/{len(view.stages)} {stage.name}: {stage.status}{took}")
        lines = [*([stage.reason] if stage.reason else []), *stage.found]
        for line in [*lines, *(f"{thing} {made_id}" for thing, made_id in stage.made)]:
            say(f"      {line}")
    if view.answer:
        say(view.answer)
    if document["report_path"]:
        say(f"report: {document['report_path']}")
    if view.part_of:
        say(f"a stage of {view.part_of}")
    if view.command:
        say(f"go on with it: {view.command}")


def _when(moment: float) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"
