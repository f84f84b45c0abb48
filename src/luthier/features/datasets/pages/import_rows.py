"""/datasets/import: rows from the hub, an address or an object store: a preview, the job, and once again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, RequestError
from luthier.core.text.written_numbers import typed_number, typed_whole
from luthier.features.datasets import remote_imports
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.imports import RemoteOrder
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.i18n.environments import decimal_mark_of
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.visitor import HomeContext, Trainer

router = APIRouter(prefix="/datasets")

_PAGE: Final = "/datasets/import"
_FIELDS: Final = ("address", "config", "split", "max_rows", "percent", "name", "dataset", "note")
_MOST_SHOWN: Final = 40
"""Columns of the table of first rows; all can be chosen."""
_Text = Annotated[str, Form(max_length=2000)]
_Word = Annotated[str, Query(max_length=100)]


@router.get("/import")
def show(request: Request, context: HomeContext, caller: Trainer, dataset: _Word = "", version: _Word = "") -> Response:
    """The form; after a preview with what was found. dataset, version: fill in the source of an imported version."""
    kept = shown_once(request).take(request)
    given = kept.get("given") or _beginning(context, caller, dataset, version)
    error = kept.get("error")
    return _page(request, context, caller, given, error, preview=kept.get("preview"))


@router.post("/import")
def take(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    address: _Text = "",
    config: _Text = "",
    split: _Text = "",
    max_rows: _Text = "",
    percent: _Text = "",
    name: _Text = "",
    dataset: _Text = "",
    note: _Text = "",
    keep: Annotated[list[str] | None, Form(max_length=200)] = None,
    column: Annotated[list[str] | None, Form(max_length=200)] = None,
    num_columns: _Text = "",
    action: _Text = "import",
) -> Response:
    """Look at the first rows, or queue the import and lead to its page.

    column: all that could be chosen; num_columns: how many the source has, empty where that is not known.
    """
    given: dict[str, Any] = dict(
        zip(_FIELDS, (address, config, split, max_rows, percent, name, dataset, note), strict=True)
    )
    given |= {"keep": keep or [], "columns": column or [], "num_columns": num_columns}
    try:
        order = _order(given, decimal_mark_of(request))
        if action == "preview":
            return _previewed(request, context, given, order)
        job = remote_imports.start_import(context, caller, order, name=name, dataset_id=dataset, note=note)
    except LuthierError as error:
        return _page(request, context, caller, given, error)
    return redirect(request, f"/datasets/jobs/{job.job_id}")


@router.post("/{dataset_id}/import-again")
def again(
    request: Request, context: HomeContext, caller: Trainer, dataset_id: str, version: Annotated[int, Form(ge=1)]
) -> Response:
    """Queue the import of a version once again, and lead to its page."""
    found = dataset_versions.get_version(context, caller, dataset_id, version)
    try:
        job = remote_imports.start_again(context, caller, found)
    except LuthierError as error:
        return _page(request, context, caller, _beginning(context, caller, dataset_id, str(version)), error)
    return redirect(request, f"/datasets/jobs/{job.job_id}")


def _previewed(request: Request, context: Context, given: dict[str, Any], order: RemoteOrder) -> Response:
    def work() -> Led:
        found: dict[str, Any] = {"given": given}
        try:
            found["preview"] = remote_imports.preview(context, order)
        except LuthierError as error:
            # Shown on the form, which keeps what was filled in.
            found["error"] = error
        return Led(shown_once(request).put(request, _PAGE, found))

    remote_imports.check_allowed(context.settings, order.address)
    return page_work(request).answer(request, f"The first rows of {order.shown} are fetched", work, back=_PAGE)


def _order(given: Mapping[str, Any], mark: str) -> RemoteOrder:
    """What the form says. mark: before decimals, in the language of the page.

    Raises:
        RequestError: No column is chosen, or a field holds no possible value.
    """
    kept = tuple(given["keep"])
    if (given["num_columns"] or given["columns"]) and not kept:
        raise RequestError("no column is chosen", expected="at least one column to keep", do="choose the columns")
    # All of them: then the file may stay as it is.
    if str(len(kept)) == given["num_columns"]:
        kept = ()
    return RemoteOrder(
        address=remote_imports.address_of(given["address"], given["config"], given["split"]),
        max_rows=_whole(given["max_rows"], mark),
        fraction=_share(given["percent"], mark),
        kept_columns=kept,
    )


def _whole(text: str, mark: str) -> int | None:
    if not text.strip():
        return None
    try:
        found = typed_whole(text, mark)
    except ValueError:
        found = 0
    if not 0 < found < 10**12:
        raise RequestError(
            f"{text[:40]!r} rows", expected="a whole number from 1 on", do="correct it, or leave it empty for all rows"
        )
    return found


def _share(text: str, mark: str) -> float | None:
    text = text.strip().removesuffix("%").strip()
    if not text:
        return None
    try:
        value = typed_number(text, mark)
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise RequestError(
            f"{text[:40]!r} percent of the rows",
            expected="a number above 0, up to 100",
            do="correct it, or leave it empty for all rows",
        )
    return value / 100


def _beginning(context: Context, caller: Caller, dataset_id: str, number: str) -> dict[str, Any]:
    """What the form is filled with: the source of a version, or nothing but the dataset that gets one."""
    given: dict[str, Any] = dict.fromkeys(_FIELDS, "") | {"keep": [], "columns": [], "num_columns": ""}
    given["dataset"] = dataset_id
    if not (dataset_id and number.isascii() and number.isdigit() and len(number) < 10):
        return given
    source = remote_imports.source_of(dataset_versions.get_version(context, caller, dataset_id, int(number)))
    if source is None:
        return given
    chosen = source["selection"]
    fraction = chosen.get("fraction")
    percent = "" if fraction is None else f"{fraction * 100:.10g}"
    kept = list(chosen.get("kept_columns") or [])
    given |= {"keep": kept, "columns": kept}
    return given | {"address": source["address"], "max_rows": str(chosen.get("max_rows") or ""), "percent": percent}


def _page(
    request: Request,
    context: Context,
    caller: Caller,
    given: dict[str, Any],
    error: LuthierError | None,
    *,
    preview: dict[str, Any] | None = None,
) -> Response:
    words = context.settings.import_sources.split()
    values = {
        "given": given,
        "error": error,
        "preview": preview,
        "page": preview["page"] | {"columns": preview["columns"][:_MOST_SHOWN]}
        if preview and preview["page"]
        else None,
        "problem": None
        if preview is None or preview["problem"] is None
        else RequestError(**{part: preview["problem"][part] for part in ("came", "expected", "do")}),
        "datasets": [dataset for dataset, _ in dataset_versions.list_datasets(context, caller)],
        "places": [word for word in words if word not in ("hub", "https", "none")],
        "has_hub": "hub" in words or any(word.startswith("hub:") for word in words),
        "has_https": "https" in words,
        "max_bytes": context.settings.max_file_bytes,
        "current": "/datasets",
    }
    return render(request, "datasets/import.html", values, status=status_of(error) if error else 200)
