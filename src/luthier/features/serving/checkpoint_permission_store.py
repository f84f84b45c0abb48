"""Which projects may ask models of others."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from sqlalchemy import RowMapping, delete, insert, select

from luthier.core.errors import NotFoundError, RequestError
from luthier.features.serving.checkpoint_permission_records import CheckpointPermission
from luthier.platform.db.database import Database
from luthier.platform.db.tables import checkpoint_permissions, projects


class CheckpointPermissionStore:
    """Permissions of all models. Every method is one short transaction; the caller knows that the model is its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, model_id: str, project_ids: Sequence[str]) -> list[CheckpointPermission]:
        """Let projects ask a model, all of them or none; one that may already keeps the permission that it has.

        Raises RequestError for a project that is not there.
        """
        made = []
        with self._database.write() as connection:
            now = self._database.clock(connection)
            for project_id in dict.fromkeys(project_ids):
                if (
                    connection.execute(select(projects.c.number).where(projects.c.project_id == project_id)).first()
                    is None
                ):
                    raise RequestError(
                        f"project_ids has {project_id!r}, which is no project",
                        expected="ids of projects of this server",
                        do="correct it, or make the project first: luthier projects create NAME",
                    )
                is_it = (checkpoint_permissions.c.model_id == model_id) & (
                    checkpoint_permissions.c.project_id == project_id
                )
                known = connection.execute(select(checkpoint_permissions).where(is_it)).mappings().first()
                if known is not None:
                    made.append(_permission(known))
                    continue
                permission = CheckpointPermission(
                    permission_id=f"cp_{secrets.token_hex(12)}",
                    model_id=model_id,
                    project_id=project_id,
                    created_at=now,
                )
                connection.execute(insert(checkpoint_permissions).values(**permission.model_dump()))
                made.append(permission)
        return made

    def list(self, model_id: str, project_id: str | None = None) -> list[CheckpointPermission]:
        """The permissions of a model, newest first; that of one project, where it is named."""
        query = select(checkpoint_permissions).where(checkpoint_permissions.c.model_id == model_id)
        if project_id is not None:
            query = query.where(checkpoint_permissions.c.project_id == project_id)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(checkpoint_permissions.c.number.desc())).mappings()
            return [_permission(row) for row in rows]

    def delete(self, model_id: str, permission_id: str) -> None:
        """Take a permission back. Raises NotFoundError."""
        is_it = (checkpoint_permissions.c.model_id == model_id) & (
            checkpoint_permissions.c.permission_id == permission_id
        )
        with self._database.write() as connection:
            if connection.execute(delete(checkpoint_permissions).where(is_it)).rowcount == 0:
                raise NotFoundError(
                    f"no permission {permission_id!r}",
                    expected="the id of a permission of this checkpoint",
                    do="list what there is: GET /v1/fine_tuning/checkpoints/CHECKPOINT/permissions",
                )


def _permission(row: RowMapping) -> CheckpointPermission:
    return CheckpointPermission(**{name: value for name, value in row.items() if name != "number"})
