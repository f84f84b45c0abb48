"""/exports/ID: how far an export is, the proof that it is what it was made from, its files and its card."""

from __future__ import annotations

import threading
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from starlette.responses import FileResponse, Response, StreamingResponse

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError
from luthier.core.records.export import ParityReport
from luthier.features.exports import publishing
from luthier.features.exports import requests as export_files
from luthier.features.exports import requests as server_exports
from luthier.features.release_gates.service import default_gate
from luthier.ml.charts.spec import Axis, IntervalRow, Intervals
from luthier.ml.export.exporters.registry import served_formats
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_paths, shown_failure
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.job_pages import changed, is_unchanged, unchanged
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import is_fragment_request, redirect, render
from luthier.platform.ui.visitor import Admin, HomeContext, Reader, Trainer

router = APIRouter(prefix="/exports/{export_id}")


@router.get("")
def show(request: Request, context: HomeContext, caller: Reader, export_id: str, after: str = "") -> Response:
    """The page; for HTMX its content alone, which is requested repeatedly while the export is made.

    after: what was seen last; nothing is sent (204) while that is still how it is.
    """
    if after and is_unchanged(request, after, server_exports.show_export(context, caller, export_id).mark):
        return unchanged()
    report = shown_once(request).take(request).get("report")
    return export_page(request, context, caller, export_id, None if report is None else {"report": report})


@router.post("/cancel")
def cancel(request: Request, context: HomeContext, caller: Trainer, export_id: str) -> Response:
    """Give it up."""
    return _done(request, context, caller, export_id, server_exports.cancel)


@router.post("/retry")
def retry(request: Request, context: HomeContext, caller: Trainer, export_id: str) -> Response:
    """Make it again, from the beginning."""
    return _done(request, context, caller, export_id, server_exports.retry)


@router.post("/remove")
def remove(request: Request, context: HomeContext, caller: Trainer, export_id: str) -> Response:
    """Forget it, and delete its files."""
    try:
        gone = server_exports.remove(context, caller, export_id)
    except ConflictError as error:
        return export_page(request, context, caller, export_id, {"error": error})
    return redirect(request, f"/models/{gone.source}", "The export is removed, with its files.")


@router.post("/verify")
def verify(request: Request, context: HomeContext, caller: Reader, export_id: str) -> Response:
    """Compare every file with its digest."""

    def work() -> Led:
        report = server_exports.verify(context, caller, export_id)
        return Led(shown_once(request).put(request, f"/exports/{export_id}", {"report": report}))

    try:
        back = f"/exports/{export_id}"
        return page_work(request).answer(request, "Every file is being compared with its digest", work, back=back)
    except LuthierError as error:
        return export_page(request, context, caller, export_id, {"error": error})


@router.post("/sign")
def sign(request: Request, context: HomeContext, caller: Admin, export_id: str) -> Response:
    """Sign it with the key of the server."""
    address = f"/exports/{export_id}"

    def work() -> Led:
        signer = publishing.sign_export(context, caller, export_id)
        return Led(address, f"The export is signed by {signer}.")

    try:
        return page_work(request).answer(request, "The export is being signed", work, back=address)
    except LuthierError as error:
        return export_page(request, context, caller, export_id, {"error": error})


@router.post("/push")
def push(
    request: Request,
    context: HomeContext,
    caller: Admin,
    export_id: str,
    target: Annotated[str, Form(max_length=1024)] = "",
    name: Annotated[str, Form(max_length=200)] = "",
) -> Response:
    """Push it to a place that the operator allows; a push that was stopped continues."""
    address = f"/exports/{export_id}"

    stop = threading.Event()

    def stop_requested() -> str | None:
        return "cancelled" if stop.is_set() else None

    def work() -> Led:
        pushed = publishing.push_export(context, caller, export_id, target, name.strip(), stop_requested=stop_requested)
        notice = f"The export is complete at {pushed.url}: {pushed.num_sent:,} of {pushed.num_files:,} files were sent."
        return Led(address, notice)

    try:
        return page_work(request).answer(request, "The export is being pushed", work, back=address, stop=stop)
    except LuthierError as error:
        given = {"push_target": target, "push_name": name}
        return export_page(request, context, caller, export_id, {"error": error, "given": given})


@router.get("/files.tar")
def archive(context: HomeContext, caller: Reader, export_id: str) -> Response:
    """All files of the export."""
    made = export_files.archive_of(context, caller, export_id)
    headers = {"content-length": str(made.num_bytes), "content-disposition": f'attachment; filename="{made.name}"'}
    return StreamingResponse(made.blocks, media_type="application/x-tar", headers=headers)


@router.get("/files/{path:path}")
def file(context: HomeContext, caller: Reader, export_id: str, path: str) -> Response:
    """One file."""
    found = export_files.file_of(context, caller, export_id, path)
    return FileResponse(found, filename=found.name, media_type="application/octet-stream")


def _done(request: Request, context: Context, caller: Caller, export_id: str, do: Any) -> Response:
    def show_again(error: ConflictError) -> Response:
        return export_page(request, context, caller, export_id, {"error": error})

    return changed(request, f"/exports/{export_id}", lambda: do(context, caller, export_id), show_again)


def export_page(
    request: Request, context: Context, caller: Caller, export_id: str, given: dict[str, Any] | None = None
) -> Response:
    """The page of an export.

    Args:
        request: The request that it answers.
        context: The home.
        caller: Who looks at it.
        export_id: The export.
        given: What a form held, and the `error` why it was refused, which decides the status of the response; or the
            report of a verification.
    """
    view = server_exports.show_export(context, caller, export_id)
    made = view.export.document
    values: dict[str, Any] = {
        "view": view,
        "made": made,
        "failure": shown_failure(context, view.job),
        "current": "/models",
    }
    values |= {"mark": view.mark, "is_fragment": is_fragment_request(request)}
    values |= {"served_formats": served_formats(), "error": None, "report": None, "given": {}}
    values["is_gated"] = default_gate(context, caller.project_id) is not None
    values |= {"may_sign": publishing.may_sign(context), "push_targets": publishing.push_targets(context)}
    if made is not None:
        values |= {"chart_spec": None if made.parity is None else _quality(made.parity), "card": None, "warnings": ()}
        values["warnings"] = redact_paths(list(made.warnings), home_paths(context))
        try:
            values["card"] = export_files.card_of(context, caller, export_id)
        except LuthierError as error:
            values["error"] = error
    values |= given or {}
    refused = (given or {}).get("error")
    template = "exports/state.html" if is_fragment_request(request) else "exports/show.html"
    return render(request, template, values, status=status_of(refused) if refused else 200)


def _quality(parity: ParityReport) -> Intervals:
    more = parity.nll_increase_nats
    return Intervals(
        key="parity",
        title="Loss of quality against the source",
        x=Axis("export minus source", "nats a token"),
        rows=[IntervalRow(f"{parity.format} {parity.precision}", more.value, more.low, more.high)],
        zero=True,
        caption="Negative log-likelihood of the references, paired by prompt, with its 95% interval; above 0 is worse.",
    )
