"""/batches: files of requests that the server answers beside live traffic: how far each is, its files, and its end."""

from __future__ import annotations

from typing import Annotated, Final, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, NotFoundError
from luthier.features.batches import service as batches
from luthier.features.batches.store import BatchView
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.render import Page, is_fragment_request, redirect, render
from luthier.platform.ui.visitor import Asker, HomeContext, Reader

router = APIRouter(prefix="/batches")

PAGE = Page("Batches", router.prefix, "read", order=77, key="b", group="use")

_LIST: Final = 50
_Text = Annotated[str, Query(max_length=100)]


@router.get("")
def index(request: Request, context: HomeContext, caller: Reader, after: _Text = "") -> Response:
    """The list, newest first."""
    found, has_more = context.batches.list(caller.project_id, after=after or None, limit=_LIST)
    older = f"?after={found[-1].batch.batch_id}" if has_more else ""
    return render(request, "batches/list.html", {"views": found, "older": older, "is_first": not after})


@router.get("/{batch_id}")
def show(request: Request, context: HomeContext, caller: Reader, batch_id: str, after: _Text = "") -> Response:
    """How far it is; for HTMX its content alone. after: what was seen last; nothing is sent (204) while that holds."""
    view = context.batches.get(caller.project_id, batch_id)
    # 204 makes HTMX keep the page unchanged.
    if after and is_fragment_request(request) and after == _mark(view):
        return Response(status_code=204)
    return _page(request, view)


@router.post("/{batch_id}/cancel")
def cancel(request: Request, context: HomeContext, caller: Asker, batch_id: str) -> Response:
    """Begin no further request; what was answered becomes the output file."""
    try:
        batches.cancel(context, caller, batch_id)
    except ConflictError as error:
        return _page(request, context.batches.get(caller.project_id, batch_id), error)
    return redirect(request, f"/batches/{batch_id}")


@router.get("/{batch_id}/{name}.jsonl")
def download(context: HomeContext, caller: Reader, batch_id: str, name: Literal["output", "errors"]) -> Response:
    """The file of answers, or of requests without one."""
    file_id = _file_of(context, caller, batch_id, name)
    file = files.get_file(context, caller.project_id, file_id)
    headers = {
        "content-length": str(file.num_bytes),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
    }
    return StreamingResponse(files.read_file(context, file), media_type="application/octet-stream", headers=headers)


def _file_of(context: Context, caller: Caller, batch_id: str, name: Literal["output", "errors"]) -> str:
    one = context.batches.get(caller.project_id, batch_id).batch
    file_id = one.output_file_id if name == "output" else one.error_file_id
    if file_id is None:
        raise NotFoundError(
            f"no file {name}.jsonl of batch {batch_id}",
            expected="a batch that has ended, with such requests",
            do="wait until it has ended",
        )
    return file_id


def _page(request: Request, view: BatchView, error: LuthierError | None = None) -> Response:
    values = {"view": view, "mark": _mark(view), "fault": batches.fault_of(view), "error": error}
    template = "batches/state.html" if is_fragment_request(request) else "batches/show.html"
    return render(request, template, values, status=status_of(error) if error else 200)


def _mark(view: BatchView) -> str:
    """What changes with each thing that can be seen to happen."""
    return f"{view.status}-{view.batch.num_done}-{view.job.attempt}"
