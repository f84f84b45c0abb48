"""What the OpenAPI document says of failures: which status, and OpenAI's error object with each."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

MEANINGS: Final = {
    400: "The request is wrong; `message` says what came, what was expected and what to do",
    401: "No key, or one that is unknown, expired or revoked",
    403: "A key without the scope that this needs",
    404: "No such thing in the project of the key",
    409: "The thing is in a state that does not allow this; asking again does not help",
    413: "More bytes than the server takes",
    422: "The idempotency key came with another request before",
    429: "More than the key may ask for now; `Retry-After` says when to come back",
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
