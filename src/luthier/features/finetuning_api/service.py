"""Use cases of the fine-tuning API: make a job of a project, look at it, page through jobs, ask it to stop or go on."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, UnsupportedError
from luthier.core.events import BillUpdated
from luthier.core.ids import new_id
from luthier.core.records.fine_tuning import FineTuningRequest, ReinforcementHyperparameters
from luthier.features.finetuning_api.recipe import check_request
from luthier.features.models.tuned_records import TunedModel
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import find_base_model
from luthier.platform.jobs.event_records import JobEvent
from luthier.platform.jobs.records import Job, Wish

JOB: Final = "ftjob"
_PAGE: Final = 100
_LARGEST_SEED: Final = 2**31 - 1
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")


def create(context: Context, caller: Caller, request: FineTuningRequest) -> Job:
    """Queue a job. Its files are validated before it is trained.

    Raises:
        UnsupportedError: Something that this server does not do, or a model or file that the project does not have.
    """
    # Refused, not ignored: a client that expects its runs in Weights & Biases would wait for them in vain.
    if request.integrations:
        raise UnsupportedError(
            "integrations: wandb",
            expected="none: this server tells no other service of its jobs",
            do="leave `integrations` out, and read the events of the job or give the project a webhook",
            code="unsupported_integration",
            param="integrations",
        )
    base_model = _base_model(context, request.model)
    for param in ("training_file", "validation_file"):
        if (file_id := getattr(request, param)) is not None:
            _check_file(context, caller.project_id, file_id, param)
    # All that can be refused without files is refused in the request; later errors only reach the job's events.
    check_request(request)
    # Drawn once and stored with the request, so that every attempt of the job trains with the same seed.
    seed = secrets.randbelow(_LARGEST_SEED) if request.seed is None else request.seed
    document = {
        "request": request.model_copy(update={"seed": seed}).model_dump(mode="json", exclude_none=True),
        "base_model": base_model,
    }
    job = context.jobs.submit(
        Job(
            job_id=new_id(JOB),
            kind="train",
            document=document,
            run_id=new_id("run"),
            project_id=caller.project_id,
            lane="validate",
        )
    )
    # Warnings are events after the job exists: the wire format of a job has no field for them.
    for name in _without_effect(request):
        message = f"{name} has no effect here; leave it out to be rid of this warning"
        context.job_events.append(job.job_id, f"without-effect-{name}", message, level="warn")
    record(context, caller, "job.created", job.job_id, {"model": request.model, "training_file": request.training_file})
    return job


def _without_effect(request: FineTuningRequest) -> list[str]:
    """What was asked for of the hosted service's reinforcement that our GRPO has no counterpart of."""
    asked = request.asked
    if not isinstance(asked, ReinforcementHyperparameters):
        return []
    untouched = ReinforcementHyperparameters()
    names = ("reasoning_effort", "compute_multiplier", "eval_interval", "eval_samples")
    return [name for name in names if getattr(asked, name) != getattr(untouched, name)]


def get(context: Context, caller: Caller, job_id: str) -> Job:
    """One job of the project. Raises NotFoundError, for jobs of other projects and of the queue's own commands, too."""
    job = context.jobs.get(job_id, caller.project_id)
    if "request" not in job.document:
        raise NotFoundError(
            f"no fine-tuning job {job_id!r}", expected="a job made by the API", do="see `luthier jobs show` for others"
        )
    return job


def page_of_jobs(
    context: Context,
    caller: Caller,
    *,
    after: str | None = None,
    limit: int = 20,
    metadata: Mapping[str, str] | None = None,
    without_metadata: bool = False,
) -> tuple[list[Job], bool]:
    """Jobs of the project, newest first, and whether there are more.

    Args:
        after: The id of the job that the page follows.
        limit: How many jobs at most.
        metadata: Only jobs that have all of these.
        without_metadata: Only jobs that have none.

    Raises:
        NotFoundError: `after` is no job of the project.
    """
    found: list[Job] = []
    is_sifted = without_metadata or bool(metadata)
    # Metadata is inside a JSON document and cannot be filtered by the database; pages are read until enough match.
    # One more than `limit` tells whether there is another page.
    for job in _jobs(context, caller.project_id, after, max(_PAGE, limit + 1) if is_sifted else limit + 1):
        own = job.document["request"].get("metadata") or {}
        if (without_metadata and own) or any(own.get(key) != value for key, value in (metadata or {}).items()):
            continue
        found.append(job)
        if len(found) > limit:
            break
    return found[:limit], len(found) > limit


def ask(context: Context, caller: Caller, job_id: str, wish: Wish) -> Job:
    """Pause or cancel a job. Raises NotFoundError, ConflictError where its state forbids that."""
    get(context, caller, job_id)
    # Only a wish is stored; the worker that trains sees it at its next step.
    job = context.jobs.ask(job_id, wish)
    record(context, caller, f"job.{wish}", job_id)
    return job


def resume(context: Context, caller: Caller, job_id: str) -> Job:
    """Queue a paused or failed job again. Raises NotFoundError, ConflictError: also while it is still pausing."""
    get(context, caller, job_id)
    job = context.jobs.resume(job_id)
    record(context, caller, "job.resume", job_id)
    return job


def events(
    context: Context, caller: Caller, job_id: str, *, after: str | None = None, limit: int = 20
) -> tuple[list[JobEvent], bool]:
    """Events of a job, newest first, and whether there are more. Raises NotFoundError; RequestError for the `after`."""
    get(context, caller, job_id)
    return context.job_events.page(job_id, after=after, limit=limit)


def checkpoints(context: Context, caller: Caller, job_id: str) -> list[TunedModel]:
    """What the job's model was after each of its last epochs, newest first. Raises NotFoundError."""
    get(context, caller, job_id)
    models = context.tuned_models.list(caller.project_id, job_id=job_id)
    kept = [model for model in models if model.step is not None]
    return sorted(kept, key=lambda model: model.step or 0, reverse=True)


def estimated_finish(context: Context, job: Job) -> float | None:
    """When a running job should be done, in seconds since 1970; None where nobody can know yet."""
    if job.status != "running" or job.lane != "train":
        return None
    bill = context.runs.last(job.run_id, "bill")
    if not isinstance(bill, BillUpdated):  # also where the run is not there yet
        return None
    try:
        record = context.runs.get(job.run_id)
    except NotFoundError:
        return None
    if record.num_steps <= bill.step:
        return None
    # The bill was last written some steps ago: its remaining time is scaled by the steps that are left since.
    share = max(0, record.num_steps - record.step) / (record.num_steps - bill.step)
    return datetime.fromisoformat(record.updated_at).timestamp() + bill.bill.left_seconds * share


def _jobs(context: Context, project_id: str, after: str | None, at_once: int) -> Iterator[Job]:
    """The jobs of a project, newest first, read a few at a time."""
    while True:
        found = context.jobs.list(project_id=project_id, prefix=f"{JOB}-", after=after, limit=at_once)
        yield from found
        # A short page is the last one, which saves the empty query at the end.
        if len(found) < at_once:
            return
        after = found[-1].job_id


def _base_model(context: Context, name: str) -> str:
    try:
        return find_base_model(context, name)
    except NotFoundError as error:
        if name.startswith("ft:"):
            raise UnsupportedError(
                f"the model {name!r} was tuned before",
                expected="a base model: a tuned one is not tuned further here",
                do="name its base model, and train on the rows of both jobs",
                code="unsupported_model",
                param="model",
            ) from error
        raise UnsupportedError(
            error.came, expected=error.expected, do=error.do, code="model_not_found", param="model"
        ) from error


def _check_file(context: Context, project_id: str, file_id: str, param: str) -> None:
    from luthier.platform.files import service as files

    def wrong(came: str, expected: str, do: str) -> UnsupportedError:
        return UnsupportedError(came, expected=expected, do=do, code="invalid_file", param=param)

    try:
        file = files.get_file(context, project_id, file_id)
    except NotFoundError as error:
        raise wrong(f"{param} {file_id!r} does not exist", error.expected, error.do) from error
    if file.purpose != "fine-tune":
        do = "upload it again with that purpose"
        raise wrong(f"{param} {file_id} has the purpose {file.purpose}", "the purpose fine-tune", do)


def model_id(job: Job) -> str:
    """What the outcome of a job is called: `ft:BASE:PROJECT:SUFFIX:ID`, the id made from that of the job."""
    from luthier.core.digest import sha256_bytes

    request = job.document["request"]
    suffix = _NOT_IN_A_NAME.sub("-", request.get("suffix") or "")
    # The id of the job is hashed: names are shown to clients and should not reveal when the job was made.
    return f"ft:{request['model']}:{job.project_id}:{suffix}:{sha256_bytes(job.job_id.encode())[:10]}"
