"""Use case: workflows that no job carries out, such as those of a command, are resumed by a worker of the server."""

from __future__ import annotations

from math import isfinite
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, RequestError
from luthier.core.ids import is_id, new_id
from luthier.core.workflows.study import Study
from luthier.features.studies.views import view_study
from luthier.features.workflows import orders
from luthier.features.workflows.declared_forms import FORMS, WorkflowForm
from luthier.features.workflows.orders import ASKED, OrderView, WorkflowOrder
from luthier.features.workflows.views import view_pipeline
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job

_RESUMABLE: Final = ("paused", "interrupted", "waiting", "failed")
"""States of a workflow that has work left and that no process works on. A study that has failed is none of them: no
trial of it could be trained."""
_NOT_RESUMABLE: Final = ("queued", "running", "pausing", "cancelling", "cancelled")
"""States of a job that has taken the workflow: somebody has cancelled it, or it continues by itself."""


def form_of(workflow_id: str) -> WorkflowForm | None:
    """The form of the workflows that a job can continue by their ids alone; None for others."""
    return next((one for one in FORMS.values() if one.id_prefix and is_id(workflow_id, one.id_prefix)), None)


def resume_workflow(
    context: Context, caller: Caller, workflow_id: str, *, budget_hours: float | None = None
) -> OrderView:
    """Have a worker continue a workflow where it stopped.

    A job that is paused or has failed is queued again. Where there is none, as for a workflow that a command began,
    or where the budget changes, a new job continues it.

    Args:
        context: The home.
        caller: Of the project that the workflow belongs to.
        workflow_id: Of a study, a model comparison, an automl run or a retraining.
        budget_hours: For a study whose budget was used up before its final run: a larger one, counted from its
            beginning, in hours.

    Raises:
        NotFoundError: The project has no such workflow.
        ConflictError: It is done, or is worked on already.
        RequestError: It cannot be continued by its id alone, or the budget is missing, too small or of no use.
    """
    form = form_of(workflow_id)
    if form is None:
        raise RequestError(
            f"{workflow_id[:64]!r} cannot be resumed by its id",
            expected="the id of a study, a model comparison, an automl run or a retraining",
            do="start it again with the same request: finished work is reused",
        )
    values: dict[str, Any] = {}
    if form.name == "tune":
        study = view_study(context, caller, workflow_id)
        status, request = study.status, study.study.spec.recipe.model_dump(mode="json")
        _refuse_unless_resumable(workflow_id, status, is_resumable=status in ("paused", "interrupted"))
        if (budget := _budget(study.study, study.hours, budget_hours)) is not None:
            values["budget_hours"] = budget
    else:
        view = view_pipeline(context, caller, workflow_id)
        _refuse_part(workflow_id, view.part_of)
        status, request = view.status, view.pipeline.asked
        _refuse_unless_resumable(workflow_id, status, is_resumable=status in _RESUMABLE)
        refuse_budget(workflow_id, budget_hours)
    # One transaction for the look and the new job: of two requests at the same time, the later one sees the earlier's.
    with context.database.transaction():
        return _continued(context, caller, form, workflow_id, values, request)


def _continued(
    context: Context,
    caller: Caller,
    form: WorkflowForm,
    workflow_id: str,
    values: dict[str, Any],
    request: dict[str, Any],
) -> OrderView:
    known = orders.order_for(context, caller, workflow_id, request)
    if known is not None and known.job.shown_status in _NOT_RESUMABLE:
        _refuse_unless_resumable(workflow_id, known.job.shown_status, is_resumable=False)
    # An order keeps its budget: with another one there is another order.
    is_kept = known is not None and values.get("budget_hours") in (None, known.order.values.get("budget_hours"))
    if known is not None and is_kept and known.job.status in ("paused", "failed"):
        return orders.resume(context, caller, known.job.job_id)
    return _queued(
        context, caller, WorkflowOrder(form=form.name, workflow_id=workflow_id, values=values, caller=caller)
    )


def _queued(context: Context, caller: Caller, order: WorkflowOrder) -> OrderView:
    document = {ASKED: order.model_dump(mode="json")}
    job = Job(
        job_id=new_id("job"),
        kind="workflow",
        document=document,
        run_id="",
        workflow_id=order.workflow_id,
        project_id=caller.project_id,
    )
    with context.database.transaction():
        made = context.jobs.submit(job)
        facts = {"workflow": order.form, "workflow_id": order.workflow_id} | order.values
        record(context, caller, "workflow.resumed", job.job_id, facts)
    return orders.show_order(context, caller, made.job_id)


def _refuse_unless_resumable(workflow_id: str, status: str, *, is_resumable: bool) -> None:
    if not is_resumable:
        raise ConflictError(
            f"workflow {workflow_id} is {status}",
            expected="an unfinished workflow that no process works on",
            do="check it: it needs no resuming",
        )


def _refuse_part(workflow_id: str, part_of: str | None) -> None:
    if part_of is not None:
        raise ConflictError(
            f"{workflow_id} is a stage of {part_of}",
            expected="a workflow that is not a stage of another one",
            do=f"resume the workflow {part_of}",
        )


def needs_budget(study: Study) -> bool:
    """Whether a study continues only with a larger budget than it has."""
    return study.needs_hours is not None and study.spec.hours < study.needs_hours


def refuse_budget(workflow_id: str, budget: float | None) -> None:
    """Refuse a budget for what continues with its own.

    Raises:
        RequestError: A budget is given.
    """
    if budget is not None:
        raise RequestError(
            f"a budget of {budget:.3g} h",
            expected=f"no budget: {workflow_id} continues with the one that it has",
            do="leave the budget out",
        )


def _budget(study: Study, spent_hours: float, budget_hours: float | None) -> float | None:
    """The budget that a study continues with; None where nothing about it was ever changed."""
    if study.needs_hours is None:
        refuse_budget(study.study_id, budget_hours)
        return None
    budget = study.spec.hours if budget_hours is None and not needs_budget(study) else budget_hours
    if budget is None or not isfinite(budget) or budget <= spent_hours:
        came = "no budget" if budget is None else f"a budget of {budget:.3g} h"
        raise RequestError(
            f"{came}: the study has spent {spent_hours:.3g} h of {study.spec.hours:.3g} h",
            expected=f"about {study.needs_hours:.3g} h, counted from the beginning of the study",
            do="give it a larger budget",
        )
    return budget
