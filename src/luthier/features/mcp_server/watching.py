"""The state of a run or job in one document, and the tool that waits for it with progress notifications."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any, Final

from anyio import sleep, to_thread
from pydantic import Field

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.core.ids import is_id
from luthier.features.mcp_server.records import Arguments, Call, Tool, ToolResult, plain
from luthier.features.runs.state import last_bill, last_step, left_seconds, standing
from luthier.ml.charts.figures import duration
from luthier.platform.home.context import Context
from luthier.platform.http.metrics import living_workers, measured
from luthier.platform.http.path_redaction import redact_paths, reference_paths
from luthier.platform.jobs.records import ENDED

POLL_SECONDS: Final = 1.0
MAX_WATCH_SECONDS: Final = 600.0
DEFAULT_WATCH_SECONDS: Final = 45.0
"""Many clients end a call after a minute, whatever it reports meanwhile."""
_MOST_QUIET_SECONDS: Final = 10.0
_STILL: Final = 1e-3
_WAITS_FOR_A_PERSON: Final = ("paused", "interrupted")
_NO_WORKER: Final = (
    "No worker of this home is running, so the job waits; what to do: start the server with `luthier up`, or "
    "`luthier worker`."
)


@dataclass(frozen=True, slots=True)
class WorkState:
    """Where a run or job is.

    Attributes:
        document: Plain JSON.
        line: One sentence.
        done: How far it is: steps of a run; 0 or 1 of another job.
        total: Out of what; None where that is not known yet.
        is_settled: Whether nothing more happens on its own.
        has_record: Of a run, whether it has begun.
        note: What keeps it waiting; empty for nothing.
    """

    document: dict[str, Any]
    line: str
    done: float
    total: float | None
    is_settled: bool
    has_record: bool = False
    note: str = ""


def run_state(context: Context, caller: Caller, run_id: str) -> WorkState:
    """The state of a run of the project.

    Raises:
        NotFoundError: The project has no such run.
    """
    found = standing(context, caller, run_id)
    record, step, bill = found.record, last_step(context, run_id), last_bill(context, run_id)
    left = left_seconds(found, bill)
    error = None if found.error is None else found.error.as_json()
    if error is not None and found.job is not None:
        error = redact_paths(error, reference_paths(context, found.job.document))
    num_steps = None if record is None else record.num_steps
    is_settled = found.is_over or found.status in _WAITS_FOR_A_PERSON
    note = _NO_WORKER if found.status == "queued" and not _has_worker(context) else ""
    document: dict[str, Any] = {
        "run_id": run_id,
        "status": found.status,
        "phase": found.phase or None,
        "step": 0 if record is None else record.step,
        "num_steps": num_steps,
        "loss": None if step is None else step.loss,
        "left_seconds": None if left is None else round(left, 1),
        "num_jobs_ahead": found.num_ahead,
        "is_over": found.is_over,
        "error": error,
        "note": note or None,
    }
    parts = [f"Run {run_id}: {found.status}"]
    if found.phase:
        parts.append(found.phase)
    if num_steps and record is not None:
        parts.append(f"step {record.step:,} of {num_steps:,}")
    if step is not None:
        parts.append(f"loss {step.loss:.4g}")
    if left is not None:
        parts.append(f"about {duration(left)} of training left")
    line = ", ".join(parts) + "."
    if error is not None:
        line += f" {error['came']}; expected: {error['expected']}; what to do: {error['do']}."
    line = plain(" ".join(part for part in (line, note) if part))
    return WorkState(
        document,
        line,
        0.0 if record is None else float(record.step),
        None if num_steps is None else float(num_steps),
        is_settled,
        record is not None,
        note,
    )


def job_state(context: Context, caller: Caller, job_id: str) -> WorkState:
    """The state of a job of the project; that of a run where the job makes one.

    Raises:
        NotFoundError: The project has no such job.
    """
    job = context.jobs.get(job_id, caller.project_id)
    if job.run_id:
        return run_state(context, caller, job.run_id)
    newest, _ = context.job_events.page(job_id, limit=1)
    places = reference_paths(context, job.document)
    error = redact_paths(job.error, places)
    message = redact_paths(newest[0].message, places) if newest else None
    is_over = job.status in ENDED
    note = _NO_WORKER if job.status == "queued" and not _has_worker(context) else ""
    document = {
        "job_id": job_id,
        "kind": job.kind,
        "status": job.shown_status,
        "message": message,
        "result_id": (job.document.get("evaluation") or {}).get("result_id"),
        "is_over": is_over,
        "error": error,
        "note": note or None,
    }
    line = f"Job {job_id} ({job.kind}): {job.shown_status}."
    line = " ".join(part for part in (line, message, note) if part)
    if error is not None:
        line += f" {error.get('came')}; what to do: {error.get('do')}."
    return WorkState(document, line, float(is_over), 1.0, is_over or job.status == "paused", note=note)


def _has_worker(context: Context) -> bool:
    return bool(living_workers(context, measured(context).busy_workers))


class WatchArguments(Arguments):
    """What to follow, and for how long."""

    id: Annotated[str, Field(min_length=1, max_length=64, description="The id of a run (run-...) or job (job-...).")]
    max_seconds: Annotated[
        float,
        Field(ge=0, le=MAX_WATCH_SECONDS, description="Return after this many seconds at the latest; call it again."),
    ] = DEFAULT_WATCH_SECONDS


async def watch(call: Call, asked: WatchArguments) -> ToolResult:
    """Wait until it has ended, or the time is over, with a progress notification for each change.

    Raises:
        RequestError: The id is neither of a run nor of a job.
    """
    look = {"run": run_state, "job": job_state}.get(asked.id.partition("-")[0])
    if look is None or not is_id(asked.id, asked.id.partition("-")[0]):
        raise RequestError(
            f"the id {asked.id!r}",
            expected="the id of a run (run-...) or of a job (job-...)",
            do="take it from start_run, evaluate or list_runs",
        )
    deadline = time.monotonic() + asked.max_seconds
    sent, line, sent_at = -1.0, "", -_MOST_QUIET_SECONDS
    while True:
        state = await to_thread.run_sync(look, call.context, call.caller, asked.id)
        now = time.monotonic()
        if state.line != line or now - sent_at >= _MOST_QUIET_SECONDS:
            # The protocol wants every notification to be further than the one before, also where only words change.
            sent, line, sent_at = max(state.done, sent + _STILL), state.line, now
            await call.progress(max(sent, 0.0), state.total, line)
        if state.is_settled or now >= deadline:
            break
        await sleep(min(POLL_SECONDS, max(0.0, deadline - now)))
    document = state.document | {"is_settled": state.is_settled}
    return ToolResult(state.line if state.is_settled else f"{state.line} Call watch again to follow it.", document)


TOOLS: Final[tuple[Tool, ...]] = (
    Tool(
        "watch",
        "Follow a run or job",
        "Wait for a run or job: returns when it has ended or paused, or after max_seconds with is_settled false, and "
        "then is to be called again. Sends progress with step, loss and remaining time.",
        ("read",),
        WatchArguments,
        waits=watch,
        is_read_only=True,
    ),
)
