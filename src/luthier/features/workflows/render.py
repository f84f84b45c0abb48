"""The view of a workflow as JSON and as text of a terminal; pages have their templates, reports their pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from luthier.core.errors import NotFoundError
from luthier.features.workflows.views import StageView, WorkflowView, report_file, view_pipeline

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.access import Caller
    from luthier.core.workflows.pipeline import Pipeline, Stage
    from luthier.platform.home.context import Context
    from luthier.platform.workflows.engine import Tell


def summary(view: WorkflowView) -> dict[str, Any]:
    """A row of `luthier pipelines list --json`."""
    return {
        "pipeline_id": view.pipeline.pipeline_id,
        "kind": view.pipeline.kind,
        "asked_in_words": view.asked,
        "status": view.status,
        "stage": view.stage,
        "created_at": view.pipeline.created_at,
        "ended_at": view.ended_at,
        "seconds": view.seconds,
        "remaining_seconds": view.remaining_seconds,
        "part_of": view.part_of,
    }


def document(context: Context, caller: Caller, view: WorkflowView) -> dict[str, Any]:
    """The document of `luthier pipelines show --json`; writes the report where its file is missing."""
    return {
        **summary(view),
        "asked": view.pipeline.asked,
        "answer": view.answer or None,
        "stages": [_stage(stage) for stage in view.stages],
        "report_path": _report(context, caller, view),
        "command": view.command,
    }


def _report(context: Context, caller: Caller, view: WorkflowView) -> str | None:
    """None where it has none, and where it is gone with all that it could be written from."""
    if not view.has_report:
        return None
    try:
        return str(report_file(context, caller, view.pipeline.pipeline_id))
    except NotFoundError:
        return None


def _stage(stage: StageView) -> dict[str, Any]:
    return {
        "name": stage.name,
        "status": stage.status,
        "reason": stage.reason or None,
        "found": list(stage.found),
        "made": [{"kind": thing, "id": made_id} for thing, made_id in stage.made],
        "began_at": stage.began_at,
        "seconds": stage.seconds,
    }


def show_all(console: Console, found: Sequence[WorkflowView]) -> None:
    """The table of `luthier pipelines list`."""
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


def show(console: Console, view: WorkflowView, report_path: str | None) -> None:
    """One of them: what was asked, each stage, the result, and what to type next."""
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import visible

    def say(line: str) -> None:
        console.print(visible(line), soft_wrap=True)

    one = view.pipeline
    # Without a measurement there is no forecast, and none is made up.
    left = "" if view.remaining_seconds is None else f"; about {figures.duration(view.remaining_seconds)} left"
    say(f"{one.pipeline_id}: {view.noun}, {view.status}")
    say(f"asked: {view.asked}")
    say(f"began {_when(one.created_at)}; worked {figures.duration(view.seconds)}{left}")
    for number, stage in enumerate(view.stages, start=1):
        took = "" if stage.seconds is None else f", {figures.duration(stage.seconds)}"
        say(f"  {number}/{len(view.stages)} {stage.name}: {stage.status}{took}")
        lines = [*([stage.reason] if stage.reason else []), *stage.found]
        for line in [*lines, *(f"{thing} {made_id}" for thing, made_id in stage.made)]:
            say(f"      {line}")
    if view.answer:
        say(view.answer)
    if report_path:
        say(f"report: {report_path}")
    if view.part_of:
        say(f"a stage of {view.part_of}")
    if view.command:
        say(f"go on with it: {view.command}")


def shown(context: Context, caller: Caller, pipeline_id: str) -> Callable[[Console], None]:
    """Shows one to a person, as it is now."""
    view = view_pipeline(context, caller, pipeline_id)
    # Now, not when it is printed: writing a missing report needs the home, which is closed by then.
    report = _report(context, caller, view)
    return lambda console: show(console, view, report)


def teller() -> Tell:
    """Reports on stderr how far the stages are: they are part of the progress."""
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import stderr_console, visible

    def tell(pipeline: Pipeline, stage: Stage) -> None:
        # Names of stages are unique within a workflow.
        number = [one.name for one in pipeline.stages].index(stage.name) + 1
        took = ""
        if stage.began_at is not None and stage.ended_at is not None and stage.status != "running":
            took = f" after {figures.duration(stage.ended_at - stage.began_at)}"
        why = f": {stage.reason}" if stage.reason else ""
        line = f"{number}/{len(pipeline.stages)} {stage.name}: {stage.status}{took}{why}"
        stderr_console().print(visible(line), soft_wrap=True)

    return tell


def _when(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"
