"""/datasets/{id}/split: three datasets that share nothing, and the proof of it."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, RequestError
from luthier.core.text.written_numbers import typed_number
from luthier.features.datasets import derived_versions as dataset_splits
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.derived_versions import SplitWishes
from luthier.features.datasets.pages.datasets import Number, head, waiting_page
from luthier.features.datasets.rows import columns_of, open_rows
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.i18n.environments import decimal_mark_of
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

router = APIRouter(prefix="/datasets/{dataset_id}/split")

_Text = Annotated[str, Form(max_length=300)]
_MAX_TYPED: Final = 300
DEFAULTS: Final = {
    "validation": "10", "held_out": "10", "seed": "0", "group_by": "", "stratify_by": "", "near": "on",
    "near_threshold": "0.8",
}  # fmt: skip


@router.get("")
def look(request: Request, context: HomeContext, caller: Reader, dataset_id: str, version: Number = None) -> Response:
    """The form, and the newest split. Values typed before are in the address."""
    # From the address, so that a reload after the redirect still shows what was typed.
    typed = {name: request.query_params.get(name, "")[:_MAX_TYPED] for name in DEFAULTS}
    return _page(request, context, caller, dataset_id, version, typed if any(typed.values()) else DEFAULTS, None)


@router.post("")
def split(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset_id: str,
    version: Annotated[int, Form()],
    validation: _Text = "",
    held_out: _Text = "",
    seed: _Text = "0",
    group_by: _Text = "",
    stratify_by: _Text = "",
    near: _Text = "",
    near_threshold: _Text = "",
) -> Response:
    """Begin to split a version, and lead to where the proof will be seen."""
    found = dataset_versions.get_version(context, caller, dataset_id, version)
    typed = {
        "validation": validation, "held_out": held_out, "seed": seed, "group_by": group_by, "stratify_by": stratify_by,
        "near": near, "near_threshold": near_threshold,
    }  # fmt: skip
    mark = decimal_mark_of(request)
    try:
        wishes = SplitWishes(
            validation=_number("share of validation", validation, 0, 95, mark) / 100,
            held_out=_number("share of held-out", held_out, 0, 95, mark) / 100,
            seed=int(_number("seed", seed, 0, 2**31, mark)),
            group_by=group_by or None,
            stratify_by=stratify_by or None,
            near_threshold=_number("similarity", near_threshold, 0.5, 1, mark) if near else None,
        )
        dataset_splits.begin_split(context, caller, found, wishes)
    except LuthierError as error:
        return _page(request, context, caller, dataset_id, version, typed, error)
    known = {name: text for name, text in typed.items() if text}
    return redirect(request, f"/datasets/{dataset_id}/split?{urlencode({'version': version} | known)}")


def _page(
    request: Request,
    context: Context,
    caller: Caller,
    dataset_id: str,
    number: int | None,
    typed: dict[str, str],
    error: LuthierError | None,
) -> Response:
    values = head(context, caller, dataset_id, number, "/split")
    columns: list[str] = []
    try:
        if (waiting := waiting_page(request, context, caller, values)) is not None:
            return waiting
        columns = columns_of(open_rows(context, caller, values["version"]))
    except LuthierError as unreadable:
        error = error or unreadable
    values |= {
        "columns": columns,
        "typed": typed,
        "error": error,
        "state": dataset_splits.split_state(context, values["version"]),
        "made": dataset_splits.last_split(context, caller, values["dataset"]),
        "endings": dataset_splits.SIDES,
    }
    return render(request, "datasets/split.html", values, status=200 if error is None else status_of(error))


def _number(name: str, text: str, low: float, high: float, mark: str) -> float:
    try:
        # "nothing" is not a number: an empty field takes the same way as a wrong one.
        value = typed_number(text.replace("%", "") or "nothing", mark)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise RequestError(
            f"{text[:40]!r} as the {name}", expected=f"a number from {low:g} to {high:g}", do="correct it"
        )
    return value
