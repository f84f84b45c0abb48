"""The store of one list of runs and of jobs that have not begun one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, get_args

from sqlalchemy import exists, func, or_, select

from luthier.core.run import RunRecord
from luthier.features.runs.filter_language import Filter
from luthier.features.runs.filter_query import EntryQuery, Order
from luthier.features.runs.store import RUNS
from luthier.platform.db.run_values import Value
from luthier.platform.db.store import Store
from luthier.platform.db.tables import dataset_versions, datasets, evaluations, files, jobs, plans, run_values, runs
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.rows import job_of

EntryStatus = Literal["queued", "running", "paused", "interrupted", "succeeded", "failed", "cancelled"]
STATUSES: Final[tuple[EntryStatus, ...]] = get_args(EntryStatus)


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A run by its id. record: None before it has begun. job: the newest that makes it; None for one of a command."""

    run_id: str
    record: RunRecord | None
    job: Job | None


@dataclass(frozen=True, slots=True)
class EntryPage:
    """Entries in their order. num_left: how many there are from the first of them on, those of later pages included."""

    entries: Sequence[RunEntry]
    num_left: int


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
        project_id: str | None,
        *,
        limit: int,
        before: str | None = None,
        status: EntryStatus | None = None,
        text: str = "",
        tree: Filter | None = None,
        order: Order | None = None,
        only_begun: bool = False,
        hides_archived: bool = True,
        is_active: Callable[[str], bool] | None = None,
    ) -> EntryPage:
        """Runs and waiting jobs of a project in an order, the newest id first where none is given, at most `limit`.

        Args:
            project_id: The project; None for all of them.
            limit: The most entries.
            before: Only those behind the entry with this id; one that is gone has the place of its id alone.
            status: Only those in this state.
            text: What must be in the name, the id, the base model, the method or the request, in any case.
            tree: A filter.
            order: What they are sorted by.
            only_begun: Leave out what waits in the queue.
            hides_archived: Leave out what was archived.
            is_active: Whether a process works on a run of a command; None takes what the records say.

        Raises:
            RequestError: The filter or the order has a field that there is not.
        """
        order = order or Order()
        interrupted = tuple if is_active is None else partial(self._interrupted, is_active)
        asked = EntryQuery(project_id, self.has_key, self.has_text, only_begun=only_begun, interrupted=interrupted)
        after = None
        if before is not None:
            after = (before, None if order.key == "created" else self._scalar(asked.value_of(before, order)))
        query = asked.ids(
            tree, order, limit=limit, after=after, status=status, text=text, hides_archived=hides_archived
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
            ids = [row.run_id for row in rows]
            if not ids:
                return EntryPage([], 0)
            records = connection.execute(RUNS.query(runs.c.run_id.in_(ids))).mappings()
            found = {row["run_id"]: RUNS.of_row(row) for row in records}
            newest = select(jobs).where(jobs.c.run_id.in_(ids)).order_by(jobs.c.number)
            # Ordered by number: of several jobs of one run the newest stays.
            made_by = {row["run_id"]: job_of(row) for row in connection.execute(newest).mappings()}
        entries = [RunEntry(run_id, found.get(run_id), made_by.get(run_id)) for run_id in ids]
        return EntryPage(entries, rows[0].total)

    def _interrupted(self, is_active: Callable[[str], bool]) -> list[str]:
        """The runs of commands, of all projects, that have begun and not ended, and that no process works on."""
        is_of_job = exists(select(jobs.c.number).where(jobs.c.run_id == runs.c.run_id))
        begun = select(runs.c.run_id).where(runs.c.status.in_(("planned", "running")), ~is_of_job)
        return [run_id for run_id in self._scalars(begun) if not is_active(run_id)]

    def has_key(self, key: str) -> bool:
        """Whether any run has a value with this key."""
        return self._scalar(select(run_values.c.key).where(run_values.c.key == key).limit(1)) is not None

    def has_text(self, key: str) -> bool:
        """Whether the values with this key are texts."""
        is_text = select(run_values.c.key).where(run_values.c.key == key, run_values.c.text.is_not(None))
        return self._scalar(is_text.limit(1)) is not None

    def values(self, run_ids: Sequence[str], keys: Sequence[str]) -> dict[str, dict[str, Value]]:
        """Values that runs are searched and sorted by: run -> key -> value.

        Args:
            run_ids: The runs.
            keys: The keys; a run without a value of one lacks it.
        """
        found: dict[str, dict[str, Value]] = {}
        if not run_ids or not keys:
            return found
        is_asked = run_values.c.run_id.in_(run_ids) & run_values.c.key.in_(keys)
        for row in self._rows(select(run_values).where(is_asked)):
            found.setdefault(row["run_id"], {})[row["key"]] = row["number"] if row["text"] is None else row["text"]
        return found

    def keys(self) -> Sequence[str]:
        """The keys that runs have values for, each once, in the order of the alphabet."""
        # One look-up in the index a key, where a DISTINCT would read every row.
        first = select(func.min(run_values.c.key).label("key")).cte("found", recursive=True)
        following = select(func.min(run_values.c.key)).where(run_values.c.key > first.c.key).scalar_subquery()
        every = first.union_all(select(following).where(first.c.key.is_not(None)))
        return sorted(self._scalars(select(every.c.key).where(every.c.key.is_not(None))))

    def num_ahead(self, job_ids: Sequence[str]) -> dict[str, int]:
        """By job: how many jobs of all projects are before it in its lane, those that are being worked on included."""
        if not job_ids:
            return {}
        own = jobs.alias("own")
        is_ahead = or_(jobs.c.status == "running", (jobs.c.status == "queued") & (jobs.c.number < own.c.number))
        others = (jobs.c.lane == own.c.lane) & (jobs.c.number != own.c.number)
        count = select(func.count()).select_from(jobs).where(others, is_ahead).correlate(own).scalar_subquery()
        rows = self._rows(select(own.c.job_id, count.label("num")).where(own.c.job_id.in_(job_ids)))
        return {row["job_id"]: int(row["num"]) for row in rows}

    def plan_documents(self, run_ids: Sequence[str]) -> dict[str, str]:
        """The plans of runs, as JSON, by the run's id."""
        if not run_ids:
            return {}
        query = select(plans.c.run_id, plans.c.document).where(plans.c.run_id.in_(run_ids))
        return {row["run_id"]: row["document"] for row in self._rows(query)}

    def evaluation_ids(self, run_ids: Sequence[str]) -> dict[str, str]:
        """The newest evaluation of each run that was evaluated."""
        if not run_ids:
            return {}
        query = select(evaluations.c.run_id, evaluations.c.evaluation_id).where(evaluations.c.run_id.in_(run_ids))
        return {row["run_id"]: row["evaluation_id"] for row in self._rows(query.order_by(evaluations.c.number))}

    def dataset_names(self, project_id: str, named: Sequence[str]) -> dict[str, DatasetName]:
        """The newest dataset version of the project that holds each file, where there is one; by what named the file.

        Args:
            project_id: The project.
            named: Files by their digests or their ids.
        """
        if not named:
            return {}
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
