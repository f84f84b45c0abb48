"""What waits for people in a project: one question to each part that has such work, each of a few rows.

Nothing is copied: an entry is there as long as the work is, and gone when it is done where it belongs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Final
from urllib.parse import quote, urlencode

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError
from luthier.core.ids import sha256_bytes
from luthier.core.text.counted import counted
from luthier.core.text.names import shortened
from luthier.features.deployments.canary_release import last_seen
from luthier.features.inbox.records import Work
from luthier.features.model_cards.service import target_names
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redact_text, reference_paths, shown_reference
from luthier.platform.jobs.kinds import KINDS
from luthier.platform.jobs.records import Job, JobKind

MAX_OF_A_KIND: Final = 50
FAILED_SECONDS: Final = 14 * 24 * 3600.0
"""So long a failed job waits for somebody to look at it."""
_MAX_DETAIL_CHARACTERS: Final = 300
_MAX_JOBS: Final = 20
_PAGES: Final[dict[JobKind, str]] = {
    "train": "/runs",
    "export": "/models",
    "evaluation": "/evaluations/orders/{job_id}",
    "batch": "/batches/{batch_id}",
    "import": "/datasets/jobs/{job_id}",
    "synthesis": "/datasets/jobs/{job_id}",
    "workflow": "/pipelines/jobs/{job_id}",
    "tracking": "/runs",
}


def waiting_work(context: Context, caller: Caller, asked: frozenset[str] = frozenset()) -> list[Work]:
    """All of the caller's project, by kind.

    Args:
        context: The home.
        caller: The project, and what its values may be shown to.
        asked: Ids of entries that somebody was given: a dataset whose annotation has not begun is one of them.
    """
    parts: tuple[Callable[[Context, Caller], Iterator[Work]], ...] = (_canaries, _alerts, _jobs, _reviews, _panels)
    found = [work for part in parts for work in part(context, caller)]
    return [*found, *_datasets(context, caller, asked)]


def item_id_of(kind: str, subject: str) -> str:
    """The id of an entry: fit for addresses and commands, and the same for the same thing."""
    return f"item-{sha256_bytes(f'{kind} {subject}'.encode())[:12]}"


def dataset_work(dataset_id: str, name: str, version: int, num_rows: int | None, num_decided: int) -> Work:
    """The annotation of a dataset as an entry of the inbox.

    Args:
        dataset_id: The dataset.
        name: Its name.
        version: The number of its newest version.
        num_rows: Of this version; None where they have not been counted.
        num_decided: Rows of it that have a decision.
    """
    total = "an unknown number of rows" if num_rows is None else f"{num_rows:,} rows"
    return Work(
        kind="annotate",
        subject=dataset_id,
        title=f"Annotate the dataset {name}",
        detail=f"{num_decided:,} of {total} decided, version {version}",
        address=f"/datasets/{quote(dataset_id, safe='')}/annotate",
        since=None,
        mark=str(version),
    )


def _panels(context: Context, caller: Caller) -> Iterator[Work]:
    # Closed and complete ones, of which a project has ever more, must not take the place of those that wait.
    found = context.rating_panels.list(caller.project_id)
    waiting = (one for one in found if one.panel.closed_at is None and one.num_ratings < one.num_wanted)
    for one in islice(waiting, MAX_OF_A_KIND):
        raters = f"{one.num_raters} rater{'' if one.num_raters == 1 else 's'}"
        yield Work(
            kind="rate",
            subject=one.panel.panel_id,
            title=f"Rate answers: “{one.panel.name}”",
            detail=f"{one.num_ratings:,} of {one.num_wanted:,} ratings by {raters}",
            address=f"/evaluations/panels/{quote(one.panel.panel_id, safe='')}",
            since=one.panel.created_at,
            mark=str(one.num_raters),
        )


def _reviews(context: Context, caller: Caller) -> Iterator[Work]:
    for model, num, first, newest in context.review_items.waiting(caller.project_id)[:MAX_OF_A_KIND]:
        yield Work(
            kind="review",
            subject=model,
            title=f"Review answers of {model}",
            detail=f"{counted(num, 'answer')} to accept, correct or reject",
            address=f"/review?{urlencode({'model': model})}",
            since=_time_of(first),
            mark=str(newest),
        )


def _datasets(context: Context, caller: Caller, asked: frozenset[str]) -> Iterator[Work]:
    # Datasets in which somebody has begun; every other dataset would make the inbox a list of all datasets.
    begun = list(context.datasets.annotated(caller.project_id))
    if asked:
        # Only where somebody was given something: these datasets have no decision that would find them.
        known = {dataset.dataset_id for dataset, _, _ in begun}
        for dataset, version in context.datasets.list(caller.project_id):
            is_asked = item_id_of("annotate", dataset.dataset_id) in asked
            if is_asked and dataset.dataset_id not in known:
                begun.insert(0, (dataset, version, 0))
    waiting = (one for one in begun if one[1].num_rows is None or one[2] < one[1].num_rows)
    for dataset, version, num_decided in islice(waiting, MAX_OF_A_KIND):
        yield dataset_work(dataset.dataset_id, dataset.name, version.number, version.num_rows, num_decided)


def _alerts(context: Context, caller: Caller) -> Iterator[Work]:
    for alert in context.alerts.list(caller.project_id, status="open", limit=MAX_OF_A_KIND):
        yield Work(
            kind="alert",
            subject=alert.alert_id,
            title=f"{alert.model}: {alert.signal.title} has changed",
            detail=_short(alert.signal.sentence),
            address=f"/monitor/model?{urlencode({'name': alert.model})}",
            since=alert.opened_at,
            mark=alert.alert_id,
        )


def _canaries(context: Context, caller: Caller) -> Iterator[Work]:
    found = context.deployments.list(caller.project_id)
    canaries = [one.revision.canary for one in found if one.revision.canary]
    names = target_names(context, caller.project_id, canaries)
    for deployment in found:
        revision = deployment.revision
        share = None if revision.canary is None else revision.share_of(revision.canary)
        if revision.canary is None or share is None:
            continue
        seen = last_seen(context, caller, deployment.name)
        # A comparison of an earlier revision says nothing about this one.
        is_same = seen is not None and seen.canary == revision.canary and seen.revision == revision.number
        words = seen.sentence if seen is not None and is_same else "not compared yet"
        canary = names.get(revision.canary) or shown_reference(revision.canary)
        fraction = f"{100 * share.fraction:.3g}%"
        yield Work(
            kind="canary",
            subject=deployment.name,
            title=f"Decide on the canary of {deployment.name}",
            detail=_short(f"{canary} answers {fraction} of the users: {words}"),
            address=f"/deployments/{quote(deployment.name, safe='')}",
            since=revision.created_at,
            # A deployment that was made again under this name counts its revisions from 1 again.
            mark=f"{deployment.deployment_id} {revision.number}",
        )


def _jobs(context: Context, caller: Caller) -> Iterator[Work]:
    now = context.access.now()
    failed = context.jobs.list(status="failed", project_id=caller.project_id, limit=_MAX_JOBS)
    # A run that was deleted has no page any more, and nobody is to look at it.
    gone = context.run_labels.deleted_of([job.run_id for job in failed if job.run_id])
    for job in failed:
        ended = job.finished_at if job.finished_at is not None else job.updated_at
        if now - ended <= FAILED_SECONDS and job.run_id not in gone:
            reason = str((job.error or {}).get("came", "no reason was stored"))
            yield Work(
                kind="job",
                subject=job.job_id,
                title=f"{KINDS[job.kind].title} failed",
                # Messages of jobs name paths of the server, which members of a project need not see.
                detail=_short(redact_text(reason, reference_paths(context, job.document))),
                address=job_address(context, job),
                since=ended,
                mark=str(job.attempt),
            )


def job_address(context: Context, job: Job) -> str:
    """The page that a job is followed on."""
    if job.run_id:
        return f"/runs/{quote(job.run_id, safe='')}"
    if job.kind == "export" and (export_id := job.document.get("export", {}).get("export_id")):
        # A failed export may have been removed since: the list is left then.
        with contextlib.suppress(NotFoundError):
            return f"/exports/{quote(context.exports.get(job.project_id, export_id).export_id, safe='')}"
    if job.kind == "export" and "benchmark" in job.document:
        return f"/exports/benchmarks/{quote(job.job_id, safe='')}"
    batch_id = quote(str(job.document.get("batch_id", "")), safe="")
    return _PAGES[job.kind].format(job_id=quote(job.job_id, safe=""), batch_id=batch_id)


def _short(text: str) -> str:
    return shortened(" ".join(text.split()), _MAX_DETAIL_CHARACTERS)


def _time_of(made_id: str) -> float | None:
    """The time in an id such as `review-20261125-093000-1f2e3d`, in seconds since 1970."""
    try:
        day, clock = made_id.split("-")[1:3]
        return datetime.strptime(f"{day}{clock}", "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
