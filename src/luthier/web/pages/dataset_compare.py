"""/datasets/{id}/compare: what changed from one version of a dataset to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from luthier.core.dataset_version import DatasetVersion
from luthier.core.errors import LuthierError
from luthier.service import dataset_diffs, dataset_versions
from luthier.service.dataset_rows import columns_of, open_rows
from luthier.web.errors import status_of
from luthier.web.render import is_fragment_request, render
from luthier.web.visitor import HomeContext, Reader

router = APIRouter(prefix="/datasets/{dataset_id}/compare")


@router.get("")
def look(
    request: Request,
    context: HomeContext,
    caller: Reader,
    dataset_id: str,
    a: int | None = None,
    b: int | None = None,
    key: Annotated[str, Query(max_length=300)] = "",
    find: bool = False,
) -> Response:
    """The difference, once it is found; before that the page that asks for it. a: the old version; b: the new one."""
    dataset, versions = dataset_versions.show_dataset(context, caller, dataset_id)
    new = dataset_versions.get_version(context, caller, dataset_id, b)
    old = dataset_versions.get_version(context, caller, dataset_id, a if a is not None else _before(new, versions))
    values: dict[str, Any] = {"dataset": dataset, "versions": versions, "version": new, "old": old, "new": new}
    found, columns, error = None, [], None
    try:
        columns = columns_of(open_rows(context, caller, new))
        if old.number != new.number or find:
            ask = dataset_diffs.difference if find else dataset_diffs.known_difference
            found = ask(context, caller, old, new, key or None)
    except LuthierError as wrong:
        error = wrong
    values |= {"found": found, "columns": columns, "key": key, "error": error}
    piece = "compare_found.html" if is_fragment_request(request) else "compare.html"
    return render(request, f"dataset_work/{piece}", values, status=200 if error is None else status_of(error))


def _before(new: DatasetVersion, versions: Sequence[DatasetVersion]) -> int:
    """The version that one was made from, else the one before it, else itself."""
    return new.parent or max((one.number for one in versions if one.number < new.number), default=new.number)
