"""What tests of datasets share: a worker in this very process, and files as a browser sends them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from luthier.core.access import Caller
from luthier.core.import_string import import_string
from luthier.features.datasets import imports
from luthier.features.datasets.imports import Added
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.jobs.child import _ATTEMPTS
from luthier.platform.jobs.records import Job

ME = Caller(name="Ada")


def add(context: Context, sent: Mapping[str, bytes], caller: Caller = ME, **given: str) -> Added:
    """Add files as the form of the page does."""
    with ExitStack() as stack:
        incoming = []
        for name, content in sent.items():
            one = stack.enter_context(files.incoming_file(context))
            one.write(content)
            one.finish()
            incoming.append((one, name))
        return imports.add(context, caller, incoming, **given)  # type: ignore[arg-type]


def work_once(context: Context) -> Job:
    """What a worker and its child do with the next job, in this very process: they take seconds to start."""
    job = context.jobs.claim("here", ("infer",))
    assert job is not None, "no job waits"
    outcome = import_string(_ATTEMPTS[job.kind])(context, job)
    assert outcome.status in ("succeeded", "failed", "paused")
    return context.jobs.finish(job.job_id, job.attempt, outcome.status, outcome.error, outcome.found)


def events(context: Context, job: Job) -> Sequence[str]:
    """The messages of a job, oldest first."""
    return [event.message for event in reversed(context.job_events.page(job.job_id)[0])]
