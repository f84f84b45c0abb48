"""Use cases: tables of formats that the server measures by a job, from the page of a model.

The table is stored in the database, without texts of rows: a worker may run on another machine than the pages.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from luthier.core.access import Caller
from luthier.core.errors import (
    LuthierError,
    NotFoundError,
    RequestError,
    StorageFullError,
    UnreachableError,
    library_words_hidden,
)
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import is_id, new_id
from luthier.core.records.export import FormatPrice, FormatTable
from luthier.features.exports.formats.measurements import TABLE
from luthier.features.exports.formats.tables import FormatRequest, measure_formats, parse_format
from luthier.features.exports.requests import export_source, forget_unfinished
from luthier.features.files.references import stored_file
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_paths
from luthier.platform.jobs import orders
from luthier.platform.jobs.attempt import JobProgress, exit_on_sigterm, own_copy
from luthier.platform.jobs.events import JobEvent
from luthier.platform.jobs.named_models import NamedModel
from luthier.platform.jobs.records import ENDED, Job
from luthier.platform.processes.process import Outcome

ASKED: Final = "benchmark"
"""The key of such an order in the document of its job, whose kind is `export`."""
MAX_ROWS: Final = 10_000
MAX_FORMATS: Final = 20
MAX_NEW_TOKENS: Final = 4096


class FormatOrder(FrozenModel):
    """A table of formats that a job is to measure.

    Attributes:
        table_id: The id that the table will have.
        source: The run or base model.
        shown: The same as the project knows it.
        file_id: The held-out rows, a file of the project.
        filename: What people call the file.
        formats: Such as `gguf:q8_0`; empty for the usual ones.
        num_rows: How many rows quality is measured on.
        max_new_tokens: The most tokens of an answer.
    """

    table_id: str
    source: str
    shown: str
    file_id: str
    filename: str
    formats: Annotated[tuple[str, ...], Field(max_length=MAX_FORMATS)] = ()
    num_rows: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 100
    max_new_tokens: Annotated[int, Field(ge=2, le=MAX_NEW_TOKENS)] = 64


@dataclass(frozen=True, slots=True)
class FormatOrderView:
    """A table of formats that was requested.

    Attributes:
        order: What is measured.
        job: The job that does it.
        last_word: The newest event of the job; None before the first, and in lists.
        table: The table; None before it is measured.
    """

    order: FormatOrder
    job: Job
    last_word: JobEvent | None = None
    table: FormatTable | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.job.status in ENDED

    @property
    def mark(self) -> str:
        """Changes with each thing that can be seen to happen."""
        return orders.mark_of(self.job, self.last_word)


def start(
    context: Context,
    caller: Caller,
    source: str,
    file_id: str,
    *,
    formats: Sequence[str] = (),
    num_rows: int = 100,
    max_new_tokens: int = 64,
) -> FormatOrderView:
    """Queue the measurement of a model's formats.

    Args:
        context: The home.
        caller: Whose project it is.
        source: A run id, a tuned model or a base model.
        file_id: The held-out rows, a file of the project.
        formats: Such as `gguf:q8_0`; empty for the usual ones.
        num_rows: How many rows quality is measured on.
        max_new_tokens: The most tokens of an answer.

    Raises:
        NotFoundError: No such source or file in the project.
        ConflictError: The run has not succeeded.
        RequestError: An unknown format, a checkpoint, no such file, or a number out of its range.
    """
    shown, source_name = export_source(context, caller, source)
    stored = stored_file(context, caller.project_id, "Held-out rows", file_id)
    if len(formats) > MAX_FORMATS:
        raise RequestError(f"{len(formats)} formats", expected=f"at most {MAX_FORMATS}", do="name fewer")
    for one in formats:
        parse_format(one)
    if not 1 <= num_rows <= MAX_ROWS:
        raise RequestError(f"rows to measure on: {num_rows:,}", expected=f"1 to {MAX_ROWS:,}", do="correct the number")
    if not 2 <= max_new_tokens <= MAX_NEW_TOKENS:
        raise RequestError(
            f"answers of {max_new_tokens:,} tokens", expected=f"2 to {MAX_NEW_TOKENS:,}", do="correct the number"
        )
    order = FormatOrder(
        table_id=new_id("formats"),
        source=source_name,
        shown=shown,
        file_id=stored.file_id,
        filename=stored.filename,
        formats=tuple(dict.fromkeys(formats)),
        num_rows=num_rows,
        max_new_tokens=max_new_tokens,
    )
    document = {ASKED: order.model_dump(mode="json")}
    job = Job(job_id=new_id("job"), kind="export", document=document, run_id="", project_id=caller.project_id)
    with context.database.transaction():
        made = context.jobs.submit(job)
        facts = {"source": shown, "file_id": file_id, "formats": list(order.formats)}
        record(context, caller, "export_benchmark.started", job.job_id, facts)
    return FormatOrderView(order, made)


def models_of(_context: Context, job: Job) -> Iterator[NamedModel]:
    """The model that is measured in several formats."""
    yield NamedModel(str(job.document[ASKED]["source"]))


def show_order(context: Context, caller: Caller, job_id: str) -> FormatOrderView:
    """One of them, with its table once it is measured.

    Raises:
        NotFoundError: The project has no such job, or the job measures no formats.
    """
    job = context.jobs.get(job_id[:64], caller.project_id)
    order = _order_of(job)
    return FormatOrderView(order, job, orders.newest_event(context, job), _stored(context, job, order))


def list_orders(context: Context, caller: Caller, source: str = "", *, limit: int = 100) -> list[FormatOrderView]:
    """Those of the project, newest first; of one source, as the project knows it, where it is named."""
    found = context.jobs.list(project_id=caller.project_id, kinds=("export",), limit=limit)
    views = [FormatOrderView(_order_of(job), job) for job in found if ASKED in job.document]
    return [one for one in views if not source or one.order.shown == source]


def cancel(context: Context, caller: Caller, job_id: str) -> None:
    """Cancel it; its exports are removed.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: It has ended.
    """
    orders.cancel(context, caller, show_order(context, caller, job_id).job, "export_benchmark.cancelled")


def retry(context: Context, caller: Caller, job_id: str) -> None:
    """Run a failed one again, behind the exports and qualities that it has stored.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: It has neither failed nor paused.
    """
    orders.resume(context, caller, show_order(context, caller, job_id).job, "export_benchmark.retried")


def carry_out(context: Context, job: Job) -> Outcome:
    """Measure the formats, and keep the table. What has to be corrected is an outcome, too.

    Raises:
        StorageFullError: The disk is full; the job is tried again.
        UnreachableError: A server or the database cannot be reached; the job is tried again.
    """
    order = _order_of(job)
    folder = context.settings.jobs_folder / job.job_id / "formats"
    if _stored(context, job, order) is None:
        context.progress = JobProgress(context, job)
        try:
            with exit_on_sigterm(), library_words_hidden():
                _measure(context, job, order, folder)
        except (StorageFullError, UnreachableError):
            raise  # no fault of the job: it is tried again
        except LuthierError as error:
            return Outcome(status="failed", error=redact_paths(error.as_json(), home_paths(context)))
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(status="succeeded", found={"table_id": order.table_id})


def forget_exports(context: Context, job: Job) -> None:
    """Remove the exports that attempts of a cancelled job have made."""
    if ASKED not in job.document:
        forget_unfinished(context, job)
        return
    shutil.rmtree(context.settings.jobs_folder / job.job_id / "formats", ignore_errors=True)


def _measure(context: Context, job: Job, order: FormatOrder, folder: Path) -> None:
    # An attempt may have died between the table and the database.
    if (folder / TABLE).exists():
        found = FormatTable.model_validate_json((folder / TABLE).read_text(encoding="utf-8"))
    else:
        found = _measured(context, job, order, folder)
    shown = found.model_copy(
        update={
            "name": order.shown,
            "data_file": order.filename,
            "report_path": None,
            "prices": tuple(_without_texts(one) for one in found.prices),
        }
    )
    run_id = order.source if is_id(order.source, "run") else None
    context.assessments.save(
        "formats", order.table_id, shown, project_id=job.project_id, subject=order.shown, run_id=run_id
    )


def _measured(context: Context, job: Job, order: FormatOrder, folder: Path) -> FormatTable:
    rows = own_copy(context, job, order.file_id, "rows")
    return measure_formats(
        context,
        FormatRequest(
            name=order.source,
            data=rows,
            folder=folder,
            formats=order.formats or None,
            mapping=context.datasets.columns_of_file(job.project_id, order.file_id) or None,
            num_rows=order.num_rows,
            max_new_tokens=order.max_new_tokens,
        ),
    )


def _without_texts(price: FormatPrice) -> FormatPrice:
    """The figures of a format, without rows and answers."""
    if price.quality is None:
        return price
    return price.model_copy(update={"quality": price.quality.model_copy(update={"samples": ()})})


def _order_of(job: Job) -> FormatOrder:
    if ASKED not in job.document:
        raise NotFoundError(
            f"job {job.job_id} measures no formats",
            expected="the id of a job that does",
            do="see the page of the model",
        )
    return FormatOrder.model_validate(job.document[ASKED])


def _stored(context: Context, job: Job, order: FormatOrder) -> FormatTable | None:
    try:
        return context.assessments.get("formats", FormatTable, job.project_id, order.table_id)
    except NotFoundError:
        return None
