"""Tools about runs: plan, start, list, show, compare, verdict, pause, resume and cancel."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from luthier.core.text.byte_sizes import size
from luthier.core.text.counted import counted
from luthier.features.files.references import plan_of
from luthier.features.mcp_server.records import Arguments, Call, Limit, Name, RunId, Tool, ToolResult, plain
from luthier.features.mcp_server.watching import run_state
from luthier.features.runs import state as run_controls
from luthier.features.runs import views as project_runs
from luthier.features.training import recipe_job
from luthier.ml.charts.figures import duration

_RECIPE: Final = (
    "The recipe as in a recipe file. Smallest one: {'base_model': NAME, 'data': {'train': FILE_ID}}. Base models by "
    "the names of list_base_models, files by the file_id of list_datasets or create_dataset. A share of the rows as "
    "held-out rows gives a verdict: 'data': {'train': FILE_ID, 'held_out': 0.2}. All keys: resource "
    "luthier://recipe-schema."
)


class RecipeArguments(Arguments):
    """A recipe."""

    recipe: Annotated[dict[str, Any], Field(description=_RECIPE)]


class PlanArguments(RecipeArguments):
    """A recipe to plan."""

    with_details: Annotated[
        bool, Field(description="Also return the whole plan, with the source and reason of every value.")
    ] = False


class ListArguments(Arguments):
    """Which runs."""

    filter: Annotated[
        str, Field(max_length=1_000, description="Filter, such as: lr>1e-3 tag:sweep verdict:better status:succeeded")
    ] = ""
    sort: Annotated[str, Field(max_length=120, description="A field to sort by; -FIELD: largest first.")] = ""
    limit: Limit = 20
    after: Annotated[str | None, Field(max_length=100, description="The last run of the page before.")] = None


class RunArguments(Arguments):
    """One run."""

    run_id: RunId


class CompareArguments(Arguments):
    """Several runs."""

    run_ids: Annotated[list[Name], Field(min_length=2, max_length=8, description="Ids of two to eight runs.")]


def plan_run(call: Call, asked: PlanArguments) -> ToolResult:
    """Plan a recipe; nothing is trained."""
    found = plan_of(call.context, call.caller.project_id, asked.recipe)
    predicted = found["predicted"]
    # Without the plan by default: hundreds of values would fill the context of the agent.
    document = found if asked.with_details else {name: value for name, value in found.items() if name != "plan"}
    return ToolResult(f"The recipe can be trained. {_quoted(predicted)} Start it with start_run.", document)


def _quoted(predicted: dict[str, Any]) -> str:
    hours = [predicted.get(name) for name in ("hours", "hours_low", "hours_high")]
    memory = predicted.get("peak_memory_bytes")
    known = []
    if all(isinstance(one, int | float) for one in hours):
        value, low, high = (plain(duration(float(one or 0) * 3600)) for one in hours)
        known.append(f"Expected time: {value} ({low} to {high}).")
    if isinstance(memory, int | float):
        known.append(f"Expected peak memory: {size(memory, in_decimal=True)}.")
    return " ".join(known)


def start_run(call: Call, asked: RecipeArguments) -> ToolResult:
    """Queue a recipe as a job."""
    job = recipe_job.start(call.context, call.caller, asked.recipe)
    state = run_state(call.context, call.caller, job.run_id)
    summary = f"Queued as run {job.run_id}. Follow it with watch, then read get_verdict."
    return ToolResult(" ".join(part for part in (summary, state.note) if part), state.document | {"job_id": job.job_id})


def list_runs(call: Call, asked: ListArguments) -> ToolResult:
    """Runs that have begun."""
    page = project_runs.list_runs(
        call.context,
        call.caller.project_id,
        after=asked.after,
        limit=asked.limit,
        filter_text=asked.filter,
        sort=asked.sort,
    )
    more = "; there are more" if page.has_more else ""
    return ToolResult(f"{counted(len(page.runs), 'run')}{more}.", {"runs": list(page.runs), "has_more": page.has_more})


def get_run(call: Call, asked: RunArguments) -> ToolResult:
    """The state of a run, and its record once it has begun."""
    state = run_state(call.context, call.caller, asked.run_id)
    document = dict(state.document)
    if state.has_record:
        document["run"] = project_runs.show_run(call.context, call.caller.project_id, asked.run_id)
    return ToolResult(state.line, document)


def compare_runs(call: Call, asked: CompareArguments) -> ToolResult:
    """Runs side by side: settings that differ, results, metrics."""
    found = project_runs.compare_runs(call.context, call.caller.project_id, asked.run_ids)
    return ToolResult(f"{len(asked.run_ids)} runs side by side.", found)


def get_verdict(call: Call, asked: RunArguments) -> ToolResult:
    """The verdict of the last evaluation of a run."""
    found = project_runs.run_verdict(call.context, call.caller.project_id, asked.run_id)
    advice = found["recommendation"]
    next_action = f" Recommended action: {advice['title']}." if advice else ""
    return ToolResult(f"{found['headline']}{next_action}", found)


def pause_run(call: Call, asked: RunArguments) -> ToolResult:
    """Have a run write a checkpoint and stop."""
    run_controls.pause(call.context, call.caller, asked.run_id)
    return _controlled(call, asked)


def resume_run(call: Call, asked: RunArguments) -> ToolResult:
    """Queue a run again."""
    run_controls.resume(call.context, call.caller, asked.run_id)
    return _controlled(call, asked)


def cancel_run(call: Call, asked: RunArguments) -> ToolResult:
    """End a run for good."""
    run_controls.cancel(call.context, call.caller, asked.run_id)
    return _controlled(call, asked)


def _controlled(call: Call, asked: RunArguments) -> ToolResult:
    state = run_state(call.context, call.caller, asked.run_id)
    return ToolResult(state.line, state.document)


TOOLS: Final[tuple[Tool, ...]] = (
    Tool(
        "plan_run",
        "Plan a run",
        "Check a recipe and its rows, and predict time, memory, price and energy of the run with ranges, before "
        "anything is trained. Use it before start_run.",
        ("train",),
        PlanArguments,
        plan_run,
        is_read_only=True,
    ),
    Tool(
        "start_run",
        "Start a run",
        "Queue the training of a recipe. Returns the run_id and job_id immediately; a worker of the server trains it. "
        "Follow it with watch.",
        ("train",),
        RecipeArguments,
        start_run,
    ),
    Tool(
        "list_runs",
        "List runs",
        "Runs of the project, newest first, with their results.",
        ("read",),
        ListArguments,
        list_runs,
        is_read_only=True,
    ),
    Tool(
        "get_run",
        "Show a run",
        "State, plan, cost and last evaluation of one run.",
        ("read",),
        RunArguments,
        get_run,
        is_read_only=True,
    ),
    Tool(
        "get_verdict",
        "Verdict of a run",
        "Whether the tuned model is better than the base model on held-out rows, with 95% intervals, and the "
        "recommended action. Only after the run has ended.",
        ("read",),
        RunArguments,
        get_verdict,
        is_read_only=True,
    ),
    Tool(
        "compare_runs",
        "Compare runs",
        "Two to eight runs side by side: settings that differ, results, metrics with intervals, and caveats.",
        ("read",),
        CompareArguments,
        compare_runs,
        is_read_only=True,
    ),
    Tool(
        "pause_run",
        "Pause a run",
        "The run ends its step, writes a checkpoint and stops; resume_run continues it.",
        ("train",),
        RunArguments,
        pause_run,
        is_idempotent=True,
    ),
    Tool(
        "resume_run",
        "Resume a run",
        "Queue a paused or failed run again; it continues from its last checkpoint.",
        ("train",),
        RunArguments,
        resume_run,
    ),
    Tool(
        "cancel_run",
        "Cancel a run",
        "End a run for good. Its checkpoints stay, but it cannot be resumed.",
        ("train",),
        RunArguments,
        cancel_run,
        is_destructive=True,
        is_idempotent=True,
    ),
)
