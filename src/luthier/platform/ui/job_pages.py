"""Pages of jobs: what is sent to those that look again, and what a button of such a page answers."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Request
from starlette.responses import Response

from luthier.core.errors import ConflictError
from luthier.platform.ui.render import is_fragment_request, redirect


def is_unchanged(request: Request, seen: str, mark: str) -> bool:
    """Whether a page that looks again shows all that there is to see, so that nothing is sent (`unchanged`).

    Args:
        request: The request of the page.
        seen: The mark of what it shows; empty for a page that is opened.
        mark: The mark of how it is now (`platform.jobs.orders.mark_of`).
    """
    return bool(seen) and is_fragment_request(request) and seen == mark


def unchanged() -> Response:
    """The answer to a page that shows all that there is to see."""
    # 204 makes HTMX keep what is there: a reader's selection and scroll position survive the polling.
    return Response(status_code=204)


def changed(
    request: Request, page: str, change: Callable[[], object], show: Callable[[ConflictError], Response]
) -> Response:
    """Change a job, and lead to its page.

    Args:
        request: The request of the form.
        page: The address of its page.
        change: Cancels, pauses or resumes it.
        show: Shows the page as it is now, with why the job cannot be changed: its state is another by now.
    """
    try:
        change()
    except ConflictError as error:
        return show(error)
    return redirect(request, page)
