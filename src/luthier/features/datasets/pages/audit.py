"""/datasets/{id}/audit: what is wrong with a version, gravest first, and the rows that each finding is about."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.core.results.audit import SEVERITIES
from luthier.features.datasets.annotations import MAX_ROWS_LINKED, named_lines
from luthier.features.datasets.derived_versions import repairs
from luthier.features.datasets.pages.datasets import ROWS_A_PAGE, Number, columns_of, head, waiting_page
from luthier.features.datasets.rows import rows_page
from luthier.features.datasets.service import list_datasets
from luthier.features.datasets.version_analyses import MAX_LINES, AuditSettings, audit_state, begin_audit, finding_of
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import local_base_models
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

router = APIRouter(prefix="/datasets/{dataset_id}/audit")

_Word = Annotated[str, Query(max_length=300)]
_FormWord = Annotated[str, Form(max_length=300)]
_SEVERITY_WORDS: Final = {
    "error": ("bad", "must be fixed before training"),
    "warning": ("open", "worth a look"),
    "info": ("quiet", "good to know"),
}


@router.get("")
def show(
    request: Request,
    context: HomeContext,
    caller: Reader,
    dataset_id: str,
    version: Number = None,
    against: _Word = "",
    model: _Word = "",
) -> Response:
    """What the audit found, where it was made with these settings; else the button that begins it."""
    settings = AuditSettings(against, model)
    return _page(request, context, caller, dataset_id, version, settings)


@router.post("")
def begin(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset_id: str,
    version: Annotated[int, Form(ge=1)],
    against: _FormWord = "",
    model: _FormWord = "",
) -> Response:
    """Begin the audit, and lead to where it will be seen."""
    settings, values = AuditSettings(against, model), head(context, caller, dataset_id, version, "/audit")
    try:
        begin_audit(context, caller, values["version"], settings)
    except LuthierError as error:
        return _page(request, context, caller, dataset_id, version, settings, error)
    return redirect(request, _address(dataset_id, version, settings))


@router.get("/{number}")
def show_finding(
    request: Request,
    context: HomeContext,
    caller: Reader,
    dataset_id: str,
    number: int,
    version: Number = None,
    against: _Word = "",
    model: _Word = "",
    start: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> Response:
    """The rows that a finding is about, a page of them."""
    settings, values = AuditSettings(against, model), head(context, caller, dataset_id, version, "/audit")
    audited = audit_state(context, caller, values["version"], settings)
    finding = finding_of(audited, number)
    if (waiting := waiting_page(request, context, caller, values)) is not None:
        return waiting
    lines = finding["lines"]
    page = rows_page(context, caller, values["version"], start=start, num=ROWS_A_PAGE, lines=lines)
    values |= {
        "finding": finding,
        "page": page | {"columns": columns_of(page)},
        "start": start,
        "num": ROWS_A_PAGE,
        "most_lines": MAX_LINES,
        "queued": named_lines(tuple(lines[:MAX_ROWS_LINKED])),
        "most_queued": MAX_ROWS_LINKED,
        "back": _address(dataset_id, values["version"].number, settings),
        "query": _query(values["version"].number, settings),
        "severity_words": _SEVERITY_WORDS,
    }
    return render(request, "datasets/finding.html", values)


def _page(
    request: Request,
    context: Context,
    caller: Caller,
    dataset_id: str,
    version: int | None,
    settings: AuditSettings,
    error: LuthierError | None = None,
) -> Response:
    values = head(context, caller, dataset_id, version, "/audit")
    # Settings that raised an error (an unknown model) would raise it again when their state is looked up.
    settings_known = settings if error is None else AuditSettings()
    audited = audit_state(context, caller, values["version"], settings_known)
    found = [] if audited.answer is None else list(enumerate(audited.answer["findings"], start=1))
    checks: dict[str, list[Any]] = {}
    for one in repairs():
        checks.setdefault(one.check, []).append(one.id)
    others = [one for one, _ in list_datasets(context, caller) if one.dataset_id != dataset_id]
    values |= {
        "audited": audited,
        "settings": settings,
        "by_severity": [(name, [f for f in found if f[1]["severity"] == name]) for name in SEVERITIES],
        "severity_words": _SEVERITY_WORDS,
        "repairs_of": checks,
        "others": others,
        "against_name": next((one.name for one in others if one.dataset_id == settings.against), ""),
        "models": local_base_models(context, caller.project_id),
        "query": _query(values["version"].number, settings),
        "error": error,
    }
    return render(request, "datasets/audit.html", values, status=200 if error is None else status_of(error))


def _query(version: int, settings: AuditSettings) -> str:
    chosen = {"against": settings.against, "model": settings.model}
    return urlencode({"version": version} | {name: value for name, value in chosen.items() if value})


def _address(dataset_id: str, version: int, settings: AuditSettings) -> str:
    return f"/datasets/{dataset_id}/audit?{_query(version, settings)}"
