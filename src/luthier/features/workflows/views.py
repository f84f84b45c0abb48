"""Use cases of who looks at showdowns, autos and retrainings: those of a project, and one of them as it is now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Final, Literal

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.aliases import command_of
from luthier.core.errors import NotFoundError
from luthier.core.workflows.pipeline import Pipeline, PipelineKind, Stage
from luthier.core.workflows.showdown import ShowdownResult
from luthier.features.workflows import format as pipeline_format
from luthier.features.workflows.format import Thing
from luthier.features.workflows.service import lock_of
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redact_paths

Status = Literal["waiting", "running", "interrupted", "paused", "done", "refused", "failed"]
AuditPage = Literal["audit.html", "audit_repaired.html"]
MAX_LISTED: Final = 100
_AUDITS: Final[dict[str, AuditPage]] = {"audit": "audit.html", "repair": "audit_repaired.html"}


@dataclass(frozen=True, slots=True)
class StageView:
    """A stage as it is now. status: its own, or `interrupted` where it should go on and no process works on it.

    about: what it is for. reason: why it went no further. found: sentences. made: what can be looked at, by kind and
    id. page: of the audit that it has written. seconds: that it has worked, up to now; None before it began.
    """

    name: str
    about: str
    status: Status
    reason: str
    found: Sequence[str]
    made: Sequence[tuple[Thing, str]]
    page: AuditPage | None
    began_at: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class PipelineView:
    """One as it is now. status: of the whole. stage: the one that it is in, or that ended it; None where all are done.

    subject, asked: what was asked, short and on one line. answer: what came of one that is done; of the list a short
    form. seconds: of all stages. part_of: the id of the auto whose stage it is. command: goes on with it, where it
    stands still. has_report: whether `pipeline_pages.report_file` finds or makes one.
    """

    pipeline: Pipeline
    subject: str
    asked: str
    status: Status
    stage: str | None
    stages: Sequence[StageView]
    seconds: float
    ended_at: float | None
    answer: str = ""
    part_of: str | None = None
    command: str | None = None

    @property
    def is_at_work(self) -> bool:
        """Whether a process works on it."""
        return self.status == "running"

    @property
    def place(self) -> int | None:
        """Of the stage that it is in, from 1; None where all are done."""
        return next((number for number, one in enumerate(self.stages, start=1) if one.name == self.stage), None)

    @property
    def has_report(self) -> bool:
        """Whether it has a page of its own: at its end, and an auto also where a stage ended it."""
        ends = {"showdown": ("done",), "auto": ("done", "refused", "failed"), "retrain": ()}
        return self.status in ends[self.pipeline.kind]


def list_pipelines(context: Context, caller: Caller, kind: PipelineKind | None = None) -> list[PipelineView]:
    """Those of the caller's project, the newest first, at most 100; of one kind, where it is given."""
    found = context.pipelines.list(caller.project_id, kind, limit=MAX_LISTED)
    parts = _parts(context, caller) if any(one.kind == "showdown" for one in found) else {}
    now = context.access.now()
    return [_view(context, caller, one, parts, now) for one in found]


def view_pipeline(context: Context, caller: Caller, pipeline_id: str) -> PipelineView:
    """One of them. Raises NotFoundError, also for another project's."""
    pipeline = context.pipelines.get(pipeline_id, caller.project_id)
    parts = _parts(context, caller) if pipeline.kind == "showdown" else {}
    view = _view(context, caller, pipeline, parts, context.access.now())
    stages = [
        replace(stage, made=[one for one in stage.made if _is_there(context, caller, *one)]) for stage in view.stages
    ]
    return replace(view, stages=stages, answer=_answer(context, caller, view))


def without_folders(context: Context, view: PipelineView) -> PipelineView:
    """The same without places of this machine, for who is not at it."""
    shown = dict.fromkeys(folders_of(context, view.pipeline), "")
    stages = [
        replace(stage, reason=redact_paths(stage.reason, shown), found=redact_paths(list(stage.found), shown))
        for stage in view.stages
    ]
    return replace(view, stages=stages, answer=redact_paths(view.answer, shown))


def folder_of(context: Context, pipeline: Pipeline) -> Path:
    """Where its pages lie."""
    from luthier.features.workflows.automl import stages as auto_work
    from luthier.features.workflows.model_comparison import stages as showdown_work

    if pipeline.kind == "retrain":
        return lock_of(context, pipeline.pipeline_id).parent
    if pipeline.kind == "auto":
        return auto_work.folder_of(context, pipeline.pipeline_id)
    return showdown_work.folder_of(context, pipeline.pipeline_id)


def folders_of(context: Context, pipeline: Pipeline) -> list[str]:
    """What no page shows of this machine, with a slash at the end, the longest first: the home, and where files are."""
    asked = pipeline.asked
    named = [asked.get(name) for name in ("data", "held_out", "gate", "suite")]
    named += [*asked.get("models", []), *(one.get("model") for one in asked.get("contenders", []))]
    found = {str(PurePath(one).parent) for one in named if isinstance(one, str) and one.startswith("/")}
    return sorted((f"{folder}/" for folder in {*found, str(context.home)} if folder != "/"), key=len, reverse=True)


def result_of(context: Context, caller: Caller, pipeline: Pipeline) -> ShowdownResult | None:
    """What came of a showdown; None where it is gone."""
    try:
        return context.assessments.get("showdown", ShowdownResult, caller.project_id, pipeline.pipeline_id)
    except NotFoundError:
        return None


def _view(context: Context, caller: Caller, pipeline: Pipeline, parts: dict[str, str], now: float) -> PipelineView:
    from luthier.core.system.file_lock import is_held

    is_at_work = pipeline.next_stage is not None and is_held(lock_of(context, pipeline.pipeline_id))
    status = _status(pipeline, is_at_work)
    stages = [_stage_view(context, pipeline, stage, is_at_work, now) for stage in pipeline.stages]
    refused = next((stage for stage in pipeline.stages if stage.status == "refused"), None)
    at = refused or pipeline.next_stage
    sizing = pipeline.asked.get("sizing_hours", 0.0) * 3600  # of a showdown, before its stages are known
    part_of = parts.get(pipeline.pipeline_id)
    return PipelineView(
        pipeline=pipeline,
        subject=pipeline_format.subject(pipeline),
        asked=pipeline_format.format_request(pipeline),
        status=status,
        stage=None if at is None else at.name,
        stages=stages,
        seconds=sizing + sum(stage.seconds or 0.0 for stage in stages),
        ended_at=max((one.ended_at or 0.0 for one in pipeline.stages), default=0.0) if status == "done" else None,
        answer=pipeline_format.format_answer(pipeline) if status == "done" else "",
        part_of=part_of,
        command=_command(context, caller, pipeline, part_of) if status not in ("running", "done", "refused") else None,
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


def _stage_view(context: Context, pipeline: Pipeline, stage: Stage, is_at_work: bool, now: float) -> StageView:
    kind, page = pipeline.kind, _AUDITS.get(stage.name)
    is_written = page is not None and (folder_of(context, pipeline) / page).is_file()
    status: Status = "interrupted" if stage.status == "running" and not is_at_work else stage.status
    return StageView(
        name=stage.name,
        about=pipeline_format.stage_title(kind, stage.name),
        status=status,
        reason=stage.reason,
        found=pipeline_format.format_findings(kind, stage),
        made=pipeline_format.made_by(kind, stage),
        page=page if is_written else None,
        began_at=stage.began_at,
        seconds=_seconds(stage, status, now),
    )


def _seconds(stage: Stage, status: Status, now: float) -> float | None:
    """What it worked: as it says itself, since a stage that was killed has waited between its begin and its end."""
    if status == "done" and "seconds" in stage.came:
        return float(stage.came["seconds"])
    if stage.began_at is None or status == "interrupted":
        return None
    return max(0.0, (now if status == "running" else stage.ended_at or stage.began_at) - stage.began_at)


def _command(context: Context, caller: Caller, pipeline: Pipeline, part_of: str | None) -> str:
    if part_of is not None:
        return f"luthier automl --resume {part_of}"
    of = "" if caller.project_id == DEFAULT_PROJECT else f" --project {context.access.project(caller.project_id).name}"
    return f"luthier {command_of(pipeline.kind)} --resume {pipeline.pipeline_id}{of}"


def _parts(context: Context, caller: Caller) -> dict[str, str]:
    """Id of a showdown to id of the auto whose stage it is."""
    autos = context.pipelines.list(caller.project_id, "auto")
    return {one.came("showdown").get("showdown_id", ""): one.pipeline_id for one in autos}


def _answer(context: Context, caller: Caller, view: PipelineView) -> str:
    """As the list has it; a showdown says it with its figures, where its result is still there."""
    is_showdown = view.pipeline.kind == "showdown" and view.status == "done"
    found = result_of(context, caller, view.pipeline) if is_showdown else None
    return view.answer if found is None else found.recommendation.headline


def _is_there(context: Context, caller: Caller, thing: Thing, made_id: str) -> bool:
    """Whether the caller's project has it: ids are known before what they name is made."""
    from luthier.core.results.task_result import SuiteResult
    from luthier.features.runs.evaluations import read_evaluation

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
