"""Use cases: local recipes as jobs: queue, list, pause, resume, cancel, and the worker that runs them.

`carry_out` is an attempt of such a job (`luthier jobs submit`); it runs in the child of a worker.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Final

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ids import new_id
from luthier.core.recipe import Recipe
from luthier.features.recipes.service import with_absolute_paths
from luthier.platform.home.context import Context
from luthier.platform.jobs import orders
from luthier.platform.jobs.attempt import reported_step
from luthier.platform.jobs.cancelled import clean_up_cancelled
from luthier.platform.jobs.records import Job, JobStatus, Lane, Wish
from luthier.platform.processes.process import Outcome

if TYPE_CHECKING:
    from luthier.core.child_process.fork_client import ForkServer
    from luthier.platform.jobs.store import JobStore
    from luthier.platform.jobs.worker import Pace, Worker

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
_LOCK_SECONDS = 1.0
_PATIENCE_SECONDS: Final = 0.75
"""Of a job whose fork server is in the middle of a module; then it is executed, which takes a second longer at most
where it needs none of the libraries, and a few seconds where it trains."""
_BESIDE: Final[Mapping[str, Lane]] = {
    "validate": "validate", "infer": "infer", "remote": "remote", "remote-2": "remote", "remote-3": "remote",
}  # fmt: skip
"""Lanes that do not wait for a training, by the names of their workers.

Jobs of `remote` wait for other hosts most of the time: one that is slow holds up neither the models of this machine nor
the jobs of the next hosts.
"""
_LOOK_SECONDS: Final[Mapping[Lane, float]] = {"remote": 0.5}
"""Three workers look at this lane."""


@dataclass(frozen=True, slots=True)
class Worked:
    """What a worker has done when it ends.

    Attributes:
        num_attempts: Jobs that it took; one that it took again counts again.
        failed: Of one that ends when no job is left: those of these jobs that have failed.
        waiting: Of one that ends when no job is left: those of these jobs that are in the queue again, since the disk
            is full, a batch at a provider has not ended, or the worker was stopped.
    """

    num_attempts: int
    failed: tuple[Job, ...] = ()
    waiting: tuple[Job, ...] = ()


def submit(context: Context, recipe: Recipe, *, base_dir: Path) -> Job:
    """Queue a recipe; its paths are relative to `base_dir`. Its rows are read when a worker takes it."""
    asked = with_absolute_paths(recipe, base_dir.absolute())
    document = {"recipe": json.loads(asked.model_dump_json(exclude_none=True))}
    return context.jobs.submit(Job(job_id=new_id("job"), kind="train", document=document, run_id=new_id("run")))


def ask(context: Context, job_id: str, wish: Wish) -> Job:
    """Pause or cancel a job; a running one that trains finishes its step and writes a checkpoint first.

    Raises:
        NotFoundError: There is no such job.
        ConflictError: The job has ended, is being cancelled, is paused already, or is of a kind that cannot be paused.
    """
    job = context.jobs.get(job_id)
    change = orders.cancel if wish == "cancel" else orders.pause
    return change(context, Caller(project_id=job.project_id), job, f"job.{wish}")


def resume(context: Context, job_id: str) -> Job:
    """Queue a paused or failed job again, with the access of a person at this machine, whoever started it.

    Raises:
        NotFoundError: There is no such job.
        ConflictError: The job is neither paused nor failed.
    """
    job = context.jobs.get(job_id)
    return orders.resume(context, Caller(project_id=job.project_id), job, "job.resume")


def list_jobs(context: Context, *, status: JobStatus | None = None, limit: int | None = None) -> list[Job]:
    """The jobs, newest first."""
    return context.jobs.list(status=status, limit=limit)


def show_job(context: Context, job_id: str) -> Job:
    """One job.

    Raises:
        NotFoundError: There is no such job.
    """
    return context.jobs.get(job_id)


def work(
    context: Context,
    name: str,
    *,
    stop_requested: Callable[[], str | None],
    tell: Callable[[str], None],
    until_idle: bool = False,
    pace: Pace | None = None,
) -> Worked:
    """Run a worker: take jobs until a stop is requested, or until none is left.

    Files of new jobs are validated in parallel, so that errors are known while another job trains.

    Args:
        context: The home.
        name: Of the worker, and of its folder.
        stop_requested: The reason of a requested stop; None while there is none.
        tell: Gets lines about what is done.
        until_idle: Whether it ends when no job is left; those that were tried and crashed are waited for.
        pace: How often it looks for jobs; None for the usual times.

    Returns:
        What it has done.

    Raises:
        RequestError: The name cannot be part of a path.
        ConflictError: Another process of this home has that name.
    """
    from luthier.core.system.files import file_lock
    from luthier.platform.jobs.child import JOB_NAME
    from luthier.platform.jobs.worker import Pace, Worker

    if not _NAME.match(name):
        raise RequestError(
            f"a worker named {name!r}",
            expected="letters, digits, `.`, `_` and `-`, at most 100 of them, a letter or digit first",
            do="choose such a name",
        )

    def command(job: Job, folder: Path) -> list[str]:
        (folder / JOB_NAME).write_text(job.model_dump_json(), encoding="utf-8")
        return [sys.executable, "-m", "luthier.platform.jobs.child", str(context.home), str(folder)]

    def step_of(job: Job) -> int:
        if job.kind != "train":
            return reported_step(context, job)
        try:
            return context.runs.get(job.run_id).step
        except NotFoundError:  # it is still being prepared
            return 0

    folder = context.settings.jobs_folder

    def worker(name: str, lane: Lane, fork_server: ForkServer | None) -> Worker:
        used = pace or Pace.for_lease(context.jobs.lease_seconds)
        if pace is None and lane in _LOOK_SECONDS:
            used = replace(used, look=_LOOK_SECONDS[lane])
        return Worker(
            name,
            context.jobs,
            command,
            step_of,
            folder,
            tell=tell,
            pace=used,
            lanes=(lane,),
            fork_server=fork_server,
            tells_stop=lane == "train",
            on_cancelled=partial(clean_up_cancelled, context),
        )

    with (
        file_lock(folder / f"worker-{name}.lock", what=f"the worker name {name}", timeout_seconds=_LOCK_SECONDS),
        _fork_server(context, tell) as fork_server,
    ):
        trains = worker(name, "train", fork_server)
        # separate names: a restarted worker takes back its jobs immediately, and these run side by side
        beside = [worker(f"{name}:{suffix}", lane, fork_server) for suffix, lane in _BESIDE.items()]
        if until_idle:
            # The fork server starts with the first job, if any.
            return _until_idle([*beside, trains], context.jobs, stop_requested)
        if fork_server is not None:
            fork_server.start()
        return Worked(_side_by_side(beside, trains, stop_requested))


def _fork_server(context: Context, tell: Callable[[str], None]) -> contextlib.AbstractContextManager[ForkServer | None]:
    """The fork server that starts attempts with preloaded libraries, if enabled.

    A job that arrives while it loads waits for the end of the module that is being loaded, and is forked with what is
    there by then. It does not wait long: many jobs end with an answer that needs none of the heavy libraries.

    Args:
        context: The home.
        tell: Called with each line of the worker's log.
    """
    from luthier.core.child_process.fork_client import ForkServer
    from luthier.platform.jobs.child import PRELOADED

    if not context.settings.fork_server:
        return contextlib.nullcontext()
    return ForkServer(
        PRELOADED, tell=tell, imports_folder=context.settings.imports_folder, patience_seconds=_PATIENCE_SECONDS
    )


def _until_idle(workers: Sequence[Worker], store: JobStore, stop_requested: Callable[[], str | None]) -> Worked:
    """Run one lane after the other, until all are empty and no job rests after a crash."""
    num_done = 0
    while True:
        # Validation first, since that lane feeds the others; all are repeated until a round finds nothing.
        num_now = sum(worker.work(stop_requested, until_idle=True) for worker in workers)
        num_done += num_now
        if stop_requested() is not None:
            break
        if num_now == 0:
            # These are due within seconds. A full disk or a batch at a provider may take days.
            if not any(job.num_crashes for job in store.list(status="queued")):
                break
            time.sleep(min(worker.pace.look for worker in workers))
    job_ids = {job_id for worker in workers for job_id in worker.job_ids}
    found = [store.get(job_id) for job_id in sorted(job_ids)]
    return Worked(
        num_done,
        failed=tuple(job for job in found if job.status == "failed"),
        waiting=tuple(job for job in found if job.status == "queued"),
    )


def _side_by_side(beside: Sequence[Worker], trains: Worker, stop_requested: Callable[[], str | None]) -> int:
    """Run all lanes in parallel until a stop is requested; if one fails, the others end as well."""
    ended = Event()

    def stop() -> str | None:
        return stop_requested() or ("another lane has ended" if ended.is_set() else None)

    def work(worker: Worker) -> int:
        try:
            return worker.work(stop)
        finally:
            # In `finally`: an error must also end the other lanes, otherwise this process would wait for it forever.
            ended.set()

    with ThreadPoolExecutor(len(beside), thread_name_prefix="lane") as pool:
        # Training stays in this thread: Python delivers signals to the main thread only.
        running = [pool.submit(work, worker) for worker in beside]
        num_done = work(trains)
        return num_done + sum(one.result() for one in running)


def carry_out(context: Context, job: Job) -> Outcome:
    """Begin the run of the job, or resume it if an earlier attempt has begun it.

    Raises:
        RequestError: the recipe, its rows or its model are wrong, or have changed since the run began.
        DivergedError: The loss or a gradient is not a number.
        StorageFullError: The disk is full.
    """
    from luthier.features.planning.judges import report_grading
    from luthier.features.training import service as training

    report_grading(context, job)
    try:
        status = context.runs.get(job.run_id).status
    except NotFoundError:
        recipe = Recipe.model_validate_json(json.dumps(job.document["recipe"]))
        outcome = training.train(context, recipe, base_dir=Path(), run_id=job.run_id)
    else:
        if status == "succeeded":  # the previous attempt died after its run ended and before it reported
            return Outcome(status="succeeded")
        outcome = training.resume(context, job.run_id)
    return Outcome(status="paused" if outcome.record.status == "paused" else "succeeded")
