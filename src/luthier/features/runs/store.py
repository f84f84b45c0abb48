"""Stores of runs: runs with their plans and events, and one list of runs and of jobs that have not begun one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

from sqlalchemy import Connection, Select, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.errors import ConflictError
from luthier.core.events import Event, RunStarted, WarningRaised, event_adapter
from luthier.core.plan import Plan
from luthier.core.run import RunRecord, RunStatus, TrainResult
from luthier.features.runs.filter_language import Filter
from luthier.features.runs.filter_query import DELETED, EntryQuery, Order
from luthier.platform.db.run_values import (
    DATASET,
    NAME,
    Value,
    dataset_of,
    default_name,
    of_plan,
    of_result,
    put_values,
)
from luthier.platform.db.store import Missing, RecordTable, Store, json_of
from luthier.platform.db.tables import (
    dataset_versions,
    datasets,
    evaluations,
    events,
    files,
    jobs,
    plans,
    run_labels,
    run_tags,
    run_values,
    runs,
)
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.rows import job_of

RUNS: Final = RecordTable(
    runs,
    RunRecord,
    key="run_id",
    codecs={"result": json_of(TrainResult)},
    missing=Missing("no run {key!r}", "the id of a run in this home", "see `luthier runs list`", suggests=True),
)
"""The runs of all projects."""
_PLANS: Final = RecordTable(plans, Plan)
_WITH_JOBS = runs.outerjoin(jobs, jobs.c.run_id == runs.c.run_id)
# Put together once: polls of a job ask for these.
_BY_ID: Final = RUNS.select.where(runs.c.run_id == bindparam("its_id"))
_LAST: Final = (
    select(events.c.document)
    .where(events.c.run_id == bindparam("its_id"), events.c.kind == bindparam("its_kind"))
    .order_by(events.c.step.desc())
    .limit(1)
)
_OWNER = func.coalesce(jobs.c.project_id, runs.c.project_id, DEFAULT_PROJECT)
_MAX_UNDER_WAY: Final = 1_000
"""Positions that transactions may have taken and not yet written."""


class RunStore(Store):
    """What the database knows of runs.

    Methods that take a run id raise NotFoundError, naming the nearest ids, where there is no such run.
    """

    def create(self, record: RunRecord, plan: Plan, project_id: str | None = None) -> None:
        """Add a run with its plan. Raises ConflictError where the id is taken.

        project_id: of a run without a job of its own, such as one of a workflow; None for that of its job.
        """
        conflict = ConflictError(
            f"run {record.run_id} exists already", expected="a new id", do="make one with new_id('run')"
        )
        document = plan.model_dump(mode="json")
        with self._write(conflict) as connection:
            RUNS.insert(connection, record, project_id=project_id)
            _PLANS.insert(connection, plan, run_id=record.run_id)
            values = of_plan(document)
            if record.result is not None:
                values |= of_result(record.result.model_dump(mode="json"))
            put_values(connection, record.run_id, values | _named(connection, record, plan, project_id))
            # Its job may run again after the run was deleted: then it is there again.
            was_deleted = (run_labels.c.run_id == record.run_id) & (run_labels.c.is_archived == DELETED)
            connection.execute(delete(run_labels).where(was_deleted))

    def get(self, run_id: str) -> RunRecord:
        """One run."""
        with self._database.read() as connection:
            row = connection.execute(_BY_ID, {"its_id": run_id}).mappings().first()
            if row is None:
                raise RUNS.not_found(connection, run_id)
        return RUNS.of_row(row)

    def plan(self, run_id: str) -> Plan:
        """The plan that a run executes."""
        with self._database.read() as connection:
            found = _PLANS.first(connection, run_id=run_id)
            if found is None:
                raise RUNS.not_found(connection, run_id)
        return found

    def update(
        self,
        run_id: str,
        *,
        status: RunStatus | None = None,
        step: int | None = None,
        stopped_because: str | None = None,
        result: TrainResult | None = None,
        evaluation_id: str | None = None,
        report_path: str | None = None,
    ) -> RunRecord:
        """Change what is given (None: no change) and the time of the last change; returns the updated run."""
        given = {
            "status": status,
            "step": step,
            "stopped_because": stopped_because,
            "result": None if result is None else result.model_dump_json(),
            "evaluation_id": evaluation_id,
            "report_path": report_path,
        }
        values = {name: value for name, value in given.items() if value is not None}
        values["updated_at"] = datetime.now(UTC).isoformat(timespec="seconds")
        with self._write() as connection:
            RUNS.change(connection, run_id, values)
            if result is not None:
                put_values(connection, run_id, of_result(result.model_dump(mode="json")))
            return RUNS.get(connection, run_id)

    def set_budget(self, run_id: str, plan: Plan) -> None:
        """Replace the plan of a run by one that differs in its budget alone. Raises ConflictError for another plan."""
        # The hash leaves the budget out, so equal hashes are the same plan with another budget.
        if self.plan(run_id).hash != plan.hash:
            raise ConflictError(
                f"another plan for run {run_id}", expected="its own with another budget", do="start a new run"
            )
        with self._write() as connection:
            changed = update(plans).where(plans.c.run_id == run_id).values(document=plan.model_dump_json())
            connection.execute(changed)

    def append(self, run_id: str, event: Event) -> None:
        """Add an event. One of the same kind, step and code replaces the old: a step trained again never doubles."""
        _, step, code = _event_key(event)
        key = (events.c.run_id == run_id, events.c.kind == event.kind, events.c.step == step, events.c.code == code)
        values = {"run_id": run_id, "kind": event.kind, "step": step, "code": code}
        try:
            with self._write() as connection:
                # Deleted and inserted, not updated: a replaced event gets a new position, so that watchers see it
                # again.
                connection.execute(delete(events).where(*key))
                connection.execute(insert(events).values(**values, document=event.model_dump_json()))
        except IntegrityError as error:
            with self._database.read() as connection:
                raise RUNS.not_found(connection, run_id) from error

    def add_missing(self, run_id: str, found: Sequence[Event]) -> int:
        """Add the events that the run does not have, in one transaction, as when it is restored; returns how many."""
        with self._write() as connection:
            _check_exists(connection, run_id)
            query = select(events.c.kind, events.c.step, events.c.code).where(events.c.run_id == run_id)
            known = {tuple(row) for row in connection.execute(query)}
            # Of two with one key the later counts, at the position of the later.
            newest: dict[tuple[str, int, str], Event] = {}
            for event in found:
                newest.pop(_event_key(event), None)
                newest[_event_key(event)] = event
            rows = [
                {"run_id": run_id, "kind": kind, "step": step, "code": code, "document": event.model_dump_json()}
                for (kind, step, code), event in newest.items()
                if (kind, step, code) not in known
            ]
            if rows:
                connection.execute(insert(events), rows)
        return len(rows)

    def events(self, run_id: str, after: int = 0) -> list[Event]:
        """The events of a run by step, within a step as they came; those after the position `after` (see `tail`)."""
        return self.tail(run_id, after)[0]

    def tail(self, run_id: str, after: int = 0) -> tuple[list[Event], int]:
        """The events appended after the position `after`, and the position to ask from next time.

        Positions grow with every append and say nothing else; 0 is before the first.
        """
        query = select(events.c.position, events.c.document).where(events.c.run_id == run_id)
        query = query.where(events.c.position > after).order_by(events.c.step, events.c.position)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
            if not rows:
                _check_exists(connection, run_id)
        position = max((row.position for row in rows), default=after)
        return [event_adapter.validate_json(row.document) for row in rows], position

    def appended(self, run_id: str, after: int, *, limit: int) -> tuple[Sequence[Event], int]:
        """The first `limit` events appended after the position `after`, in that order, and the next position.

        Reads no more than these, however many the run has. Of a run that is not there: none.
        """
        # Not by an index of the run, which would be read from its first event on: `position` leads to the new ones.
        is_its = events.c.run_id.concat("") == run_id
        query = select(events.c.position, events.c.document).where(is_its, events.c.position > after)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(events.c.position).limit(limit)).all()
            newest = 0 if len(rows) == limit else connection.execute(select(func.max(events.c.position))).scalar() or 0
        # Past the events of other runs, too, but for the last: one with a smaller position may still be written.
        position = max(rows[-1].position if rows else after, newest - _MAX_UNDER_WAY)
        return [event_adapter.validate_json(row.document) for row in rows], position

    def of_kinds(self, run_id: str, kinds: Sequence[str], *, limit: int | None = None) -> Sequence[Event]:
        """The events of some kinds, the last appended first, at most `limit`."""
        query = select(events.c.document).where(events.c.run_id == run_id, events.c.kind.in_(kinds))
        return self._events(query.order_by(events.c.position.desc()).limit(limit))

    def at_steps(self, run_id: str, steps: Sequence[int]) -> Sequence[Event]:
        """What was measured in these steps, in their order; of those that there are."""
        query = select(events.c.document).where(
            events.c.run_id == run_id, events.c.kind == "step", events.c.step.in_(steps)
        )
        return self._events(query.order_by(events.c.step))

    def last(self, run_id: str, kind: str) -> Event | None:
        """The newest event of a kind; None where there is none."""
        with self._database.read() as connection:
            document = connection.execute(_LAST, {"its_id": run_id, "its_kind": kind}).scalar()
        return None if document is None else event_adapter.validate_json(document)

    def truncate_after(self, run_id: str, step: int) -> int:
        """Drop the events after `step`, as when a run resumes from the checkpoint of that step; returns how many."""
        with self._write() as connection:
            _check_exists(connection, run_id)
            return connection.execute(delete(events).where(events.c.run_id == run_id, events.c.step > step)).rowcount

    def delete(self, run_id: str) -> None:
        """Forget a run with its plan, events, evaluations and links to artifacts. Files stay where they are."""
        with self._write() as connection:
            RUNS.remove(connection, run_id)
            # They have no foreign key, since a run that waits has them before it has a row.
            for table in (run_labels, run_tags):
                connection.execute(delete(table).where(table.c.run_id == run_id))
            # Its job stays, and must not be listed as one that waits.
            if connection.execute(select(jobs.c.number).where(jobs.c.run_id == run_id).limit(1)).first() is not None:
                gone = {"name": "", "note": "", "group_name": "", "is_archived": DELETED}
                connection.execute(insert(run_labels).values(run_id=run_id, **gone))

    def list(self, limit: int | None = None) -> list[RunRecord]:
        """Runs, newest first; at most `limit`, where it is given."""
        return self._list(RUNS, limit=limit)

    def project_of(self, run_id: str) -> str | None:
        """The project of a run: that of its job, of its workflow, or `default`; None where there is no such run."""
        owner: str | None = self._scalar(select(_OWNER).select_from(_WITH_JOBS).where(runs.c.run_id == run_id))
        return owner

    def some(self, run_ids: Sequence[str]) -> dict[str, RunRecord]:
        """These runs by their ids, if they exist."""
        found = self._list(RUNS, runs.c.run_id.in_(run_ids)) if run_ids else ()
        return {record.run_id: record for record in found}

    def results_since(self, project_id: str, moment: str, *, limit: int) -> Sequence[str]:
        """What came out of the runs of a project that last changed at or after a moment (UTC, ISO 8601), as JSON.

        At most `limit`, newest first. Many are read at a time, so it is left to the caller what to make of them.
        """
        query = select(runs.c.result).select_from(_WITH_JOBS).where(_OWNER == project_id)  # noqa: SIM300 - a column
        query = query.where(runs.c.updated_at >= moment, runs.c.result.is_not(None))
        return self._scalars(query.order_by(runs.c.number.desc()).limit(limit))

    def of_project(
        self, project_id: str, *, limit: int, after: str | None = None, status: RunStatus | None = None
    ) -> Sequence[RunRecord]:
        """Runs of a project, newest first, at most `limit`; those that were made before the run `after`.

        status: only runs that are in this one.
        """
        where = [_OWNER == project_id]  # noqa: SIM300 - a column
        if after is not None:
            where.append(runs.c.number < select(runs.c.number).where(runs.c.run_id == after).scalar_subquery())
        return self._records(RUNS, RUNS.query(*where, limit=limit, status=status).select_from(_WITH_JOBS))

    def _events(self, query: Select[Any]) -> Sequence[Event]:
        return [event_adapter.validate_json(document) for document in self._scalars(query)]


def _named(connection: Connection, record: RunRecord, plan: Plan, own_project: str | None) -> dict[str, Value]:
    """The default name of a run, and the dataset with its training rows where there is one.

    own_project: of a run without a job of its own.
    """
    owner = select(jobs.c.project_id).where(jobs.c.run_id == record.run_id).order_by(jobs.c.number.desc()).limit(1)
    project_id = connection.execute(owner).scalar() or own_project or DEFAULT_PROJECT
    dataset = dataset_of(connection, project_id, plan.data.train.sha256)
    found: dict[str, Value] = {NAME: default_name(plan.data.train.file, dataset, record.base_model, record.created_at)}
    return found if dataset is None else found | {DATASET: dataset}


def _event_key(event: Event) -> tuple[str, int, str]:
    """Kind, step and code, of which a run has one event."""
    return event.kind, _step(event), event.code if isinstance(event, WarningRaised) else ""


def _step(event: Event) -> int:
    return event.from_step if isinstance(event, RunStarted) else event.step


def _check_exists(connection: Connection, run_id: str) -> None:
    if connection.execute(select(runs.c.number).where(runs.c.run_id == run_id)).first() is None:
        raise RUNS.not_found(connection, run_id)


EntryStatus = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
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
    ) -> EntryPage:
        """Runs and waiting jobs of a project in an order, the newest id first where none is given, at most `limit`.

        Args:
            project_id: The project; None for all of them.
            limit: The most entries.
            before: Only those behind the entry with this id; one that is gone has the place of its id alone.
            status: Only those in this state.
            text: What must stand in the name, the id, the base model, the method or the request, in any case.
            tree: A filter.
            order: What they are sorted by.
            only_begun: Leave out what waits in the queue.
            hides_archived: Leave out what was archived.

        Raises:
            RequestError: The filter or the order has a field that there is not.
        """
        order = order or Order()
        asked = EntryQuery(project_id, self.has_key, self.has_text, only_begun=only_begun)
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

    def has_key(self, key: str) -> bool:
        """Whether any run has a value with this key."""
        return self._scalar(select(run_values.c.key).where(run_values.c.key == key).limit(1)) is not None

    def has_text(self, key: str) -> bool:
        """Whether the values with this key are texts."""
        is_text = select(run_values.c.key).where(run_values.c.key == key, run_values.c.text.is_not(None))
        return self._scalar(is_text.limit(1)) is not None

    def values(self, run_ids: Sequence[str], keys: Sequence[str]) -> dict[str, dict[str, Value]]:
        """The values of runs with these keys, by run and key."""
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

    def num_ahead(self, job_id: str) -> int:
        """How many jobs of all projects are before this one in its lane, those that are being worked on included."""
        own = select(jobs.c.number, jobs.c.lane).where(jobs.c.job_id == job_id).subquery()
        is_ahead = or_(jobs.c.status == "running", (jobs.c.status == "queued") & (jobs.c.number < own.c.number))
        count = select(func.count()).select_from(jobs.join(own, jobs.c.lane == own.c.lane))
        return int(self._scalar(count.where(is_ahead, jobs.c.number != own.c.number)))

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

        named: files by their digests or their ids.
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
