"""What all pages of one dataset show on top: its name, the version that is looked at, and the ways to the others."""

from __future__ import annotations

from typing import Any, Final

from fastapi import Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.features.datasets.records import DatasetVersion
from luthier.features.datasets.row_index import index_state
from luthier.features.datasets.service import get_version, show_dataset
from luthier.platform.home.context import Context
from luthier.platform.ui.render import render

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
"""The pages of a dataset: name, and what stands behind its address."""


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
