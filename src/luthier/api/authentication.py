"""Who asks, and whether they may: `Authorization: Bearer KEY`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from luthier.api.errors import ApiError
from luthier.core.access import Caller, Scope
from luthier.service.access import caller_of
from luthier.service.context import Context

_bearer = HTTPBearer(auto_error=False)


def context_of(request: Request) -> Context:
    """The open home that this server works in."""
    context: Context = request.app.state.context
    return context


def _caller(
    request: Request,
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    context: Annotated[Context, Depends(context_of)],
) -> Caller:
    if given is None:
        raise ApiError(
            401,
            "You didn't provide an API key: expected the header `Authorization: Bearer KEY`; make a key with "
            "`luthier keys create`",
            code="missing_api_key",
        )
    caller = caller_of(context, given.credentials)
    if caller is None:
        raise ApiError(401, "Incorrect API key provided: it is unknown, expired or revoked", code="invalid_api_key")
    request.state.caller = caller
    return caller


def _needs(*scopes: Scope) -> Callable[..., Caller]:
    """Any one of these scopes lets in."""

    def check(caller: Annotated[Caller, Depends(_caller)]) -> Caller:
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


HomeContext = Annotated[Context, Depends(context_of)]
"""What a handler asks for to reach the services."""
Reader = Annotated[Caller, Depends(_needs("read"))]
Trainer = Annotated[Caller, Depends(_needs("train"))]
Asker = Annotated[Caller, Depends(_needs("infer"))]
Looker = Annotated[Caller, Depends(_needs("read", "infer"))]
Admin = Annotated[Caller, Depends(_needs("admin"))]
"""What a handler asks for to be sure that the one who calls may: the caller, with its project."""
