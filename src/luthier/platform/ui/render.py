"""From a template to a response: the page shell, its navigation, redirects after forms, and advice of errors.

Services give advice for programs, commands and pages. A page links to the page that a service's advice names by its API
call or command. Commands without a page (`luthier models pull`, `luthier data ingest`) stay what they are.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote, unquote

from fastapi import APIRouter, Request
from jinja2 import BaseLoader, ChoiceLoader, Environment, FileSystemLoader, PrefixLoader
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse, RedirectResponse, Response

from luthier.core.access import Scope
from luthier.core.evaluation import Metric
from luthier.core.import_string import import_string
from luthier.core.registry import PAGES
from luthier.core.text.byte_sizes import exact_size
from luthier.ml.charts import figures
from luthier.ml.charts.judged_rows import metric_title
from luthier.ml.charts.page import page_environment
from luthier.ml.charts.svg import drawn
from luthier.ml.charts.visible import visible
from luthier.platform.auth.members_store import Session
from luthier.platform.ui.assets import Assets
from luthier.platform.ui.form_drafts import filled, form_draft
from luthier.platform.ui.forms import form_token
from luthier.platform.ui.human_names import HumanNames, named
from luthier.platform.ui.i18n.catalog import catalog
from luthier.platform.ui.i18n.environments import Coverage, translated_environment, words
from luthier.platform.ui.i18n.language import ENGLISH, LANGUAGES, VARY, language_of
from luthier.platform.ui.terms import Terms
from luthier.platform.ui.visitor import page_above

Group = Literal["main", "data", "train", "evaluate", "use", "watch", "settings"]
"""Where a page is linked from: a group of the navigation, or the tabs of the settings."""
GROUP_TITLES: Final[dict[Group, str]] = {
    "data": "Data",
    "train": "Train",
    "evaluate": "Evaluate",
    "use": "Use",
    "watch": "Watch",
}
_MORE: Final = "More"
"""The heading of pages that belong to none of the five groups: those of plug-ins that name none."""
_ABOVE_ORDER: Final = 20
_BELOW_ORDER: Final = 1000
"""Pages of `main` with an order below the first are above the groups (Home), from the second on below (Settings)."""


@dataclass(frozen=True, slots=True)
class Advised:
    """Commands and API calls that become a link to a page where advice is shown on a page.

    Attributes:
        commands: Without `luthier`; `runs` is also `luthier runs list`.
        calls: How addresses of the API begin, after `/v1/`: `files` is also `GET /v1/files/{id}`.
        title: The text of the link; empty for the name of the page.
        address: Where it leads; empty for the address of the page.
    """

    commands: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    title: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """What a page declares, besides its router.

    Attributes:
        name: Its title.
        address: Its path. A plug-in's is `/plug-ins/` with the name of its entry point.
        scope: What a visitor needs to see it; None for everyone who is signed in.
        order: Pages are shown by it, smallest first.
        key: The letter that leads there, after `g`; empty for none.
        group: Where it is linked from. `main`: above the five groups, below them, or under "More", by its order.
        router: Of a plug-in: its routes, each at the address or below it. `scope` is required for each.
        templates: Of a plug-in: the folder of its templates, found under the name of its entry point
            (`name/list.html`); `base.html` is the layout that all pages extend.
        count: "module:function" of a number that the navigation shows beside the name: it gets the home and the caller,
            and has to be quick; empty for none.
        advised: The commands and API calls of advice that lead here, or to a page that it contains.
        elsewhere: Addresses that are not below its own and belong to it, too.
    """

    name: str
    address: str
    scope: Scope | None
    order: int
    key: str = ""
    group: Group = "main"
    router: APIRouter | None = None
    templates: Path | None = None
    count: str = ""
    advised: tuple[Advised, ...] = ()
    elsewhere: tuple[str, ...] = ()


@cache
def declared() -> dict[str, Page]:
    """Every page by the name it is registered under, by order.

    Raises:
        NotFoundError: A package brings a page that cannot be loaded.
    """
    found: dict[str, Page] = {name: PAGES.declaration(name) for name in PAGES.names()}
    return dict(sorted(found.items(), key=lambda item: item[1].order))


@dataclass(frozen=True, slots=True)
class NavigationGroup:
    """Pages that are shown together.

    Attributes:
        name: The group; `main` for pages that belong to no group.
        title: Its heading; empty for none.
        pages: In order.
    """

    name: Group
    title: str
    pages: tuple[Page, ...]


def entries(group: Group | None = None) -> list[Page]:
    """The pages of a group, in order; None: of the whole navigation."""
    return [
        page for page in declared().values() if (page.group != "settings" if group is None else page.group == group)
    ]


def entries_for(session: Session | None, group: Group | None = None) -> list[Page]:
    """Those that this visitor may open."""
    if session is None:
        return []
    return [page for page in entries(group) if page.scope is None or session.caller.may(page.scope)]


def navigation_for(session: Session | None) -> list[NavigationGroup]:
    """The navigation of this visitor, without empty groups."""
    pages = entries_for(session)
    main = [page for page in pages if page.group == "main"]
    above = [page for page in main if page.order < _ABOVE_ORDER]
    below = [page for page in main if page.order >= _BELOW_ORDER]
    more = [page for page in main if _ABOVE_ORDER <= page.order < _BELOW_ORDER]
    found = [
        NavigationGroup("main", "", tuple(above)),
        *(
            NavigationGroup(name, title, tuple(p for p in pages if p.group == name))
            for name, title in GROUP_TITLES.items()
        ),
        NavigationGroup("main", _MORE, tuple(more)),
        NavigationGroup("main", "", tuple(below)),
    ]
    return [one for one in found if one.pages]


def current(path: str) -> str:
    """The address of the page of the navigation that an address belongs to; empty for none."""
    places = {place: page.address for page in entries() for place in (page.address, *page.elsewhere)}
    fitting = [one for one in places if path == one or (one != "/" and path.startswith(f"{one}/"))]
    # The longest fit is the most specific entry.
    return places[max(fitting, key=len)] if fitting else ""


def group_of(address: str) -> Group:
    """The group of the page of the navigation that an address belongs to; `main` where there is none."""
    found = current(address)
    return next((page.group for page in entries() if page.address == found), "main")


_HOME: Final = ("/", "Home")
_CALL: Final = re.compile(r"\b(?:GET|POST|PUT|PATCH|DELETE) /(?:api/)?v1/([A-Za-z0-9_/{}.-]*)")
_RUN_ID: Final = re.compile(r"\brun-[A-Za-z0-9-]+")
# Advice that names a command and an API call for the same thing becomes one link.
_TWICE: Final = re.compile(r"(<a [^>]*>[^<]*</a>),? or \1")


@dataclass(frozen=True, slots=True)
class _Links:
    """Address and title of the pages that advice leads to, by commands and by addresses of the API."""

    commands: Mapping[str, tuple[str, str]]
    calls: Mapping[str, tuple[str, str]]
    command: re.Pattern[str]


@cache
def _links() -> _Links:
    commands: dict[str, tuple[str, str]] = {}
    calls: dict[str, tuple[str, str]] = {}
    # Ours last, so that they win: a plug-in must not take the place of a page of ours.
    for _, page in sorted(declared().items(), key=lambda item: item[0] in PAGES.built_in):
        for one in page.advised:
            place = (one.address or page.address, one.title or page.name)
            commands |= dict.fromkeys(one.commands, place)
            calls |= dict.fromkeys(one.calls, place)
    # The longest first: `traffic policy` before `traffic`.
    names = "|".join(sorted(map(re.escape, commands), key=len, reverse=True))
    command = rf"`luthier ({names})\b([^`]*)`|(?<![\w-])luthier ({names})(?![\w-])([^;,()]*)"
    return _Links(commands, calls, re.compile(command))


def page_advice(advice: str, say: Callable[[str], str] = str) -> Markup:
    """The advice of an error with links to pages in the place of API calls and of commands that have a page.

    say: the name of a page in the language of the page.
    """
    # Escaped first: an error may quote what a stranger sent, and only the links below may be markup.
    text = str(escape(visible(advice)))
    text = _CALL.sub(lambda found: _link(*_page_of_route(found[1]), say), text)
    text = _links().command.sub(lambda found: _of_command(found[1] or found[3], found[2] or found[4] or "", say), text)
    return Markup(_TWICE.sub(r"\1", text))  # noqa: S704 - escaped above, and so are the links that were put in


def _page_of_route(path: str) -> tuple[str, str]:
    calls = _links().calls
    known = [name for name in calls if path == name or path.startswith(f"{name}/")]
    # The longest name that fits: `fine_tuning/jobs` before `fine_tuning`.
    return calls[max(known, key=len)] if known else _HOME


def _of_command(name: str, arguments: str, say: Callable[[str], str]) -> str:
    address, title = _links().commands[name]
    if address == "/runs" and (run := _RUN_ID.search(arguments)) is not None:
        address, title = f"/runs/{run[0]}", "its page"
    return _link(address, title, say)


def _link(address: str, title: str, say: Callable[[str], str]) -> str:
    return f'<a href="{escape(address)}">{escape(say(title))}</a>'


_TEMPLATES: Final = Path(__file__).parent / "templates"
_FEATURES: Final = Path(__file__).parents[2] / "features"
_MARK: Final = Path(__file__).parent / "static" / "images" / "mark.svg"
_NOTICE: Final = "luthier_notice"
_THEME: Final = "luthier_theme"
"""A cookie that the switch of the page sets; the server writes it into the page, so that no script holds the first
frame back and no frame has the other theme."""
_MOST_NOTICE_CHARACTERS: Final = 600


def render(request: Request, template: str, values: Mapping[str, Any] | None = None, *, status: int = 200) -> Response:
    """The answer with a page, or a piece of one, made from a template.

    Every template knows, in addition to `values`: `session` (None where no one is signed in), `may(scope)`,
    `asset(name)`, `navigation`, `here` (the path), `full_address` (with its query), `language_back` (where a choice
    of the language leads), `group` (of the navigation that the path belongs to), `notice` (of the form before),
    `rail()` (the first steps of a project), `page_inbox()` (who does the work that the page is about), `term(word)` (a
    word with its explanation), `language` (of the page), `language_wanted` and `languages` (for the switch),
    `script_words` (texts of scripts), `theme` (light, dark, or empty for that of the system), `human_names` (for the
    filter `named`: names in the place of ids).
    """
    assets: Assets = request.app.state.assets
    session: Session | None = getattr(request.state, "session", None)
    notice = unquote(request.cookies.get(_NOTICE, ""))
    wanted, language = language_of(request), page_language(request, template)
    common = {
        "language": language,
        "language_wanted": wanted,
        "script_words": {} if language == ENGLISH else catalog(language).scripts,
        "languages": LANGUAGES,
        "theme": theme_of(request),
        "session": session,
        "may": lambda scope: session is not None and session.caller.may(scope),
        "asset": assets.address,
        "navigation": navigation_for(session),
        "navigation_counts": _counts(request, session),
        "current": current(request.url.path),
        "here": request.url.path,
        "full_address": (address := request.url.path + (f"?{request.url.query}" if request.url.query else "")),
        "language_back": address if request.method == "GET" else page_above(request),
        "group": group_of(request.url.path),
        "rail": partial(_rail, request, session),
        "page_inbox": partial(_page_inbox, request, session),
        "human_names": _human_names(request, session),
        "term": Terms(request.url.path, is_piece=is_fragment_request(request), word=words(language)),
        # A fragment would show it in the middle of a page and take it away from the next whole one.
        "notice": "" if is_fragment_request(request) else notice,
    }
    form = None if is_fragment_request(request) else form_draft(request)
    if form is not None and session is not None:
        common["notice"] = f"{common['notice']} {words(language)(form.notice)}".strip()
    text = environment_of(language).get_template(template).render(common | dict(values or {}))
    if form is not None and session is not None:
        text, is_whole = filled(text, form, request.url.path)
        if not is_whole:
            text = environment_of(language).get_template("restored.html").render(common | {"form": form})
    answer = HTMLResponse(text, status_code=status, headers={"Vary": VARY, "Content-Language": language})
    if notice and common["notice"]:
        answer.delete_cookie(_NOTICE)
    return answer


def theme_of(request: Request) -> str:
    """The theme that this browser has chosen; empty for that of the system."""
    chosen = request.cookies.get(_THEME, "")
    return chosen if chosen in ("light", "dark") else ""


def page_language(request: Request, template: str) -> str:
    """The language that a page of this template has for this visitor: English, where it is not translated whole."""
    wanted = language_of(request)
    return wanted if wanted == ENGLISH or _coverage(wanted).has(template) else ENGLISH


def _counts(request: Request, session: Session | None) -> dict[str, int]:
    """What waits, by the address of the page; nothing for a piece of a page, which has no navigation."""
    if session is None or is_fragment_request(request):
        return {}
    counted = [page for page in entries_for(session) if page.count]
    context = request.app.state.context
    return {page.address: import_string(page.count)(context, session.caller) for page in counted}


def _rail(request: Request, session: Session | None) -> Any:
    """The first steps of the visitor's project; None where they are done, and for servers without a rail."""
    rail = getattr(request.app.state, "rail", None)
    return None if rail is None else rail.of(session)


def _page_inbox(request: Request, session: Session | None) -> Any:
    """The work of the inbox that leads to this page; None where there is none, and for servers without an inbox."""
    assignments = getattr(request.app.state, "assignments", None)
    return None if assignments is None else assignments.of(session, request.url.path, request.url.query)


def _human_names(request: Request, session: Session | None) -> HumanNames | None:
    """Names of what the visitor's project has; None for servers without a home, and where nobody is signed in."""
    context = getattr(request.app.state, "context", None)
    return None if context is None or session is None else HumanNames(context, session.caller.project_id)


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
    """Whether HTMX requests a part of a page; going back in the history gets the whole page."""
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


@cache
def environment_of(language: str) -> Environment:
    """The templates of the pages in a language."""
    return environment() if language == ENGLISH else translated_environment(environment(), language)


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
        "exact_size": exact_size,
        "plain": figures.plain,
        "short_digest": figures.short_digest,
        "p_value": figures.p_value,
        "signed": figures.signed,
        "ago": ago,
        "day": str,
        "metric": metric,
        "metric_title": metric_title,
        "usd": usd,
        "as_json": _as_json,
        "page_advice": page_advice,
        "named": named,
        "system_name": words(ENGLISH),
        # Texts that Python made are in English already.
        "t": words(ENGLISH),
        "chart_words": words(ENGLISH),
    }
    made.globals |= {"drawn": drawn, "form_token": form_token, "brand_mark": brand_mark}
    return made


@cache
def brand_mark(size: int) -> Markup:
    """The mark of the product, in px, as a part of the page: an SVG image is its own document, which browsers
    make before the first paint.
    """
    text = _MARK.read_text(encoding="utf-8")
    sized = text.replace("<svg ", f'<svg width="{size}" height="{size}" aria-hidden="true" ', 1)
    return Markup(sized)  # noqa: S704 - a file of this package


@cache
def _coverage(language: str) -> Coverage:
    return Coverage(environment(), language)


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
