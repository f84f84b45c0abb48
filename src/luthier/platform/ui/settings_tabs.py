"""A page within the tabs of the settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import Path, Request
from starlette.responses import Response

from luthier.core.errors import RequestError
from luthier.platform.auth.members_store import Session
from luthier.platform.ui.render import entries_for, render

Id = Annotated[str, Path(max_length=64, pattern="^[A-Za-z0-9_-]+$")]
"""The id of a key, a member or a webhook in an address."""


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


def whole_number(text: str, what: str) -> int | None:
    """The number in a field of a form; None where it was left empty.

    Raises:
        RequestError: The text is not a whole number.
    """
    if not text.strip():
        return None
    # isdigit is true of superscripts and other scripts, which int refuses or reads unexpectedly.
    if not (text.strip().isascii() and text.strip().isdigit() and len(text) <= 12):
        raise RequestError(f"{what} {text[:40]!r}", expected="a whole number from 1 on, or nothing", do="correct it")
    return int(text)
