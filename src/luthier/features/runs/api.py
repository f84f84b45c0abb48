"""/api/v1/runs, /api/v1/evaluations and /api/v1/jobs: what was made of a project's jobs, in our own words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from luthier.features.runs import changes
from luthier.features.runs import views as project_runs
from luthier.features.runs.labels import LabelChanges
from luthier.features.trackers import job as tracker_job
from luthier.features.training import recipe_job
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import HomeContext, Reader, Trainer
from luthier.platform.http.errors import documented
from luthier.platform.http.idempotency import once
from luthier.platform.http.path_redaction import redact_paths, reference_paths
from luthier.platform.http.routes import Id, Limit, ListObject, PartialList
from luthier.platform.jobs.records import Job, JobStatus

router = APIRouter(prefix="/api/v1", tags=["runs"])

_After = Annotated[str | None, Query(max_length=100)]


class RunList(PartialList[dict[str, Any]]):
    """Runs, newest first."""


class EventList(ListObject[dict[str, Any]]):
    """Events by step. next_after: what to ask from the next time, as `after`. has_more: whether there are more now."""

    next_after: int
    has_more: bool


class JobView(BaseModel):
    """A job as the queue knows it; times are seconds since 1970.

    Attributes:
        id: Of the job.
        kind: What it does.
        run_id: The run that it makes.
        status: As stored.
        shown_status: The status with pending requests, such as `pausing`.
        lane: The queue that it waits in.
        attempt: How often it was started.
        step: How far it was when it last reported.
        worker: Who works on it.
        created_at: When it was queued.
        updated_at: When it last changed.
        finished_at: When it ended; None before that.
        error: Why it failed.
    """

    id: str
    object: Literal["job"] = "job"
    kind: str
    run_id: str
    status: JobStatus
    shown_status: str
    lane: str
    attempt: int
    step: int
    worker: str | None
    created_at: int
    updated_at: int
    finished_at: int | None
    error: dict[str, Any] | None


class RunBody(BaseModel):
    """recipe: as in a recipe file, with ids of files (`file-...`) and names of models in place of paths."""

    model_config = ConfigDict(extra="forbid")

    recipe: dict[str, Any]


class RunEdit(BaseModel):
    """What is to change; what is left out, or null, stays as it is.

    Attributes:
        name: Empty: the default name again.
        note: Free text.
        group: Empty: none.
        is_starred: The star.
        is_archived: Whether lists hide it.
        tags: All of its tags.
        add_tags: Tags to add.
        remove_tags: Tags to take away.
    """

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str | None, Field(max_length=1_000)] = None
    note: Annotated[str | None, Field(max_length=20_000)] = None
    group: Annotated[str | None, Field(max_length=1_000)] = None
    is_starred: bool | None = None
    is_archived: bool | None = None
    tags: Annotated[list[str] | None, Field(max_length=100)] = None
    add_tags: Annotated[list[str], Field(max_length=100)] = []
    remove_tags: Annotated[list[str], Field(max_length=100)] = []


class RunLabelsView(BaseModel):
    """What is written about a run. name: empty where it has its default name."""

    id: str
    object: Literal["run.labels"] = "run.labels"
    name: str
    note: str
    group: str
    is_starred: bool
    is_archived: bool
    tags: list[str]


class DeletedRun(BaseModel):
    """What is left of a run."""

    id: str
    object: Literal["run"] = "run"
    deleted: Literal[True] = True


@router.get("/jobs/{job_id}", summary="Show a job", responses=documented(404))
def show_job(context: HomeContext, caller: Reader, job_id: Id) -> JobView:
    """One job of the project, those that commands have queued, too."""
    job = context.jobs.get(job_id, caller.project_id)
    return _view(context, job)


@router.post("/runs", summary="Start a run", status_code=201, response_model=JobView, responses=documented())
def start_run(context: HomeContext, caller: Trainer, asked: RunBody, request: Request) -> Any:
    """Queue a recipe. The run `run_id` has a record once it trains; `GET /api/v1/jobs/{id}` says how far it is.

    Rows are read before it waits for its turn: what is wrong with them ends the job. `POST /api/v1/plans` reports it
    before anything is queued.
    """
    return once(
        request,
        caller,
        context,
        lambda: _view(context, recipe_job.start(context, caller, asked.recipe)),
        status_code=201,
    )


@router.get("/runs", summary="List runs", responses=documented(404))
def list_runs(
    context: HomeContext,
    caller: Reader,
    after: _After = None,
    limit: Limit = 20,
    filter: Annotated[str, Query(max_length=1_000)] = "",
    sort: Annotated[str, Query(max_length=120)] = "",
) -> RunList:
    """Runs of the project that have begun, newest first, or in the order of `sort` (`-lr`: largest first).

    `filter` keeps some of them: `lr>1e-3 tag:sweep verdict:better`. Archived runs are there unless it leaves them out.
    """
    page = project_runs.list_runs(context, caller.project_id, after=after, limit=limit, filter_text=filter, sort=sort)
    return RunList(data=list(page.runs), has_more=page.has_more)


@router.patch("/runs/{run_id}", summary="Edit a run", responses=documented(404))
def edit_run(context: HomeContext, caller: Trainer, run_id: Id, asked: RunEdit) -> RunLabelsView:
    """Change its name, note, group, star, archive mark or tags; fields that are left out stay as they are."""
    labels = changes.edit_run(context, caller, run_id, LabelChanges(**asked.model_dump()))
    return RunLabelsView(id=run_id, **labels.as_json())


@router.post(
    "/runs/{run_id}/track", summary="Deliver a run to its trackers", status_code=202, responses=documented(404, 409)
)
def track_run(context: HomeContext, caller: Trainer, run_id: Id) -> JobView:
    """Queue the delivery of what its trackers do not have; `trackers` of the run says what each one has."""
    return _view(context, tracker_job.start(context, caller, run_id))


@router.delete("/runs/{run_id}", summary="Delete a run", responses=documented(404, 409))
def delete_run(
    context: HomeContext, caller: Trainer, run_id: Id, background: BackgroundTasks, with_models: bool = False
) -> DeletedRun:
    """Delete a run with its checkpoints, weights, evaluations and report; refused while something uses it.

    with_models: delete the models that are registered of it, too; without it they are a reason to refuse.
    """
    changes.delete_run(context, caller, run_id, with_models=with_models)
    background.add_task(changes.sweep, context)
    return DeletedRun(id=run_id)


@router.get("/runs/{run_id}", summary="Show a run", responses=documented(404))
def show_run(context: HomeContext, caller: Reader, run_id: Id) -> dict[str, Any]:
    """The run with its plan, its bill and its last evaluation, as `luthier runs show --json` prints them."""
    return project_runs.show_run(context, caller.project_id, run_id)


@router.get("/runs/{run_id}/events", summary="Events of a run", responses=documented(404))
def events(
    context: HomeContext,
    caller: Reader,
    run_id: Id,
    after: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
) -> EventList:
    """The events since `after`, at most `limit`; ask again with `next_after` for the rest, and to follow a run."""
    found = project_runs.run_events(context, caller.project_id, run_id, after=after, limit=limit)
    return EventList(data=found.events, next_after=found.next_after, has_more=found.has_more)


@router.get("/runs/{run_id}/verdict", summary="Was it worth it?", responses=documented(404))
def verdict(context: HomeContext, caller: Reader, run_id: Id) -> dict[str, Any]:
    """The verdict of the last evaluation of a run; 404 where it was not evaluated."""
    return project_runs.run_verdict(context, caller.project_id, run_id)


@router.get("/evaluations/{evaluation_id}", summary="Show an evaluation", responses=documented(404))
def evaluation(context: HomeContext, caller: Reader, evaluation_id: Id, with_samples: bool = False) -> dict[str, Any]:
    """Systems, metrics with intervals, comparisons and the verdict; with_samples: what each system wrote, too."""
    return project_runs.show_evaluation(context, caller.project_id, evaluation_id, with_samples=with_samples)


def _view(context: Context, job: Job) -> JobView:
    return JobView(
        id=job.job_id,
        kind=job.kind,
        run_id=job.run_id,
        status=job.status,
        shown_status=job.shown_status,
        lane=job.lane,
        attempt=job.attempt,
        step=job.step,
        worker=job.worker,
        created_at=int(job.created_at),
        updated_at=int(job.updated_at),
        finished_at=None if job.finished_at is None else int(job.finished_at),
        error=redact_paths(job.error, reference_paths(context, job.document)),
    )
