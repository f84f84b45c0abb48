"""/datasets: the list of datasets, and one dataset with its rows, its versions and the next step.

`head` gives what all pages of one dataset show on top: name, version, tabs and what to do next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from luthier.core.access import Caller
from luthier.core.data_sources import WORKBOOK_SUFFIXES
from luthier.core.errors import LuthierError
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.data_jobs import list_jobs
from luthier.features.datasets.remote_imports import imported_version, short_source
from luthier.features.datasets.rows import index_state, is_small, known_look, known_shape, look_of, rows_page
from luthier.features.datasets.service import get_version, show_dataset
from luthier.features.datasets.store import DatasetVersion
from luthier.features.datasets.version_analyses import known_grade
from luthier.ml.data.provenance import PROVENANCE
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.processes.result_cache import CachedResult
from luthier.platform.ui.render import Advised, Page, redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer, one_state

TABS: Final[tuple[tuple[str, str], ...]] = (
    ("Rows", ""),
    ("Columns", "/columns"),
    ("Tokens", "/tokens"),
    ("Audit", "/audit"),
    ("Repair", "/repair"),
    ("Map", "/map"),
    ("Split", "/split"),
    ("Compare", "/compare"),
    ("Annotate", "/annotate"),
)
"""The pages of a dataset: name and end of the address."""
_TABLES: Final = (".csv", ".tsv", ".tab", *WORKBOOK_SUFFIXES, ".parquet")


def head(context: Context, caller: Caller, dataset_id: str, number: int | None, tab: str) -> dict[str, Any]:
    """The values of `datasets/frame.html`, the frame of all pages of a dataset.

    Args:
        context: The home.
        caller: Whoever looks at the page; datasets of other projects are not found.
        dataset_id: The dataset.
        number: Of the version; None for the newest.
        tab: The address of the open tab below that of the dataset, such as `/audit`.

    Raises:
        NotFoundError: The project has no such dataset, or the dataset no such version.
    """
    dataset, versions = show_dataset(context, caller, dataset_id)
    version = get_version(context, caller, dataset_id, number)
    shown = [one for one in TABS if one[1] != "/columns" or has_columns(context, version)]
    return {
        "dataset": dataset,
        "versions": versions,
        "version": version,
        "tabs": shown,
        "tab": tab,
        "steps": next_steps(context, version),
    }


@dataclass(frozen=True, slots=True)
class Step:
    """Something to do with a dataset next.

    Attributes:
        name: The text of its button.
        address: Where it leads.
        is_main: Whether it is the one to do first.
    """

    name: str
    address: str
    is_main: bool = False


def next_steps(context: Context, version: DatasetVersion) -> list[Step]:
    """What to do next with a version, the main step last: by the shape of its rows, as far as it is known."""
    page, number = f"/datasets/{version.dataset_id}", version.number
    train = f"/start?dataset={version.dataset_id}&version={number}"
    known = known_look(context, version)
    if known is not None and known["shape"] is None and known["columns"]:
        return [Step("Choose columns", f"{page}/columns?version={number}", True)]
    if known is None or known["shape"] != "text":
        review = [Step("Review", f"{page}/annotate?version={number}")] if version.origin == "questions" else []
        return [*review, Step("Train on it", train, True)]
    questions = f"{page}/questions?version={number}"
    # Passages of documents are there to be asked about; other texts mostly to be learned as they are.
    if PROVENANCE in known["columns"]:
        return [Step("Train on it", train), Step("Generate questions", questions, True)]
    return [Step("Generate questions", questions), Step("Train on it", train, True)]


def has_columns(context: Context, version: DatasetVersion) -> bool:
    """Whether columns can be chosen for a version: some are, or its rows are a table or have no shape of their own."""
    if version.columns or files.suffix_of(version.filename).removesuffix(".gz") in _TABLES:
        return True
    known = known_look(context, version)
    return known is not None and known["shape"] is None and bool(known["columns"])


def waiting_page(
    request: Request, context: Context, caller: Caller, values: dict[str, Any], *, needs_index: bool = True
) -> Response | None:
    """The page that is shown while the rows of a large version are indexed; None where they can be read.

    Args:
        request: The request of the page.
        context: The home.
        caller: Whose project it is.
        values: The result of `head`.
        needs_index: Whether rows are read by their place; else small files are read without an index.

    Raises:
        NotFoundError: The file of the version is gone.
        DataError: The file cannot be read.
        WorkError: The machine could not index it.
    """
    version: DatasetVersion = values["version"]
    if not needs_index and is_small(version.filename, version.num_bytes):
        return None
    state = index_state(context, caller, version)
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
    if version.origin == "import":
        return f"imported from {short_source(version)}"
    if version.origin == "upload":
        return "taken from the API’s files" if details.get("adopted") else "added"
    if version.origin == "documents":
        counts = details.get("documents")
        return f"read from {_rows(counts['num_documents'], 'document')}" if counts else "added with other files"
    if version.origin == "questions":
        of = details["of"]
        return f"questions from {of['name']} version {of['version']}, by {details['found']['teacher']}"
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


def _rows(number: int, what: str = "row") -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


router = APIRouter(prefix="/datasets")

PAGE = Page(
    "Datasets",
    "/datasets",
    "read",
    order=20,
    key="d",
    group="data",
    advised=(
        Advised(commands=("data repair", "data audit", "data split", "data diff")),
        Advised(calls=("files", "uploads"), title="Add data", address="/datasets/new"),
    ),
)

ROWS_A_PAGE: Final = 20
Number = Annotated[int | None, Query(ge=1, le=10**9)]


@router.get("")
@one_state
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
    jobs = [] if q else list_jobs(context, caller)
    return render(request, "datasets/list.html", {"rows": shown, "num_all": len(found), "q": q, "jobs": jobs})


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
        "imported": imported_version(context, caller, values["version"]),
        "page": None,
        "rows_error": None,
        "look": CachedResult("unasked"),
        "indexing": CachedResult("unasked"),
    }
    try:  # a file that is lost or damaged is still one that can be replaced and removed
        values["look"] = look_of(context, caller, values["version"])
        # The look may have been the first one: the next step depends on what it has found.
        values |= head(context, caller, dataset_id, values["version"].number, "")
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
