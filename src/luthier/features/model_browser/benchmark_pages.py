"""/exports/benchmarks: what each format of a model costs and loses, as `luthier export benchmark` measures it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError
from luthier.core.text.names import distinct_names
from luthier.features.exports.formats import orders
from luthier.features.exports.formats.orders import FormatOrderView
from luthier.features.model_cards import service as project_models
from luthier.features.run_drafts import choices as draft_choices
from luthier.ml.charts.judged_rows import metric_heading
from luthier.ml.export.exporters.registry import usual_formats
from luthier.ml.export.format_benchmark.page import format_row, price_plots
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import shown_failure
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.human_names import HumanNames
from luthier.platform.ui.i18n.environments import decimal_mark_of
from luthier.platform.ui.job_pages import changed, is_unchanged, unchanged
from luthier.platform.ui.render import is_fragment_request, redirect, render
from luthier.platform.ui.settings_tabs import whole_number
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer

_ADDRESS: Final = "/exports/benchmarks"
router = APIRouter(prefix=_ADDRESS)

_MAX_TUNED: Final = 100
_Text = Annotated[str, Form(max_length=1024)]


@router.get("")
def index(
    request: Request, context: HomeContext, caller: Reader, source: Annotated[str, Query(max_length=1024)] = ""
) -> Response:
    """The tables of the project, or of one model, and the form of a new one."""
    return _list_page(request, context, caller, {"source": source, "filter": source})


@router.post("")
def start(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    source: _Text = "",
    rows: _Text = "",
    formats: _Text = "",
    num_rows: Annotated[str, Form(max_length=20)] = "100",
    max_new_tokens: Annotated[str, Form(max_length=20)] = "64",
) -> Response:
    """Queue the measurement, and lead to its progress."""
    mark = decimal_mark_of(request)
    try:
        made = orders.start(
            context,
            caller,
            source,
            rows,
            formats=[one.strip() for one in formats.split(",") if one.strip()],
            num_rows=_number(num_rows, "the number of rows", 100, mark),
            max_new_tokens=_number(max_new_tokens, "the longest answer", 64, mark),
        )
    except LuthierError as error:
        given = {"source": source, "rows": rows, "formats": formats, "num_rows": num_rows}
        return _list_page(request, context, caller, given | {"max_new_tokens": max_new_tokens, "error": error})
    notice = "The comparison of formats is queued: a worker of this server will run it."
    return redirect(request, f"{_ADDRESS}/{made.job.job_id}", notice)


@router.get("/{job_id}")
def show(request: Request, context: HomeContext, caller: Reader, job_id: str, after: str = "") -> Response:
    """How far it is, and the table. after: what was seen last; nothing is sent (204) while that holds."""
    view = orders.show_order(context, caller, job_id)
    if is_unchanged(request, after, view.mark):
        return unchanged()
    return _page(request, context, view)


@router.post("/{job_id}/cancel")
def cancel(request: Request, context: HomeContext, caller: Trainer, job_id: str) -> Response:
    """Give it up."""
    return _done(request, context, caller, job_id, orders.cancel)


@router.post("/{job_id}/retry")
def retry(request: Request, context: HomeContext, caller: Trainer, job_id: str) -> Response:
    """Run it again, behind what it has stored."""
    return _done(request, context, caller, job_id, orders.retry)


def _number(text: str, what: str, default: int, mark: str) -> int:
    """The number in a field; the default where it is empty."""
    found = whole_number(text, what, mark)
    return default if found is None else found


def _done(request: Request, context: Context, caller: Caller, job_id: str, do: Any) -> Response:
    def show_again(error: ConflictError) -> Response:
        return _page(request, context, orders.show_order(context, caller, job_id), error)

    return changed(request, f"{_ADDRESS}/{job_id}", lambda: do(context, caller, job_id), show_again)


def _list_page(request: Request, context: Context, caller: Caller, given: Mapping[str, Any]) -> Response:
    values: dict[str, Any] = {"source": "", "filter": "", "rows": "", "formats": "", "error": None}
    values |= {"num_rows": "100", "max_new_tokens": "64", **given}
    tuned, _ = project_models.list_tuned(context, caller, limit=_MAX_TUNED)
    run_names = distinct_names(context.run_labels.names([view.record.run_id for view in tuned]))
    found = orders.list_orders(context, caller, values["filter"])
    names = HumanNames(context, caller.project_id)
    names.read(one.order.shown for one in found)
    values |= {
        "found": found,
        "tuned": [(view.record.run_id, run_names[view.record.run_id]) for view in tuned],
        "bases": [view.name for view in project_models.list_bases(context, caller.project_id) if view.is_here],
        "files": draft_choices.file_choices(context, caller),
        "usual": ", ".join(usual_formats()),
        "human_names": names,
    }
    error = values["error"]
    return render(request, "model_browser/benchmarks.html", values, status=status_of(error) if error else 200)


def _page(request: Request, context: Context, view: FormatOrderView, error: LuthierError | None = None) -> Response:
    names = HumanNames(context, view.job.project_id)
    names.read([view.order.shown])
    values: dict[str, Any] = {
        "view": view,
        "failure": shown_failure(context, view.job),
        "error": error,
        "mark": view.mark,
    }
    values |= {"table": view.table, "human_names": names, "is_fragment": is_fragment_request(request)}
    if view.table is not None:
        values |= {
            "heading": metric_heading(view.table.metric),
            "rows": [format_row(price, view.table) for price in view.table.prices],
            "charts": price_plots(view.table, metric_heading),
        }
    template = "model_browser/benchmark_state.html" if is_fragment_request(request) else "model_browser/benchmark.html"
    return render(request, template, values, status=status_of(error) if error else 200)
