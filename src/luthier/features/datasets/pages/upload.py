"""/datasets/new: bring a file as a dataset or as a new version of one; the bytes go to the disk as they come."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.records import DatasetVersion
from luthier.platform.files import service as files
from luthier.platform.files.incoming import IncomingFile
from luthier.platform.home.context import Context
from luthier.platform.http.multipart import FormError, read_form
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.page_advice import page_advice
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.visitor import HomeContext, Trainer

router = APIRouter(prefix="/datasets")

_FIELDS: Final = frozenset({"dataset", "name", "note"})
_MAX_FILES: Final = 100
_Text = Annotated[str, Form(max_length=2000)]


@router.get("/new")
def show(
    request: Request, context: HomeContext, caller: Trainer, dataset: Annotated[str, Query(max_length=100)] = ""
) -> Response:
    """The form. dataset: the id of the one that gets a new version."""
    return _form(request, context, caller, {"dataset": dataset})


@router.post("/new")
async def bring(request: Request, context: HomeContext, caller: Trainer) -> Response:
    """Take the file and make a version of it; whatever goes wrong on the way, nothing of it is kept.

    A coroutine, since the body comes piece by piece; its pieces are written in threads. Scripts ask for JSON.
    """
    # The upload script asks for JSON to show its progress bar; without scripts the form gets a page.
    wants_json = "application/json" in request.headers.get("accept", "")
    given: dict[str, str] = {}
    try:
        incoming = await run_in_threadpool(files.incoming_file, context)
        with incoming:
            most = context.settings.max_file_bytes
            form = await read_form(
                request.stream(), request.headers, incoming, file_field="file", fields=_FIELDS, most_bytes=most
            )
            given = form.fields
            made = await run_in_threadpool(_keep, context, caller, incoming, form.filename, given)
    # Leaving the `with` above has removed what had been received.
    except ClientDisconnect:
        return Response(status_code=400)  # to nobody
    except LuthierError as error:
        status = error.status if isinstance(error, FormError) else status_of(error)
        if wants_json:
            told = error.as_json() | {"do": page_advice(error.do).striptags()}
            return JSONResponse(told, status_code=status)
        return await run_in_threadpool(_form, request, context, caller, given, error, status)
    address = f"/datasets/{made.dataset_id}"
    if wants_json:
        return JSONResponse({"address": address}, status_code=201)
    return redirect(request, address, f"Version {made.number} is kept.")


@router.post("/adopt")
def adopt(request: Request, context: HomeContext, caller: Trainer, file: _Text, name: _Text = "") -> Response:
    """Make a dataset of a file that the API has brought."""
    try:
        made = dataset_versions.adopt_file(context, caller, name, file)
    except LuthierError as error:
        given = {"file": file, "adopted_name": name}
        return _form(request, context, caller, given, error, status_of(error))
    return redirect(request, f"/datasets/{made.dataset_id}", "The file is a dataset now.")


def _keep(
    context: Context, caller: Caller, incoming: IncomingFile, filename: str, given: dict[str, str]
) -> DatasetVersion:
    # Browsers send an empty part with an empty name when no file was chosen.
    if not filename and not incoming.num_bytes:
        raise FormError("no file was chosen", expected="a file of rows", do="choose one, or drop it on the page")
    file = dataset_versions.bring_file(context, caller, incoming, filename)
    note, dataset_id = given.get("note", ""), given.get("dataset", "")
    try:
        if not dataset_id:
            return dataset_versions.create_dataset(context, caller, given.get("name", ""), file, note=note)[1]
        newest = dataset_versions.get_version(context, caller, dataset_id)
        if newest.sha256 == file.sha256:  # the form was sent twice: the rows are there already
            files.delete_file(context, caller.project_id, file.file_id)
            return newest
        return dataset_versions.add_version(
            context, caller, dataset_id, file, origin="upload", parent=newest.number, note=note
        )
    except BaseException:
        files.delete_file(context, caller.project_id, file.file_id)
        raise


def _form(
    request: Request,
    context: Context,
    caller: Caller,
    given: dict[str, str],
    error: LuthierError | None = None,
    status: int = 200,
) -> Response:
    found, _ = files.list_files(context, caller.project_id, purpose="fine-tune", limit=_MAX_FILES)
    values: dict[str, Any] = {
        "datasets": [dataset for dataset, _ in dataset_versions.list_datasets(context, caller)],
        "files": [file for file in found if not context.datasets.using_file(file.file_id)],
        "given": dict.fromkeys(("dataset", "name", "note", "file", "adopted_name"), "") | given,
        "error": error,
        "suffixes": dataset_versions.ROW_SUFFIXES,
        "max_bytes": context.settings.max_file_bytes,
    }
    return render(request, "datasets/new.html", values, status=status)
