"""Deployments and their revisions. A change takes effect only where nobody else has made one in the meantime."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, RowMapping, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.records.deployment import Deployment, Revision
from luthier.platform.audit_log.records import AuditEvent
from luthier.platform.audit_log.store import append_audit_event
from luthier.platform.db.database import Database
from luthier.platform.db.tables import deployment_revisions, deployments

_IS_NEWEST = (deployment_revisions.c.deployment_id == deployments.c.deployment_id) & (
    deployment_revisions.c.number == deployments.c.revision
)
_WITH_NEWEST = select(deployments, deployment_revisions.c.document).join(deployment_revisions, _IS_NEWEST)


class DeploymentStore:
    """The deployments of all projects. Every method is one short transaction, which writes the audit events too."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, deployment: Deployment, *audit_events: AuditEvent) -> Deployment:
        """Keep a new deployment with its first revision. Raises ConflictError where the project has one of the name."""
        try:
            with self._database.write() as connection:
                now = self._database.clock(connection)
                values = deployment.model_dump(exclude={"revision"})
                values |= {"revision": deployment.revision.number, "created_at": now}
                connection.execute(insert(deployments).values(**values))
                revision = self._add_revision(connection, deployment.deployment_id, deployment.revision, now)
                self._log(connection, audit_events)
        except IntegrityError as error:
            raise ConflictError(
                f"a deployment {deployment.name!r} exists already",
                expected="a name that is free",
                do="look at it, then deploy again",
            ) from error
        return deployment.model_copy(update={"revision": revision, "created_at": now})

    def revise(self, known: Deployment, revision: Revision, *audit_events: AuditEvent) -> Deployment:
        """Make a revision the newest. known: the deployment as it was when the revision was made from it.

        Raises ConflictError where it has another revision by now, or is gone.
        """
        is_it = deployments.c.deployment_id == known.deployment_id
        with self._database.write() as connection:
            as_known = is_it & (deployments.c.revision == known.revision.number)
            changed = connection.execute(update(deployments).where(as_known).values(revision=revision.number))
            if changed.rowcount == 0:
                newest = connection.execute(select(deployments.c.revision).where(is_it)).scalar()
                raise changed_meanwhile(known.name, known.revision.number, newest)
            now = self._database.clock(connection)
            made = self._add_revision(connection, known.deployment_id, revision, now)
            self._log(connection, audit_events)
        return known.model_copy(update={"revision": made})

    def find(self, project_id: str, name: str) -> Deployment | None:
        """The project's deployment of this name; None where there is none."""
        is_it = (deployments.c.project_id == project_id) & (deployments.c.name == name)
        with self._database.read() as connection:
            row = connection.execute(_WITH_NEWEST.where(is_it)).mappings().first()
        return None if row is None else _deployment(row)

    def get(self, project_id: str, name: str) -> Deployment:
        """The same. Raises NotFoundError, also for another project's."""
        if (found := self.find(project_id, name)) is None:
            raise _no_such_deployment(name)
        return found

    def list(self, project_id: str) -> list[Deployment]:
        """The project's deployments, newest first."""
        query = _WITH_NEWEST.where(deployments.c.project_id == project_id).order_by(deployments.c.number.desc())
        with self._database.read() as connection:
            return [_deployment(row) for row in connection.execute(query).mappings()]

    def routing_to(self, target: str) -> Sequence[str]:
        """The names of deployments, of all projects, whose newest revision has this target."""
        with self._database.read() as connection:
            found = [_deployment(row) for row in connection.execute(_WITH_NEWEST).mappings()]
        return [one.name for one in found if one.revision.share_of(target) is not None]

    def revisions(self, deployment_id: str) -> tuple[Revision, ...]:
        """All revisions of a deployment, newest first."""
        query = select(deployment_revisions.c.document).where(deployment_revisions.c.deployment_id == deployment_id)
        with self._database.read() as connection:
            found = connection.execute(query.order_by(deployment_revisions.c.number.desc())).scalars()
            return tuple(Revision.model_validate_json(document) for document in found)

    def delete(self, project_id: str, name: str, *audit_events: AuditEvent) -> None:
        """Forget a deployment and its revisions. Raises NotFoundError."""
        is_it = (deployments.c.project_id == project_id) & (deployments.c.name == name)
        with self._database.write() as connection:
            if connection.execute(delete(deployments).where(is_it)).rowcount == 0:
                raise _no_such_deployment(name)
            self._log(connection, audit_events)

    def _add_revision(self, connection: Connection, deployment_id: str, revision: Revision, now: float) -> Revision:
        made = revision.model_copy(update={"created_at": now})
        values = {"deployment_id": deployment_id, "number": made.number, "document": made.model_dump_json()}
        connection.execute(insert(deployment_revisions).values(**values))
        return made

    def _log(self, connection: Connection, audit_events: Sequence[AuditEvent]) -> None:
        for audit_event in audit_events:
            append_audit_event(connection, self._database.now, audit_event)


def changed_meanwhile(name: str, known: int, newest: int | None) -> ConflictError:
    """What to tell who changes a deployment that is no longer as it was seen."""
    now = "is gone" if newest is None else f"stands at revision {newest}"
    return ConflictError(
        f"the deployment {name!r} {now}, not at revision {known}: somebody else has changed it",
        expected="the deployment as it was seen",
        do="look at it again, then decide again",
    )


def _deployment(row: RowMapping) -> Deployment:
    values = {name: value for name, value in row.items() if name not in ("number", "document")}
    return Deployment(**(values | {"revision": Revision.model_validate_json(row["document"])}))


def _no_such_deployment(name: str) -> NotFoundError:
    return NotFoundError(
        f"no deployment {name!r}",
        expected="the name of a deployment of this project",
        do="list them: luthier deployments, or GET /api/v1/deployments",
    )
