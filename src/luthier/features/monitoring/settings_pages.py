"""/settings/alerts: which models are checked, how often, and who gets a message when one changes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, RequestError
from luthier.core.records.monitoring import AlertSettings
from luthier.features.monitoring import alerts
from luthier.features.monitoring import loop as monitor_loop
from luthier.platform.home.context import Context
from luthier.platform.notifications import webhooks
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.i18n.environments import decimal_mark_of
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import Advised, Page, redirect
from luthier.platform.ui.settings_tabs import show, whole_number
from luthier.platform.ui.visitor import Admin, HomeContext, Reader

router = APIRouter()
PAGE = Page(
    "Alerts",
    "/settings/alerts",
    "read",
    order=57,
    group="settings",
    advised=(Advised(commands=("alerts settings",), title="Alert settings"),),
)

_ADDRESS: Final = "/settings/alerts"
_Text = Annotated[str, Form(max_length=20_000)]
_Number = Annotated[str, Form(max_length=20)]


@router.get(_ADDRESS)
def settings(request: Request, context: HomeContext, caller: Reader) -> Response:
    """The settings, and for admins a form to change them."""
    came = shown_once(request).take(request).get("came")
    return _page(request, context, caller, {"came": came})


@router.post(_ADDRESS)
def change(
    request: Request,
    context: HomeContext,
    caller: Admin,
    is_on: Annotated[bool, Form()] = False,
    every_minutes: _Number = "",
    window_hours: _Number = "",
    open_after: _Number = "",
    close_after: _Number = "",
    emails: _Text = "",
    models: _Text = "",
    left_out: _Text = "",
) -> Response:
    """Change them; an empty number keeps what was set."""
    given: dict[str, Any] = {"is_on": is_on, "emails": emails, "models": models, "left_out": left_out}
    numbers = {"every_minutes": every_minutes, "window_hours": window_hours}
    rule = {"open_after": open_after, "close_after": close_after}
    try:
        now = alerts.alert_settings(context, caller.project_id)
        changes: dict[str, Any] = {"is_on": is_on, "emails": _lines(emails)}
        changes |= {"models": _lines(models), "left_out": _lines(left_out)}
        changes |= _whole(request, numbers)
        ends = _whole(request, rule)
        if both := set(changes["models"]) & set(changes["left_out"]):
            raise RequestError(
                f"{', '.join(sorted(both))[:200]} is in both lists of models",
                expected="a model in one of them",
                do="remove it from the other",
            )
        alerts.change_settings(context, caller, changes | {"rule": now.rule.model_dump() | ends})
    except LuthierError as error:
        return _page(
            request, context, caller, {"error": error, "given": given | numbers | rule}, status=status_of(error)
        )
    return redirect(request, _ADDRESS, "The settings of alerts are changed.")


@router.post(f"{_ADDRESS}/test")
def send_test(request: Request, context: HomeContext, caller: Admin) -> Response:
    """Send a test message to all receivers."""

    def work() -> Led:
        came = alerts.send_test(context, caller)
        return Led(shown_once(request).put(request, _ADDRESS, {"came": came}))

    return page_work(request).answer(request, "A test message is sent to all receivers", work, back=_ADDRESS)


def _lines(text: str) -> tuple[str, ...]:
    """One a line, or separated by commas; each once."""
    parts = (part.strip() for line in text.splitlines() for part in line.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def _whole(request: Request, given: Mapping[str, str]) -> dict[str, int]:
    """The numbers of the fields that are not empty."""
    mark = decimal_mark_of(request)
    found = {name: whole_number(text, name.replace("_", " "), mark) for name, text in given.items()}
    return {name: value for name, value in found.items() if value is not None}


def _command(settings: AlertSettings, project: str) -> str:
    """The command that sets the same."""
    words = ["luthier", "alerts", "settings", "--on" if settings.is_on else "--off"]
    words += ["--every", f"{settings.every_minutes}m", "--window", f"{settings.window_hours}h"]
    words += ["--open-after", str(settings.rule.open_after), "--close-after", str(settings.rule.close_after)]
    lists = {"--email": settings.emails, "--watch": settings.models, "--leave-out": settings.left_out}
    for option, names in lists.items():
        words += [word for name in names for word in (option, name)]
    return shlex.join([*words, *([] if project == "default" else ["--project", project])])


def _page(request: Request, context: Context, caller: Caller, values: dict[str, Any], *, status: int = 200) -> Response:
    now = alerts.alert_settings(context, caller.project_id)
    hooks = [one for one in webhooks.list_webhooks(context, caller.project_id) if alerts.wants_alerts(one.event_types)]
    common = {
        "now": now,
        "given": {
            "is_on": now.is_on,
            "every_minutes": now.every_minutes,
            "window_hours": now.window_hours,
            "open_after": now.rule.open_after,
            "close_after": now.rule.close_after,
            "emails": "\n".join(now.emails),
            "models": "\n".join(now.models),
            "left_out": "\n".join(now.left_out),
        },
        "watched": monitor_loop.monitored_models(context, caller.project_id, now),
        "hooks": hooks,
        "has_mail": context.settings.smtp is not None,
        "came": None,
        "command": _command(now, context.access.project(caller.project_id).name),
    }
    return show(request, "alerts", common | values, status=status)
