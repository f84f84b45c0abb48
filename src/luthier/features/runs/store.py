"""The store of runs with their plans and events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.errors import ConflictError
from luthier.core.events import Event, RunStarted, WarningRaised, event_adapter
from luthier.core.plan import Plan
from luthier.core.run import RunRecord, RunStatus, TrainResult
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
    events,
    jobs,
    plans,
    run_labels,
    run_tags,
    runs,
    tinker_checkpoints,
    tinker_models,
)

RUNS: Final = RecordTable(
    runs,
    RunRecord,
    key="run_id",
    codecs={"result": json_of(TrainResult)},
    missing=Missing("no run {key!r}", "the id of a run in this home", "see `luthier runs list`", suggests=True),
)
"""The runs of all projects."""
_PLANS: Final = RecordTable(plans, Plan)
WITH_JOBS = runs.outerjoin(jobs, jobs.c.run_id == runs.c.run_id)
# Put together once: polls of a job ask for these.
_BY_ID: Final = RUNS.select.where(runs.c.run_id == bindparam("its_id"))
_LAST: Final = (
    select(events.c.document)
    .where(events.c.run_id == bindparam("its_id"), events.c.kind == bindparam("its_kind"))
    .order_by(events.c.step.desc())
    .limit(1)
)
# Each step of a training writes by these.
_DELETE_EVENT: Final = delete(events).where(
    events.c.run_id == bindparam("its_id"),
    events.c.kind == bindparam("its_kind"),
    events.c.step == bindparam("its_step"),
    events.c.code == bindparam("its_code"),
)
_INSERT_EVENT: Final = insert(events)
_REACH: Final = (
    update(runs)
    .where(runs.c.run_id == bindparam("its_id"))
    .values(step=bindparam("reached_step"), updated_at=bindparam("its_time"))
)
OWNER: Final = func.coalesce(jobs.c.project_id, runs.c.project_id, DEFAULT_PROJECT)
"""The project of a run, in statements about `WITH_JOBS`. A run that a command started has no job, and one of an old
home no project: both belong to the default project."""
_OF_PROJECT: Final = RUNS.query(bindparam("its_project") == OWNER).select_from(WITH_JOBS).limit(bindparam("its_limit"))
_OF_STATUS: Final = _OF_PROJECT.where(runs.c.status == bindparam("its_status"))
DELETED: Final = 2
"""Of `run_labels.is_archived`: the run was deleted, and its job is still there."""
_MAX_UNDER_WAY: Final = 1_000
"""Positions that transactions may have taken and not yet written."""


class RunStore(Store):
    """What the database knows of runs.

    Methods that take a run id raise NotFoundError, naming the nearest ids, where there is no such run.
    """

    def create(self, record: RunRecord, plan: Plan, project_id: str | None = None) -> None:
        """Add a run with its plan.

        Args:
            record: The run.
            plan: Its plan.
            project_id: Of a run without its own job, such as one of a workflow; None for that of its job.

        Raises:
            ConflictError: The id is taken.
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
        """Change some fields of a run, and the time of its last change.

        Args:
            run_id: The run.
            status: The new status. None means no change, here and below.
            step: The last step that ended, from 1.
            stopped_because: The reason of an end before the last step, as a sentence.
            result: The result of its training.
            evaluation_id: The evaluation of its result.
            report_path: The file of its report.

        Returns:
            The updated run.

        Raises:
            NotFoundError: There is no such run.
        """
        given = {
            "status": status,
            "step": step,
            "stopped_because": stopped_because,
            "result": None if result is None else result.model_dump_json(),
            "evaluation_id": evaluation_id,
            "report_path": report_path,
        }
        values = {name: value for name, value in given.items() if value is not None}
        values["updated_at"] = _present_time()
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

    def append(self, run_id: str, event: Event, *, reached_step: int | None = None) -> None:
        """Add an event. One of the same kind, step and code replaces the old: a step trained again never doubles.

        Args:
            run_id: The run.
            event: The event.
            reached_step: The last step of the run that ended, set in the same transaction. None means no change.
        """
        _, step, code = _event_key(event)
        key = {"its_id": run_id, "its_kind": event.kind, "its_step": step, "its_code": code}
        values = {"run_id": run_id, "kind": event.kind, "step": step, "code": code}
        try:
            with self._write() as connection:
                # Deleted and inserted, not updated: a replaced event gets a new position, so that watchers see it
                # again.
                connection.execute(_DELETE_EVENT, key)
                connection.execute(_INSERT_EVENT, values | {"document": event.model_dump_json()})
                if reached_step is not None:
                    moved = {"its_id": run_id, "reached_step": reached_step, "its_time": _present_time()}
                    connection.execute(_REACH, moved)
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

    def page(self, run_id: str, after: int, *, limit: int) -> tuple[list[Event], int, bool]:
        """One page of the events of a run, by step. Reads the documents of no more than these.

        Args:
            run_id: The run.
            after: A position among the events; 0 begins at the first.
            limit: The most events.

        Returns:
            The events, the next position, and whether more follow.
        """
        is_later = (events.c.run_id == run_id) & (events.c.position > after)
        # One more than the page has shows that another one follows.
        chosen = select(events.c.position).where(is_later).order_by(events.c.position).limit(limit + 1).subquery()
        query = select(events.c.position, events.c.document).join(chosen, events.c.position == chosen.c.position)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(events.c.step, events.c.position)).all()
            if not rows:
                _check_exists(connection, run_id)
        places = sorted(row.position for row in rows)[:limit]
        last = places[-1] if places else after
        found = [event_adapter.validate_json(row.document) for row in rows if row.position <= last]
        return found, last, len(rows) > limit

    def appended(self, run_id: str, after: int, *, limit: int) -> tuple[Sequence[Event], int]:
        """Events of a run in the order in which they were appended; none of a run that is not there.

        Reads no more than these, however many the run has.

        Args:
            run_id: The run.
            after: A position among the events; 0 begins at the first.
            limit: The most events.

        Returns:
            The events, and the next position.
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
        """The events of some kinds, the last appended first.

        Args:
            run_id: The run.
            kinds: Names of classes of events, as they are stored.
            limit: The most events; None for all.
        """
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

    def newest(self, run_ids: Sequence[str], kinds: Sequence[str]) -> dict[str, dict[str, Event]]:
        """The newest event of each of these kinds, by run and kind, in one query for all of the runs.

        A run that does not exist is left out, and so is a kind that a run has no event of.
        """
        if not run_ids:
            return {}
        # A subquery for each kind: one step back in the unique index for a run, where max() would read all its steps.
        last = [
            select(events.c.document)
            .where(events.c.run_id == runs.c.run_id, events.c.kind == kind)
            .order_by(events.c.step.desc())
            .limit(1)
            .correlate(runs)
            .scalar_subquery()
            .label(kind)
            for kind in kinds
        ]
        rows = self._rows(select(runs.c.run_id, *last).where(runs.c.run_id.in_(run_ids)))
        return {
            row["run_id"]: {kind: event_adapter.validate_json(row[kind]) for kind in kinds if row[kind] is not None}
            for row in rows
        }

    def truncate_after(self, run_id: str, step: int) -> int:
        """Drop the events after `step`, as when a run resumes from the checkpoint of that step; returns how many."""
        with self._write() as connection:
            _check_exists(connection, run_id)
            return connection.execute(delete(events).where(events.c.run_id == run_id, events.c.step > step)).rowcount

    def delete(self, run_id: str) -> None:
        """Forget a run with its plan, events, evaluations, links to artifacts and what training clients saved in it.

        Files stay where they are.
        """
        with self._write() as connection:
            RUNS.remove(connection, run_id)
            # Their files are in the folder of the run, which goes.
            clients = select(tinker_models.c.model_id).where(tinker_models.c.run_id == run_id)
            connection.execute(delete(tinker_checkpoints).where(tinker_checkpoints.c.model_id.in_(clients)))
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

    def unfinished(self) -> Sequence[str]:
        """The ids of runs that are planned, running or paused."""
        return self._scalars(select(runs.c.run_id).where(runs.c.status.in_(("planned", "running", "paused"))))

    def project_of(self, run_id: str) -> str | None:
        """The project of a run: that of its job, of its workflow, or `default`; None where there is no such run."""
        owner: str | None = self._scalar(select(OWNER).select_from(WITH_JOBS).where(runs.c.run_id == run_id))
        return owner

    def ids_of_project(self, project_id: str, run_ids: Sequence[str]) -> Sequence[str]:
        """Those of these ids that are runs of the project, in their order."""
        if not run_ids:
            return []
        query = select(runs.c.run_id).select_from(WITH_JOBS).where(OWNER == project_id)  # noqa: SIM300 - a column
        query = query.where(runs.c.run_id.in_(run_ids))
        own = set(self._scalars(query))
        return [run_id for run_id in run_ids if run_id in own]

    def over_base(self, base_model: str) -> Sequence[tuple[str, str, RunStatus]]:
        """Id, project and status of the runs of all projects over a base model, newest first.

        Args:
            base_model: As recipes name it.
        """
        query = select(runs.c.run_id, OWNER.label("owner"), runs.c.status).select_from(WITH_JOBS)
        query = query.where(runs.c.base_model == base_model).order_by(runs.c.number.desc())
        return [(row["run_id"], row["owner"], row["status"]) for row in self._rows(query)]

    def some(self, run_ids: Sequence[str]) -> dict[str, RunRecord]:
        """These runs by their ids, if they exist."""
        found = self._list(RUNS, runs.c.run_id.in_(run_ids)) if run_ids else ()
        return {record.run_id: record for record in found}

    def changed_since(self, project_id: str, moment: str, *, limit: int) -> Sequence[tuple[str, RunStatus, str | None]]:
        """Id, status and result of the runs of a project that last changed at or after a moment, newest first.

        Results are JSON text, since many are read at a time and parsing is left to the caller; None where a run has
        none, such as one that has failed or was killed.

        Args:
            project_id: The project.
            moment: In UTC, ISO 8601.
            limit: The most runs.
        """
        query = select(runs.c.run_id, runs.c.status, runs.c.result).select_from(WITH_JOBS)
        query = query.where(OWNER == project_id, runs.c.updated_at >= moment)  # noqa: SIM300 - a column
        rows = self._rows(query.order_by(runs.c.number.desc()).limit(limit))
        return [(row["run_id"], row["status"], row["result"]) for row in rows]

    def of_project(
        self, project_id: str, *, limit: int, after: str | None = None, status: RunStatus | None = None
    ) -> Sequence[RunRecord]:
        """Runs of a project, newest first.

        Args:
            project_id: The project.
            limit: The most runs.
            after: Only runs that were made before this one; None begins at the newest.
            status: Only runs in this status; None for all.
        """
        query, values = _OF_PROJECT, {"its_project": project_id, "its_limit": limit}
        # Only where needed: each of these makes a copy, which SQLAlchemy has to identify again.
        if status is not None:
            query, values = _OF_STATUS, values | {"its_status": status}
        if after is not None:
            query = query.where(runs.c.number < select(runs.c.number).where(runs.c.run_id == after).scalar_subquery())
        with self._database.read() as connection:
            return [RUNS.of_row(row) for row in connection.execute(query, values).mappings()]

    def _events(self, query: Select[Any]) -> Sequence[Event]:
        return [event_adapter.validate_json(document) for document in self._scalars(query)]


def _named(connection: Connection, record: RunRecord, plan: Plan, own_project: str | None) -> dict[str, Value]:
    """The default name of a run, and the dataset with its training rows where there is one.

    own_project: of a run without its own job.
    """
    owner = select(jobs.c.project_id).where(jobs.c.run_id == record.run_id).order_by(jobs.c.number.desc()).limit(1)
    project_id = connection.execute(owner).scalar() or own_project or DEFAULT_PROJECT
    dataset = dataset_of(connection, project_id, plan.data.train.sha256)
    found: dict[str, Value] = {NAME: default_name(plan.data.train.file, dataset, record.base_model, record.created_at)}
    return found if dataset is None else found | {DATASET: dataset}


def _event_key(event: Event) -> tuple[str, int, str]:
    """Kind, step and code, of which a run has one event."""
    return event.kind, _step(event), event.code if isinstance(event, WarningRaised) else ""


def _present_time() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _step(event: Event) -> int:
    return event.from_step if isinstance(event, RunStarted) else event.step


def _check_exists(connection: Connection, run_id: str) -> None:
    if connection.execute(select(runs.c.number).where(runs.c.run_id == run_id)).first() is None:
        raise RUNS.not_found(connection, run_id)
