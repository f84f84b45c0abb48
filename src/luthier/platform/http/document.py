"""The OpenAPI document: beside what the routes say, the failures that each of them may answer with.

FastAPI would have it that a wrong request is answered with 422 and a body of its own kind, and that failures have the
content type of the success; both are otherwise here.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from luthier.platform.http.error_documents import MEANINGS, ErrorAnswer

_ANSWER: Final = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
_ALWAYS: Final = (400, 401, 403, 429, 503)
_CHANGES: Final = (404, 409, 413, 422, 507)
_OF_FASTAPI: Final = ("HTTPValidationError", "ValidationError")


def document_failures(app: FastAPI) -> None:
    """Have the app's OpenAPI document tell of every failure, as `application/json`."""

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
    schema = ErrorAnswer.model_json_schema(ref_template="#/components/schemas/{model}")
    # pydantic nests models under $defs; OpenAPI keeps all of them beside each other.
    schemas.update(schema.pop("$defs", {}))
    schemas["ErrorAnswer"] = schema
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            _add(operation, has_id="{" in path, is_change=method not in ("get", "head"))
    return made


def _add(operation: dict[str, Any], *, has_id: bool, is_change: bool) -> None:
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
        answers[str(status)] = {**before, "description": description, "content": _ANSWER}
