"""`luthier jobs`: the queue, and `luthier worker`, which processes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.core.text.counted import counted
from luthier.core.text.printed_commands import in_home
from luthier.platform.cli.command import Answer, HomeOption, JsonOption, SetOption, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.training.jobs import Worked
    from luthier.platform.jobs.records import Job

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The id of a job, from `luthier jobs list`.")]


def submit(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, as YAML or JSON.", show_default=False)],
    overrides: SetOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Queue a recipe; a worker (`luthier worker`) trains it."""
    from luthier.features.recipes.service import load_recipe
    from luthier.features.training import jobs

    asked = load_recipe(recipe, overrides or ())
    with open_context(home) as context:
        job = jobs.submit(context, asked, base_dir=recipe.absolute().parent)
    return _one(as_json, job)


def list_jobs(
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Only the newest N.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """List the jobs, newest first."""
    from luthier.features.training import jobs

    with open_context(home) as context:
        found = jobs.list_jobs(context, limit=limit)
    return Answer(as_json, [_document(job) for job in found], lambda console: _show_all(console, found))


def show(job_id: JobArgument, as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Show one job: its progress, its worker, and why it failed."""
    from luthier.features.training import jobs

    with open_context(home) as context:
        return _one(as_json, jobs.show_job(context, job_id))


def cancel(job_id: JobArgument, as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Cancel a job; a running one finishes its step first."""
    from luthier.features.training import jobs

    with open_context(home) as context:
        return _one(as_json, jobs.ask(context, job_id, "cancel"))


def pause(job_id: JobArgument, as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Pause a job that trains, writes questions or carries out a workflow; what it has done is kept."""
    from luthier.features.training import jobs

    with open_context(home) as context:
        return _one(as_json, jobs.ask(context, job_id, "pause"))


def resume(job_id: JobArgument, as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Queue a paused or failed job again: one that trains resumes from its last checkpoint."""
    from luthier.features.training import jobs

    with open_context(home) as context:
        return _one(as_json, jobs.resume(context, job_id))


def worker(
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="Name of this worker, unique in the queue.", show_default="the machine's"
        ),
    ] = None,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="Exit when no job is left; with 1 if one has failed.")
    ] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Run jobs from the queue, one at a time.

    Ctrl-C or SIGTERM puts the running job back into the queue, with a checkpoint. A job whose worker died is taken over
    by the next one. Several workers may share a queue, each with its own name.

    With `--until-idle` the exit code is 1 if a job that it took has failed or waits for another attempt, else 0.
    """
    import platform

    from luthier.features.training import jobs
    from luthier.platform.auth.first_key import take_given_key
    from luthier.platform.home.logs import teller
    from luthier.platform.home.permissions import private_files
    from luthier.platform.processes.stop_signals import AGAIN, stop_signals

    def notice() -> str:
        return (
            "the running job ends its step, writes a checkpoint and goes back into the queue (at most a minute). "
            f"{AGAIN}"
        )

    take_given_key()  # it is for `luthier server prepare` alone: no job may see it
    # Rows and weights written by a worker are readable only by its user.
    with (
        private_files(),
        open_context(home, holds_models=False) as context,
        stop_signals(notice) as stop_requested,
    ):
        # One worker per machine by default: the same name takes back its jobs after a crash.
        name = name or platform.node()
        tell = teller(context.settings.log_format, name)
        done = jobs.work(context, name, stop_requested=stop_requested, tell=tell, until_idle=until_idle)
        was_stopped = stop_requested() is not None
    document: dict[str, object] = {"num_attempts": done.num_attempts}
    if until_idle:
        document["failed"] = [job.job_id for job in done.failed]
        document["waiting"] = [job.job_id for job in done.waiting]
    # What waits after a stop waits because of it, as it was asked for.
    is_left = bool(done.waiting) and not was_stopped
    return Answer(as_json, document, lambda console: _show_worked(console, done), int(bool(done.failed) or is_left))


def _show_worked(console: Console, done: Worked) -> None:
    # A job that was requeued and taken again counts twice.
    console.print(f"attempts made: {done.num_attempts:,}")
    for what, found in (("failed", done.failed), ("in the queue again", done.waiting)):
        for job in found:
            why = "" if job.error is None else f": {job.error.get('message') or job.error['came']}"
            console.print(f"{what}: {job.job_id}{why}")
    for job in done.failed:
        console.print(
            in_home(f"`luthier jobs show {job.job_id}` has more; `luthier jobs resume {job.job_id}` tries it again")
        )


def _document(job: Job) -> dict[str, object]:
    from luthier.core.data_sources import without_queries

    # The address of an import may hold a signature.
    return {**without_queries(job.model_dump(mode="json")), "shown_status": job.shown_status}


def _one(as_json: bool, job: Job) -> Answer:
    return Answer(as_json, _document(job), lambda console: _show(console, job))


def _show(console: Console, job: Job) -> None:
    from luthier.platform.cli.console import facts

    rows = [
        ("job", job.job_id),
        ("status", job.shown_status),
        *_what(job),
        ("step", f"{job.step:,}"),
        ("attempts", f"{job.attempt:,}"),
    ]
    # A waiting job has no worker.
    if job.worker is not None:
        rows.append(("worker", job.worker))
    if job.error is not None:
        rows += [("failed", job.error["came"]), ("expected", job.error["expected"]), ("what to do", job.error["do"])]
    facts(console, rows)


def _what(job: Job) -> list[tuple[str, str]]:
    if job.kind == "export" and "benchmark" in job.document:
        asked = job.document["benchmark"]
        return [("measures the formats of", str(asked["shown"])), ("rows", str(asked["filename"]))]
    if job.kind == "export":
        asked = job.document["export"]
        return [("exports", str(asked["source"])), ("format", f"{asked['to']} {asked['quantise'] or ''}".strip())]
    if job.kind == "evaluation":
        asked = job.document["evaluation"]
        return [("judges", str(asked["candidate"])), ("by", str(asked["label"])), ("result", str(asked["result_id"]))]
    if job.kind == "batch":
        return [("answers", str(job.document["batch_id"]))]
    if job.kind == "import":
        asked = job.document["import"]
        source = asked.get("source")
        what = counted(len(asked["files"]), "file") if source is None else source["address"].partition("?")[0]
        return [("imports", what), ("dataset", str(asked["name"] or asked["dataset_id"]))]
    if job.kind == "synthesis":
        asked = job.document["synthesis"]
        return [("writes questions from", str(asked["name"])), ("teacher", str(asked["teacher"]))]
    if job.kind == "workflow":
        asked = job.document["workflow"]
        return [("workflow", f"luthier {asked['form']}"), ("id", str(asked["workflow_id"]) or "given when it begins")]
    if job.kind == "tracking":
        return [("delivers", str(job.document["tracking"]["run_id"]))]
    return [("run", job.run_id), ("base model", str(job.document.get("recipe", job.document).get("base_model")))]


def _show_all(console: Console, found: list[Job]) -> None:
    from luthier.platform.cli.console import make_table

    if not found:
        console.print(in_home("no jobs yet: queue a recipe with `luthier jobs submit RECIPE`"))
        return
    table = make_table(["job", "status", "run", "worker", "step", "attempts"], num_text_columns=4)
    for job in found:
        table.add_row(
            job.job_id, job.shown_status, job.run_id or job.kind, job.worker or "", f"{job.step:,}", f"{job.attempt:,}"
        )
    console.print(table)


COMMANDS: dict[str, Callable[..., Answer]] = {
    "submit": submit,
    "list": list_jobs,
    "show": show,
    "cancel": cancel,
    "pause": pause,
    "resume": resume,
}
