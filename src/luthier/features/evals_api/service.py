"""Use cases: evals of a project and their runs: create, list, read, change, cancel and delete.

An eval is a suite whose tasks are its graders; a run is an evaluation job, and its report a result of a suite.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError, UnsupportedError
from luthier.core.ids import new_id
from luthier.core.text.json_schema import check_schema
from luthier.features.evals_api.data import SAMPLE_SCHEMA, chat_parameters, check_prompt
from luthier.features.evals_api.records import (
    CompletionsSource,
    CustomConfig,
    Eval,
    EvalRequest,
    EvalRun,
    EvalUpdate,
    FileId,
    LogsConfig,
    OutputItem,
    ResponsesSource,
    RunRequest,
    StoredCompletions,
    StoredResponses,
    missing_threshold,
)
from luthier.features.evals_api.store import Order, RunStatus, RunView
from luthier.features.evaluation_orders.service import ASKED, EvaluationOrder
from luthier.features.serving import graders
from luthier.features.serving.api.offline import parsed
from luthier.features.serving.graders import GraderRequest, MultiRequest, PythonRequest, SingleGrader
from luthier.features.serving.models import route
from luthier.platform.audit_log.service import record
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.http.errors import ApiError
from luthier.platform.jobs import orders
from luthier.platform.jobs.named_models import NamedModel, models_in
from luthier.platform.jobs.records import ENDED, Job

EVAL_RUN: Final = "eval_run"
"""The key of the run's id in the document of its job."""
CALLER: Final = "caller"
_DUMMY_MESSAGE: Final = {"role": "user", "content": "x"}


def create(context: Context, caller: Caller, request: EvalRequest) -> Eval:
    """Make an eval.

    Raises:
        UnsupportedError: A grader or a schema that this server cannot follow; names the field.
    """
    config = request.data_source_config
    if isinstance(config, CustomConfig):
        _check_item_schema(config.item_schema)
    for number, grader in enumerate(request.testing_criteria):
        place = f"testing_criteria.{number}"
        _at(place, lambda grader=grader: graders.check(grader, allows_python=context.settings.python_graders))  # type: ignore[misc]
        if missing_threshold(grader):
            raise UnsupportedError(
                f"grader {grader.name!r} has no pass_threshold",
                expected="the least similarity that passes",
                do="add pass_threshold",
                code="missing_required_parameter",
                param=f"{place}.pass_threshold",
            )
        _check_template_fields(grader, config, place)
    one = Eval(
        eval_id=f"eval_{secrets.token_hex(16)}",
        project_id=caller.project_id,
        name=request.name or "",
        metadata=request.metadata,
        data_source_config=config,
        testing_criteria=request.testing_criteria,
    )
    with context.database.transaction():
        made = context.evals.add(one)
        # Names and types alone: prompts of graders may quote rows, which do not belong in a log.
        facts = {"name": one.name, "graders": [grader.type for grader in one.testing_criteria]}
        record(context, caller, "eval.created", one.eval_id, facts)
    return made


def update(context: Context, caller: Caller, eval_id: str, changes: EvalUpdate) -> Eval:
    """Change name or metadata of an eval.

    Raises:
        NotFoundError: the project has no such eval.
    """
    with context.database.transaction():
        made = context.evals.change(caller.project_id, eval_id, changes)
        record(context, caller, "eval.updated", eval_id, {"fields": sorted(changes.model_fields_set)})
    return made


def delete(context: Context, caller: Caller, eval_id: str) -> None:
    """Delete an eval with its runs.

    Raises:
        NotFoundError: there is none in the project.
        ConflictError: a run is active.
    """
    context.evals.get(caller.project_id, eval_id)
    # Runs go with their eval; a worker in the middle of one would then write items of a run that is gone.
    if num := context.evals.num_active_runs(eval_id):
        raise ConflictError(
            f"eval {eval_id} has {num} {'run that has' if num == 1 else 'runs that have'} not ended",
            expected="an eval without active runs",
            do="cancel them first, or wait for them",
        )
    with context.database.transaction():
        context.evals.remove(caller.project_id, eval_id)
        record(context, caller, "eval.deleted", eval_id)


def schema_of(one: Eval) -> dict[str, Any]:
    """The JSON Schema of what graders see of each item."""
    config = one.data_source_config
    item: dict[str, Any] = config.item_schema if isinstance(config, CustomConfig) else {"type": "object"}
    has_sample = isinstance(config, LogsConfig) or config.include_sample_schema
    properties = {"item": item} | ({"sample": SAMPLE_SCHEMA} if has_sample else {})
    return {"type": "object", "properties": properties, "required": list(properties)}


def needs_inference(one: Eval, request: RunRequest) -> bool:
    """Whether a run asks a model, to answer or to grade."""
    has_model = getattr(request.data_source, "model", None) is not None
    return has_model or any(graders.uses_model(grader) for grader in one.testing_criteria)


def start_run(context: Context, caller: Caller, eval_id: str, request: RunRequest) -> RunView:
    """Queue a run of an eval; a worker of this server carries it out.

    Raises:
        NotFoundError: The project has no such eval.
        UnsupportedError: A source, a model or a parameter that this server cannot follow; names the field.
    """
    one = context.evals.get(caller.project_id, eval_id)
    _check_source(context, caller, one, request)
    for number, grader in enumerate(one.testing_criteria):
        for part in _parts(grader):
            if (model := getattr(part, "model", None)) is not None:
                _check_model(context, caller, model, f"testing_criteria.{number}.model")
            if isinstance(part, PythonRequest) and not context.settings.python_graders:
                _at(f"testing_criteria.{number}", lambda part=part: graders.check(part))  # type: ignore[misc]
    model = getattr(request.data_source, "model", None) or ""
    # All three ids are known before anything is written, so that job, run and report name each other from the start.
    run_id, result_id, job_id = f"evalrun_{secrets.token_hex(16)}", new_id("suite"), new_id("job")
    run = EvalRun(
        eval_run_id=run_id,
        eval_id=eval_id,
        project_id=caller.project_id,
        job_id=job_id,
        result_id=result_id,
        name=request.name or "",
        model=model,
        metadata=request.metadata,
        data_source=request.data_source,
    )
    label = one.name or one.eval_id
    order = EvaluationOrder(kind="eval", result_id=result_id, candidate=model or "stored answers", label=label)
    # Without scopes: the job asks with the scope `infer` alone, whatever else the key may do.
    identity = caller.model_dump(mode="json", include={"key_id", "member_id", "name"})
    document = {ASKED: order.model_dump(mode="json"), EVAL_RUN: run_id, CALLER: identity}
    job = Job(
        job_id=job_id, kind="evaluation", document=document, run_id="", project_id=caller.project_id, lane="infer"
    )
    with context.database.transaction():
        # Run, job and log entry in one transaction: no worker sees a job whose run is not there.
        made = context.evals.add_run(run, job)
        facts = {"eval_id": eval_id, "model": model, "job_id": job_id, "source": request.data_source.source.type}
        record(context, caller, "eval_run.created", run_id, facts)
    return made


def models_of(context: Context, job: Job) -> Iterator[NamedModel]:
    """The models that a run asks: the evaluated one, and those of the graders, which its eval holds."""
    try:
        run = context.evals.run_of_job(job.job_id)
        criteria = context.evals.get(run.project_id, run.eval_id).testing_criteria
    except NotFoundError:  # deleted meanwhile
        return
    if run.model:
        yield NamedModel(run.model, "project")
    for one in models_in([grader.model_dump(mode="json") for grader in criteria], ()):
        yield NamedModel(one.name, "project")


def cancel_run(context: Context, caller: Caller, eval_id: str, run_id: str) -> RunView:
    """Cancel a run; what was graded stays.

    Raises:
        NotFoundError: there is none in the project.
        ConflictError: it has ended.
    """
    view = context.evals.run(caller.project_id, eval_id, run_id)
    # A request to the worker, which stops between two items; a queued job ends at once.
    orders.cancel(context, caller, view.job, "eval_run.canceled", subject=run_id)
    return context.evals.run(caller.project_id, eval_id, run_id)


def delete_run(context: Context, caller: Caller, eval_id: str, run_id: str) -> None:
    """Delete a run with its items; its report stays.

    Raises:
        NotFoundError: there is none in the project.
        ConflictError: it is active.
    """
    view = context.evals.run(caller.project_id, eval_id, run_id)
    if view.job.status not in ENDED:
        raise ConflictError(
            f"run {run_id} is {view.status}", expected="a run that has ended", do="cancel it first, or wait for it"
        )
    with context.database.transaction():
        context.evals.remove_run(run_id)
        record(context, caller, "eval_run.deleted", run_id)


def page_of_runs(
    context: Context,
    caller: Caller,
    eval_id: str,
    *,
    after: str | None,
    limit: int,
    order: Order,
    status: RunStatus | None,
) -> tuple[list[RunView], bool]:
    """One page of the runs of an eval, and whether there are more.

    Args:
        context: of the home.
        caller: whose project the eval belongs to.
        eval_id: of the eval.
        after: id of the run before the page; None for the first page.
        limit: runs of a page.
        order: by their time.
        status: of the runs; None for all.

    Raises:
        NotFoundError: no such eval.
        RequestError: `after` is no run of it.
    """
    return context.evals.runs(caller.project_id, eval_id, after=after, limit=limit, order=order, status=status)


def page_of_items(
    context: Context,
    caller: Caller,
    eval_id: str,
    run_id: str,
    *,
    after: str | None,
    limit: int,
    order: Order,
    status: str | None,
) -> tuple[list[OutputItem], bool]:
    """One page of the graded items of a run, and whether there are more.

    Args:
        context: of the home.
        caller: whose project the eval belongs to.
        eval_id: of the eval.
        run_id: of the run.
        after: id of the item before the page; None for the first page.
        limit: items of a page.
        order: by their position.
        status: of the items; None for all.

    Raises:
        NotFoundError: no such eval or run.
        RequestError: `after` is no item of it.
    """
    context.evals.run(caller.project_id, eval_id, run_id)
    return context.evals.items(run_id, after=after, limit=limit, order=order, status=status)


def item(context: Context, caller: Caller, eval_id: str, run_id: str, item_id: str) -> OutputItem:
    """One graded item.

    Raises:
        NotFoundError: the project has no such eval, the eval no such run, or the run no such item.
    """
    context.evals.run(caller.project_id, eval_id, run_id)
    return context.evals.item(run_id, item_id)


def _check_item_schema(schema: dict[str, Any]) -> None:
    from luthier.ml.evaluation.metrics.structured_output import SchemaCheck

    place = "data_source_config.item_schema"
    check_schema(schema, place)
    try:
        SchemaCheck(schema)
    except RequestError as error:
        raise UnsupportedError(
            error.came.replace("json_schema", "item_schema"),
            expected=error.expected,
            do=error.do,
            code="invalid_json_schema",
            param=place,
        ) from error


def _check_template_fields(grader: GraderRequest, config: CustomConfig | LogsConfig, place: str) -> None:
    """Graders look at fields that the schema has, and at answers only where the eval has them."""
    from luthier.ml.evaluation.graders import SAMPLE_FIELDS, item_fields

    if not isinstance(config, CustomConfig):
        return
    schema = config.item_schema
    # An open schema lets items have any field, so that nothing about a template can be refused here.
    is_closed = schema.get("additionalProperties") is False
    known = set(schema["properties"]) if isinstance(schema.get("properties"), dict) else set()
    for part in _parts(grader):
        for text in graders.templates_of(part):
            missing = [name for name in item_fields(text, SAMPLE_FIELDS) if is_closed and name not in known]
            if missing:
                came, expected = f"{{{{item.{missing[0]}}}}}", f"one of {', '.join(sorted(known)) or 'no field'}"
                raise UnsupportedError(
                    f"grader {grader.name!r} refers to {came}, which the item schema does not have",
                    expected=expected, do="correct the template, or add the field to item_schema",
                    code="invalid_grader", param=place,
                )  # fmt: skip
            if not config.include_sample_schema and "{{" in text and _looks_at_sample(text):
                raise UnsupportedError(
                    f"grader {grader.name!r} looks at the sample, and the eval has none",
                    expected="include_sample_schema: true where graders use answers",
                    do="set data_source_config.include_sample_schema, or grade fields of the item",
                    code="invalid_grader", param=place,
                )  # fmt: skip


def _looks_at_sample(text: str) -> bool:
    from luthier.ml.evaluation.graders import item_fields

    try:
        # With no sample fields allowed, a reference to the sample is the only thing that is refused.
        item_fields(text, ())
    except RequestError:
        return True
    return False


def _check_source(context: Context, caller: Caller, one: Eval, request: RunRequest) -> None:
    source = request.data_source
    rows = source.source
    is_stored = isinstance(rows, StoredCompletions | StoredResponses)
    has_logs = isinstance(one.data_source_config, LogsConfig)
    if is_stored != has_logs:
        kind = one.data_source_config.type
        raise UnsupportedError(
            f"data_source.source of type {rows.type} for an eval whose data_source_config is {kind}",
            expected="stored_completions or responses for logs, file_id or file_content for custom",
            do="name another source, or make an eval with another data_source_config",
            code="invalid_value",
            param="data_source.source.type",
        )
    if isinstance(rows, FileId):
        _check_file(context, caller, rows.id)
    if not isinstance(source, CompletionsSource | ResponsesSource):
        return
    check_prompt(source)
    if source.model is None:
        return
    _check_model(context, caller, source.model, "data_source.model")
    # Parsed as a request of /v1/chat/completions with a made-up message: its checks of parameters count here, too.
    body = {"model": source.model, "messages": [_DUMMY_MESSAGE], **chat_parameters(source)}
    try:
        parsed("/v1/chat/completions", body)
    except ApiError as error:
        error.param = f"data_source.sampling_params.{error.param}"
        raise


def _check_file(context: Context, caller: Caller, file_id: str) -> None:
    try:
        files.get_file(context, caller.project_id, file_id)
    except NotFoundError as error:
        raise UnsupportedError(
            error.came,
            expected="the id of a file of this project, JSON lines with `item`",
            do="upload it with purpose=evals, or name another",
            code="invalid_file",
            param="data_source.source.id",
        ) from error


def _check_model(context: Context, caller: Caller, model: str, place: str) -> None:
    try:
        route(context, caller, model)
    except NotFoundError as error:
        raise UnsupportedError(
            error.came, expected=error.expected, do=error.do, code="model_not_found", param=place
        ) from error


def _parts(grader: GraderRequest) -> list[SingleGrader]:
    return list(grader.by_name.values()) if isinstance(grader, MultiRequest) else [grader]


def _at(place: str, check: Callable[[], None]) -> None:
    """Name the field in the request where a check of a grader fails."""
    try:
        check()
    except UnsupportedError as error:
        inner = (error.param or "grader").removeprefix("grader").lstrip(".")
        error.param = f"{place}.{inner}" if inner else place
        raise
