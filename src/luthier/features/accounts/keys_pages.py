"""/settings/keys: the keys of the project: list, make (shown once), revoke."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from luthier.core.access import SCOPES, ApiKey, Caller, Scope, project_option
from luthier.core.errors import LuthierError
from luthier.platform.auth import service as access
from luthier.platform.home.context import Context
from luthier.platform.home.duration import parse_duration
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.i18n.environments import decimal_mark_of
from luthier.platform.ui.render import Advised, Page, redirect
from luthier.platform.ui.settings_tabs import Id, show, whole_number
from luthier.platform.ui.visitor import Admin, HomeContext

router = APIRouter()
PAGE = Page("Keys", "/settings/keys", "admin", order=20, group="settings", advised=(Advised(commands=("keys",)),))

_ADDRESS: Final = "/settings/keys"
_SPANS: Final = {"7d": "in 7 days", "30d": "in 30 days", "90d": "in 90 days", "365d": "in a year", "": "never"}
_MAX_ENDED: Final = 100
_EMPTY: Final = {"name": "", "scopes": (), "expires": "90d", "requests_per_minute": "", "tokens_per_day": ""}
_Text = Annotated[str, Form(max_length=200)]


@router.get(_ADDRESS)
def keys(request: Request, context: HomeContext, caller: Admin) -> Response:
    """The keys, and a form for another one."""
    return _page(request, context, caller, shown_once(request).take(request))


@router.post(_ADDRESS)
def create(
    request: Request,
    context: HomeContext,
    caller: Admin,
    name: _Text = "",
    scopes: Annotated[list[Scope], Form(max_length=10)] = [],  # noqa: B006 - FastAPI copies it
    expires: _Text = "",
    requests_per_minute: _Text = "",
    tokens_per_day: _Text = "",
) -> Response:
    """Make a key of the visitor's project, and lead to where it is shown once."""
    try:
        made, key = access.create_key(
            context,
            name.strip(),
            scopes=tuple(scopes),
            project=caller.project_id,
            expires_in_seconds=parse_duration(expires, option="the time until it ends") if expires else None,
            requests_per_minute=whole_number(requests_per_minute, "requests a minute", decimal_mark_of(request)),
            tokens_per_day=whole_number(tokens_per_day, "tokens a day", decimal_mark_of(request)),
            by=caller,
        )
    except LuthierError as error:
        form = {
            "name": name,
            "scopes": scopes,
            "expires": expires,
            "requests_per_minute": requests_per_minute,
            "tokens_per_day": tokens_per_day,
        }
        return _page(request, context, caller, {"error": error, "form": form}, status=422)
    # Post, redirect, get: a reload of the page makes no second key, and the secret never is in an address.
    return redirect(request, shown_once(request).put(request, _ADDRESS, {"made": made, "secret": key}))


@router.post(f"{_ADDRESS}/{{key_id}}/revoke")
def revoke(request: Request, context: HomeContext, caller: Admin, key_id: Id) -> Response:
    """Revoke a key."""
    key = access.revoke_key(context, key_id, project_id=caller.project_id, by=caller)
    return redirect(request, _ADDRESS, f"The key {key.name} is revoked and no longer valid.")


def _page(request: Request, context: Context, caller: Caller, values: dict[str, Any], *, status: int = 200) -> Response:
    found, now = access.list_keys(context, project_id=caller.project_id), context.access.now()
    ended = [key for key in found if not _is_good(key, now)]
    good = [key for key in found if _is_good(key, now)]
    common = {
        "good": good,
        "ended": ended[:_MAX_ENDED],
        "num_ended": len(ended),
        "scopes": SCOPES,
        "spans": _SPANS,
        "form": _EMPTY,
        "made": None,
        "project_words": project_option(caller.project_id),
    }
    return show(request, "keys", common | values, status=status)


def _is_good(key: ApiKey, now: float) -> bool:
    # The clock of the database decides, as it does where the key is checked.
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > now)
