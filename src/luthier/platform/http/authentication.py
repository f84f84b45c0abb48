"""Authentication, scopes and rate limits: `Authorization: Bearer KEY`, or `x-api-key: KEY`."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Final

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from luthier.core.access import Caller, Scope
from luthier.core.errors import LuthierError
from luthier.platform.auth.authenticator import Authenticator, AuthResult
from luthier.platform.home.context import Context
from luthier.platform.http.errors import COHERE, ApiError, as_api_error, error_response
from luthier.platform.http.middleware import answer_headers
from luthier.platform.http.routes import check_query

_bearer = HTTPBearer(auto_error=False)


def context_of(request: Request) -> Context:
    """The open home that this server works in."""
    context: Context = request.app.state.context
    return context


async def let_in(request: Request) -> Caller:
    """The caller of a request; counted once a request, however often this is called.

    Raises:
        ApiError: 401 for no key or one that is not valid, 429 for too many requests or failures.
    """
    # `KeyFirst` and the dependencies of a route both call this: the second call must not count again.
    known: Caller | None = getattr(request.state, "caller", None)
    if known is not None:
        return known
    authenticator: Authenticator = request.app.state.authenticator
    if authenticator.anybody is not None:
        request.state.caller = authenticator.anybody
        return authenticator.anybody
    key = _key_of(request)
    if not key:
        raise ApiError(
            401,
            "You didn't provide an API key: expected the header `Authorization: Bearer KEY`, or `x-api-key: KEY`; make "
            "a key with `luthier keys create`",
            code="missing_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    # What is remembered is answered here; a thread is taken only where the database has to be asked.
    given = authenticator.recall(key)
    if given is None:
        # The peer, or the client that a trusted proxy names (`middleware.forwarded`).
        address = request.client.host if request.client is not None else ""
        given = await run_in_threadpool(authenticator.look_up, key, address)
    if given.wait_seconds > 0:
        message = "Too many wrong keys came from your address; what to do: correct the key, then wait"
        # OpenAI's clients retry a 429 by themselves: with the same wrong key that would only prolong the wait.
        raise _too_many(message, given.wait_seconds, headers={"x-should-retry": "false"})
    if given.caller is None:
        raise wrong_key()
    _count(request, authenticator, given)
    request.state.caller, request.state.given = given.caller, given
    return given.caller


_TINKER: Final = "/tinker/api/"
_TINKER_KEY: Final = "tml-"


def _key_of(request: Request) -> str:
    """The key of a request; empty without one. `Authorization` takes precedence over `x-api-key`.

    `x-api-key` is the header of Anthropic's clients and of the Tinker SDK. That one takes only keys that begin with
    `tml-`, which may be put before ours.
    """
    given = request.headers.get("authorization")
    if given is not None:
        scheme, _, key = given.partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""
    key = request.headers.get("x-api-key", "").strip()
    return key.removeprefix(_TINKER_KEY) if request.url.path.startswith(_TINKER) else key


def count_refused(request: Request, num_requests: int) -> None:
    """Count a request that was refused after it had made work, such as a prompt of many contexts, as several.

    Args:
        request: The request.
        num_requests: How many requests it is worth, including the one that was counted when it came.
    """
    given: AuthResult | None = getattr(request.state, "given", None)
    if given is not None and num_requests > 1:
        authenticator: Authenticator = request.app.state.authenticator
        authenticator.count_refused(given, num_requests - 1)


def wrong_key() -> ApiError:
    """The refusal of an invalid key; it does not reveal why."""
    message = "Incorrect API key provided: it is unknown, expired or revoked"
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _count(request: Request, authenticator: Authenticator, given: AuthResult) -> None:
    taken = authenticator.count(given)
    if taken is None:
        return
    answer_headers(request.scope).update(
        {
            # The names and the unit suffix of OpenAI's headers, which its clients use to pace themselves.
            "x-ratelimit-limit-requests": str(taken.limit),
            "x-ratelimit-remaining-requests": str(taken.num_remaining),
            "x-ratelimit-reset-requests": f"{math.ceil(taken.reset_seconds * 1000)}ms",
        }
    )
    if not taken.is_allowed:
        message = (
            f"Rate limit reached for this key: {taken.limit:,} requests per minute; what to do: wait "
            f"{taken.wait_seconds:.3g} s, or use a key with a larger limit"
        )
        raise _too_many(message, taken.wait_seconds)


def _too_many(message: str, wait_seconds: float, *, headers: Mapping[str, str] | None = None) -> ApiError:
    waits = {
        # Whole seconds by RFC 9110; OpenAI's clients prefer the milliseconds.
        "Retry-After": str(max(1, math.ceil(wait_seconds))),
        "retry-after-ms": str(max(1, math.ceil(wait_seconds * 1000))),
    }
    kind, code = "rate_limit_error", "rate_limit_exceeded"
    return ApiError(429, message, type=kind, code=code, headers={**waits, **(headers or {})})


async def _caller(
    request: Request,
    _given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],  # for the OpenAPI document
) -> Caller:
    caller = await let_in(request)
    check_query(request)
    return caller


def _needs(*scopes: Scope) -> Callable[..., Awaitable[Caller]]:
    async def check(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
        if not any(caller.may(scope) for scope in scopes):
            raise ApiError(
                403,
                f"The key {caller.name!r} has the scopes {', '.join(caller.scopes)}; "
                f"expected: {' or '.join(scopes)}; what to do: use or make a key that has it",
                type="insufficient_permissions",
                code="missing_scope",
            )
        return caller

    return check


# Of async dependencies, since each plain one would use a separate thread for every request.
async def _context(request: Request) -> Context:
    return context_of(request)


HomeContext = Annotated[Context, Depends(_context)]
"""The dependency of handlers that use the services."""
Reader = Annotated[Caller, Depends(_needs("read"))]
Trainer = Annotated[Caller, Depends(_needs("train"))]
Asker = Annotated[Caller, Depends(_needs("infer"))]
Looker = Annotated[Caller, Depends(_needs("read", "infer"))]
TrainerOrAsker = Annotated[Caller, Depends(_needs("train", "infer"))]
Admin = Annotated[Caller, Depends(_needs("admin"))]
"""What a handler asks for to be sure that the one who calls may: the caller, with its project."""


GUARDED: Final = ("/v1/", COHERE, "/api/v1/", "/tinker/api/")
"""What the addresses begin with that need a key."""
MCP_ADDRESS: Final = "/mcp"
"""The address of the Model Context Protocol, which needs a key, too; each of its tools checks its scope."""


class KeyFirst:
    """Refuses (401, 429) requests to the API without a valid key, before anything else of a request is read.

    So nobody without one can send a body, and a route that forgets to require a scope is still not open to all. What a
    key may do is checked by the routes themselves.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        # `let_in` reads headers alone: the body is not touched before the key is known.
        if scope["type"] == "http" and (scope["path"].startswith(GUARDED) or scope["path"] == MCP_ADDRESS):
            try:
                await let_in(Request(scope))
            except (ApiError, LuthierError) as error:
                refusal = error if isinstance(error, ApiError) else as_api_error(error)
                await error_response(refusal, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)
