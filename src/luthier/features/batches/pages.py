"""/batches: files of requests that are answered beside live traffic: progress, requests that failed, files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.responses import Response, StreamingResponse

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, NotAllowedError, NotFoundError, RequestError
from luthier.core.text.names import distinct_names
from luthier.features.batches import service as batches
from luthier.features.batches.job import MAX_REQUESTS
from luthier.features.batches.progress import error_page, failure_of, mark_of, owner_of, seconds_left
from luthier.features.batches.records import BatchRequest
from luthier.features.batches.store import BatchView
from luthier.features.serving.api.offline import Endpoint
from luthier.platform.files import service as files
from luthier.platform.files.service import IncomingFile
from luthier.platform.files.store import StoredFile
from luthier.platform.home.context import Context
from luthier.platform.http.multipart import FilesForm
from luthier.platform.http.upload_once import take_files
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.job_pages import is_unchanged, unchanged
from luthier.platform.ui.render import Advised, Page, is_fragment_request, redirect, render
from luthier.platform.ui.visitor import Asker, HomeContext, Reader, Trainer, one_state

router = APIRouter(prefix="/batches")
PAGE = Page(
    "Batches",
    router.prefix,
    "read",
    order=77,
    key="b",
    group="use",
    advised=(Advised(commands=("batches",), calls=("batches",)),),
)

_A_PAGE: Final = 50
_KNOWN_FILES: Final = 50
_FIELDS: Final = frozenset({"input_file_id", "endpoint", "hours"})
_Id = Annotated[str, Query(max_length=64, pattern=r"^[A-Za-z0-9_-]*$")]
_Offset = Annotated[int, Query(ge=0, le=2**53)]
FileKind = Literal["input", "output", "errors"]


@router.get("")
@one_state
def index(request: Request, context: HomeContext, caller: Reader, after: _Id = "", seen: str = "") -> Response:
    """The batches of the project, newest first.

    after: the batch behind which the page begins. seen: what HTMX saw last; nothing is sent (204) while that holds.
    """
    return _list(request, context, caller, after=after, seen=seen)


@router.post("")
async def start(request: Request, context: HomeContext, caller: Trainer) -> Response:
    """Start a batch from a file that comes with the form, or from one of the project.

    A coroutine, since the body comes piece by piece; its pieces are written in threads.
    """
    return await take_files(
        request,
        context,
        lambda incoming, form: _started(request, context, caller, incoming, form),
        lambda error, status, given: _list(request, context, caller, given=given, error=error, status=status),
        fields=_FIELDS,
    )


@router.get("/{batch_id}")
def show(
    request: Request, context: HomeContext, caller: Reader, batch_id: str, offset: _Offset = 0, seen: str = ""
) -> Response:
    """One batch; for HTMX its content alone.

    offset: where the page of failed requests begins. seen: as for the list.
    """
    view = context.batches.get(caller.project_id, batch_id)
    if is_unchanged(request, seen, mark_of(view)):
        return unchanged()
    return _page(request, context, view, offset=offset)


@router.post("/{batch_id}/cancel")
def cancel(request: Request, context: HomeContext, caller: Asker, batch_id: str) -> Response:
    """Cancel it; what was answered becomes its output file."""
    try:
        view = batches.cancel(context, caller, batch_id)
    except ConflictError as error:
        return _page(request, context, context.batches.get(caller.project_id, batch_id), error=error)
    is_over = view.status == "cancelled"
    return redirect(request, _address(view), "Cancelled." if is_over else "No further request is started.")


@router.get("/{batch_id}/files/{kind}")
def download(context: HomeContext, caller: Reader, batch_id: str, kind: FileKind) -> Response:
    """The requests, the answers, or the requests without an answer."""
    view = context.batches.get(caller.project_id, batch_id)
    stored = _files_of(context, view)[kind]
    if stored is None:
        raise NotFoundError(
            f"batch {batch_id[:64]} has no {kind} file",
            expected="a file that exists and was not deleted",
            do="see on the page of the batch which files it has",
        )
    # Streamed: a file may be larger than the memory. Its name comes from a client, so it is escaped (RFC 5987).
    headers = {
        "content-length": str(stored.num_bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(stored.filename, safe='')}",
    }
    blocks = files.read_file(context, stored)
    return StreamingResponse(blocks, headers=headers, media_type="application/x-ndjson")


def _started(
    request: Request, context: Context, caller: Caller, incoming: list[IncomingFile], form: FilesForm
) -> Response:
    return redirect(request, _address(_start(context, caller, incoming, form)), "The batch is queued.")


def _start(context: Context, caller: Caller, incoming: list[IncomingFile], form: FilesForm) -> BatchView:
    given = form.fields
    if not caller.may("infer"):
        raise NotAllowedError(
            f"{caller.name!r} may {', '.join(caller.scopes)} here",
            expected="a member who may add files and use models (train, infer)",
            do="ask an admin of the project for that",
        )
    hours = given.get("hours", "24").strip()
    wanted = {"endpoint": given.get("endpoint", ""), "completion_window": f"{hours}h"}
    # Before the file is kept: a wrong form must leave no file behind.
    _request(wanted | {"input_file_id": given.get("input_file_id") or "file"})
    file_id = given.get("input_file_id", "")
    if incoming:
        name = form.filenames[0]
        stored = files.keep_file(context, caller.project_id, incoming[0], filename=name, purpose="batch")
        file_id = stored.file_id
    elif not file_id:
        raise RequestError(
            "no file was chosen",
            expected="a file of requests, or one that the project has",
            do="choose one, then start the batch",
        )
    return batches.start(context, caller, _request(wanted | {"input_file_id": file_id}))


def _request(values: dict[str, str]) -> BatchRequest:
    try:
        return BatchRequest.model_validate(values)
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        expected = {
            "endpoint": f"one of {', '.join(get_args(Endpoint))}",
            "completion_window": "a whole number of hours, 1 to 336",
        }
        raise RequestError(
            f"{values[field][:60]!r} as {field.replace('_', ' ')}",
            expected=expected.get(field, "the id of a file"),
            do="correct it",
        ) from error


def _list(
    request: Request,
    context: Context,
    caller: Caller,
    *,
    after: str = "",
    seen: str = "",
    given: Mapping[str, str] | None = None,
    error: LuthierError | None = None,
    status: int = 200,
) -> Response:
    found, has_more = context.batches.list(caller.project_id, after=after or None, limit=_A_PAGE)
    # Ended batches do not change, so that a list without running ones is not polled at all.
    mark = "-".join(mark_of(view) for view in found if not view.has_ended)
    is_piece = is_fragment_request(request)
    if is_unchanged(request, seen, mark):
        return unchanged()
    now = context.access.now()
    may_start = caller.may("train") and caller.may("infer")
    # Files are listed for the form alone, which a piece of the page does not have.
    known: list[StoredFile] = []
    if may_start and not is_piece:
        known, _ = files.list_files(context, caller.project_id, purpose="batch", limit=_KNOWN_FILES)
    values: dict[str, Any] = {
        "batches": [(view, owner_of(view), seconds_left(view, now)) for view in found],
        "names": files.file_names(context, caller.project_id, (view.batch.input_file_id for view in found)),
        "after": after,
        "mark": mark,
        "older": f"/batches?{urlencode({'after': found[-1].batch.batch_id})}" if has_more else "",
        "may_start": may_start,
        "known_files": known,
        "file_names": distinct_names({one.file_id: one.filename for one in known}),
        "endpoints": get_args(Endpoint),
        "max_requests": MAX_REQUESTS,
        "max_bytes": context.settings.max_file_bytes,
        "given": given or {},
        "error": error,
    }
    return render(request, "batches/rows.html" if is_piece else "batches/list.html", values, status=status)


def _page(
    request: Request, context: Context, view: BatchView, *, offset: int = 0, error: LuthierError | None = None
) -> Response:
    failed = error_page(context, view, offset=offset)
    values = {
        "view": view,
        "one": view.batch,
        "owner": owner_of(view),
        "mark": mark_of(view),
        "seconds_left": seconds_left(view, context.access.now()),
        "failure": failure_of(context, view),
        "files": _files_of(context, view),
        "failed": failed,
        "offset": offset,
        "error": error,
        "current": "/batches",
    }
    template = "batches/state.html" if is_fragment_request(request) else "batches/show.html"
    return render(request, template, values, status=status_of(error) if error else 200)


def _files_of(context: Context, view: BatchView) -> dict[str, StoredFile | None]:
    """The files of a batch by kind; None where it has none, or it was deleted."""
    one = view.batch
    ids = {"input": one.input_file_id, "output": one.output_file_id, "errors": one.error_file_id}
    return {kind: None if file_id is None else _file(context, one.project_id, file_id) for kind, file_id in ids.items()}


def _file(context: Context, project_id: str, file_id: str) -> StoredFile | None:
    try:
        return files.get_file(context, project_id, file_id)
    except NotFoundError:
        return None


def _address(view: BatchView) -> str:
    return f"/batches/{quote(view.batch.batch_id, safe='')}"
