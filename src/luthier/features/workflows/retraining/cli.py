"""`luthier retrain`: retrain a deployed model on reviewed answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from luthier.core.text.printed_commands import in_home
from luthier.platform.cli.command import (
    Answer,
    HomeOption,
    JsonOption,
    caller_of,
    open_context,
    refuse_beside_resume,
)

if TYPE_CHECKING:
    from luthier.features.workflows.retraining.request import RetrainRequest

_STARTS: Final = ("base", "last")


def retrain(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="The name of a deployment.")] = None,
    from_traffic: Annotated[
        bool, typer.Option("--from-traffic", help="Also learn from sampled answers accepted unchanged.")
    ] = False,
    review: Annotated[bool, typer.Option("--review", help="Start only if the review queue is empty.")] = False,
    panel: Annotated[
        list[str] | None, typer.Option("--panel", metavar="ID", help="Also learn the preferences of a rating panel.")
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            "--start",
            metavar="base|last",
            help="base: train the base model on all rows. last: continue the last model.",
        ),
    ] = "base",
    canary: Annotated[
        float | None,
        typer.Option(
            "--canary", metavar="F", help="Deploy at once to this fraction of users; otherwise only offer it."
        ),
    ] = None,
    gate: Annotated[
        Path | None,
        typer.Option("--gate", metavar="FILE", help="A release gate to pass, in addition to the project's."),
    ] = None,
    suite: Annotated[
        Path | None, typer.Option("--suite", metavar="FILE", help="Also evaluate this suite; a gate may need it.")
    ] = None,
    min_rows: Annotated[int, typer.Option("--min-rows", min=1, help="Minimum number of reviewed rows.")] = 20,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="ID", help="Continue a stopped or killed retraining.")
    ] = None,
    project: Annotated[str, typer.Option("--project", metavar="P", help="The project of the retraining.")] = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Retrain a deployed model on reviewed answers, compare it with the deployed one, and offer a canary.

    Only answers accepted by a person are learned. The rows become the next version of the dataset, audited and checked
    against the held-out rows; a fifth of the reviewed ones is held out. The retraining ends if the new model is worse
    than the deployed one on old or new held-out rows, or fails a gate. `luthier pipelines` shows the progress.
    """
    from luthier.core.errors import RequestError
    from luthier.features.workflows.retraining.request import RetrainRequest

    if (model is None) == (resume is None):
        raise RequestError(
            "both MODEL and --resume" if model else "neither MODEL nor --resume",
            expected="the name of a deployment, or --resume ID",
            do="write for example: luthier retrain support --review",
        )
    refuse_beside_resume(ctx)
    if start not in _STARTS:
        raise RequestError(f"--start {start!r}", expected="base or last", do="correct it")
    request = RetrainRequest(
        model=model or "",
        from_traffic=from_traffic,
        review=review,
        panels=tuple(panel or ()),
        start="last" if start == "last" else "base",
        canary=canary,
        gate=gate,
        suite=suite,
        min_rows=min_rows,
    )
    return _carried_out(request, resume, project, as_json, home)


def _carried_out(request: RetrainRequest, resume: str | None, project: str, as_json: bool, home: Path | None) -> Answer:
    from luthier.core.access import project_option
    from luthier.features.workflows.retraining import workflow as retrains
    from luthier.features.workflows.views import shown, teller
    from luthier.platform.cli.console import stderr_console
    from luthier.platform.workflows.engine import silent

    with open_context(home) as context:
        caller = caller_of(context, project)
        pipeline_id = resume or retrains.begin(context, caller, request).pipeline_id
        if resume is None and not as_json:
            command = f"luthier retrain --resume {pipeline_id}{project_option(project)}"
            line = in_home(f"{pipeline_id}: resume after a stop with: {command}")
            stderr_console().print(line, soft_wrap=True)
        found = retrains.go_on(context, caller, pipeline_id, tell=silent if as_json else teller())
        show = shown(context, caller, pipeline_id)
    refused = any(stage.status == "refused" for stage in found.stages)
    return Answer(as_json, found.model_dump(mode="json"), show, exit_code=1 if refused else 0)
