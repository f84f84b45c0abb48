"""/runs/new: a recipe is drafted by fields or as text, planned and priced as it changes, and started."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.features.models.service import ModelView
from luthier.features.planning.drafts import DraftPlanner, Planned, draft_planner
from luthier.features.planning.view import format_money, view_of
from luthier.features.run_drafts import choices as draft_choices
from luthier.features.run_drafts import fields as recipe_fields
from luthier.features.run_drafts.form import SHARE, Draft, draft_of, fields_of, read_form
from luthier.features.training import recipe_job
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.render import is_fragment_request, redirect, render
from luthier.platform.ui.visitor import HomeContext, Trainer

router = APIRouter()

_WAIT_SECONDS: Final = 0.25
"""The longest wait of a script's request; then it asks again."""
_WAIT_WITHOUT_SCRIPTS_SECONDS: Final = 20.0
"""A browser without scripts asks once: its request waits for the plan."""
_MAX_FIELDS: Final = 200
_MAX_RECIPE_CHARACTERS: Final = 4000
_SWAPS: Final = dict.fromkeys(
    ("swap", "swap_fields", "swap_more", "swap_parts", "swap_problems", "swap_settings", "swap_text", "polls"), False
)
"""Which parts of the form an answer contains, and whether the page asks again; templates set them."""


async def _form(request: Request) -> dict[str, str]:
    """The fields of the form, whatever their names."""
    found = await request.form(max_fields=_MAX_FIELDS, max_files=0)
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
    study: Annotated[str, Query(max_length=64)] = "",
    base_model: Annotated[str, Query(max_length=200)] = "",
    recipe: Annotated[str, Query(max_length=_MAX_RECIPE_CHARACTERS)] = "",
) -> Response:
    """The form: empty, with the rows of a dataset's version, or with the recipe of the address (as YAML), of a run or
    of a study's winner.
    """
    visit = _Visit(request, context, caller)
    if recipe:
        given = read_form({"text": recipe, "side": "text", "draft": secrets.token_hex(8)}, visit.names)
        return visit.page(given, None)
    keys: dict[str, Any] = {}
    left_out: tuple[str, ...] = ()
    rows: draft_choices.StartingRows | None = None
    if start_from or study:
        # A run wins over a study where the address has both.
        fork = draft_choices.fork if start_from else draft_choices.fork_study
        forked = fork(context, caller, start_from or study)
        keys, left_out = forked.keys, forked.left_out
    if base_model:
        keys = keys | {"base_model": base_model}
    if dataset:
        rows = draft_choices.rows_of(context, caller, dataset, version)
        # The other splits of the recipe belong to its own rows, and may hold some of the new ones.
        kept = {name: value for name, value in keys.get("data", {}).items() if name not in ("validation", "held_out")}
        keys = keys | {"data": kept | rows.data}
    # A form that can be planned directly is easier to begin with than an empty one.
    if "base_model" not in keys and (known := next(iter(visit.models), None)) is not None:
        keys = {"base_model": known} | keys
    # The token distinguishes this form from others of the same visitor, and lets it be started once.
    draft = draft_of(keys, visit.names, token=secrets.token_hex(8))
    return visit.page(draft, None, more={"left_out": left_out, "start_from": start_from or study, "rows": rows})


@router.post("/runs/new/plan")
def plan(request: Request, context: HomeContext, caller: Trainer, form: Form) -> Response:
    """The plan of the draft; for HTMX the plan, and the side of the form that was not changed."""
    visit = _Visit(request, context, caller)
    draft = read_form(form, visit.names)
    return visit.answer(draft, visit.planned(draft, form), form)


@router.post("/runs/new/start")
def start(request: Request, context: HomeContext, caller: Trainer, form: Form) -> Response:
    """Queue the draft once it can be planned, and lead to its run; until that ends, a second click leads there, too."""
    visit = _Visit(request, context, caller)
    draft = read_form(form, visit.names)
    planned = visit.planned(draft, form)
    if planned is None and draft.keys is not None and draft.is_right:  # it starts once it is planned
        return visit.answer(draft, None, {"starts": "1"})
    if draft.keys is None or planned is None or planned.plan is None:
        return visit.answer(draft, planned, {}, status=422)
    # Idempotent by the token of the draft: a double click queues one run.
    with visit.planner.starting(caller.project_id, draft.token, draft.keys) as known:
        try:
            job = recipe_job.start_once(context, caller, draft.keys, known)
        except LuthierError as error:
            return visit.answer(draft, Planned(error=error), {}, status=status_of(error))
    is_new = job.status == "queued"
    return redirect(
        request,
        f"/runs/{job.run_id}",
        "The run is queued. It first checks its rows." if is_new else "This run was started already.",
    )


class _Visit:
    """One request for the form: the caller and the choices, looked up once."""

    def __init__(self, request: Request, context: Context, caller: Caller) -> None:
        self.request, self.context, self.caller = request, context, caller
        self.files = draft_choices.file_choices(context, caller)
        self.models = draft_choices.model_choices(context, caller)
        self.names = {choice.file_id: choice.comment for choice in self.files}

    @property
    def planner(self) -> DraftPlanner:
        """Of the app."""
        return draft_planner(self.request.app.state, self.context)

    def planned(self, draft: Draft, form: Mapping[str, str]) -> Planned | None:
        """The plan of a draft, waited for; None where there is none to wait for, or it takes longer."""
        model = self._model(draft)
        # Nothing to plan yet; but its process starts in the meantime, so that the first plan comes sooner.
        if draft.keys is None or not draft.is_right or (_is_away(model) and not form.get("fetch")):
            self.planner.wake()
            return None
        project_id = self.caller.project_id
        try:
            # The same check as at the start: what can be planned can be queued.
            recipe_job.checked(self.context, project_id, draft.keys)
            wait = _WAIT_SECONDS if is_fragment_request(self.request) else _WAIT_WITHOUT_SCRIPTS_SECONDS
            return self.planner.plan(project_id, draft.token or self.caller.name, draft.keys, wait_seconds=wait)
        except LuthierError as error:
            return Planned(error=error)

    def answer(self, draft: Draft, planned: Planned | None, form: Mapping[str, str], *, status: int = 200) -> Response:
        """The page again; for HTMX its pieces that have changed. form: as sent, to find out which those are."""
        if not is_fragment_request(self.request):
            return self.page(draft, planned, more={"form": form}, status=status)
        # The script asks again while the plan is being made.
        values = self._values(draft, planned) | {"form": form, "polls": True}
        return render(self.request, "run_drafts/answer.html", values, status=status)

    def page(
        self, draft: Draft, planned: Planned | None, *, more: Mapping[str, Any] | None = None, status: int = 200
    ) -> Response:
        """The whole page."""
        values = self._values(draft, planned) | {
            "form": {},
            "start_from": "",
            "left_out": (),
            "rows": None,
            **(more or {}),
        }
        return render(self.request, "run_drafts/page.html", values, status=status)

    def _values(self, draft: Draft, planned: Planned | None) -> dict[str, Any]:
        """What the templates of the form and of the plan know."""
        # The shape of the rows decides which objectives can be chosen.
        train, fields = draft.at("data.train"), fields_of(draft)
        shape = draft_choices.shape_of(self.context, self.caller, train) if isinstance(train, str) else None
        error = None if planned is None else planned.error
        # Fields that an error names are marked in the form.
        message = "" if error is None else f"{error.came} {error.expected} {error.do}"
        return {
            **_SWAPS,
            "draft": draft,
            "asked": [one.name for section in fields.values() for one in section if draft.at(one.name) is not None],
            "files": self.files,
            "models": self.models,
            "model": self._model(draft),
            "shape": shape,
            "fields": fields,
            "choices": recipe_fields,
            "fitting": recipe_fields.fitting(shape),
            "share": SHARE,
            "error": error,
            "plan": None if planned is None or planned.plan is None else view_of(planned.plan),
            "money": format_money,
            "state": _state(draft, planned, self._model(draft)),
            "mentions": lambda place: place in message,
        }

    def _model(self, draft: Draft) -> ModelView | None:
        return self.models.get(str(draft.at("base_model")))


def _state(draft: Draft, planned: Planned | None, model: ModelView | None) -> str:
    """How far the draft is: what the panel of the plan has to show."""
    if draft.error is not None or (draft.problems and not draft.is_open):
        return "wrong"
    if not draft.is_right:
        return "open"
    if planned is not None:
        return "planned" if planned.error is None else "refused"
    return "absent" if _is_away(model) else "computing"


def _is_away(model: ModelView | None) -> bool:
    """Whether a model is known, and not on this machine."""
    return model is not None and model.path is None
