"""What must hold after the fault drill: each job as if undisturbed, and nothing left over."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from drill_world import World

from luthier.core.events import CheckpointSaved, Event, RunEnded, RunStarted, StepDone, ValidationDone
from luthier.core.ids import sha256_file
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job

_DOTTED_AND_RIGHT = (".drill-filler", ".lock-")


def adapter_files(context: Context, job: Job) -> dict[str, str]:
    """The digests of all files of a job's final adapter."""
    result = context.runs.get(job.run_id).result
    if result is None or result.adapter_path is None:
        return {}
    folder = Path(result.adapter_path)
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def told(context: Context, job: Job) -> list[tuple[Any, ...]]:
    """What a run's events say, without times and paths, in order. Starts are left out: each attempt has one."""
    shown: list[tuple[Any, ...]] = []
    for event in context.runs.events(job.run_id):
        if isinstance(event, StepDone):
            shown.append(("step", event.step, event.loss, event.gradient_norm, event.learning_rate, event.num_tokens))
        elif isinstance(event, ValidationDone):
            shown.append(("validation", event.step, event.loss, event.is_best))
        elif isinstance(event, CheckpointSaved):
            shown.append(("checkpoint", event.step))
        elif isinstance(event, RunEnded) and event.status == "succeeded":
            shown.append(("run_ended", event.step, event.reason))
    return shown


def told_to_clients(context: Context, job: Job) -> list[tuple[Any, ...]]:
    """What a job's events say to clients, in order; without what tells of crashes and of the job's own ids."""
    events = reversed(context.job_events.page(job.job_id, limit=100_000)[0])
    shown = [(e.code, e.level, e.message.replace(job.job_id, "JOB"), e.data) for e in events if e.code != e.event_id]
    return [one for one in shown if one[0] != "model"] + [one[:2] for one in shown if one[0] == "model"]


def tuned_files(context: Context, job: Job) -> dict[str, str]:
    """The digests of the adapters of a job's checkpoints, and of its result file."""
    found = {}
    for model in context.tuned_models.list(job.project_id, job_id=job.job_id):
        for path in sorted(Path(model.adapter_path).rglob("*.safetensors")):
            found[f"{model.step} {path.name}"] = sha256_file(path)
    for file_id in job.document.get("found", {}).get("result_files", []):
        found["result file"] = context.files.get(job.project_id, file_id).sha256
    return found


def doubled(events: list[Event]) -> list[tuple[str, int]]:
    """Kinds and steps that stand there more than once."""
    seen = Counter((event.kind, event.from_step if isinstance(event, RunStarted) else event.step) for event in events)
    return [key for key, times in seen.items() if times > 1 and key[0] != "warning"]


def problems_of(context: Context, job: Job, calm_context: Context, calm: Job) -> list[str]:
    """In what a job differs from the undisturbed one of the same recipe."""
    if job.status != "succeeded":
        return [f"ended as {job.status}: {job.error}"]
    found = []
    if (ours := adapter_files(context, job)) != adapter_files(calm_context, calm) or not ours:
        found.append(f"its adapter differs: {ours}")
    expected, came = told(calm_context, calm), told(context, job)
    if came != expected:
        lost = sorted(map(str, set(expected) - set(came)))
        more = sorted(map(str, set(came) - set(expected)))
        found.append(f"its events differ: lost {lost[:3]}, too many {more[:3]}, {len(came)} for {len(expected)}")
    if (ours := tuned_files(context, job)) != (theirs := tuned_files(calm_context, calm)):
        found.append(f"its checkpoints or result file differ: {set(ours.items()) ^ set(theirs.items())}")
    if (ours := told_to_clients(context, job)) != (theirs := told_to_clients(calm_context, calm)):
        more = [one for one in ours if one not in theirs]
        lost = [one for one in theirs if one not in ours]
        found.append(f"what clients are told differs: {len(ours)} for {len(theirs)}, lost {lost[:2]}, more {more[:2]}")
    if twice := doubled(context.runs.events(job.run_id)):
        found.append(f"told twice: {twice[:3]}")
    return found


def leftovers(world: World) -> list[str]:
    """Files that were being written when something was killed, and that nobody has cleared away."""
    partial = [
        str(path.relative_to(world.home))
        for path in world.home.rglob("*")
        if (path.name.startswith(".") or path.name.endswith((".partial", ".tmp", ".new")))
        and not path.name.startswith(_DOTTED_AND_RIGHT)
    ]
    return sorted(partial)


def orphans(world: World) -> list[str]:
    """Processes of this home that are still there although nobody is to be."""
    return [f"{process.role} {process.pid} of {process.job_id}" for process in world.processes()]
