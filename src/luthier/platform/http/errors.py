"""Failures as OpenAI's error object, with the status that its client library expects, and in the OpenAPI document.

FastAPI would document that a wrong request is answered with 422 and its own body, and that failures have the
content type of the success; both differ here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from luthier.core.errors import (
    BusyError,
    ConflictError,
    DefectError,
    FileQuotaError,
    LuthierError,
    NotAllowedError,
    NotFoundError,
    QuotaError,
    RequestError,
    StorageFullError,
    UnsupportedError,
)
from luthier.platform.http.hosted_addresses import instead_of

log = logging.getLogger("luthier.api")
MESSAGES: Final = "/v1/messages"
"""What the addresses begin with that answer in Anthropic's form."""
COHERE: Final = "/v2/"
"""What the addresses begin with that Cohere's clients use."""
_KIND = re.compile(
    r"(literal|constrained-\w+|function-[\w-]+)(\[|$)|(int|float|str|bool)$"
    r"|as_(string|blocks|texts|parts)$"  # tags of our own unions
)


_MISSING: Final = "Field required"
_UNKNOWN: Final = "Extra inputs are not permitted"
_OF_A_KEY: Final = "[key]"
"""Behind a key of a dict, where the key itself is wrong and not its value."""


class ApiError(Exception):
    """A request that is refused.

    Attributes:
        status: The HTTP status.
        message: What came, what was expected, and what to do.
        type: The class of the error, as in OpenAI's error object.
        param: The field that is wrong; None if it is none.
        code: The error for programs, as in OpenAI's error object.
        headers: Sent with it, such as `Retry-After` (seconds), or `x-should-retry: false` for a conflict that waiting
            does not resolve.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.message, self.type, self.param, self.code = status, message, type, param, code
        self.headers = dict(headers or {})
        super().__init__(message)


class ErrorBody(dict[str, Any]):
    """`{"error": {"message", "type", "param", "code"}}`."""

    def __init__(self, message: str, type: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(error={"message": message, "type": type, "param": param, "code": code})


def add_error_handlers(app: FastAPI) -> None:
    """Make the app answer every error with OpenAI's error object."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(LuthierError, _luthier_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)


def as_api_error(error: LuthierError) -> ApiError:
    """Ours as the client sees it: what came, what was expected, what to do."""
    message = error.in_one_line
    status = error.http_status
    # Subclasses come before RequestError at the end of the chain, which would match most of them.
    if isinstance(error, NotFoundError):
        return ApiError(status, message, code="not_found")
    if isinstance(error, NotAllowedError):
        return ApiError(status, message, type="insufficient_permissions", code="not_allowed")
    if isinstance(error, ConflictError):
        return ApiError(status, message, code="conflict", headers={"x-should-retry": "false"})
    if isinstance(error, UnsupportedError):
        return ApiError(status, message, param=error.param, code=error.code)
    if isinstance(error, QuotaError):
        # OpenAI's name for a used-up budget; its clients would otherwise retry this 429.
        kind, headers = "insufficient_quota", {"x-should-retry": "false"}
        return ApiError(status, message, type=kind, code=kind, headers=headers)
    if isinstance(error, FileQuotaError):
        return ApiError(status, message, code="file_quota_exceeded", headers={"x-should-retry": "false"})
    if isinstance(error, BusyError):
        kind, wait = "rate_limit_error", str(max(1, round(error.retry_seconds)))
        return ApiError(status, message, type=kind, code="rate_limit_exceeded", headers={"Retry-After": wait})
    if isinstance(error, RequestError):
        return ApiError(status, message, code="invalid_value")
    if isinstance(error, StorageFullError):
        return ApiError(status, message, type="server_error", code="storage_full", headers={"x-should-retry": "false"})
    if isinstance(error, DefectError):
        return ApiError(
            status, message, type="server_error", code="internal_error", headers={"x-should-retry": "false"}
        )
    headers = {"Retry-After": "5"} if error.retry_helps else {"x-should-retry": "false"}
    return ApiError(status, message, type="server_error", code="unavailable", headers=headers)


def error_response(error: ApiError, path: str = "") -> JSONResponse:
    """OpenAI's error object as a response, with the message beside it for Cohere's clients."""
    body = ErrorBody(error.message, error.type, error.param, error.code)
    beside = {"message": error.message} if path.startswith(COHERE) else {}
    return JSONResponse(beside | body, status_code=error.status, headers=error.headers)


def bug_response() -> JSONResponse:
    """The answer to what went wrong by our own fault: clients that ask again would repeat its work, and pay for it."""
    message = "Internal server error; see the server's log, by the x-request-id of this response"
    headers = {"x-should-retry": "false"}
    return error_response(ApiError(500, message, type="server_error", code="internal_error", headers=headers))


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error_response(error, request.url.path)


async def _luthier_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LuthierError)
    return await _api_error(request, as_api_error(error))


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    """The first thing that is wrong with the request, with its place; status 400, as OpenAI answers."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if found[0]["type"] == "json_invalid":
        why, place = found[0]["ctx"]["error"], found[0]["loc"][-1]
        message = f"Invalid request: the body is not JSON ({why} at character {place}); expected: a JSON document"
        return await _api_error(request, ApiError(400, message, code="invalid_value"))
    # FastAPI leaves a body of another kind as it came.
    if isinstance(error.body, bytes) and error.body and tuple(found[0]["loc"]) == ("body",):
        kind = request.headers.get("content-type", "")[:100]
        came = f"the body has the Content-Type {kind!r}" if kind else "the body has no Content-Type"
        message = f"Invalid request: {came}; expected: a JSON document; what to do: send Content-Type: application/json"
        return await _api_error(request, ApiError(400, message, code="invalid_content_type"))
    problems = [(one["loc"], str(one["msg"])) for one in found]
    return await _api_error(request, invalid_request(problems, error.body))


def invalid_request(problems: Sequence[tuple[Sequence[int | str], str]], body: Any = None) -> ApiError:
    """The refusal of a request that does not fit its form: the first thing that is wrong, with its place.

    Args:
        problems: Of pydantic: the place, which begins with `body`, `query` or `path`, and what is wrong there.
        body: Of the request, in which the places are looked up; None leaves them as they are.
    """
    found = [(_place(_without_tags(location, body, message)), message) for location, message in problems]
    place = found[0][0]
    # A list of parts is no text either, but what is wrong lies within it: the error of the kind that came furthest.
    while further := next((where for where, _ in found if place and where and where.startswith(f"{place}.")), None):
        place = further
    # a field that may be one thing or another has an error for each
    words = " or: ".join(dict.fromkeys(message for where, message in found if where == place))
    if place and words == _UNKNOWN:
        message = f"Unknown parameter: {place[:100]!r} is not permitted; what to do: leave it out"
        return ApiError(400, message, param=place, code="unknown_parameter")
    what = f"{words} at {place!r}" if place else words
    code = "missing_required_parameter" if place and words == _MISSING else "invalid_value"
    return ApiError(400, f"Invalid request: {what}", param=place, code=code)


def _without_tags(location: Sequence[int | str], body: Any, message: str) -> Sequence[int | str]:
    """The place without the tags of unions: pydantic names the kind that a value said it is (`completions`) beside it.

    A part that is no key of the value there is such a tag, unless it is the key that is missing: the last one. So is
    one that happens to be a key, where what follows is in the same value, and not in that of the key.
    """
    if not isinstance(body, dict) or location[0] != "body":
        return location
    kept: list[int | str] = [location[0]]
    here: Any = body
    for number, part in enumerate(location[1:], 2):
        following = location[number] if number < len(location) else None
        if part == _OF_A_KEY:
            kept.append(part)
        elif _has(here, part):
            if following is not None and _has(here, following) and not _has(here[part], following):
                continue
            kept.append(part)
            here = here[part]
        elif following is None and message == _MISSING and isinstance(here, dict):
            kept.append(part)
    return kept


def _has(value: Any, part: int | str) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and 0 <= part < len(value)
    return isinstance(value, dict) and part in value


def _place(location: Sequence[int | str]) -> str | None:
    """Where in the body, by dots; without what only says which of several kinds of value was tried."""
    # The first part says where the value was: body, query or path.
    parts = [str(part) for part in location[1:]]
    return ".".join(part for part in parts if not _KIND.match(part)) or None


_API_NAMES: Final = frozenset(
    {
        "batches",
        "chat",
        "completions",
        "conversations",
        "embeddings",
        "evals",
        "files",
        "fine_tuning",
        "messages",
        "models",
        "moderations",
        "responses",
        "uploads",
    }
)
_VERSION: Final = "/v1"


def lacks_version(path: str) -> bool:
    """Whether an address is one of the API without its `/v1`, as of clients whose `base_url` leaves it out."""
    return path.lstrip("/").partition("/")[0] in _API_NAMES


_METHODS: Final = "; expected: a method that this address has; what to do: see the methods of each in GET /openapi.json"


def _hint(path: str) -> str:
    if lacks_version(path):
        return f"; expected: {_VERSION}{path}; what to do: let the base_url of the client end in {_VERSION}"
    if path.startswith((f"{_VERSION}{_VERSION}/", f"{_VERSION}{COHERE}")):
        expected = path.removeprefix(_VERSION)
        return f"; expected: {expected}; what to do: leave {_VERSION} out of the base_url of this client, which adds it"
    if path.startswith(f"{_VERSION}/"):
        return "; expected: one of the addresses in GET /openapi.json; what to do: check the path for typos"
    return ""


def http_error(error: HTTPException, method: str, path: str) -> ApiError:
    """What the framework refuses, as the client sees it."""
    status, instead = error.status_code, instead_of(path)
    # An address may look like one with an id, which has other methods.
    if status in (404, 405) and instead is not None:
        return ApiError(404, f"no such address: {method} {path}; {instead}", code="unknown_url")
    known = {404: f"no such address: {method} {path}{_hint(path)}", 405: f"{method} is not allowed here{_METHODS}"}
    message = known.get(status, str(error.detail))
    code = {413: "request_too_large", 404: "unknown_url", 405: "unknown_url"}.get(status, "invalid_request")
    return ApiError(status, message, code=code, headers=error.headers)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return error_response(http_error(error, request.method, request.url.path), request.url.path)


async def _bug(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected error in %s %s", request.method, request.url.path, exc_info=error)
    return bug_response()


MEANINGS: Final = {
    400: "The request is invalid; `message` says what was found, what was expected and what to do",
    401: "No key, or one that is unknown, expired or revoked",
    403: "A key without the scope that this needs",
    404: "No such thing in the project of the key",
    409: "The thing is in a state that does not allow this; asking again does not help",
    413: "More bytes than the server takes",
    422: "The idempotency key was used with another request before",
    429: "Too many requests for this key; `Retry-After` says when to try again",
    503: "What the server needs does not answer; asking again may help",
    507: "No room left where the server keeps files",
}


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorObject


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For `responses=` of a route: these failures, and those that every route with a key has."""
    all_of_them = sorted({400, 401, 403, 429, *statuses})
    return {status: {"model": ErrorAnswer, "description": MEANINGS[status]} for status in all_of_them}


class AnthropicErrorObject(BaseModel):
    """What went wrong, with the code for programs in `details`."""

    type: str
    message: str
    details: dict[str, str] | None = None


class AnthropicErrorAnswer(BaseModel):
    """The body of every answer of `/v1/messages` that is not a success."""

    type: Literal["error"]
    error: AnthropicErrorObject
    request_id: str


def _answer(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


_ALWAYS: Final = (400, 401, 403, 429, 503)
_CHANGES: Final = (404, 409, 413, 422, 507)
_OF_FASTAPI: Final = ("HTTPValidationError", "ValidationError")


def document_failures(app: FastAPI) -> None:
    """Document every failure in the app's OpenAPI document, as `application/json`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            # Made once, as FastAPI's own `openapi` does, which this one replaces.
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            app.openapi_schema = _completed(made)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(made: dict[str, Any]) -> dict[str, Any]:
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    for name in _OF_FASTAPI:
        schemas.pop(name, None)
    for model in (ErrorAnswer, AnthropicErrorAnswer):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        # pydantic nests models under $defs; OpenAPI keeps all of them next to each other.
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    for path, operations in made["paths"].items():
        form = AnthropicErrorAnswer if path.startswith(MESSAGES) else ErrorAnswer
        for method, operation in operations.items():
            _add(operation, form, has_id="{" in path, is_change=method not in ("get", "head"))
    return made


def _add(operation: dict[str, Any], form: type[BaseModel], *, has_id: bool, is_change: bool) -> None:
    """Every route with a key may refuse; those that change something may not find what the body names, or
    find it in another state."""
    # Routes without a key, such as /healthz, describe their answers themselves.
    if "security" not in operation and "401" not in operation["responses"]:
        return
    answers = operation["responses"]
    answers.pop("422", None)
    known = {int(status) for status in answers if status.isdigit() and int(status) >= 400}
    known |= {*_ALWAYS, *((404,) if has_id else ()), *(_CHANGES if is_change else ())}
    for status in sorted(known):
        before = answers.get(str(status), {})
        description = before.get("description") or MEANINGS.get(status, "A failure")
        answers[str(status)] = {**before, "description": description, "content": _answer(form.__name__)}
