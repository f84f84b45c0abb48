"""A page within the tabs of the settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import Path, Request
from starlette.responses import Response

from luthier.core.errors import RequestError
from luthier.core.text.written_numbers import typed_whole
from luthier.platform.auth.members_store import Session
from luthier.platform.ui.render import entries_for, render

Id = Annotated[str, Path(max_length=64, pattern="^[A-Za-z0-9_-]+$")]
"""The id of a key, a member or a webhook in an address."""


_TOO_LARGE: Final = 10**12
_EMPTY: Final = {"error": None, "is_shown_before": False}


def show(request: Request, name: str, values: Mapping[str, Any], *, status: int = 200) -> Response:
    """The page of a tab. The handler has made sure that somebody is signed in.

    Args:
        request: The request.
        name: The name of its template.
        values: What the template shows.
        status: The HTTP status.
    """
    session: Session = request.state.session
    return render(
        request, f"settings/{name}.html", {"tabs": entries_for(session, "settings"), **_EMPTY, **values}, status=status
    )


def whole_number(text: str, what: str, decimal_mark: str = ".") -> int | None:
    """The number in a field of a form; None where it was left empty.

    Args:
        text: What was typed.
        what: What it counts, for the error.
        decimal_mark: That of the page (`decimal_mark_of`): the other one separates thousands.

    Raises:
        RequestError: The text is not a whole number.
    """
    if not text.strip():
        return None
    try:
        found = typed_whole(text, decimal_mark)
    except ValueError:
        found = _TOO_LARGE
    if found >= _TOO_LARGE:
        raise RequestError(f"{what} {text[:40]!r}", expected="a whole number from 1 on, or nothing", do="correct it")
    return found
