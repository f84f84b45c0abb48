"""Forms that could not be done: their values wait until the person is at their page again.

    POST without a session    --> values kept under a random name --> /sign-in?next=PAGE?restored=NAME
    POST that an error ends   --> the same                        --> the error, with a link to PAGE?restored=NAME
    PAGE with `restored=NAME` --> its form holds the values again; nothing is sent before the person sends it

The values are in memory for half an hour. They are shown only in the browser that sent them, which holds a second
secret in a cookie; passwords and keys are never kept. A page is changed where it is rendered: fields of the form with
the same address get their values, so that this works without scripts and for every form.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from html.parser import HTMLParser
from typing import Final

from fastapi import Request
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from luthier.platform.auth.service import digest_of
from luthier.platform.ui.forms import FIELD

PARAMETER: Final = "restored"
COOKIE: Final = "luthier_restored"
DRAFT_SECONDS: Final = 1800.0
_MAX_FORMS: Final = 500
_MIN_SECRET: Final = 32
"""Characters of a secret that was made here."""
_MAX_CHARACTERS: Final = 1_000_000
_MAX_ALL_CHARACTERS: Final = 20_000_000
"""Of all forms together: nobody has signed in when they are kept."""
_MAX_BODY_BYTES: Final = 3 * _MAX_CHARACTERS
_FORM_TYPE: Final = "application/x-www-form-urlencoded"
_SECRET: Final = frozenset(("password", "again", "current", "key", "secret", "token", "smtp", FIELD))
"""Fields that are not kept; nor is any other with `password` or `secret` in its name."""

RESTORED: Final = (
    "You are signed in again. The form that you sent before was not processed: it holds what you entered. Check it and "
    "send it again."
)
REFUSED: Final = "The form was not processed: it holds what you entered. Correct it if necessary, and send it again."


@dataclass(frozen=True, slots=True)
class FormDraft:
    """A form that was not sent to its end.

    Attributes:
        action: The address that it was sent to.
        values: Its fields with all their values.
        is_refused: Whether an error has ended it; else the session had ended.
    """

    action: str
    values: Mapping[str, Sequence[str]]
    is_refused: bool = False

    @property
    def notice(self) -> str:
        """What the page says that holds its values again."""
        return REFUSED if self.is_refused else RESTORED


class FormDrafts:
    """The forms of all browsers of this process. Methods may be called by any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._forms: OrderedDict[str, tuple[float, str, FormDraft]] = OrderedDict()
        self._num_characters = 0

    def put(self, form: FormDraft, secret: str = "") -> tuple[str, str]:
        """Keep a form; returns its name, for an address, and the secret of its browser, for a cookie.

        Args:
            form: The form.
            secret: That of the browser, where it has one: forms of several of its tabs wait at the same time.
        """
        secret = secret if len(secret) >= _MIN_SECRET else secrets.token_urlsafe(32)
        name, now = secrets.token_urlsafe(16), self._clock()
        with self._lock:
            self._forget(now)
            self._forms[name] = (now + DRAFT_SECONDS, digest_of(secret), form)
            self._num_characters += _num_characters(form.values)
            while len(self._forms) > _MAX_FORMS or self._num_characters > _MAX_ALL_CHARACTERS:
                self._drop(next(iter(self._forms)))
        return name, secret

    def find(self, name: str, secret: str) -> FormDraft | None:
        """The form of a name, for the browser that holds its secret; None for any other."""
        with self._lock:
            self._forget(self._clock())
            found = self._forms.get(name)
        return None if found is None or found[1] != digest_of(secret) else found[2]

    def _forget(self, now: float) -> None:
        for name in [name for name, one in self._forms.items() if one[0] < now]:
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._num_characters -= _num_characters(self._forms.pop(name)[2].values)


async def keep_draft(request: Request) -> tuple[str, str] | None:
    """Keep the form of a request whose session has ended; None where there is nothing to keep.

    Returns:
        The name and the secret, as of `FormDrafts.put`.
    """
    form = await sent_form(request)
    return None if form is None else put_draft(request, form)


def put_draft(request: Request, form: FormDraft) -> tuple[str, str]:
    """Keep a form for the browser of a request; returns what `FormDrafts.put` returns."""
    shelf: FormDrafts = request.app.state.form_drafts
    return shelf.put(form, request.cookies.get(COOKIE, ""))


async def sent_form(request: Request) -> FormDraft | None:
    """The form of a request as far as it may be kept; None where it has none, or a larger one."""
    headers = request.headers
    # Requests of our own scripts are no forms: these pages keep what was typed themselves.
    is_script = headers.get("sec-fetch-mode", "navigate") != "navigate"
    is_script |= "application/json" in headers.get("accept", "")
    has_shelf = getattr(request.app.state, "form_drafts", None) is not None
    if not has_shelf or request.method != "POST" or (is_script and "hx-request" not in headers):
        return None
    if not headers.get("content-type", "").startswith(_FORM_TYPE):
        return None
    # Nobody has signed in, and addresses that take files have no limit on the body: nothing larger is read at all.
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= _MAX_BODY_BYTES):
        return None
    try:
        values = _values(await request.form(max_part_size=_MAX_BODY_BYTES))
    # More fields than a form has; a browser that has left; a handler that has read the body by itself.
    except (HTTPException, ClientDisconnect, RuntimeError):
        return None
    if not values or _num_characters(values) > _MAX_CHARACTERS:
        return None
    return FormDraft(request.url.path, values)


def with_name(address: str, name: str) -> str:
    """The address of a page that is to show the form of a name."""
    return f"{address}{'&' if '?' in address else '?'}{PARAMETER}={name}"


def remember_draft(answer: Response, secret: str) -> None:
    """Have the browser hold the secret of its form."""
    answer.set_cookie(COOKIE, secret, max_age=int(DRAFT_SECONDS), httponly=True, samesite="lax")


def form_draft(request: Request) -> FormDraft | None:
    """The form that the address of a request names, if this browser has sent it."""
    name, secret = request.query_params.get(PARAMETER, ""), request.cookies.get(COOKIE, "")
    shelf: FormDrafts | None = getattr(request.app.state, "form_drafts", None)
    return None if shelf is None or not name or not secret else shelf.find(name, secret)


def filled(page: str, form: FormDraft, path: str) -> tuple[str, bool]:
    """A page with the values of a form in the fields of the form with its address, and whether each text has one.

    Args:
        page: The HTML.
        form: The values.
        path: Of the page, which a form without an address is sent to.
    """
    filler = _Filler(page, form, path)
    filler.feed(page)
    filler.close()
    return filler.result(), filler.is_whole


def _num_characters(values: Mapping[str, Sequence[str]]) -> int:
    return sum(len(name) + sum(map(len, texts)) for name, texts in values.items())


def _values(form: FormData) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        is_secret = name in _SECRET or "password" in name or "secret" in name
        if isinstance(value, str) and not is_secret:
            found.setdefault(name, []).append(value)
    return found


class _Filler(HTMLParser):
    """Finds the tags of fields, and what is to be in their place; all else of a page stays as it is."""

    def __init__(self, page: str, form: FormDraft, path: str) -> None:
        super().__init__(convert_charrefs=False)
        self._page, self._form, self._path = page, form, path
        self._starts = _line_starts(page)
        # (begin, end, what is in its place), in the order of the page.
        self._edits: list[tuple[int, int, str]] = []
        self._left = {name: list(texts) for name, texts in form.values.items()}
        self._is_inside, self._select, self._area = False, "", ("", -1)
        self._fields = set[str]()

    @property
    def is_whole(self) -> bool:
        """Whether each field with a text of several words is on the page; the rest is quickly chosen again."""
        return {name for name, texts in self._form.values.items() if any(map(_has_words, texts))} <= self._fields

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form":
            address = (values.get("action") or self._path).partition("?")[0]
            self._is_inside = values.get("method", "").lower() == "post" and address == self._form.action
        if not self._is_inside:
            return
        name = values.get("name", "")
        if tag in ("input", "textarea", "select", "button"):
            self._fields.add(name)
        if tag == "details" and "open" not in values:
            self._change(tag, attrs, {"open": ""})
        elif tag == "input":
            self._input(attrs, values, name)
        elif tag == "textarea" and self._left.get(name):
            self._area = (name, self._place() + len(self.get_starttag_text() or ""))
        elif tag == "select":
            self._select = name
        elif tag == "option" and self._select in self._left:
            is_chosen = values.get("value", "") in self._form.values[self._select]
            self._change(tag, attrs, {"selected": ""} if is_chosen else {}, removed="selected")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        name, begin = self._area
        if tag == "form":
            self._is_inside = False
        elif tag == "select":
            self._select = ""
        elif tag == "textarea" and name:
            # A browser leaves out the first line break of a field of several lines.
            self._edits.append((begin, self._place(), f"\n{escape(self._left[name].pop(0))}"))
            self._area = ("", -1)

    def result(self) -> str:
        """The page with all changes."""
        parts, at = [], 0
        for begin, end, text in self._edits:
            parts += [self._page[at:begin], text]
            at = end
        return "".join([*parts, self._page[at:]])

    def _input(self, attrs: list[tuple[str, str | None]], values: Mapping[str, str], name: str) -> None:
        kind = values.get("type", "text").lower()
        if kind in ("checkbox", "radio"):
            is_chosen = values.get("value", "on") in self._form.values.get(name, ())
            self._change("input", attrs, {"checked": ""} if is_chosen else {}, removed="checked")
        # Hidden fields are those of the new page: they say what the person sees now.
        elif kind not in ("hidden", "file", "password", "submit", "button") and self._left.get(name):
            self._change("input", attrs, {"value": self._left[name].pop(0)}, removed="value")

    def _change(
        self, tag: str, attrs: list[tuple[str, str | None]], added: Mapping[str, str], *, removed: str = ""
    ) -> None:
        kept = [(name, value or "") for name, value in attrs if name != removed and name not in added]
        words = [tag, *(f'{name}="{escape(value)}"' for name, value in (*kept, *added.items()))]
        begin = self._place()
        self._edits.append((begin, begin + len(self.get_starttag_text() or ""), f"<{' '.join(words)}>"))

    def _place(self) -> int:
        line, column = self.getpos()
        return self._starts[line - 1] + column


def _has_words(text: str) -> bool:
    # One that a person has typed: ids, numbers and JSON of scripts have no blanks between words.
    return len(text.split()) > 1


def _line_starts(page: str) -> list[int]:
    """Where each line begins; lines end with line feeds, as the parser counts them."""
    starts, at = [0], page.find("\n")
    while at >= 0:
        starts.append(at + 1)
        at = page.find("\n", at + 1)
    return starts
