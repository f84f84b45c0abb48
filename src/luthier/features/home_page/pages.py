"""/: what is running and waiting, the last verdicts, room on the disk, what was spent; for a fresh home the way.

/home/now and /home/rest are the two halves of the page: the first is polled every few seconds, the second when work has
begun or ended.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.ids import is_id
from luthier.core.run import RunRecord
from luthier.core.text.names import distinct_names
from luthier.features.deployments.service import list_deployments
from luthier.features.home_page import service as overview
from luthier.features.home_page.service import run_names
from luthier.features.inbox.service import list_entries
from luthier.features.model_cards.service import target_names
from luthier.features.serving.targets import EXPORT
from luthier.platform.auth.members_store import Session
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import shown_reference
from luthier.platform.ui.human_names import HumanNames
from luthier.platform.ui.render import Page, entries_for, redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Visitor, one_state

router = APIRouter()
PAGE = Page("Home", "/", "read", order=10, key="h")

_MAX_LISTED: Final = 5


@router.get("/")
@one_state
def home(request: Request, context: HomeContext, caller: Visitor) -> Response:
    """The home page; who may not look at anything is led to the first page that is theirs."""
    if not caller.may("read"):
        session: Session = request.state.session
        return redirect(request, entries_for(session)[0].address)
    return render(request, "home_page/home.html", _now(context, caller) | _rest(context, caller))


@router.get("/home/now")
@one_state
def now(request: Request, context: HomeContext, caller: Reader) -> Response:
    """What runs and what waits, as a piece of the page."""
    return render(request, "home_page/now.html", _now(context, caller))


@router.get("/home/rest")
@one_state
def rest(request: Request, context: HomeContext, caller: Reader) -> Response:
    """All the rest, as a piece of the page."""
    return render(request, "home_page/rest.html", _rest(context, caller))


def _now(context: Context, caller: Caller) -> dict[str, Any]:
    found = overview.look_now(context, caller.project_id)
    at_work = sorted(one.job_id or one.run_id or "" for one in found.running)
    return {"now": found, "at_work": " ".join(at_work)}


def _rest(context: Context, caller: Caller) -> dict[str, Any]:
    project_id = caller.project_id
    runs = context.runs.of_project(project_id, limit=_MAX_LISTED)
    deployed = list_deployments(context, caller)[:_MAX_LISTED]
    shares = [share.target for one in deployed for share in one.deployment.revision.shares]
    routed = [target for target in shares if is_id(target, "run")]
    exported = [target for target in shares if target.startswith(EXPORT)]
    # One list of names for both: its own list would be three more statements.
    names = run_names(context, project_id, runs, more=routed)
    verdicts = overview.last_verdicts(context, project_id, limit=_MAX_LISTED)
    human_names = HumanNames(context, project_id)
    return {
        "names": names,
        "target_names": distinct_names({target: names[target] for target in routed})
        | target_names(context, project_id, exported),
        "verdicts": human_names.read(one.headline for one in verdicts).within(verdicts),
        "runs": [_shown(one) for one in runs],
        "datasets": context.datasets.list(project_id)[:_MAX_LISTED],
        "deployments": deployed,
        "spent": overview.spent_this_month(context, project_id),
        "room": overview.room(context),
        "for_you": list_entries(context, caller, show="for_you"),
    }


def _shown(record: RunRecord) -> RunRecord:
    return record.model_copy(update={"base_model": shown_reference(record.base_model)})
