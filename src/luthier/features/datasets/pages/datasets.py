"""/datasets: all datasets of the project; and one of them: what it holds, its rows and its versions."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from luthier.core.errors import LuthierError
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.audits import known_grade
from luthier.features.datasets.pages.head import head, how_made
from luthier.features.datasets.row_index import index_state
from luthier.features.datasets.rows import known_shape, look_of, rows_page
from luthier.platform.files import service as files
from luthier.platform.processes.result_cache import CachedResult
from luthier.platform.ui.navigation import Page
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

router = APIRouter(prefix="/datasets")
PAGE = Page("Datasets", "/datasets", "read", order=20, key="d")

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
    """The file of a version, as it was brought or made."""
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
