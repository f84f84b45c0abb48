"""/v1/evals: evals, their runs and graded output items, as OpenAI's client library reads them."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from luthier.core.access import Caller
from luthier.features.evals_api import service as evals
from luthier.features.evals_api.records import (
    CustomConfig,
    Eval,
    EvalRequest,
    EvalUpdate,
    FileContent,
    OutputItem,
    RunRequest,
)
from luthier.features.evals_api.store import Order, RunStatus, RunView
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import HomeContext, Reader, Trainer
from luthier.platform.http.errors import ApiError, documented
from luthier.platform.http.idempotency import once
from luthier.platform.http.path_redaction import redact_paths, reference_paths
from luthier.platform.http.routes import Id, Limit, ListPage

router = APIRouter(prefix="/v1/evals", tags=["evals"])


class EvalObject(BaseModel):
    """An eval. data_source_config: its type with the JSON Schema of what graders see."""

    id: str
    object: Literal["eval"] = "eval"
    name: str
    created_at: int
    data_source_config: dict[str, Any]
    testing_criteria: list[dict[str, Any]]
    metadata: dict[str, str] | None


class EvalList(ListPage[EvalObject]):
    """A page of evals."""


class EvalDeleted(BaseModel):
    """What is left of an eval."""

    object: Literal["eval.deleted"] = "eval.deleted"
    deleted: bool = True
    eval_id: str


class ResultCounts(BaseModel):
    """Output items so far."""

    total: int
    errored: int
    failed: int
    passed: int


class PerModelUsage(BaseModel):
    """What a run has used of a model."""

    # `model_` is a prefix that pydantic reserves by default.
    model_config = {"protected_namespaces": ()}

    model_name: str
    invocation_count: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int


class CriterionCounts(BaseModel):
    """How many items passed one grader; items with an error have failed it."""

    testing_criteria: str
    passed: int
    failed: int


class RunError(BaseModel):
    """Why a run has failed."""

    code: str
    message: str


class RunObject(BaseModel):
    """A run. report_url: its report with intervals, or its progress until there is one."""

    id: str
    object: Literal["eval.run"] = "eval.run"
    eval_id: str
    status: RunStatus
    model: str
    name: str
    created_at: int
    report_url: str
    result_counts: ResultCounts
    per_model_usage: list[PerModelUsage]
    per_testing_criteria_results: list[CriterionCounts]
    data_source: dict[str, Any]
    metadata: dict[str, str] | None
    error: RunError | None


class RunList(ListPage[RunObject]):
    """A page of runs."""


class RunDeleted(BaseModel):
    """What is left of a run."""

    object: Literal["eval.run.deleted"] = "eval.run.deleted"
    deleted: bool = True
    run_id: str


class OutputItemObject(BaseModel):
    """A graded item. results: one for each grader, in the order of the eval."""

    id: str
    object: Literal["eval.run.output_item"] = "eval.run.output_item"
    created_at: int
    run_id: str
    eval_id: str
    status: Literal["pass", "fail", "error"]
    datasource_item_id: int
    datasource_item: dict[str, Any]
    results: list[dict[str, Any]]
    sample: dict[str, Any] = Field(description="The answer; null values where a row brought it along")


class OutputItemList(ListPage[OutputItemObject]):
    """A page of graded items."""


@router.post("", status_code=201, response_model=EvalObject, responses=documented())
def create(body: EvalRequest, request: Request, caller: Trainer, context: HomeContext) -> Any:
    """Make an eval: the form of its rows, and its graders."""
    return once(request, caller, context, lambda: eval_object(evals.create(context, caller, body)), status_code=201)


@router.get("", response_model=EvalList, responses=documented())
def list_evals(
    caller: Reader,
    context: HomeContext,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    order_by: Literal["created_at", "updated_at"] = "created_at",
) -> EvalList:
    """The evals of the project, the oldest first by default."""
    found, has_more = context.evals.list(caller.project_id, after=after, limit=limit, order=order, order_by=order_by)
    return EvalList.of([eval_object(one) for one in found], has_more=has_more)


@router.get("/{eval_id}", response_model=EvalObject, responses=documented(404))
def retrieve(eval_id: Id, caller: Reader, context: HomeContext) -> EvalObject:
    """One eval."""
    return eval_object(context.evals.get(caller.project_id, eval_id))


@router.post("/{eval_id}", response_model=EvalObject, responses=documented(404))
def update(eval_id: Id, body: EvalUpdate, caller: Trainer, context: HomeContext) -> EvalObject:
    """Change the name or the metadata of an eval."""
    return eval_object(evals.update(context, caller, eval_id, body))


@router.delete("/{eval_id}", response_model=EvalDeleted, responses=documented(404, 409))
def delete(eval_id: Id, caller: Trainer, context: HomeContext) -> EvalDeleted:
    """Delete an eval with its runs."""
    evals.delete(context, caller, eval_id)
    return EvalDeleted(eval_id=eval_id)


@router.post("/{eval_id}/runs", status_code=201, response_model=RunObject, responses=documented(404))
def create_run(eval_id: Id, body: RunRequest, request: Request, caller: Trainer, context: HomeContext) -> Any:
    """Start a run; its rows are checked before any is answered."""
    one = context.evals.get(caller.project_id, eval_id)
    # The training scope alone must not allow model queries.
    if evals.needs_inference(one, body) and not caller.may("infer"):
        raise ApiError(
            403,
            f"The key {caller.name!r} may not ask models, and this run asks one; what to do: use a key with the scope "
            "infer",
            type="insufficient_permissions",
            code="missing_scope",
        )
    return once(
        request,
        caller,
        context,
        lambda: run_object(request, context, one, evals.start_run(context, caller, eval_id, body)),
        status_code=201,
    )


@router.get("/{eval_id}/runs", response_model=RunList, responses=documented(404))
def list_runs(
    eval_id: Id,
    request: Request,
    caller: Reader,
    context: HomeContext,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: RunStatus | None = None,
) -> RunList:
    """The runs of an eval, the oldest first by default."""
    one = context.evals.get(caller.project_id, eval_id)
    found, has_more = evals.page_of_runs(context, caller, eval_id, after=after, limit=limit, order=order, status=status)
    return RunList.of([run_object(request, context, one, view) for view in found], has_more=has_more)


@router.get("/{eval_id}/runs/{run_id}", response_model=RunObject, responses=documented(404))
def retrieve_run(eval_id: Id, run_id: Id, request: Request, caller: Reader, context: HomeContext) -> RunObject:
    """One run."""
    return _run(request, context, caller, eval_id, context.evals.run(caller.project_id, eval_id, run_id))


@router.post("/{eval_id}/runs/{run_id}", response_model=RunObject, responses=documented(404, 409))
def cancel_run(eval_id: Id, run_id: Id, request: Request, caller: Trainer, context: HomeContext) -> RunObject:
    """Cancel a run; items that were graded stay."""
    return _run(request, context, caller, eval_id, evals.cancel_run(context, caller, eval_id, run_id))


@router.post("/{eval_id}/runs/{run_id}/cancel", response_model=RunObject, responses=documented(404, 409))
def cancel_run_by_name(eval_id: Id, run_id: Id, request: Request, caller: Trainer, context: HomeContext) -> RunObject:
    """The same, at the address that newer clients use."""
    return _run(request, context, caller, eval_id, evals.cancel_run(context, caller, eval_id, run_id))


@router.delete("/{eval_id}/runs/{run_id}", response_model=RunDeleted, responses=documented(404, 409))
def delete_run(eval_id: Id, run_id: Id, caller: Trainer, context: HomeContext) -> RunDeleted:
    """Delete a run with its items; its report stays."""
    evals.delete_run(context, caller, eval_id, run_id)
    return RunDeleted(run_id=run_id)


@router.get("/{eval_id}/runs/{run_id}/output_items", response_model=OutputItemList, responses=documented(404))
def list_output_items(
    eval_id: Id,
    run_id: Id,
    caller: Reader,
    context: HomeContext,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
    status: Literal["fail", "pass", "error", "failed"] | None = None,
) -> OutputItemList:
    """The graded items of a run, in the order of the data source by default."""
    found, has_more = evals.page_of_items(
        context,
        caller,
        eval_id,
        run_id,
        after=after,
        limit=limit,
        order=order,
        # OpenAI's documentation has both words.
        status="fail" if status == "failed" else status,
    )
    return OutputItemList.of([item_object(one) for one in found], has_more=has_more)


@router.get(
    "/{eval_id}/runs/{run_id}/output_items/{item_id}", response_model=OutputItemObject, responses=documented(404)
)
def retrieve_output_item(
    eval_id: Id, run_id: Id, item_id: Id, caller: Reader, context: HomeContext
) -> OutputItemObject:
    """One graded item."""
    return item_object(evals.item(context, caller, eval_id, run_id, item_id))


def eval_object(one: Eval) -> EvalObject:
    """An eval as the wire has it."""
    config = one.data_source_config
    shown: dict[str, Any] = {"type": config.type, "schema": evals.schema_of(one)}
    if not isinstance(config, CustomConfig):
        shown["metadata"] = config.metadata
    return EvalObject(
        id=one.eval_id,
        name=one.name,
        created_at=int(one.created_at),
        data_source_config=shown,
        testing_criteria=[grader.model_dump(mode="json", exclude_none=True) for grader in one.testing_criteria],
        metadata=one.metadata,
    )


def run_object(request: Request, context: Context, one: Eval, view: RunView) -> RunObject:
    """A run as the wire has it."""
    run, totals, job = view.run, view.run.totals, view.job
    page = f"suites/{run.result_id}" if view.status == "completed" else f"orders/{run.job_id}"
    # What a crash has said last may name files of this machine.
    error = None if job.error is None else redact_paths(job.error, reference_paths(context, job.document))
    return RunObject(
        id=run.eval_run_id,
        eval_id=run.eval_id,
        status=view.status,
        model=run.model,
        name=run.name,
        created_at=int(run.created_at),
        report_url=f"{request.url.scheme}://{request.url.netloc}/evaluations/{page}",
        result_counts=ResultCounts(
            total=totals.num_done, errored=totals.errored, failed=totals.failed, passed=totals.passed
        ),
        per_model_usage=[
            PerModelUsage(
                model_name=name,
                invocation_count=used.invocation_count,
                prompt_tokens=used.prompt_tokens,
                completion_tokens=used.completion_tokens,
                total_tokens=used.prompt_tokens + used.completion_tokens,
                cached_tokens=used.cached_tokens,
            )
            for name, used in totals.usage.items()
        ],
        per_testing_criteria_results=[
            CriterionCounts(testing_criteria=grader.name, passed=passed, failed=failed)
            for grader, passed, failed in zip(
                one.testing_criteria, totals.passed_by_criterion, totals.failed_by_criterion, strict=False
            )
        ],
        data_source=_data_source(view),
        metadata=run.metadata,
        error=None if error is None else _error(error),
    )


def item_object(one: OutputItem) -> OutputItemObject:
    """A graded item as the wire has it."""
    return OutputItemObject(
        id=one.item_id,
        created_at=int(one.created_at),
        run_id=one.eval_run_id,
        eval_id=one.eval_id,
        status=one.status,
        datasource_item_id=one.position,
        datasource_item=one.item,
        results=[result.model_dump(mode="json") for result in one.results],
        sample=one.sample,
    )


def _data_source(view: RunView) -> dict[str, Any]:
    found = view.run.data_source.model_dump(mode="json", exclude_none=True)
    source = view.run.data_source.source
    if isinstance(source, FileContent):
        # Rows as they came: a field of an item that is null is a value, not a default.
        found["source"]["content"] = [
            {"item": row.item} | ({} if row.sample is None else {"sample": row.sample}) for row in source.content
        ]
    return found


def _error(error: dict[str, Any]) -> RunError:
    message = error.get("message") or f"{error['came']}; expected: {error['expected']}; what to do: {error['do']}"
    return RunError(code=error.get("code", "run_failed"), message=message)


def _run(request: Request, context: Context, caller: Caller, eval_id: str, view: RunView) -> RunObject:
    return run_object(request, context, context.evals.get(caller.project_id, eval_id), view)
