"""/datasets: the list of datasets, one dataset with its rows and versions, and the upload of files.

`head` gives what all pages of one dataset show on top: name, version and tabs. /datasets/new streams the upload to
disk, as a new dataset or as a new version.
"""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Form, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.rows import index_state, known_shape, look_of, rows_page
from luthier.features.datasets.service import get_version, show_dataset
from luthier.features.datasets.store import DatasetVersion
from luthier.features.datasets.version_analyses import known_grade
from luthier.platform.files import service as files
from luthier.platform.files.service import IncomingFile
from luthier.platform.home.context import Context
from luthier.platform.http.multipart import FormError, read_form
from luthier.platform.processes.result_cache import CachedResult
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.render import Page, page_advice, redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

TABS: Final = (
    ("Rows", ""),
    ("Tokens", "/tokens"),
    ("Audit", "/audit"),
    ("Repair", "/repair"),
    ("Map", "/map"),
    ("Split", "/split"),
    ("Compare", "/compare"),
    ("Annotate", "/annotate"),
)
"""The pages of a dataset: name and end of the address."""


def head(context: Context, caller: Caller, dataset_id: str, number: int | None, tab: str) -> dict[str, Any]:
    """What `datasets/frame.html` is given. number: of the version, None for the newest. Raises NotFoundError."""
    dataset, versions = show_dataset(context, caller, dataset_id)
    version = get_version(context, caller, dataset_id, number)
    return {"dataset": dataset, "versions": versions, "version": version, "tabs": TABS, "tab": tab}


def waiting_page(request: Request, context: Context, caller: Caller, values: dict[str, Any]) -> Response | None:
    """The page that is shown while the rows of a large version are indexed; None where they can be read.

    Args:
        values: The result of `head`.

    Raises:
        NotFoundError: The file of the version is gone.
        DataError: The file cannot be read.
        WorkError: The machine could not index it.
    """
    state = index_state(context, caller, values["version"])
    # Raised here, so that each page shows it with its own frame and status.
    if state.error is not None:
        raise state.error
    if state.state == "answered":
        return None
    return render(request, "datasets/indexing.html", values | {"state": state})


def how_made(version: DatasetVersion) -> str:
    """How a version was made, as a sentence."""
    parent = "" if version.parent is None else f" from version {version.parent}"
    details = version.details
    if version.origin == "upload":
        return "taken from the API’s files" if details.get("adopted") else "brought"
    if version.origin == "repair" and "fates" in details:
        fates = details["fates"]
        grades = f"grade {details.get('grade_before')} → {details.get('grade_after')}"
        return f"repaired{parent}: {_rows(fates['changed'])} changed, {_rows(fates['removed'])} removed, {grades}"
    words = {
        "split": "split off",
        "annotation": "annotated",
        "test case": "test cases added",
        "repair": "repaired",
        "review": "reviewed rows added",
    }
    return f"{words[version.origin]}{parent}"


def _rows(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"


router = APIRouter(prefix="/datasets")

_FIELDS: Final = frozenset({"dataset", "name", "note"})
_MAX_FILES: Final = 100
_Text = Annotated[str, Form(max_length=2000)]


@router.get("/new")
def show_upload(
    request: Request, context: HomeContext, caller: Trainer, dataset: Annotated[str, Query(max_length=100)] = ""
) -> Response:
    """The form. dataset: the id of the one that gets a new version."""
    return _form(request, context, caller, {"dataset": dataset})


@router.post("/new")
async def bring(request: Request, context: HomeContext, caller: Trainer) -> Response:
    """Store the file and make a version of it; on any error nothing of it is kept.

    A coroutine, since the body comes piece by piece; its pieces are written in threads. Scripts ask for JSON.
    """
    # The upload script requests JSON to show its progress bar; without scripts the form gets a page.
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
        return Response(status_code=400)  # the client is gone
    except LuthierError as error:
        status = error.status if isinstance(error, FormError) else status_of(error)
        if wants_json:
            document = error.as_json() | {"do": page_advice(error.do).striptags()}
            return JSONResponse(document, status_code=status)
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


PAGE = Page("Datasets", "/datasets", "read", order=20, key="d", group="data")

ROWS_A_PAGE: Final = 20
Number = Annotated[int | None, Query(ge=1, le=10**9)]


@router.get("")
def show_all(
    request: Request, context: HomeContext, caller: Reader, q: Annotated[str, Query(max_length=200)] = ""
) -> Response:
    """The list, or of it what has the words of `q` in its name."""
    found = dataset_versions.list_datasets(context, caller)
    words = q.casefold().split()
    shown = [
        {
            "dataset": dataset,
            "version": version,
            # Only what is cached: a list of many datasets must not start a computation for each.
            "shape": known_shape(context, version),
            "grade": known_grade(context, version),
        }
        for dataset, version in found
        if all(word in dataset.name.casefold() for word in words)
    ]
    return render(request, "datasets/list.html", {"rows": shown, "num_all": len(found), "q": q})


@router.get("/{dataset_id}")
def show(
    request: Request,
    context: HomeContext,
    caller: Reader,
    dataset_id: str,
    version: Number = None,
    start: Annotated[int, Query(ge=0, le=10**12)] = 0,
) -> Response:
    """One dataset: what it holds, a page of its rows, its versions."""
    values = head(context, caller, dataset_id, version, "")
    values |= {"start": start, "num": ROWS_A_PAGE, "how_made": how_made}
    values |= {
        "grade": known_grade(context, values["version"]),
        "page": None,
        "rows_error": None,
        "look": CachedResult("unasked"),
        "indexing": CachedResult("unasked"),
    }
    try:  # a file that is lost or damaged is still one that can be replaced and removed
        values["look"] = look_of(context, caller, values["version"])
        values["indexing"] = index_state(context, caller, values["version"])
        values["rows_error"] = values["indexing"].error
        if values["indexing"].state == "answered":
            page = rows_page(context, caller, values["version"], start=start, num=ROWS_A_PAGE)
            values["page"] = page | {"columns": columns_of(page)}
    except LuthierError as error:
        values["rows_error"] = error
    return render(request, "datasets/show.html", values)


@router.get("/{dataset_id}/download")
def download(context: HomeContext, caller: Reader, dataset_id: str, version: Number = None) -> Response:
    """The file of a version, unchanged."""
    found = dataset_versions.get_version(context, caller, dataset_id, version)
    file = files.get_file(context, caller.project_id, found.file_id)
    headers = {
        "Content-Length": str(file.num_bytes),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
    }
    return StreamingResponse(files.read_file(context, file), headers=headers, media_type="application/octet-stream")


@router.post("/{dataset_id}/remove")
def remove(request: Request, context: HomeContext, caller: Trainer, dataset_id: str) -> Response:
    """Forget a dataset with all its versions."""
    dataset, versions = dataset_versions.show_dataset(context, caller, dataset_id)
    dataset_versions.remove_dataset(context, caller, dataset_id)
    words = f"{len(versions)} version{'' if len(versions) == 1 else 's'}"
    return redirect(request, "/datasets", f"The dataset “{dataset.name}” was removed with its {words}.")


def columns_of(page: dict[str, Any]) -> list[str]:
    """The names of all fields of some rows, in the order in which they come."""
    return list(dict.fromkeys(name for row in page["rows"] for name in row["cells"]))
