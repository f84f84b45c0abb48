"""Forms of the pages: a form that is sent twice does its work once; secrets are shown once.

Each form carries a random token in a hidden field. Two requests of one session with the same token and the same fields
are one submission, for a double click, a reload or a step back: the second waits for the first and gets its answer.
Only answers that lead on are kept (redirects, `201`, `204` and short JSON): an error or a piece of a page is made
again.

    POST --> key of (session, address, body with token) --> known: wait, then the kept answer
                                                        `-> new: the handler, its answer kept

What is shown once (a new key, the links of raters) waits in memory for the session that made it, and is deleted soon
after it was shown: no secret is written to disk or put into an address. The address carries a random name of the place
where it waits. A form redirects there, so that a reload makes no second one.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from fastapi import Request
from markupsafe import Markup
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.platform.auth.service import digest_of
from luthier.platform.ui.visitor import COOKIE

FIELD: Final = "form_token"
_MARK: Final = f"{FIELD}=".encode()
_FORM_TYPE: Final = "application/x-www-form-urlencoded"
_MAX_BODY_BYTES: Final = 4 << 20
"""Longer bodies are passed on as they come, and not compared with others."""
_MAX_ANSWER_BYTES: Final = 64 << 10
_MAX_KEPT: Final = 2000
_KEEP_SECONDS: Final = 3600.0
_LEADS_ON: Final = frozenset({201, 204, 303})
_WORKING: Final = "/working/"
"""Addresses of work that continues behind its answer (`platform.ui.page_work`)."""
Answer = TypeVar("Answer")


def form_token() -> Markup:
    """The hidden field of a form, with its own token."""
    return Markup('<input type="hidden" name="{}" value="{}">').format(FIELD, secrets.token_urlsafe(16))


@dataclass(slots=True)
class Submission(Generic[Answer]):
    """What one submission was answered. future: resolves to the answer, or to None where it is not to be kept."""

    future: asyncio.Future[Answer | None]
    at: float = field(default_factory=time.monotonic)


class SubmissionCache(Generic[Answer]):
    """The answers of submissions by their keys: of this process, in memory, at most 2,000 for an hour.

    For use in one event loop: between `find` and `begin` nothing is waited for.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, Submission[Answer]] = OrderedDict()

    async def find(self, key: str, is_stale: Callable[[Answer], bool]) -> Answer | None:
        """The answer of the same submission, waited for; None where the caller has to `begin` it.

        Args:
            key: Of the submission.
            is_stale: Whether an answer must not be given again.
        """
        self._forget_old()
        # Again after each wait: of those who waited for one that failed, one does the work and the others wait for it.
        while (known := self._known.get(key)) is not None:
            # Shielded: who leaves must not take the answer from the request that makes it.
            kept = await asyncio.shield(known.future)
            if kept is not None and not is_stale(kept):
                return kept
            if self._known.get(key) is known:
                del self._known[key]
        return None

    def begin(self, key: str) -> Submission[Answer]:
        """Have those who send the same wait until this one is settled."""
        begun = self._known[key] = Submission(asyncio.get_running_loop().create_future())
        return begun

    def settle(self, key: str, begun: Submission[Answer], kept: Answer | None) -> None:
        """Give the answer to those who wait, or have one of them make it, where it is None."""
        if kept is None and self._known.get(key) is begun:
            del self._known[key]
        begun.future.set_result(kept)

    def _forget_old(self) -> None:
        limit = time.monotonic() - _KEEP_SECONDS
        for key in list(self._known):
            one = self._known[key]
            # In order of age: behind the first one that stays, all are younger.
            if not one.future.done() or (one.at > limit and len(self._known) < _MAX_KEPT):
                break
            del self._known[key]


class SubmitOnce:
    """The middleware. Forms with files are not among those that it compares: `platform.http.upload_once`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._answers: SubmissionCache[list[Message]] = SubmissionCache()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if scope.get("method") != "POST" or not headers.get("content-type", "").startswith(_FORM_TYPE):
            await self._app(scope, receive, send)
            return
        # The body is part of the key, so it is read here and handed on again.
        body, messages = b"", []
        while True:
            message = await receive()
            messages.append(message)
            body += message.get("body", b"")
            if message["type"] != "http.request" or not message.get("more_body") or len(body) > _MAX_BODY_BYTES:
                break
        again = _replayed(messages, receive)
        if _MARK not in body or len(body) > _MAX_BODY_BYTES or messages[-1]["type"] != "http.request":
            await self._app(scope, again, send)
            return
        await self._submit(submission_key(scope, headers, body), scope, again, send)

    async def _submit(self, key: str, scope: Scope, receive: Receive, send: Send) -> None:
        kept = await self._answers.find(key, lambda sent: has_failed_since(scope, Headers(raw=sent[0]["headers"])))
        if kept is not None:
            for message in kept:
                await send(message)
            return
        begun = self._answers.begin(key)
        sent: list[Message] = []

        async def keep_and_send(message: Message) -> None:
            # Before it is sent: the browser of a double click has hung up on the first of its requests.
            sent.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self._answers.settle(key, begun, list(sent) if _leads_on(sent) else None)
            await send(message)

        try:
            await self._app(scope, receive, keep_and_send)
        finally:
            # The handler raised, or the client left before the end: of those who wait one makes the answer.
            if not begun.future.done():
                self._answers.settle(key, begun, None)


def submission_key(scope: Scope, headers: Headers, content: bytes) -> str:
    """What two requests have in common that are one submission: session, address and content with its token."""
    session = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
    parts = (session.encode(), scope["path"].encode(), scope.get("query_string", b""), content)
    # Each part is hashed by itself, so that no part can run into the next one.
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def leads_on(status: int, headers: Headers, num_bytes: int) -> bool:
    """Whether an answer is kept: it leads to what was made, or describes it in short."""
    # A session that had ended: after signing in the form must do its work.
    if headers.get("location", "").startswith("/sign-in") or num_bytes > _MAX_ANSWER_BYTES:
        return False
    return status in _LEADS_ON or (status == 200 and headers.get("content-type", "").startswith("application/json"))


def has_failed_since(scope: Scope, headers: Headers) -> bool:
    """Whether an answer led to work that has failed since: the same form has to do it again."""
    address = headers.get("location") or headers.get("hx-redirect") or ""
    if not address.startswith(_WORKING):
        return False
    return bool(scope["app"].state.page_work.has_failed(address.removeprefix(_WORKING)))


def _leads_on(sent: list[Message]) -> bool:
    if not sent or sent[0]["type"] != "http.response.start":
        return False
    num_bytes = sum(len(message.get("body", b"")) for message in sent)
    return leads_on(sent[0]["status"], Headers(raw=sent[0]["headers"]), num_bytes)


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    """The read messages again, then the next ones."""
    waiting = list(reversed(messages))

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


PARAMETER: Final = "shown"
UNSEEN_SECONDS: Final = 600.0
"""So long the values wait to be shown."""
SEEN_SECONDS: Final = 60.0
"""So long they are shown again after the first time: a second click of a double click may follow the redirect, too."""
_MAX_WAITING: Final = 1000


@dataclass(slots=True)
class _Waiting:
    owner: str
    values: Mapping[str, Any]
    until: float
    is_seen: bool = False


class ShownOnce:
    """The values of all sessions of this process. Methods may be called by any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()

    def put(self, request: Request, address: str, values: Mapping[str, Any]) -> str:
        """Keep values for the page at an address; returns the address that shows them to this session alone."""
        name, now = secrets.token_urlsafe(16), self._clock()
        with self._lock:
            self._forget(now)
            self._waiting[name] = _Waiting(_owner(request), dict(values), now + UNSEEN_SECONDS)
            # The oldest are deleted first: memory stays bounded for any number of forms.
            while len(self._waiting) > _MAX_WAITING:
                self._waiting.popitem(last=False)
        return f"{address}{'&' if '?' in address else '?'}{PARAMETER}={name}"

    def take(self, request: Request) -> dict[str, Any]:
        """The values that the address of a request names, and whether they are gone (`is_shown_before`)."""
        name = request.query_params.get(PARAMETER, "")
        if not name:
            return {"is_shown_before": False}
        now = self._clock()
        with self._lock:
            self._forget(now)
            found = self._waiting.get(name)
            # An address that was passed on shows nothing in another browser.
            if found is None or found.owner != _owner(request):
                return {"is_shown_before": True}
            # The time starts with the first view and is not prolonged by reloading.
            if not found.is_seen:
                found.is_seen, found.until = True, now + SEEN_SECONDS
            return {**found.values, "is_shown_before": False}

    def _forget(self, now: float) -> None:
        for name in [name for name, one in self._waiting.items() if one.until < now]:
            del self._waiting[name]


def shown_once(request: Request) -> ShownOnce:
    """Of the app."""
    found: ShownOnce = request.app.state.shown_once
    return found


def _owner(request: Request) -> str:
    return digest_of(request.cookies.get(COOKIE, ""))
