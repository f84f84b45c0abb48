"""Runs and the jobs that have not begun one yet, in one list: what a project has trained, trains or will train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from sqlalchemy import ColumnElement, exists, func, or_, select, union_all

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.run import RunRecord
from luthier.features.runs.store import RUNS
from luthier.platform.db.store import Store
from luthier.platform.db.tables import dataset_versions, datasets, evaluations, files, jobs, plans, runs
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.rows import job_of

EntryStatus = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
STATUSES: Final[tuple[EntryStatus, ...]] = get_args(EntryStatus)

_later = jobs.alias()
_IS_NEWEST: Final = ~exists(
    select(_later.c.number).where(_later.c.run_id == jobs.c.run_id, _later.c.number > jobs.c.number)
)
_BEGUN: Final = runs.outerjoin(jobs, (jobs.c.run_id == runs.c.run_id) & _IS_NEWEST)
_TRAINS: Final = jobs.c.kind == "train"  # a job of another kind makes no run
_IS_WAITING: Final = ~exists(select(runs.c.number).where(runs.c.run_id == jobs.c.run_id))


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A run by its id. record: None before it has begun. job: the newest that makes it; None for one of a command."""

    run_id: str
    record: RunRecord | None
    job: Job | None


@dataclass(frozen=True, slots=True)
class DatasetName:
    """A version of a dataset, as a link needs it."""

    dataset_id: str
    name: str
    version: int


class RunEntryStore(Store):
    """Lists of runs and jobs. Every method reads a bounded number of rows."""

    def page(
        self,
        project_id: str,
        *,
        limit: int,
        before: str | None = None,
        status: EntryStatus | None = None,
        text: str = "",
    ) -> Sequence[RunEntry]:
        """Runs and waiting jobs of a project, the newest id first, at most `limit`.

        before: only those with a smaller id. text: what must stand in the id, the base model, the method or what was
        asked of the job, in any case.
        """
        begun = select(runs.c.run_id).select_from(_BEGUN)
        begun = begun.where(func.coalesce(jobs.c.project_id, DEFAULT_PROJECT) == project_id)
        waiting = select(jobs.c.run_id).where(jobs.c.project_id == project_id, _TRAINS, _IS_NEWEST, _IS_WAITING)
        if before is not None:
            begun, waiting = begun.where(runs.c.run_id < before), waiting.where(jobs.c.run_id < before)
        if status is not None:
            begun = begun.where(_has_status(func.coalesce(jobs.c.status, runs.c.status), status))
            waiting = waiting.where(_has_status(jobs.c.status, status))
        if text:
            begun = begun.where(_says(text, runs.c.run_id, runs.c.base_model, runs.c.method, jobs.c.document))
            waiting = waiting.where(_says(text, jobs.c.run_id, jobs.c.document))
        both = union_all(begun, waiting).subquery()
        # Ids begin with their time, so the largest id is the newest.
        newest = select(both.c.run_id).order_by(both.c.run_id.desc()).limit(limit)
        with self._database.read() as connection:
            ids = connection.execute(newest).scalars().all()
            records = connection.execute(RUNS.query(runs.c.run_id.in_(ids))).mappings()
            found = {row["run_id"]: RUNS.of_row(row) for row in records}
            asked = select(jobs).where(jobs.c.run_id.in_(ids)).order_by(jobs.c.number)
            # Ordered by number: of several jobs of one run the newest stays.
            made_by = {row["run_id"]: job_of(row) for row in connection.execute(asked).mappings()}
        return [RunEntry(run_id, found.get(run_id), made_by.get(run_id)) for run_id in ids]

    def num_ahead(self, job_id: str) -> int:
        """How many jobs of all projects are before this one in its lane, those that are being worked on included."""
        own = select(jobs.c.number, jobs.c.lane).where(jobs.c.job_id == job_id).subquery()
        is_ahead = or_(jobs.c.status == "running", (jobs.c.status == "queued") & (jobs.c.number < own.c.number))
        count = select(func.count()).select_from(jobs.join(own, jobs.c.lane == own.c.lane))
        return int(self._scalar(count.where(is_ahead, jobs.c.number != own.c.number)))

    def plan_documents(self, run_ids: Sequence[str]) -> dict[str, str]:
        """The plans of runs, as JSON, by the run's id."""
        query = select(plans.c.run_id, plans.c.document).where(plans.c.run_id.in_(run_ids))
        return {row["run_id"]: row["document"] for row in self._rows(query)}

    def evaluation_ids(self, run_ids: Sequence[str]) -> dict[str, str]:
        """The newest evaluation of each run that was judged."""
        query = select(evaluations.c.run_id, evaluations.c.evaluation_id).where(evaluations.c.run_id.in_(run_ids))
        return {row["run_id"]: row["evaluation_id"] for row in self._rows(query.order_by(evaluations.c.number))}

    def dataset_names(self, project_id: str, named: Sequence[str]) -> dict[str, DatasetName]:
        """The newest dataset version of the project that holds each file, where there is one; by what named the file.

        named: files by their digests or their ids.
        """
        is_named = or_(files.c.sha256.in_(named), files.c.file_id.in_(named))
        query = (
            select(files.c.sha256, files.c.file_id, datasets.c.dataset_id, datasets.c.name, dataset_versions.c.number)
            .join(dataset_versions, dataset_versions.c.file_id == files.c.file_id)
            .join(datasets, datasets.c.dataset_id == dataset_versions.c.dataset_id)
            .where(is_named, datasets.c.project_id == project_id)
            .order_by(datasets.c.number, dataset_versions.c.number)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {name: DatasetName(*row[2:]) for row in rows for name in row[:2] if name in named}


def _has_status(column: ColumnElement[Any], status: EntryStatus) -> ColumnElement[bool]:
    return column.in_(("running", "planned") if status == "running" else (status,))


def _says(text: str, *columns: ColumnElement[Any]) -> ColumnElement[bool]:
    return or_(*(column.icontains(text, autoescape=True) for column in columns))
