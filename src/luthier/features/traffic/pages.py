"""/settings/traffic: how much traffic is stored, for how long; and deleting a user."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from luthier.core.access import Caller, project_option
from luthier.core.errors import LuthierError, RequestError
from luthier.core.records.logging_mode import MOST_DAYS_KEPT, LoggingMode
from luthier.core.records.traffic import TrafficPolicy
from luthier.core.text.counted import counted
from luthier.core.text.written_numbers import typed_number
from luthier.features.traffic.files import forget_user
from luthier.features.traffic.policy import set_traffic_policy, traffic_policy
from luthier.features.traffic.service import summary
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.i18n.environments import decimal_mark_of
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import Advised, Page, redirect
from luthier.platform.ui.settings_tabs import show, whole_number
from luthier.platform.ui.visitor import Admin, HomeContext, Reader

router = APIRouter()
PAGE = Page(
    "Traffic",
    "/settings/traffic",
    "read",
    order=80,
    group="settings",
    advised=(Advised(commands=("traffic policy",)),),
)

_ADDRESS: Final = "/settings/traffic"
_DAY_SECONDS: Final = 86_400
_KEEPS: Final[tuple[tuple[LoggingMode, str], ...]] = (
    ("off", "nothing is kept"),
    ("metadata", "times, sizes, user and outcome; no texts"),
    ("sampled", "the text of a share, metadata of all"),
    ("full", "the text of all"),
)


@router.get(_ADDRESS)
def traffic(request: Request, context: HomeContext, caller: Reader) -> Response:
    """What is kept, and how much that was in the last day."""
    return _page(request, context, caller, {"policy": traffic_policy(context, caller.project_id)})


@router.post(_ADDRESS)
def change(
    request: Request,
    context: HomeContext,
    caller: Admin,
    keep: Annotated[LoggingMode, Form()],
    percent: Annotated[str, Form(max_length=20)] = "",
    mask: Annotated[str, Form(max_length=10)] = "",
    keep_days: Annotated[str, Form(max_length=20)] = "",
) -> Response:
    """Change what is stored from now on."""
    before = traffic_policy(context, caller.project_id)
    try:
        policy = TrafficPolicy(
            keep=keep,
            # An empty field keeps what was set.
            fraction=_fraction(percent, decimal_mark_of(request)) or before.fraction,
            # A box that is not ticked is not sent at all.
            mask_personal_data=bool(mask),
            keep_days=_days(keep_days, decimal_mark_of(request)) or before.keep_days,
        )
    except LuthierError as error:
        given = {"keep": keep, "percent": percent, "mask": bool(mask), "keep_days": keep_days}
        values = {"policy": before, "given": given, "error": error}
        return _page(request, context, caller, values, status=status_of(error))
    set_traffic_policy(context, caller, policy)
    return redirect(request, _ADDRESS, "Changed. Servers apply it within seconds.")


@router.post(f"{_ADDRESS}/forget")
def forget(
    request: Request, context: HomeContext, caller: Admin, user: Annotated[str, Form(min_length=1, max_length=1000)]
) -> Response:
    """Delete all that a user has asked."""

    def work() -> Led:
        found = forget_user(context, caller, user)
        words = f"Deleted: {found.num_exchanges:,} exchange{'' if found.num_exchanges == 1 else 's'}."
        if found.num_stored_completions:
            words += f" {counted(found.num_stored_completions, 'stored chat completion')} as well."
        if found.num_stored_responses:
            words += f" {counted(found.num_stored_responses, 'stored response')} as well."
        if found.num_conversations:
            words += f" {counted(found.num_conversations, 'conversation')} as well."
        if found.unreadable:
            words += f" {counted(len(found.unreadable), 'file')} could not be read; the server's log names them."
        return Led(_ADDRESS, words)

    return page_work(request).answer(request, "What the user has asked is being deleted", work, back=_ADDRESS)


def _fraction(percent: str, mark: str) -> float | None:
    if not percent.strip():
        return None
    try:
        value = typed_number(percent, mark)
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise RequestError(f"a part of {percent[:20]!r}", expected="above 0, at most 100 percent", do="correct it")
    return value / 100


def _days(text: str, mark: str) -> int | None:
    days = whole_number(text, "days to keep", mark)
    if days is not None and not 1 <= days <= MOST_DAYS_KEPT:
        raise RequestError(f"{days:,} days to keep", expected=f"from 1 to {MOST_DAYS_KEPT:,}", do="correct it")
    return days


def _page(request: Request, context: Context, caller: Caller, values: dict[str, Any], *, status: int = 200) -> Response:
    now, policy = context.access.now(), values["policy"]
    common: dict[str, Any] = {"keeps": _KEEPS, "counts": summary(context, caller.project_id, since=now - _DAY_SECONDS)}
    # What the form shows: what is set, unless it was given something that is refused.
    common["given"] = {
        "keep": policy.keep,
        "percent": f"{100 * policy.fraction:g}",
        "mask": policy.mask_personal_data,
        "keep_days": policy.keep_days,
    }
    common["command"] = _command(policy, caller.project_id)
    return show(request, "traffic", common | values, status=status)


def _command(policy: TrafficPolicy, project: str) -> str:
    """The command that sets the same."""
    words = f"luthier traffic policy --keep {policy.keep} --fraction {policy.fraction:g}"
    words += " --mask" if policy.mask_personal_data else " --no-mask"
    return f"{words} --keep-days {policy.keep_days}{project_option(project)}"
