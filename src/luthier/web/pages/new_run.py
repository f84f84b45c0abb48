"""/runs/new: a recipe is drafted by fields or as text, planned and priced as it changes, and started."""

from __future__ import annotations

import secrets
import threading
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.service import draft_choices, recipe_jobs
from luthier.service.context import Context
from luthier.service.models import ModelView
from luthier.service.plan_desk import PlanDesk, Planned
from luthier.web import recipe_fields
from luthier.web.errors import status_of
from luthier.web.plan_view import money_in_words, view_of
from luthier.web.recipe_form import SHARE, Draft, draft_of, fields_of, read_form
from luthier.web.render import is_fragment_request, redirect, render
from luthier.web.visitor import HomeContext, Trainer

router = APIRouter()

_WAIT_SECONDS: Final = 20.0
"""Longer a request is not kept waiting; then the page asks again."""
_MOST_FIELDS: Final = 200
_SWAPS: Final = dict.fromkeys(
    ("swap", "swap_fields", "swap_more", "swap_parts", "swap_problems", "swap_settings", "swap_text", "polls"), False
)
"""Which pieces of the form an answer brings along, and whether the page asks again; templates set them."""
_making = threading.Lock()


async def _form(request: Request) -> dict[str, str]:
    """The fields of the form, whatever their names."""
    found = await request.form(max_fields=_MOST_FIELDS, max_files=0)
    return {name: value for name, value in found.items() if isinstance(value, str)}


Form = Annotated[dict[str, str], Depends(_form)]


@router.get("/runs/new")
def new_run(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset: Annotated[str, Query(max_length=64)] = "",
    version: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
    start_from: Annotated[str, Query(alias="from", max_length=64)] = "",
    base_model: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """The form: empty, with the rows of a dataset's version, or with the recipe of a run."""
    keys: dict[str, Any] = {}
    left_out: tuple[str, ...] = ()
    if start_from:
        forked = draft_choices.fork(context, caller, start_from)
        keys, left_out = forked.keys, forked.left_out
    if base_model:
        keys = keys | {"base_model": base_model}
    if dataset:
        file_id = draft_choices.dataset_file(context, caller, dataset, version)
        keys = keys | {"data": {"held_out": 0.1} | keys.get("data", {}) | {"train": file_id}}
    if "base_model" not in keys and (known := _first_model(context)) is not None:
        keys = {"base_model": known} | keys
    draft = draft_of(keys, _names(context, caller), token=secrets.token_hex(8))
    told = {"left_out": left_out, "start_from": start_from}
    return _page(request, context, caller, draft, None, told)


@router.post("/runs/new/plan")
def plan(request: Request, context: HomeContext, caller: Trainer, form: Form) -> Response:
    """What the draft comes to; for HTMX the plan, and the side of the form that was not changed."""
    draft = read_form(form, _names(context, caller))
    planned = _planned(request, context, caller, draft, form)
    if not is_fragment_request(request):
        return _page(request, context, caller, draft, planned, {})
    values = _values(context, caller, draft, planned) | {"form": form, "polls": True}
    return render(request, "new_run/answer.html", values)


@router.post("/runs/new/start")
def start(request: Request, context: HomeContext, caller: Trainer, form: Form) -> Response:
    """Queue the draft once it can be planned, and lead to its run; a second click leads there, too."""
    draft = read_form(form, _names(context, caller))
    planned = _planned(request, context, caller, draft, form)
    if draft.keys is None or planned is None or planned.plan is None:
        return _refused(request, context, caller, draft, planned)
    desk = _desk(request, context)
    with desk.starting(caller.project_id, draft.token, draft.keys) as known:
        if known.run_id is None:
            try:
                known.run_id = recipe_jobs.start(context, caller, draft.keys).run_id
            except LuthierError as error:
                return _refused(request, context, caller, draft, Planned(error=error))
    return redirect(request, f"/runs/{known.run_id}", "The run is queued. Its rows are looked at first.")


def _refused(request: Request, context: Context, caller: Caller, draft: Draft, planned: Planned | None) -> Response:
    """The form again, with what is wrong."""
    error = draft.error if planned is None or planned.error is None else planned.error
    status = 422 if error is None else status_of(error)
    if not is_fragment_request(request):
        return _page(request, context, caller, draft, planned, {}, status=status)
    values = _values(context, caller, draft, planned) | {"form": {}}
    return render(request, "new_run/answer.html", values, status=status)


def _planned(request: Request, context: Context, caller: Caller, draft: Draft, form: dict[str, str]) -> Planned | None:
    """The plan of a draft, waited for; None where there is none to wait for, or it takes longer."""
    desk = _desk(request, context)
    if draft.keys is None or not draft.is_right:
        desk.wake()
        return None
    try:
        recipe_jobs.checked(context, caller.project_id, draft.keys)
        model = draft_choices.model_choices(context).get(str(draft.at("base_model")))
        if model is not None and model.path is None and not form.get("fetch"):
            desk.wake()
            return None
        return desk.plan(caller.project_id, draft.token or caller.name, draft.keys, wait_seconds=_WAIT_SECONDS)
    except LuthierError as error:
        return Planned(error=error)


def _page(
    request: Request,
    context: Context,
    caller: Caller,
    draft: Draft,
    planned: Planned | None,
    more: dict[str, Any],
    *,
    status: int = 200,
) -> Response:
    values = _values(context, caller, draft, planned)
    return render(
        request, "new_run/page.html", values | {"form": {}, "start_from": "", "left_out": ()} | more, status=status
    )


def _values(context: Context, caller: Caller, draft: Draft, planned: Planned | None) -> dict[str, Any]:
    """What the templates of the form and of the plan know."""
    models = draft_choices.model_choices(context)
    chosen = models.get(str(draft.at("base_model")))
    train = draft.at("data.train")
    shape = draft_choices.shape_of(context, caller, train) if isinstance(train, str) else None
    error, shown = None if planned is None else planned.error, fields_of(draft)
    return {
        **_SWAPS,
        "draft": draft,
        "asked": [
            field.name for fields in fields_of(draft).values() for field in fields if draft.at(field.name) is not None
        ],
        "files": draft_choices.file_choices(context, caller),
        "models": models,
        "model": chosen,
        "shape": shape,
        "fields": shown,
        "choices": recipe_fields,
        "fitting": {name for name, shapes in recipe_fields.SHAPES.items() if shape is None or shape in shapes},
        "share": SHARE,
        "error": error,
        "plan": None if planned is None or planned.plan is None else view_of(planned.plan),
        "money": money_in_words,
        "state": _state(draft, planned, chosen),
        "mentions": lambda place: error is not None and f"{place}" in f"{error.came} {error.expected} {error.do}",
    }


def _state(draft: Draft, planned: Planned | None, model: ModelView | None) -> str:
    """How far the draft is: what the panel of the plan has to show."""
    if draft.error is not None or (draft.problems and not draft.is_open):
        return "wrong"
    if not draft.is_right:
        return "open"
    if planned is not None:
        return "planned" if planned.error is None else "refused"
    return "absent" if model is not None and model.path is None else "computing"


def _names(context: Context, caller: Caller) -> dict[str, str]:
    return {choice.file_id: choice.comment for choice in draft_choices.file_choices(context, caller)}


def _first_model(context: Context) -> str | None:
    """The first model that is on this machine; else the first of the catalogue."""
    return next(iter(draft_choices.model_choices(context)), None)


def _desk(request: Request, context: Context) -> PlanDesk:
    """Of the app: it is made when the first recipe is drafted."""
    state = request.app.state
    with _making:
        if getattr(state, "plan_desk", None) is None:
            state.plan_desk = PlanDesk(context)
        desk: PlanDesk = state.plan_desk
    return desk
