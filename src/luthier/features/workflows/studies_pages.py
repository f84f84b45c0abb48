"""/studies: searches and workflows; /studies/ID: one search, running or ended."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from starlette.responses import HTMLResponse, Response

from luthier.core.ids import sha256_document
from luthier.features.runs.pages import REPORT_POLICY
from luthier.features.studies import views as study_views
from luthier.features.studies.views import StudyView, study_charts
from luthier.features.workflows import orders
from luthier.features.workflows import views as workflow_views
from luthier.features.workflows.orders import OrderView
from luthier.features.workflows.resume import needs_budget, resume_workflow
from luthier.features.workflows.start_pages import failure_of, resumed
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_paths, shown_reference
from luthier.platform.ui.human_names import HumanNames
from luthier.platform.ui.job_pages import is_unchanged, unchanged
from luthier.platform.ui.render import Advised, Page, is_fragment_request, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer, one_state

router = APIRouter(prefix="/studies")
PAGE = Page(
    "Studies",
    "/studies",
    "read",
    order=40,
    key="t",
    group="train",
    advised=(Advised(commands=("studies", "pipelines")),),
    elsewhere=("/pipelines",),
)


@router.get("")
@one_state
def index(request: Request, context: HomeContext, caller: Reader) -> Response:
    """Searches, and below them workflows, each newest first."""
    found = [workflow_views.without_folders(context, one) for one in workflow_views.list_pipelines(context, caller)]
    values = {"views": study_views.list_studies(context, caller), "pipelines": found}
    values |= {"human_names": HumanNames(context, caller.project_id).read(one.asked for one in found)}
    return render(request, "workflows/studies/list.html", values | {"waiting": orders.list_orders(context, caller)})


@router.get("/{study_id}")
def show(request: Request, context: HomeContext, caller: Reader, study_id: str, after: str = "") -> Response:
    """One study; for HTMX only the changing part, which is polled while the search runs.

    after: the state seen last; nothing is sent (204) while it has not changed.
    """
    view = study_views.view_study(context, caller, study_id)
    order = orders.order_for(context, caller, study_id, view.study.spec.recipe.model_dump(mode="json"))
    mark = _mark(view, order)
    is_part = is_fragment_request(request)
    if is_unchanged(request, after, mark):
        return unchanged()
    values = _values(context, view, mark) | {"order": order, "failure": failure_of(context, order)}
    return render(request, f"workflows/studies/{'now' if is_part else 'show'}.html", values)


@router.post("/{study_id}/resume")
def resume(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    study_id: str,
    budget_hours: Annotated[float | None, Form(gt=0)] = None,
) -> Response:
    """Have a worker continue a study that is paused or interrupted, with a larger budget where it needs one."""
    asked = partial(resume_workflow, context, caller, study_id, budget_hours=budget_hours)
    return resumed(request, f"/studies/{study_id}", asked)


@router.get("/{study_id}/report")
def report(context: HomeContext, caller: Reader, study_id: str) -> Response:
    """The report of the study."""
    text = study_views.report_of(context, caller, study_id)
    return HTMLResponse(text, headers={"Content-Security-Policy": REPORT_POLICY})


def _values(context: Context, view: StudyView, mark: str) -> dict[str, Any]:
    """The variables of the templates."""
    from luthier.features.studies.end import final_verdict, mean_losses
    from luthier.ml.search.report.page import headline

    study, shown = view.study, home_paths(context) | dict.fromkeys(study_views.study_folders(view.study), "")
    done = [trial.loss for trial in view.best if trial.state == "done" and trial.loss is not None]
    others = [trial for trial in view.trials if trial not in view.best]
    return {
        "view": view,
        "study": study,
        "spec": study.spec,
        "base_model": shown_reference(study.spec.recipe.base_model, shown),
        "headline": headline(study.model_copy(update={"hours": view.hours}), view.trials, mean_losses(view.trials)),
        "lowest": min(done, default=None),
        # Each with an id of its content: one that is unchanged stays in the page, with its zoom.
        "charts": [(f"chart-{sha256_document(one.as_json())[:12]}", one) for one in study_charts(view)],
        "rows": [*view.best, *others],
        "reasons": {trial.number: redact_paths(trial.reason, shown) for trial in view.trials},
        "notes": redact_paths(list(study.notes), shown),
        "verdict": final_verdict(context, study),
        "winner": None if study.winner is None else view.trials[study.winner],
        "needs_budget": needs_budget(study),
        "mark": mark,
    }


def _mark(view: StudyView, order: OrderView | None) -> str:
    trials = [[trial.number, trial.state, trial.rung] for trial in view.trials]
    seen = [view.status, trials, [list(pair) for pair in view.steps.values()], len(view.study.notes)]
    seen.append(order and order.job.shown_status)
    return sha256_document(seen)[:16]
