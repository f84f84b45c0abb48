"""The view of a workflow for pages, reports, `--json` and the terminal, and the list of a project."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.core.access import DEFAULT_PROJECT, Caller, project_option
from luthier.core.errors import NotFoundError
from luthier.core.registry import STORED
from luthier.core.system.files import is_held
from luthier.core.text.printed_commands import in_home
from luthier.core.workflows.pipeline import Pipeline, PipelineKind, Stage
from luthier.features.workflows.registry import workflow_of
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redact_paths
from luthier.platform.workflows.engine import StageSpec, Thing, Workflow, WorkflowRun, lock_of, remaining_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.platform.workflows.engine import Tell

Status = Literal["waiting", "running", "interrupted", "paused", "done", "refused", "failed"]
MAX_LISTED: Final = 100
THINGS: Final[dict[Thing, str]] = {
    "run": "run",
    "study": "study",
    "evaluation": "evaluation",
    "showdown": "model comparison",
    "dataset": "dataset",
    "suite": "result of the suite",
}
_one_page_at_once = threading.Lock()  # two readers must not write the same file


@dataclass(frozen=True, slots=True)
class StageView:
    """The present state of a stage.

    Attributes:
        name: Name of the stage.
        about: Its purpose.
        status: Its stored status, or `interrupted` if it is unfinished and no process works on it.
        reason: The reason for an early end.
        found: Its findings, one sentence each.
        made: Viewable results, by kind and id.
        page: The page that it wrote, if any.
        began_at: Seconds since 1970; None before it began.
        seconds: Its working time so far; None before it began.
    """

    name: str
    about: str
    status: Status
    reason: str
    found: Sequence[str]
    made: Sequence[tuple[Thing, str]]
    page: str | None
    began_at: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class WorkflowView:
    """The present state of a workflow.

    Attributes:
        pipeline: The record.
        noun: Its kind, with an article.
        subject: Its subject in a few words.
        asked: The request on one line.
        details: The request as pairs of name and value, without folders.
        status: Status of the whole workflow.
        stage: The current stage, or the one that ended it; None if all are done.
        stages: All stages in order.
        seconds: Working time of all stages.
        remaining_seconds: Expected time of the remaining stages; None if no process works on it, or unknown.
        ended_at: Seconds since 1970; None if it is not done.
        answer: The result of a completed workflow; in the list a short form.
        part_of: The id of the automl run that it is a stage of.
        command: The command that resumes it; None if there is nothing to resume.
        has_report: Whether `report_file` can find or write a report.
    """

    pipeline: Pipeline
    noun: str
    subject: str
    asked: str
    details: Sequence[tuple[str, str]]
    status: Status
    stage: str | None
    stages: Sequence[StageView]
    seconds: float
    remaining_seconds: float | None
    ended_at: float | None
    answer: str
    part_of: str | None
    command: str | None
    has_report: bool

    @property
    def is_at_work(self) -> bool:
        """Whether a process works on it."""
        return self.status == "running"

    @property
    def place(self) -> int | None:
        """Number of the current stage, from 1; None if all are done."""
        return next((number for number, one in enumerate(self.stages, start=1) if one.name == self.stage), None)


def list_pipelines(context: Context, caller: Caller, kind: PipelineKind | None = None) -> list[WorkflowView]:
    """The workflows of the caller's project, newest first, at most 100; of one kind if given."""
    found = context.pipelines.list(caller.project_id, kind, limit=MAX_LISTED)
    # Only a model comparison can be part of another workflow.
    parts = _parts(context, caller) if any(one.kind == "showdown" for one in found) else {}
    return [_view(context, caller, one, parts) for one in found]


def view_pipeline(context: Context, caller: Caller, pipeline_id: str) -> WorkflowView:
    """One workflow.

    Raises:
        NotFoundError: The project has no such workflow.
    """
    pipeline = context.pipelines.get(pipeline_id, caller.project_id)
    view = _view(context, caller, pipeline, _parts(context, caller) if pipeline.kind == "showdown" else {})
    stages = [
        replace(stage, made=[one for one in stage.made if _is_there(context, caller, *one)]) for stage in view.stages
    ]
    headline = workflow_of(pipeline.kind).headline
    answer = headline(context, caller, pipeline) if headline and view.status == "done" else view.answer
    return replace(view, stages=stages, answer=answer)


def without_folders(context: Context, view: WorkflowView) -> WorkflowView:
    """The same without paths of this machine, for remote users."""
    shown = dict.fromkeys(folders_of(context, view.pipeline), "")
    stages = [
        replace(stage, reason=redact_paths(stage.reason, shown), found=redact_paths(list(stage.found), shown))
        for stage in view.stages
    ]
    command = None if view.command is None else redact_paths(view.command, shown)
    return replace(view, stages=stages, answer=redact_paths(view.answer, shown), command=command)


def folders_of(context: Context, pipeline: Pipeline) -> list[str]:
    """Folders that no page shows, with a final slash, longest first: the home, and folders of files."""
    asked = pipeline.asked
    named = [asked.get(name) for name in ("data", "held_out", "gate", "suite", "teacher", "student")]
    named += [*asked.get("models", []), *(one.get("model") for one in asked.get("contenders", []))]
    found = {str(PurePath(one).parent) for one in named if isinstance(one, str) and one.startswith("/")}
    # Longest first: replacing a shorter folder earlier would leave the rest of a longer one.
    return sorted((f"{folder}/" for folder in {*found, str(context.home)} if folder != "/"), key=len, reverse=True)


def report_file(context: Context, caller: Caller, pipeline_id: str) -> Path:
    """The report, written again if the file is missing.

    Raises:
        NotFoundError: The project has no such workflow, or the workflow has no report.
    """
    view = view_pipeline(context, caller, pipeline_id)
    pipeline, workflow = view.pipeline, workflow_of(view.pipeline.kind)
    if not view.has_report or workflow.write_report is None:
        its = "the report of the run that it trained"
        raise NotFoundError(
            f"{pipeline.pipeline_id} has no report: it is {view.noun} that is {view.status}",
            expected=its if workflow.write_report is None else "one that has finished",
            do=f"see its stages: luthier pipelines show {pipeline.pipeline_id}",
        )
    path = workflow.folder_of(context, pipeline.pipeline_id) / "report.html"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_page_at_once:
            workflow.write_report(context, caller, pipeline, path)
    return path


def report_of(context: Context, caller: Caller, pipeline_id: str) -> str:
    """Its report as text, without paths of this machine.

    Raises:
        NotFoundError: The project has no such workflow, or the workflow has no report.
    """
    text = report_file(context, caller, pipeline_id).read_text(encoding="utf-8")
    return _plain(context, context.pipelines.get(pipeline_id, caller.project_id), text)


def stage_page(context: Context, caller: Caller, pipeline_id: str, name: str) -> str:
    """A page written by a stage, such as `audit.html`, without paths of this machine.

    Raises:
        NotFoundError: The project has no such workflow, or the workflow has no such page.
    """
    pipeline = context.pipelines.get(pipeline_id, caller.project_id)
    try:
        folder = workflow_of(pipeline.kind).folder_of(context, pipeline_id)
        return _plain(context, pipeline, (folder / name).read_text(encoding="utf-8"))
    except OSError:
        raise NotFoundError(
            f"{pipeline_id} has no page {name}",
            expected="an automl run or a retraining with audited rows",
            do="see its stages, and wait until they were",
        ) from None


def _plain(context: Context, pipeline: Pipeline, text: str) -> str:
    """A page without these folders, in their HTML and plain forms."""
    for folder in folders_of(context, pipeline):
        # Escaped first: HTML attributes and texts contain the folder with entities.
        text = text.replace(escape(folder), "").replace(folder, "")
    return text


def _view(context: Context, caller: Caller, pipeline: Pipeline, parts: dict[str, str]) -> WorkflowView:
    workflow, now = workflow_of(pipeline.kind), context.access.now()
    run = WorkflowRun(context, caller, workflow, pipeline)
    specs = {one.name: one for one in workflow.stages(run.spec)}
    # The kernel releases the lock when its holder dies, so it distinguishes a killed workflow from a running one.
    is_at_work = pipeline.next_stage is not None and is_held(lock_of(context, pipeline.pipeline_id))
    status = _status(pipeline, is_at_work)
    stages = [_stage_view(run, specs[stage.name], stage, is_at_work, now) for stage in pipeline.stages]
    # A refused stage ends the workflow although others wait after it.
    at = next((stage for stage in pipeline.stages if stage.status == "refused"), None) or pipeline.next_stage
    part_of = parts.get(pipeline.pipeline_id)
    remaining = None
    if is_at_work:
        with suppress(NotFoundError):  # a result needed for the forecast was removed
            remaining = remaining_seconds(run)
    is_over = status in ("running", "done", "refused")
    return WorkflowView(
        pipeline=pipeline,
        noun=workflow.noun,
        subject=workflow.subject(pipeline.asked) or pipeline.pipeline_id,
        asked=workflow.summary(pipeline.asked),
        details=[(name, str(value)) for name, value in workflow.details(pipeline.asked).items() if value],
        status=status,
        stage=None if at is None else at.name,
        stages=stages,
        seconds=workflow.hours_before(pipeline.asked) * 3600 + sum(stage.seconds or 0.0 for stage in stages),
        remaining_seconds=remaining,
        ended_at=max((one.ended_at or 0.0 for one in pipeline.stages), default=0.0) if status == "done" else None,
        answer=workflow.answer(pipeline) if status == "done" else "",
        part_of=part_of,
        command=None if is_over else _command(context, caller, workflow, pipeline, part_of),
        has_report=status in workflow.reported,
    )


def _status(pipeline: Pipeline, is_at_work: bool) -> Status:
    following = pipeline.next_stage
    if following is None:
        return "refused" if any(stage.status == "refused" for stage in pipeline.stages) else "done"
    if is_at_work:
        return "running"
    if following.status in ("failed", "paused"):
        return following.status
    return "interrupted" if any(stage.status != "waiting" for stage in pipeline.stages) else "waiting"


def _stage_view(run: WorkflowRun, spec: StageSpec, stage: Stage, is_at_work: bool, now: float) -> StageView:
    status: Status = "interrupted" if stage.status == "running" and not is_at_work else stage.status
    outcome = spec.outcome.model_validate(stage.came, context=STORED)
    return StageView(
        name=stage.name,
        about=spec.title,
        status=status,
        reason=stage.reason,
        found=outcome.lines(),
        made=outcome.made(),
        page=spec.page if spec.page and (run.folder / spec.page).is_file() else None,
        began_at=stage.began_at,
        seconds=_seconds(stage, status, now),
    )


def _seconds(stage: Stage, status: Status, now: float) -> float | None:
    """Its recorded working time: a killed stage was idle for part of the time between start and end."""
    if status == "done" and "seconds" in stage.came:
        return float(stage.came["seconds"])
    if stage.began_at is None or status == "interrupted":
        return None
    return max(0.0, (now if status == "running" else stage.ended_at or stage.began_at) - stage.began_at)


def _command(context: Context, caller: Caller, workflow: Workflow, pipeline: Pipeline, part_of: str | None) -> str:
    project = caller.project_id
    if project != DEFAULT_PROJECT:
        project = context.access.project(project).name
    command = workflow.command(pipeline) if part_of is None else f"luthier automl --resume {part_of}"
    return f"{command}{project_option(project)}"


def _parts(context: Context, caller: Caller) -> dict[str, str]:
    """Id of a model comparison -> id of the automl run of which it is a stage."""
    autos = context.pipelines.list(caller.project_id, "auto")
    return {one.came("showdown").get("showdown_id", ""): one.pipeline_id for one in autos}


def _is_there(context: Context, caller: Caller, thing: Thing, made_id: str) -> bool:
    """Whether it exists in the caller's project: ids are known before the object is made."""
    from luthier.core.results.suite import SuiteResult
    from luthier.features.runs.views import read_evaluation

    project_id = caller.project_id
    looks: dict[Thing, Any] = {
        "study": lambda: context.studies.get(made_id, project_id),
        "showdown": lambda: context.pipelines.get(made_id, project_id),
        "evaluation": lambda: read_evaluation(context, project_id, made_id),
        "suite": lambda: context.assessments.get("suite", SuiteResult, project_id, made_id),
        "dataset": lambda: context.datasets.get(project_id, made_id),
    }
    if thing == "run":
        return context.runs.project_of(made_id) == project_id
    try:
        looks[thing]()
    except NotFoundError:
        return False
    return True


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
    """The document of `luthier pipelines show --json`; writes the report if its file is missing."""
    return {
        **summary(view),
        "asked": view.pipeline.asked,
        "answer": view.answer or None,
        "stages": [_stage(stage) for stage in view.stages],
        "report_path": _report(context, caller, view),
        "command": view.command,
    }


def _report(context: Context, caller: Caller, view: WorkflowView) -> str | None:
    """None if it has none, or if it and its source documents are missing."""
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
        began = f"{figures.utc(one.created_at)} UTC"
        cells = [one.pipeline_id, one.kind, view.asked, view.status, view.stage or "-", began]
        table.add_row(*(visible(cell) for cell in cells), figures.duration(view.seconds))
    console.print(table)


def show(console: Console, view: WorkflowView, report_path: str | None) -> None:
    """One workflow: the request, each stage, the result, and the next command."""
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import visible

    def say(line: str) -> None:
        console.print(visible(line), soft_wrap=True)

    one = view.pipeline
    # Without a measurement there is no forecast.
    left = "" if view.remaining_seconds is None else f"; about {figures.duration(view.remaining_seconds)} left"
    say(f"{one.pipeline_id}: {view.noun}, {view.status}")
    say(f"asked: {view.asked}")
    say(f"began {figures.utc(one.created_at)} UTC; worked {figures.duration(view.seconds)}{left}")
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
        say(in_home(f"resume it: {view.command}"))


def shown(context: Context, caller: Caller, pipeline_id: str) -> Callable[[Console], None]:
    """Show the present state of a workflow on the terminal."""
    view = view_pipeline(context, caller, pipeline_id)
    # Now, not when printing: writing a missing report needs the home, which is closed by then.
    report = _report(context, caller, view)
    return lambda console: show(console, view, report)


def teller() -> Tell:
    """Report the stages on stderr, as part of the progress."""
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
