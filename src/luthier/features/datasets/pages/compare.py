"""/datasets/{id}/compare: what changed from one version of a dataset to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from luthier.core.errors import LuthierError
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets import version_analyses as dataset_diffs
from luthier.features.datasets.pages.datasets import Number, head, waiting_page
from luthier.features.datasets.rows import columns_of, open_rows
from luthier.features.datasets.store import DatasetVersion
from luthier.platform.processes.result_cache import CachedResult
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.render import render
from luthier.platform.ui.visitor import HomeContext, Reader

router = APIRouter(prefix="/datasets/{dataset_id}/compare")


@router.get("")
def look(
    request: Request,
    context: HomeContext,
    caller: Reader,
    dataset_id: str,
    a: Number = None,
    b: Number = None,
    version: Number = None,
    key: Annotated[str, Query(max_length=300)] = "",
    again: bool = False,
) -> Response:
    """The difference, once it is found; the first look begins that. a: the old version; b, version: the new one."""
    values = head(context, caller, dataset_id, b or version, "/compare")
    new: DatasetVersion = values["version"]
    old = dataset_versions.get_version(context, caller, dataset_id, a or _before(new, values["versions"]))
    values |= {"old": old, "new": new, "key": key, "state": CachedResult("unasked"), "columns": [], "error": None}
    try:
        if (waiting := waiting_page(request, context, caller, values)) is not None:
            return waiting
        values["columns"] = columns_of(open_rows(context, caller, new))
        if len(values["versions"]) > 1:
            values["state"] = dataset_diffs.difference(context, caller, old, new, key=key or None, again=again)
    except LuthierError as error:
        values["error"] = error
    status = 200 if values["error"] is None else status_of(values["error"])
    return render(request, "datasets/compare.html", values, status=status)


def _before(new: DatasetVersion, versions: Sequence[DatasetVersion]) -> int:
    """The version that one was made from, else the one before it, else itself."""
    # Version numbers start at 1, so 0 never means a parent.
    return new.parent or max((one.number for one in versions if one.number < new.number), default=new.number)
