"""`luthier pipelines`: progress and results of workflows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.core.aliases import command_of
from luthier.platform.cli.command import Answer, HomeOption, JsonOption, caller_of, open_context

if TYPE_CHECKING:
    from luthier.core.workflows.pipeline import PipelineKind

_KINDS: tuple[PipelineKind, ...] = ("showdown", "auto", "retrain", "quickstart", "distill")
_NAMES = tuple(map(command_of, _KINDS))
"""What a user types: the command that begins a workflow. The stored kinds are accepted, too."""
ProjectOption = Annotated[str, typer.Option("--project", metavar="P", help="The project of the workflows.")]


def list_pipelines(
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="|".join(_NAMES), help="Only these.", show_default="all")
    ] = None,
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """List model comparisons, automl runs, retrainings, quickstarts and distillations, newest first, at most 100."""
    from luthier.features.workflows import views

    asked = _kind(kind)
    with open_context(home) as context:
        found = views.list_pipelines(context, caller_of(context, project), asked)
    return Answer(as_json, [views.summary(one) for one in found], lambda console: views.show_all(console, found))


def show(
    pipeline_id: Annotated[str, typer.Argument(metavar="ID", help="The id from `luthier pipelines list`.")],
    project: ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Show one workflow: its stages with the reasons, its result, and its report, written again if missing."""
    from luthier.features.workflows import views

    with open_context(home) as context:
        caller = caller_of(context, project)
        view = views.view_pipeline(context, caller, pipeline_id)
        document = views.document(context, caller, view)
    return Answer(as_json, document, lambda console: views.show(console, view, document["report_path"]))


COMMANDS: dict[str, Callable[..., Any]] = {"list": list_pipelines, "show": show}


def _kind(given: str | None) -> PipelineKind | None:
    from luthier.core.errors import RequestError

    found = next((kind for kind in _KINDS if given in (kind, command_of(kind))), None)
    if given is not None and found is None:
        raise RequestError(f"--kind {given!r}", expected=f"one of {', '.join(_NAMES)}", do="correct it")
    return found
