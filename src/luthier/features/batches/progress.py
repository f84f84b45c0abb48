"""What people see of a batch: who has started it, how long it still takes, which requests failed and why.

The error file may have hundreds of thousands of lines: a page of errors begins at a byte offset and reads a few lines.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from luthier.core.errors import LuthierError, NotFoundError, WorkError
from luthier.features.batches.records import ERRORS_NAME
from luthier.features.batches.service import CALLER
from luthier.features.batches.store import BatchView
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redact_paths, reference_paths

_MAX_LINE_BYTES: Final = 1 << 20
_MAX_MESSAGE_CHARACTERS: Final = 1000


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A request without an answer.

    Attributes:
        line: Its line of the input file, from 1 on; None where the error file names the request by its custom_id alone.
        custom_id: As the request has it; empty for none.
        status: The HTTP status that the route would have answered; None where the request did not reach it.
        code: For programs; empty for none.
        message: For people.
    """

    line: int | None
    custom_id: str
    status: int | None
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ErrorPage:
    """Some requests without an answer, in the order in which they failed.

    Attributes:
        errors: The requests.
        next_offset: Where the next page begins, in bytes of the error file; None for the last page.
    """

    errors: tuple[FailedRequest, ...] = ()
    next_offset: int | None = None


def owner_of(view: BatchView) -> str:
    """The name of the key or member that has started a batch."""
    return str(view.job.document.get(CALLER, {}).get("name") or "unknown")


def seconds_left(view: BatchView, now: float) -> float | None:
    """About how long a batch still takes, at its mean speed so far; None where that is not known.

    Args:
        view: The batch.
        now: Seconds since 1970, by the database's clock.
    """
    one = view.batch
    num_done = one.num_completed + one.num_failed
    if view.status != "in_progress" or view.job.status != "running" or one.in_progress_at is None or not num_done:
        return None
    # From the first request on, pauses included: after a long one it is too high at first, and never too low.
    return max(0.0, (one.num_total - num_done) * (now - one.in_progress_at) / num_done)


def mark_of(view: BatchView) -> str:
    """Changes with each thing that can be seen to happen."""
    return f"{view.status}-{view.job.status}-{view.batch.num_completed}-{view.batch.num_failed}"


def failure_of(context: Context, view: BatchView) -> LuthierError | None:
    """Why the job of a batch failed, without the paths of this machine; None unless it did."""
    error = view.job.error
    if view.status != "failed" or view.batch.faults or error is None:
        return None
    shown = redact_paths(error, reference_paths(context, view.job.document))
    if "came" not in shown:  # a crash has a message alone
        shown = {"came": shown.get("message", "it crashed"), "expected": "an attempt that ends", "do": "start it again"}
    return WorkError(shown["came"], expected=shown["expected"], do=shown["do"])


def error_page(context: Context, view: BatchView, *, offset: int = 0, limit: int = 50) -> ErrorPage:
    """Requests that have failed so far, while the batch runs and after its end.

    Args:
        context: The home.
        view: The batch.
        offset: Where the page begins, in bytes of the error file; within a line, it begins with the next one.
        limit: The most requests.

    Raises:
        WorkError: The error file is lost or damaged.
    """
    path = _error_file(context, view)
    if path is None:
        return ErrorPage()
    try:
        with path.open("rb") as file:
            return _page(file, offset, limit)
    except FileNotFoundError:  # the batch has ended meanwhile, and the file has become one of the project
        return ErrorPage()


def _page(file: BinaryIO, offset: int, limit: int) -> ErrorPage:
    if offset:
        # One byte back: at the beginning of a line this reads the line break before it, and skips nothing.
        file.seek(offset - 1)
        file.readline()
    found: list[FailedRequest] = []
    while len(found) < limit:
        line = file.readline(_MAX_LINE_BYTES)
        # A line without its end is still being written, or too long to show.
        if not line.endswith(b"\n"):
            return ErrorPage(tuple(found))
        found.append(_error_of(json.loads(line)))
    # A page ends where a further whole line begins; a line that is being written is left to the next look.
    place = file.tell()
    return ErrorPage(tuple(found), place if file.readline(_MAX_LINE_BYTES).endswith(b"\n") else None)


def _error_of(document: dict[str, Any]) -> FailedRequest:
    response = document.get("response") or {}
    body = response.get("body")
    error = document.get("error") or (body.get("error") if isinstance(body, dict) else None) or {}
    return FailedRequest(
        line=error.get("line"),
        custom_id=document.get("custom_id") or "",
        status=response.get("status_code"),
        code=str(error.get("code") or error.get("type") or ""),
        message=str(error.get("message") or "no reason was stored")[:_MAX_MESSAGE_CHARACTERS],
    )


def _error_file(context: Context, view: BatchView) -> Path | None:
    one = view.batch
    if one.error_file_id is None:
        return None if view.batch.has_ended else context.settings.jobs_folder / one.job_id / ERRORS_NAME
    try:
        return files.local_path(context, files.get_file(context, one.project_id, one.error_file_id))
    except NotFoundError:  # it was deleted, or has expired
        return None
