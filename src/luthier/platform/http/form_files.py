"""Forms with a file as the API takes them: `service.multipart` with OpenAI's error objects."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import Request
from starlette.requests import ClientDisconnect

from luthier.platform.files.incoming import IncomingFile
from luthier.platform.http import multipart
from luthier.platform.http.errors import ApiError
from luthier.platform.http.multipart import Form, FormError


async def read_form(
    request: Request, incoming: IncomingFile, *, file_field: str, fields: frozenset[str], most_bytes: int
) -> Form:
    """Write the file of a form to `incoming` and return the rest; arguments as `multipart.read_form` has them.

    Raises:
        ApiError: 413 for a file that is too large; 400 for another body, unknown or missing fields, and a client that
            left before the end.
        StorageFullError: The disk has no room for the file.
    """
    try:
        return await multipart.read_form(
            request.stream(), request.headers, incoming, file_field=file_field, fields=fields, most_bytes=most_bytes
        )
    except FormError as error:
        message = f"{error.came}; expected: {error.expected}; what to do: {error.do}"
        raise ApiError(error.status, message, param=error.param, code=error.code) from error
    # Nobody reads this answer, but the log and the metrics count the request as refused and not as a bug.
    except ClientDisconnect as error:
        raise ApiError(400, "The client went away before the body was whole") from error


def chosen(fields: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    """A field that must have one of these values.

    Raises:
        ApiError: 400 where it is missing or has another value.
    """
    if name not in fields:
        raise ApiError(400, f"Missing required parameter: {name!r}", param=name, code="missing_required_parameter")
    if fields[name] not in choices:
        message = f"{fields[name][:100]!r} is not one of {', '.join(choices)}"
        raise ApiError(400, message, param=name, code="invalid_value")
    return fields[name]
