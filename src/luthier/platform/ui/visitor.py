"""Who is looking at a page, and what they may do there: what handlers ask for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Annotated, Final, ParamSpec
from urllib.parse import quote, urlsplit

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response

from luthier.core.access import SCOPES, Caller, Scope
from luthier.platform.auth.members import session_of
from luthier.platform.auth.members_store import Session
from luthier.platform.home.context import Context

COOKIE: Final = "luthier_session"
_COOKIE_SECONDS: Final = 400 * 24 * 3600
"""As long as browsers keep one: when a session ends, the server knows."""


class SignInNeededError(Exception):
    """The visitor is not signed in; `next_address` is the requested address."""

    def __init__(self, next_address: str) -> None:
        self.next_address = next_address
        super().__init__(next_address)

    @property
    def address(self) -> str:
        """Of the page that leads there."""
        return f"/sign-in?next={quote(self.next_address, safe='/')}"


class ForbiddenError(Exception):
    """Who is signed in may not do this: none of `scopes` is theirs."""

    def __init__(self, caller: Caller, scopes: tuple[Scope, ...]) -> None:
        self.caller, self.scopes = caller, scopes
        super().__init__(", ".join(scopes))


def remember(request: Request, answer: Response, secret: str) -> Response:
    """Have the browser hold the secret of its session from this answer on."""
    # Not `secure` on plain HTTP: browsers would drop the cookie on a server that is reached on loopback.
    is_https = request.url.scheme == "https"
    answer.set_cookie(COOKIE, secret, max_age=_COOKIE_SECONDS, httponly=True, samesite="lax", secure=is_https)
    return answer


def address_of(request: Request) -> str:
    """The address of the client, for counting failures; behind a trusted proxy, as the proxy reports it."""
    return request.client.host if request.client is not None else ""


def root_of(request: Request) -> str:
    """Scheme and host that a request came by, without a slash at its end."""
    return f"{request.url.scheme}://{request.url.netloc}"


def host_of(request: Request) -> str:
    """The name of this server that a request came by, in small letters and without a port."""
    return (request.url.hostname or "").lower()


async def context_of(request: Request) -> Context:
    """The open home that the pages work in."""
    context: Context = request.app.state.context
    return context


async def visiting(request: Request) -> Session | None:
    """Who is signed in, if anybody; looked up once a request."""
    if not hasattr(request.state, "session"):
        secret = request.cookies.get(COOKIE)
        context: Context = request.app.state.context
        # In a thread, since it reads the database; stored on the request, so that all dependencies share one read.
        request.state.session = None if not secret else await run_in_threadpool(session_of, context, secret)
    found: Session | None = request.state.session
    return found


def own_address(address: str) -> str:
    """The address, where it is one of this server; else that of the home page."""
    # `//host` and `/\host` are other hosts to a browser, and it ignores control characters in between.
    is_own = address.startswith("/") and not address.startswith(("//", "/\\")) and address.isprintable()
    return address if is_own else "/"


def page_behind(request: Request) -> str:
    """The page to come back to after a sign-in: never what a form was sent to, a piece of a page or raw data.

    A browser that opens an address wants that address. Requests of HTMX and our scripts carry the page that it was
    asked from (`HX-Current-URL`); where that is missing or of another host, it is the nearest page above the address.
    """
    headers = request.headers
    is_script = headers.get("sec-fetch-mode", "navigate") != "navigate" or "hx-request" in headers
    is_script |= "application/json" in headers.get("accept", "")
    if request.method == "GET" and not is_script:
        return own_address(request.url.path + (f"?{request.url.query}" if request.url.query else ""))
    current = urlsplit(headers.get("hx-current-url", ""))
    # The header comes from the browser: only a page of this very host is followed.
    if current.netloc and current.netloc == headers.get("host"):
        return own_address(f"{current.path}?{current.query}" if current.query else current.path or "/")
    return own_address(page_above(request))


def page_above(request: Request) -> str:
    """The nearest page above the requested address, by the templates of the addresses: `/runs/x` above `/runs/x/pause`.

    What a form is sent to may be a page itself; what a script requests is none.
    """
    known: set[str] = request.app.state.page_paths
    template = getattr(request.scope.get("route"), "path", "").strip("/").split("/")
    parts = request.url.path.strip("/").split("/")
    # From the whole address upwards; of a GET not the address itself, which a script requested.
    for num_parts in range(len(template) - (request.method == "GET"), 0, -1):
        if "/" + "/".join(template[:num_parts]) in known:
            return "/" + "/".join(parts[:num_parts])
    return "/"


def needs(*scopes: Scope) -> Callable[..., Awaitable[Caller]]:
    """What a handler depends on to be sure that the visitor has one of these scopes; it gives the caller."""

    async def check(request: Request) -> Caller:
        session = await visiting(request)
        if session is None:
            raise SignInNeededError(page_behind(request))
        if not any(session.caller.may(scope) for scope in scopes):
            raise ForbiddenError(session.caller, scopes)
        return session.caller

    return check


Parameters = ParamSpec("Parameters")


def one_state(handler: Callable[Parameters, Response]) -> Callable[Parameters, Response]:
    """A handler whose reads, those of the navigation included, are one transaction over one state of the database.

    For pages that only read: a handler would not see what it writes itself.
    """

    @wraps(handler)
    def _in_one_state(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Response:
        context = kwargs["context"]
        assert isinstance(context, Context), "a handler with `context: HomeContext`, which FastAPI calls by names"
        with context.database.snapshot():
            return handler(*args, **kwargs)

    return _in_one_state


HomeContext = Annotated[Context, Depends(context_of)]
"""The dependency of handlers that use the services."""
MaybeVisitor = Annotated[Session | None, Depends(visiting)]
Visitor = Annotated[Caller, Depends(needs(*SCOPES))]
Reader = Annotated[Caller, Depends(needs("read"))]
Trainer = Annotated[Caller, Depends(needs("train"))]
Asker = Annotated[Caller, Depends(needs("infer"))]
Admin = Annotated[Caller, Depends(needs("admin"))]
"""The dependency that requires a scope: the caller, with their project. Visitor: anything."""
