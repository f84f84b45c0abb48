"""From a template to an answer: what all pages share, and how a form leads on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

from fastapi import Request
from jinja2 import BaseLoader, ChoiceLoader, Environment, FileSystemLoader, PrefixLoader
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse, RedirectResponse, Response

from luthier.core.evaluation import Metric
from luthier.ml.charts import figures
from luthier.ml.charts.page import page_environment
from luthier.ml.charts.svg import drawn
from luthier.platform.auth.member_records import Session
from luthier.platform.ui.assets import Assets
from luthier.platform.ui.form_tokens import form_token
from luthier.platform.ui.navigation import current, declared, entries_for
from luthier.platform.ui.page_advice import page_advice

_TEMPLATES: Final = Path(__file__).parent / "templates"
_FEATURES: Final = Path(__file__).parents[2] / "features"
_NOTICE: Final = "luthier_notice"
_MOST_NOTICE_CHARACTERS: Final = 600


def render(request: Request, template: str, values: Mapping[str, Any] | None = None, *, status: int = 200) -> Response:
    """The answer with a page, or a piece of one, made from a template.

    Every template knows, besides `values`: `session` (None where nobody is signed in), `may(scope)`, `asset(name)`,
    `navigation`, `here` (the path), `notice` (of the form before).
    """
    assets: Assets = request.app.state.assets
    session: Session | None = getattr(request.state, "session", None)
    notice = unquote(request.cookies.get(_NOTICE, ""))
    common = {
        "session": session,
        "may": lambda scope: session is not None and session.caller.may(scope),
        "asset": assets.address,
        "navigation": entries_for(session),
        "current": current(request.url.path),
        "here": request.url.path,
        # A fragment would show it in the middle of a page and take it away from the next whole one.
        "notice": "" if is_fragment_request(request) else notice,
    }
    text = environment().get_template(template).render(common | dict(values or {}))
    answer = HTMLResponse(text, status_code=status)
    if common["notice"]:
        answer.delete_cookie(_NOTICE)
    return answer


def redirect(request: Request, address: str, notice: str = "") -> Response:
    """Go to another page after a form that was done.

    Args:
        request: The request with the form.
        address: A path of this server.
        notice: What the next page says on top; empty for nothing.
    """
    answer: Response
    if is_fragment_request(request):
        # HTMX follows a 303 by itself and puts the page into the fragment's place: this header makes the browser go
        # there.
        answer = Response(status_code=204, headers={"HX-Redirect": address})
    else:
        answer = RedirectResponse(address, status_code=303)
    if notice:
        # Percent-encoded, since cookies hold ASCII alone; cut, since browsers refuse cookies above 4 KiB.
        words = quote(notice[:_MOST_NOTICE_CHARACTERS])
        answer.set_cookie(_NOTICE, words, max_age=60, httponly=True, samesite="lax")
    return answer


def is_fragment_request(request: Request) -> bool:
    """Whether HTMX asks, for a piece of a page; who goes back in the history gets the whole page."""
    asked = request.headers
    is_whole = "true" in (asked.get("hx-boosted"), asked.get("hx-history-restore-request"))
    return asked.get("hx-request") == "true" and not is_whole


def _feature_loaders() -> dict[str, BaseLoader]:
    """Of each feature the templates in its own folder: `datasets/list.html` is
    `features/datasets/templates/list.html`.
    """
    theirs = {name: page.templates for name, page in declared().items() if page.templates is not None}
    ours = {folder.parent.name: folder for folder in _FEATURES.glob("*/templates")}
    # Ours last, so that they win: a plug-in must not take the place of a feature's templates.
    return {name: FileSystemLoader(folder) for name, folder in (theirs | ours).items()}


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates of the pages. Everything is escaped, and what a browser would hide is made visible."""
    made = page_environment(_TEMPLATES)
    assert made.loader is not None
    # The shell's templates first, then those of features by the name of their folder.
    made.loader = ChoiceLoader([made.loader, PrefixLoader(_feature_loaders())])
    made.filters |= {
        "number": figures.number,
        "count": figures.count,
        "short_count": figures.short_count,
        "percent": figures.percent,
        "rough": figures.rough,
        "duration": figures.duration,
        "size": figures.size,
        "plain": figures.plain,
        "short_digest": figures.short_digest,
        "p_value": figures.p_value,
        "signed": figures.signed,
        "ago": ago,
        "metric": metric,
        "usd": usd,
        "as_json": _as_json,
        "page_advice": page_advice,
    }
    made.globals |= {"drawn": drawn, "form_token": form_token}
    return made


def ago(moment: float | str | None, *, now: float | None = None) -> Markup:
    """A time as a `<time>`: how long ago (or in how long), with the exact one in UTC on hover.

    Args:
        moment: Seconds since 1970, or ISO 8601; None shows as `never`.
        now: Seconds since 1970; None for this moment.
    """
    if moment is None:
        return Markup("<span class=muted>never</span>")
    # Stores keep floats (database clock) or ISO texts (runs): both end in UTC.
    exact = datetime.fromtimestamp(moment, UTC) if isinstance(moment, int | float) else datetime.fromisoformat(moment)
    if exact.tzinfo is None:
        exact = exact.replace(tzinfo=UTC)
    exact = exact.astimezone(UTC)
    words = relative(exact.timestamp() - (time.time() if now is None else now))
    iso, title = exact.isoformat(timespec="seconds"), f"{exact.day} {exact:%B %Y, %H:%M:%S} UTC"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(iso, title, words)


def relative(seconds: float) -> str:
    """How long ago (negative) or in how long (positive): `just now`, `5 min ago`, `in 3 days`."""
    length = abs(seconds)
    for unit, name in ((86400.0, "day"), (3600.0, "h"), (60.0, "min")):
        if length >= unit:
            count = int(length // unit)
            words = f"{count} {name}{'s' if name == 'day' and count > 1 else ''}"
            return f"in {words}" if seconds > 0 else f"{words} ago"
    return "just now" if seconds <= 5 else f"in {int(length)} s"


def metric(value: Metric) -> Markup:
    """A figure of an evaluation with its unit and its 95% interval."""
    decimals = figures.decimals_for(value.low, value.high)
    text = Markup('<span class="figure">{}</span>').format(figures.number(value.value, decimals))
    if value.low != value.high:
        text += Markup(' <span class="interval">{}</span>').format(figures.interval(value.low, value.high, decimals))
    return text + (Markup(' <span class="unit">{}</span>').format(value.unit) if value.unit else Markup(""))


def usd(value: float | None) -> str:
    """Money in US dollars: cents from a dollar on, two significant digits below."""
    if value is None:
        return "not priced"
    return f"${value:,.2f}" if abs(value) >= 1 or value == 0 else f"${value:#.2g}"


def _as_json(value: Any) -> Markup:
    """JSON for an attribute in double quotes."""
    # Escaped for HTML after encoding: quotes in texts would end the attribute.
    return escape(json.dumps(value, separators=(",", ":"), allow_nan=False))
