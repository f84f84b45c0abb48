"""/start: three questions, two plans beside each other, and one button.

The answers are in the address, so that a reload, a bookmark and the browser's back button keep them. A plan is made by
the planner of drafts; the page asks again until both are there.
"""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, RequestError
from luthier.features.guided_runs import service
from luthier.features.guided_runs.goals import GOALS, SIZES, GoalName, Size
from luthier.features.guided_runs.service import Candidate, Found, Wish
from luthier.features.models.service import ModelView, pull_model
from luthier.features.planning.drafts import Planned, draft_planner
from luthier.features.planning.view import PlanView, view_of
from luthier.features.recipes.service import write_text
from luthier.features.run_drafts.choices import file_choices
from luthier.features.training import recipe_job
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import shown_reference
from luthier.platform.ui.page_work import CancellableProgress, Led, page_work
from luthier.platform.ui.render import Page, redirect, render
from luthier.platform.ui.visitor import HomeContext, Trainer

router = APIRouter(prefix="/start")
PAGE = Page("Guided run", router.prefix, "train", order=25, key="n", group="train")

_WAIT_SECONDS: Final = 0.2
_MAX_LISTED: Final = 6
"""More datasets than these are a list to choose from, in place of cards."""
_SIZE_OF_FIRST_VISIT: Final[Size] = "quick"
_ALREADY: Final = "This run was started already."

_Data = Annotated[str, Query(max_length=80)]
_Number = Annotated[int | None, Query(ge=1, lt=2**31)]
_Model = Annotated[str, Query(max_length=200)]
_Draft = Annotated[str, Query(max_length=64, pattern="^[A-Za-z0-9]*$")]


@dataclass(frozen=True, slots=True)
class Option:
    """One of the two sizes as the page shows it.

    Attributes:
        size: Its name.
        title: What people call it.
        words: What it is for.
        model: The base model; None before one is on this machine.
        plan: What it takes; None while that is computed, or where it cannot be planned.
        error: Why it cannot be planned.
        recipe: The form of a new run with its recipe: the address.
    """

    size: Size
    title: str
    words: str
    model: ModelView | None = None
    plan: PlanView | None = None
    error: LuthierError | None = None
    recipe: str = "/runs/new"

    @property
    def model_title(self) -> str:
        """The base model as people see it: a folder of the server is called by its last part."""
        return "" if self.model is None else shown_reference(self.model.title)

    @property
    def is_planned(self) -> bool:
        """Whether its plan, or the reason against one, is there."""
        return self.plan is not None or self.error is not None


@router.get("")
def start(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    goal: GoalName | None = None,
    dataset: _Data = "",
    version: _Number = None,
    base_model: _Model = "",
    size: Size = _SIZE_OF_FIRST_VISIT,
    draft: _Draft = "",
) -> Response:
    """The page, with the answers so far. draft: names them for the planner; a new visit gets its own name."""
    wish = _wish(goal, dataset, version, base_model)
    found = service.find(context, caller, wish)
    values = _values(request, context, caller, wish, found, draft or secrets.token_hex(8))
    datasets = service.newest_data(context, caller)
    return render(
        request,
        "guided_runs/page.html",
        values
        | {
            "size": size,
            "goals": GOALS.values(),
            "datasets": datasets,
            "max_listed": _MAX_LISTED,
            "newest": datasets[0][0].dataset_id if datasets else "",
        },
    )


@router.get("/plans")
def plans(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    goal: GoalName | None = None,
    dataset: _Data = "",
    version: _Number = None,
    base_model: _Model = "",
    size: Size = _SIZE_OF_FIRST_VISIT,
    draft: _Draft = "",
    since: float = 0.0,
) -> Response:
    """The two plans, as a piece of the page. since: when they were first asked for."""
    wish = _wish(goal, dataset, version, base_model)
    found = service.find(context, caller, wish)
    values = _values(request, context, caller, wish, found, draft, since)
    return render(request, "guided_runs/plans.html", values | {"size": size})


@router.post("/run")
def run(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    goal: Annotated[GoalName | None, Form()] = None,
    dataset: Annotated[str, Form(max_length=80)] = "",
    base_model: Annotated[str, Form(max_length=200)] = "",
    size: Annotated[Size, Form()] = _SIZE_OF_FIRST_VISIT,
    draft: Annotated[str, Form(max_length=64, pattern="^[A-Za-z0-9]*$")] = "",
) -> Response:
    """Queue the run of a size, once it is planned, and lead to it; until it ends, a second click leads there, too."""
    wish = _wish(goal, dataset, None, base_model)
    found = service.find(context, caller, wish)
    # The answers are in the address: an error leads back to them.
    request.state.back = back = _address(wish, size, draft)
    if not found.is_complete or found.missing_model is not None:
        return redirect(request, back, "First choose a purpose and the data.")
    planner = draft_planner(request.app.state, context)
    chosen = _chosen(request, context, caller, wish, found, size, draft)
    if chosen is None:
        raise _no_such_model(wish)
    candidate, planned = chosen
    if planned is None:
        return redirect(request, back, "The plan is not ready yet. Start the run when time and memory are shown.")
    if planned.error is not None:
        raise planned.error
    # Idempotent by the token of the page: a double click queues one run.
    with planner.starting(caller.project_id, draft, candidate.keys) as known:
        job = recipe_job.start_once(context, caller, candidate.keys, known)
    name = service.name_of(found, candidate.model, context.access.now())
    words = f"“{name}” is queued. Its rows are checked first." if job.status == "queued" else _ALREADY
    return redirect(request, f"/runs/{job.run_id}", words)


@router.post("/model")
def fetch_model(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    name: Annotated[str, Form(max_length=200)],
    back: Annotated[str, Form(max_length=1000)] = "",
) -> Response:
    """Fetch a base model of the catalogue, and come back to the page."""
    known = service.find(context, caller, Wish()).models
    if name not in known:
        raise RequestError(
            f"the base model {name[:100]!r}", expected="a name of the catalogue", do="choose one under Models"
        )
    # An address of this page or of the models: a form must not lead elsewhere.
    address = back if back.startswith((f"{router.prefix}?", "/models?", "/models/")) else router.prefix

    stop, title = threading.Event(), known[name].title
    cancelled = ConflictError(
        f"the download of {title} was cancelled",
        expected="all files of the model",
        do="fetch it again when it is wanted",
    )
    progress = CancellableProgress(context.progress, stop, cancelled)

    def fetch() -> Led:
        return Led(address, f"{pull_model(context, name, progress=progress).title} is on this server now.")

    return page_work(request).answer(request, f"Fetching {title}", fetch, back=address, stop=stop)


def _wish(goal: GoalName | None, dataset: str, version: int | None, base_model: str) -> Wish:
    """dataset: an id, or `ID:VERSION` as the form sends it, so that another choice leaves the version behind."""
    dataset_id, _, number = dataset.partition(":")
    is_number = number.isascii() and number.isdigit() and 0 < len(number) < 10
    return Wish(goal, dataset_id, int(number) if is_number else version, base_model)


def _values(
    request: Request, context: Context, caller: Caller, wish: Wish, found: Found, draft: str, since: float = 0.0
) -> dict[str, Any]:
    """What the page and its piece with the plans know."""
    now = context.access.now()
    begun = since if 0 < since <= now else now
    options: list[Option] = []
    # A model that was named and is not here is fetched on its own page.
    wanted = found.models.get(wish.base_model) if wish.base_model else None
    missing = wanted if wanted is not None and wanted.path is None else found.missing_model
    if wish.base_model and wanted is None:
        raise _no_such_model(wish)
    if found.is_complete and missing is None:
        names = {choice.file_id: choice.comment for choice in file_choices(context, caller)}
        options = [_option(request, context, caller, wish, found, name, draft, names) for name in SIZES]
    model = next((one.model for one in options if one.model is not None), None)
    return {
        "wish": wish,
        "found": found,
        "options": options,
        "num_planned": sum(one.is_planned for one in options),
        "missing": missing,
        "draft": draft,
        "since": begun,
        "seconds": int(now - begun),
        "query": _query(wish, draft),
        "back": _address(wish, _SIZE_OF_FIRST_VISIT, draft),
        "run_name": service.name_of(found, model, now) if model is not None else "",
    }


def _option(
    request: Request,
    context: Context,
    caller: Caller,
    wish: Wish,
    found: Found,
    size: Size,
    draft: str,
    names: dict[str, str],
) -> Option:
    title, words = SIZES[size]
    chosen = _chosen(request, context, caller, wish, found, size, draft)
    if chosen is None:
        return Option(size, title, words)
    candidate, planned = chosen
    recipe = f"/runs/new?{urlencode({'recipe': write_text(candidate.keys, names)})}"
    if planned is None:
        return Option(size, title, words, candidate.model, recipe=recipe)
    plan = None if planned.plan is None else view_of(planned.plan)
    return Option(size, title, words, candidate.model, plan, planned.error, recipe)


def _chosen(
    request: Request, context: Context, caller: Caller, wish: Wish, found: Found, size: Size, draft: str
) -> tuple[Candidate, Planned | None] | None:
    """The recipe of a size with its plan, as far as that is made; None where there is no base model for it."""
    planner = draft_planner(request.app.state, context)

    def plan(place: int, option: Candidate) -> Planned | None:
        try:
            # The same check as at the start: what can be planned can be queued.
            recipe_job.checked(context, caller.project_id, option.keys)
            # A draft each: of one draft the planner keeps only the newest recipe.
            name = f"{draft}-{size}-{place}"
            return planner.plan(caller.project_id, name, option.keys, wait_seconds=_WAIT_SECONDS / len(SIZES))
        except LuthierError as error:
            return Planned(error=error)

    options = service.candidates(found, wish, size)
    return service.choose(options, plan) if options else None


def _no_such_model(wish: Wish) -> RequestError:
    return RequestError(
        f"the base model {wish.base_model[:100]!r}",
        expected="a base model of the catalogue, or one on this server",
        do="choose one under Models, or leave it out",
    )


def _query(wish: Wish, draft: str) -> str:
    given = {
        "goal": wish.goal or "",
        "dataset": wish.data,
        "base_model": wish.base_model,
        "draft": draft,
    }
    return urlencode({name: value for name, value in given.items() if value})


def _address(wish: Wish, size: Size, draft: str) -> str:
    return f"{router.prefix}?{_query(wish, draft)}&{urlencode({'size': size})}"
