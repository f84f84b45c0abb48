"""/datasets/{id}/repair: choose what is to be repaired, see what it would do, keep exactly that as a version."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.features.datasets import derived_versions as dataset_repairs
from luthier.features.datasets.derived_versions import RepairChoice
from luthier.features.datasets.pages.datasets import Number, head
from luthier.features.datasets.service import list_datasets
from luthier.features.datasets.version_analyses import AuditSettings, audit_state
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import local_base_models
from luthier.platform.processes.result_cache import CachedResult
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.visitor import HomeContext, Trainer

router = APIRouter(prefix="/datasets/{dataset_id}/repair")

_Words = Annotated[list[Annotated[str, Query(max_length=100)]], Query(max_length=100)]
_Word = Annotated[str, Query(max_length=300)]
_FormWords = Annotated[list[Annotated[str, Form(max_length=100)]], Form(max_length=100)]
_FormWord = Annotated[str, Form(max_length=300)]


@router.get("")
def show(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset_id: str,
    version: Number = None,
    action: _Words = [],  # noqa: B006 - FastAPI copies it
    against: _Word = "",
    model: _Word = "",
    mask: _Words = [],  # noqa: B006
) -> Response:
    """The form, and what was chosen as it would come out."""
    choice = RepairChoice(tuple(action), against, model, tuple(mask))
    return _page(request, context, caller, dataset_id, version, choice)


@router.post("")
def preview(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset_id: str,
    version: Annotated[int, Form(ge=1)],
    action: _FormWords = [],  # noqa: B006
    against: _FormWord = "",
    model: _FormWord = "",
    mask: _FormWords = [],  # noqa: B006
) -> Response:
    """Begin to prepare a repair, and lead to where it will be seen."""
    choice = RepairChoice(tuple(action), against, model, tuple(mask))
    values = head(context, caller, dataset_id, version, "/repair")
    try:
        # A preview that is ready is shown again: computing it again would give the same bytes.
        if dataset_repairs.repair_state(context, caller, values["version"], choice).state != "answered":
            dataset_repairs.begin_repair(context, caller, values["version"], choice)
    except LuthierError as error:
        return _page(request, context, caller, dataset_id, version, choice, error)
    pairs = [("version", str(version)), *(("action", name) for name in choice.actions)]
    pairs += [("mask", kind) for kind in choice.mask]
    pairs += [(name, value) for name, value in (("against", against), ("model", model)) if value]
    return redirect(request, f"/datasets/{dataset_id}/repair?{urlencode(pairs)}")


@router.post("/keep")
def keep(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset_id: str,
    version: Annotated[int, Form(ge=1)],
    action: _FormWords = [],  # noqa: B006
    against: _FormWord = "",
    model: _FormWord = "",
    mask: _FormWords = [],  # noqa: B006
    note: Annotated[str, Form(max_length=2000)] = "",
) -> Response:
    """Make the new version."""
    choice = RepairChoice(tuple(action), against, model, tuple(mask))
    values = head(context, caller, dataset_id, version, "/repair")

    def work() -> Led:
        made = dataset_repairs.keep_repair(context, caller, values["version"], choice, note=note)
        return Led(f"/datasets/{dataset_id}", f"Version {made.number} is the repaired one.")

    try:
        back = f"/datasets/{dataset_id}/repair?version={version}"
        return page_work(request).answer(request, "The repaired version is being made", work, back=back)
    except LuthierError as error:
        return _page(request, context, caller, dataset_id, version, choice, error)


def _page(
    request: Request,
    context: Context,
    caller: Caller,
    dataset_id: str,
    version: int | None,
    choice: RepairChoice,
    error: LuthierError | None = None,
) -> Response:
    values = head(context, caller, dataset_id, version, "/repair")
    audited = audit_state(context, caller, values["version"])
    findings = [] if audited.answer is None else audited.answer["findings"]
    settings = AuditSettings(choice.against, choice.model)
    state = CachedResult("unasked")
    # After an error the choice may be impossible, and requesting its state would fail again.
    if error is None and choice.actions:
        state = dataset_repairs.repair_state(context, caller, values["version"], choice)
    values |= {
        "repairs": [(one, one.num_rows(findings)) for one in dataset_repairs.repairs()],
        "mask_kinds": dataset_repairs.mask_kinds(),
        "audited": audited,
        "choice": choice,
        "settings": settings,
        "state": state,
        "others": [one for one, _ in list_datasets(context, caller) if one.dataset_id != dataset_id],
        "models": local_base_models(context, caller.project_id),
        "error": error,
    }
    return render(request, "datasets/repair.html", values, status=200 if error is None else status_of(error))
