"""Deployments and their revisions. A change takes effect only where no one else has made one in the meantime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, RowMapping, bindparam, delete, insert, select, update

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.records.deployment import Deployment, Revision, Share
from luthier.platform.db.monitor_state import put
from luthier.platform.db.store import RecordTable, Store
from luthier.platform.db.tables import deployment_revisions, deployments

CANARY_SEEN: Final = "canary"
CANARY_RULES: Final = "canary_rules"
"""Kinds of the documents about the canaries of a deployment: what was seen of the last one, and their rules."""
_REVISIONS: Final = RecordTable(deployment_revisions, Revision, clock="created_at")
_IS_NEWEST = (deployment_revisions.c.deployment_id == deployments.c.deployment_id) & (
    deployment_revisions.c.number == deployments.c.revision
)
_WITH_NEWEST = select(deployments, deployment_revisions.c.document).join(deployment_revisions, _IS_NEWEST)
# Built once: pages ask for it again and again.
_OF_PROJECT: Final = _WITH_NEWEST.where(deployments.c.project_id == bindparam("its_project")).order_by(
    deployments.c.number.desc()
)


class DeploymentStore(Store):
    """The deployments of all projects."""

    def add(self, deployment: Deployment) -> Deployment:
        """Keep a new deployment with its first revision.

        Raises:
            ConflictError: The project has one of the name.
        """
        conflict = ConflictError(
            f"a deployment {deployment.name!r} exists already",
            expected="a name that is free",
            do="open it, then deploy again",
        )
        with self._write(conflict) as connection:
            now = self._database.clock(connection)
            # The table holds the number of the newest revision; the revision itself is a separate row.
            values = deployment.model_dump(exclude={"revision"})
            values |= {"revision": deployment.revision.number, "created_at": now}
            connection.execute(insert(deployments).values(**values))
            revision = self._add_revision(connection, deployment.deployment_id, deployment.revision, now)
        return deployment.model_copy(update={"revision": revision, "created_at": now})

    def revise(self, known: Deployment, revision: Revision) -> Deployment:
        """Make a revision the newest.

        Args:
            known: The deployment that the revision was made from.
            revision: With the number after that of `known`.

        Raises:
            ConflictError: The deployment has another revision by now, or is gone.
        """
        is_it = deployments.c.deployment_id == known.deployment_id
        with self._write() as connection:
            # Optimistic lock: the update only matches the revision that the caller has seen. Of two writers one gets
            # rowcount 0, on every database and isolation level.
            as_known = is_it & (deployments.c.revision == known.revision.number)
            changed = connection.execute(update(deployments).where(as_known).values(revision=revision.number))
            if changed.rowcount == 0:
                newest = connection.execute(select(deployments.c.revision).where(is_it)).scalar()
                raise changed_meanwhile(known.name, known.revision.number, newest)
            now = self._database.clock(connection)
            made = self._add_revision(connection, known.deployment_id, revision, now)
        return known.model_copy(update={"revision": made})

    def find(self, project_id: str, name: str) -> Deployment | None:
        """The project's deployment of this name; None where there is none."""
        is_it = (deployments.c.project_id == project_id) & (deployments.c.name == name)
        return next(map(_deployment, self._rows(_WITH_NEWEST.where(is_it))), None)

    def get(self, project_id: str, name: str) -> Deployment:
        """The same.

        Raises:
            NotFoundError: The project has no such deployment.
        """
        if (found := self.find(project_id, name)) is None:
            raise _no_such_deployment(name)
        return found

    def list(self, project_id: str) -> list[Deployment]:
        """The project's deployments, newest first."""
        return [_deployment(row) for row in self._rows(_OF_PROJECT, {"its_project": project_id})]

    def named(self, name: str) -> Sequence[Deployment]:
        """The deployments of this name, one a project, those that were made first first."""
        query = _WITH_NEWEST.where(deployments.c.name == name).order_by(deployments.c.number)
        return [_deployment(row) for row in self._rows(query)]

    def routing_to(self, target: str) -> Sequence[str]:
        """The names of deployments, of all projects, whose newest revision has this target."""
        # All projects, because files of an export are shared by all that route to it; shares are inside the document.
        found = map(_deployment, self._rows(_WITH_NEWEST))
        return [one.name for one in found if one.revision.share_of(target) is not None]

    def shares(self, project_id: str) -> Sequence[Share]:
        """The shares of all revisions of a project's deployments, earlier ones first."""
        found = (
            revision for one in self.list(project_id)[::-1] for revision in self.revisions(one.deployment_id)[::-1]
        )
        return [share for revision in found for share in revision.shares]

    def revisions(self, deployment_id: str) -> tuple[Revision, ...]:
        """All revisions of a deployment, newest first."""
        return tuple(self._list(_REVISIONS, deployment_id=deployment_id))

    def delete(self, project_id: str, name: str) -> None:
        """Forget a deployment, its revisions, and what is kept about its canaries: another of its name begins afresh.

        Raises:
            NotFoundError: The project has no such deployment.
        """
        is_it = (deployments.c.project_id == project_id) & (deployments.c.name == name)
        with self._write() as connection:
            if connection.execute(delete(deployments).where(is_it)).rowcount == 0:
                raise _no_such_deployment(name)
            for kind in (CANARY_SEEN, CANARY_RULES):
                put(connection, project_id, kind, name, None)

    def _add_revision(self, connection: Connection, deployment_id: str, revision: Revision, now: float) -> Revision:
        return _REVISIONS.insert(connection, revision, now, deployment_id=deployment_id)


def changed_meanwhile(name: str, known: int, newest: int | None) -> ConflictError:
    """The error for a change of a deployment that somebody else has changed in the meantime.

    Args:
        name: The deployment.
        known: The revision that the change starts from.
        newest: The revision that it has now; None where it was deleted.
    """
    now = "is gone" if newest is None else f"is at revision {newest}"
    return ConflictError(
        f"the deployment {name!r} {now}, not at revision {known}: somebody else has changed it",
        expected="an unchanged deployment",
        do="open it again, then decide again",
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
