"""/pipelines/new/NAME starts a workflow, with what it will take; /pipelines/jobs/JOB follows it until it has a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import RedirectResponse, Response

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, NotFoundError
from luthier.core.text.counted import counted
from luthier.core.text.names import distinct_names
from luthier.core.text.plain_yaml import write_yaml
from luthier.features.deployments.service import deployed_run
from luthier.features.files.references import plan_of
from luthier.features.human_eval.service import list_panels
from luthier.features.model_cards import service as project_models
from luthier.features.planning.view import format_money
from luthier.features.run_drafts import choices as draft_choices
from luthier.features.run_drafts.form import SOURCES
from luthier.features.workflows import orders
from luthier.features.workflows.declared_forms import FORMS, WorkflowForm
from luthier.features.workflows.forms import (
    command_line,
    fields_of,
    find_form,
    in_recipe,
    read_form,
    recipe_of,
)
from luthier.features.workflows.orders import OrderView
from luthier.ml.charts import figures
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import base_models
from luthier.platform.http.path_redaction import shown_failure
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.i18n.environments import decimal_mark_of
from luthier.platform.ui.job_pages import is_unchanged, unchanged
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import is_fragment_request, redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

router = APIRouter(prefix="/pipelines")

_MAX_FIELDS: Final = 200
_MAX_TUNED: Final = 100
Sent = dict[str, list[str]]


async def _form(request: Request) -> Sent:
    """The fields of the form, each with all its values."""
    form = await request.form(max_fields=_MAX_FIELDS, max_files=0)
    found: Sent = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            found.setdefault(name, []).append(value)
    return found


Form = Annotated[Sent, Depends(_form)]
_Text = Annotated[str, Query(max_length=1024)]


@router.get("/new/{name}")
def new(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    name: str,
    start_from: Annotated[str, Query(alias="from", max_length=64)] = "",
    dataset: Annotated[str, Query(max_length=64)] = "",
    model: _Text = "",
) -> Response:
    """The form: empty, or with the recipe of a run, the rows of a dataset, or a model."""
    form, kept = find_form(name), shown_once(request).take(request)
    sent: Sent = dict(kept.get("given", {}))
    if not sent:
        sent = _beginning(context, caller, form, start_from, dataset, model)
    values = {"estimate": kept.get("estimate"), "error": kept.get("error"), "is_gone": kept["is_shown_before"]}
    status = status_of(kept["error"]) if kept.get("error") else 200
    return _page(request, context, caller, form, sent, values, status=status)


@router.post("/new/{name}")
def start(request: Request, context: HomeContext, caller: Trainer, name: str, sent: Form) -> Response:
    """Queue the workflow and lead to it; with the button "Estimate" compute what it takes and show the form again."""
    form = find_form(name)
    values, problems = read_form(name, sent, decimal_mark_of(request))
    if problems:
        return _page(request, context, caller, form, sent, {"problems": problems}, status=422)
    if sent.get("action") == ["estimate"]:
        return _estimated(request, context, caller, form, sent, values)
    try:
        made = orders.start(context, caller, name, values)
    except LuthierError as error:
        return _page(request, context, caller, form, sent, {"error": error}, status=status_of(error))
    return redirect(request, made.page, "It is queued: a worker of this server will run it.")


@router.post("/new/{name}/command")
def command(request: Request, context: HomeContext, caller: Trainer, name: str, sent: Form) -> Response:
    """The command that does the same, for a script that asks as the form changes."""
    form = find_form(name)
    values = _command_values(context, caller, form, sent, decimal_mark_of(request))
    return render(request, "workflows/command.html", values)


@router.get("/jobs/{job_id}")
def show(request: Request, context: HomeContext, caller: Reader, job_id: str, after: str = "") -> Response:
    """How far an order is; leads on once the workflow has its own page.

    after: what was seen last; nothing is sent (204) while that holds.
    """
    view = orders.show_order(context, caller, job_id)
    if view.workflow_id:
        is_part = is_fragment_request(request)
        return redirect(request, view.page) if is_part else RedirectResponse(view.page, status_code=303)
    if is_unchanged(request, after, view.mark):
        return unchanged()
    return _order_page(request, context, view)


@router.post("/jobs/{job_id}/pause")
def pause(request: Request, context: HomeContext, caller: Trainer, job_id: str) -> Response:
    """Stop it where it can continue."""
    return _changed(request, context, caller, job_id, orders.pause)


@router.post("/jobs/{job_id}/cancel")
def cancel(request: Request, context: HomeContext, caller: Trainer, job_id: str) -> Response:
    """End it."""
    return _changed(request, context, caller, job_id, orders.cancel)


@router.post("/jobs/{job_id}/resume")
def resume(request: Request, context: HomeContext, caller: Trainer, job_id: str) -> Response:
    """Continue one that is paused or has failed."""
    return _changed(request, context, caller, job_id, orders.resume)


def _changed(
    request: Request,
    context: Context,
    caller: Caller,
    job_id: str,
    change: Callable[[Context, Caller, str], OrderView],
) -> Response:
    try:
        view = change(context, caller, job_id)
    except ConflictError as error:
        view = orders.show_order(context, caller, job_id)
        # The state has changed meanwhile: its own page shows it, with the reason on top.
        if view.workflow_id:
            return redirect(request, view.page, f"{error.came}; {error.do}.")
        return _order_page(request, context, view, error)
    return redirect(request, view.page)


def resumed(request: Request, page: str, resume_it: Callable[[], OrderView]) -> Response:
    """Resume a workflow and lead to its page; one that is worked on meanwhile is shown with the reason on top."""
    try:
        resume_it()
    except ConflictError as error:
        return redirect(request, page, f"{error.came}; {error.do}.")
    return redirect(request, page, "It is queued: a worker of this server will run it.")


def _estimated(
    request: Request, context: Context, caller: Caller, form: WorkflowForm, sent: Sent, values: Mapping[str, Any]
) -> Response:
    address = f"/pipelines/new/{form.name}"

    def work() -> Led:
        found: dict[str, Any] = {"given": sent}
        try:
            found["estimate"] = estimate(context, caller, form.name, values)
        except LuthierError as error:
            # Shown on the form, which keeps what was filled in.
            found["error"] = error
        return Led(shown_once(request).put(request, address, found))

    return page_work(request).answer(request, "The rows are read and the training is planned", work, back=address)


def _beginning(context: Context, caller: Caller, form: WorkflowForm, start_from: str, dataset: str, model: str) -> Sent:
    """What the form is filled with: the recipe of a run, the rows of a dataset, a model."""
    found: Sent = {}
    names = {field.entry.name for field in fields_of(form.name)}
    if start_from and form.name == "tune":
        keys = dict(draft_choices.fork(context, caller, start_from).keys)
        data = dict(keys.pop("data", {}))
        found["base_model"] = [str(keys.pop("base_model", ""))]
        # Several sources stay in the text of the recipe; the field says so, and a chosen file takes their place.
        found["train"] = [SOURCES] if isinstance(data.get("train"), list) else [str(data.pop("train", ""))]
        for share in ("validation", "held_out"):
            if isinstance(data.get(share), int | float):
                found[share] = [str(data.pop(share))]
            elif share in data:
                found[share] = [""]  # rows of their own: the usual share must not take their place
        rest = keys | ({"data": data} if data else {})
        found["recipe"] = [write_yaml(rest)] if rest else []
    if dataset:
        rows = draft_choices.rows_of(context, caller, dataset, None).data
        # Forms call the rows that are learned by the name of their command's option.
        found["train" if "train" in names else "data"] = [str(rows["train"])]
        if form.name == "compare-models" and isinstance(rows.get("held_out"), str):
            found["held_out"] = [rows["held_out"]]
    if model:
        for name in ("model", "teacher", "base_model", "models"):
            if name in names:
                found[name] = [model]
                break
    return found


def _page(
    request: Request,
    context: Context,
    caller: Caller,
    form: WorkflowForm,
    sent: Sent,
    more: Mapping[str, Any],
    *,
    status: int = 200,
) -> Response:
    mark = decimal_mark_of(request)
    models = draft_choices.model_choices(context, caller)
    kinds = {field.entry.kind for field in fields_of(form.name)}
    tuned = project_models.list_tuned(context, caller, limit=_MAX_TUNED)[0] if "teacher" in kinds else []
    values: dict[str, Any] = {
        "form": form,
        "forms": FORMS,
        "fields": fields_of(form.name),
        "given": _filled(form, sent, mark),
        "kept": _in_recipe(form, sent, mark),
        "problems": {},
        "estimate": None,
        "is_gone": False,
        "error": None,
        "models": [name for name, view in models.items() if view.path is not None],
        "tuned": tuned,
        "run_names": distinct_names(context.run_labels.names([view.record.run_id for view in tuned])),
        "deployments": [one.name for one in context.deployments.list(caller.project_id)],
        "panels": list_panels(context, caller) if "panels" in kinds else (),
        "current": "/studies",
    }
    values |= _command_values(context, caller, form, sent, mark)
    return render(request, "workflows/new.html", values | dict(more), status=status)


def _command_values(context: Context, caller: Caller, form: WorkflowForm, sent: Sent, mark: str) -> dict[str, Any]:
    """The command, and the recipe that it reads; fields with problems are left out."""
    files = draft_choices.file_choices(context, caller)
    names = {one.file_id: _file_name(context, caller, one.file_id) for one in files if _is_named(sent, one.file_id)}
    values, _ = read_form(form.name, _filled(form, sent, mark), mark)
    recipe = recipe_of(form.name, values)
    if isinstance(data := recipe.get("data"), dict):
        recipe["data"] = {key: _named(value, names) for key, value in data.items()}
    return {
        "files": files,
        "command": command_line(form.name, values, names),
        "recipe": write_yaml(recipe) if recipe else "",
        "project": caller.project_id,
    }


def _filled(form: WorkflowForm, sent: Sent, mark: str) -> Sent:
    """What the fields hold: what was sent, and before that what the form begins with, with that decimal mark."""
    if sent.get("form_token"):
        return sent
    begins: Sent = {}
    for field in fields_of(form.name):
        value = field.begins_with
        if field.entry.kind == "flag":
            begins |= {f"{field.entry.name}.shown": ["1"], field.entry.name: ["true"] if value else []}
        elif value is not None:
            text = str(value)
            begins[field.entry.name] = [text.replace(".", mark) if field.entry.kind == "number" else text]
    return begins | sent


def _is_named(sent: Mapping[str, Sequence[str]], file_id: str) -> bool:
    """Whether a field holds a file, or the text of the recipe names it."""
    return any(file_id in text for texts in sent.values() for text in texts)


def _named(value: Any, names: Mapping[str, str]) -> Any:
    """What `data` of a recipe names, with the names of files in place of their ids."""
    if isinstance(value, list):
        return [
            one | {"path": names.get(str(one.get("path")), one.get("path"))} for one in value if isinstance(one, dict)
        ]
    return names.get(str(value), value)


def _in_recipe(form: WorkflowForm, sent: Sent, mark: str) -> dict[str, int]:
    """The fields whose values the text of the recipe has, each with the number of its sources; 0 for other values."""
    values, _ = read_form(form.name, _filled(form, sent, mark), mark)
    found = {field.entry.name: in_recipe(field, values) for field in fields_of(form.name)}
    return {name: len(one) if isinstance(one, list) else 0 for name, one in found.items() if one is not None}


def _file_name(context: Context, caller: Caller, file_id: str) -> str:
    from luthier.platform.files.service import get_file

    try:
        return get_file(context, caller.project_id, file_id).filename
    except NotFoundError:
        return file_id


def _order_page(request: Request, context: Context, view: OrderView, error: LuthierError | None = None) -> Response:
    values = {"view": view, "mark": view.mark, "failure": failure_of(context, view), "error": error}
    values |= {"current": "/studies"}
    template = "workflows/order_state.html" if is_fragment_request(request) else "workflows/order.html"
    return render(request, template, values, status=status_of(error) if error else 200)


def failure_of(context: Context, view: OrderView | None) -> LuthierError | None:
    """Why a job has failed, without the places of this machine; None where it has not."""
    return None if view is None else shown_failure(context, view.job)


_MAX_PLANNED: Final = 3
_STUDY_END: Final = 1.2  # the final run of a study has the validation rows, too


def estimate(context: Context, caller: Caller, name: str, values: Mapping[str, Any]) -> list[str]:
    """What a form that was filled in will take.

    Args:
        context: The home.
        caller: Whose files it names.
        name: Of the form.
        values: As `forms.read_form` gives them.

    Raises:
        LuthierError: The rows cannot be read, the recipe cannot be planned, or there is no such deployment.
    """
    if name == "tune":
        return _study(context, caller, values)
    if name == "distill":
        return _distillation(context, caller, values)
    if name == "retrain":
        return _retraining(context, caller, values)
    return _choice_of_models(context, caller, name, values)


def _study(context: Context, caller: Caller, values: Mapping[str, Any]) -> list[str]:
    predicted = _predicted(context, caller, recipe_of("tune", values))
    hours, budget = predicted["hours"], float(values["budget_hours"])
    needed, num = hours * (1 + _STUDY_END), max(0.0, budget / hours - _STUDY_END) if hours else 0.0
    lines = [f"One whole training takes {_span(predicted)}."]
    if budget < needed:
        lines.append(f"The budget of {_time(budget)} is too small: one trial and the final run take {_time(needed)}.")
    else:
        lines.append(
            f"The budget of {_time(budget)} has room for {counted(round(num), 'whole training')} and the final run. "
            "Most trials are stopped early, so more of them begin."
        )
    return [*lines, *_price(predicted, budget)]


def _choice_of_models(context: Context, caller: Caller, name: str, values: Mapping[str, Any]) -> list[str]:
    budget = float(values["budget_hours"])
    models: Sequence[str] = values.get("models") or list(base_models(context))
    lines: list[str] = []
    predicted: dict[str, Any] = {}
    for model in models[:_MAX_PLANNED]:
        data = {"train": values["data"]} | ({"map": values["mapping"]} if values.get("mapping") else {})
        predicted = _predicted(context, caller, {"base_model": model, "data": data})
        lines.append(f"{model}: one training on all rows takes {_span(predicted)}.")
    if len(models) > _MAX_PLANNED:
        more = counted(len(models) - _MAX_PLANNED, "more model was", "more models were")
        lines.append(f"{more} not planned here.")
    share = "A third of the budget chooses the model; the search has the rest." if name == "automl" else ""
    rows = f"As many rows are used as fit into {_time(budget)}; a few are measured first."
    return [*lines, *filter(None, (rows, share)), *_price(predicted, budget)]


def _distillation(context: Context, caller: Caller, values: Mapping[str, Any]) -> list[str]:
    rest = "The teacher's answers and the evaluation come on top; their time depends on the length of the answers."
    if "layers" in values or "student" not in values:
        return ["Two trainings of the student, with the teacher and without it.", rest]
    data = {"train": values["data"], "held_out": values.get("held_out", 0.2)}
    data |= {"map": values["mapping"]} if values.get("mapping") else {}
    predicted = _predicted(context, caller, {"base_model": values["student"], "data": data})
    return [f"Two trainings of the student, each {_span(predicted)}.", rest, *_price(predicted, 2 * predicted["hours"])]


def _retraining(context: Context, caller: Caller, values: Mapping[str, Any]) -> list[str]:
    deployment = context.deployments.get(caller.project_id, values["model"])
    run_id = deployed_run(context, caller, deployment.revision)
    result = context.runs.get(run_id).result
    accepted = len(context.review_items.ids(caller.project_id, model=values["model"], status="accepted"))
    waiting = len(context.review_items.ids(caller.project_id, model=values["model"], status="waiting"))
    answers = counted(accepted, "accepted answer")
    lines = [f"{answers} of {values['model']}, {counted(waiting, 'waits', 'wait')} for review."]
    if result is not None:
        lines.append(f"The last training took {figures.duration(result.seconds)}; this one has more rows.")
    return lines


def _predicted(context: Context, caller: Caller, recipe: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = plan_of(context, caller.project_id, recipe)["predicted"]
    return found


def _span(predicted: Mapping[str, Any]) -> str:
    return f"{_time(predicted['hours'])} ({_time(predicted['hours_low'])} to {_time(predicted['hours_high'])})"


def _time(hours: float) -> str:
    return figures.duration(hours * 3600)


def _price(predicted: Mapping[str, Any], hours: float) -> list[str]:
    price = predicted.get("usd_per_device_hour") or 0.0
    return [f"At the price of this machine {_time(hours)} cost {format_money(price * hours)}."] if price else []
