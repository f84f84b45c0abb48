"""Which projects may ask models of others."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from sqlalchemy import select

from luthier.core.errors import RequestError
from luthier.features.serving.checkpoint_permission_records import CheckpointPermission
from luthier.platform.db.store import Missing, RecordTable, Store
from luthier.platform.db.tables import checkpoint_permissions, projects

_PERMISSIONS: Final = RecordTable(
    checkpoint_permissions,
    CheckpointPermission,
    key="permission_id",
    missing=Missing(
        "no permission {key!r}",
        "the id of a permission of this checkpoint",
        "list what there is: GET /v1/fine_tuning/checkpoints/CHECKPOINT/permissions",
    ),
)


class CheckpointPermissionStore(Store):
    """Permissions of all models. The caller knows that the model is its own."""

    def add(self, model_id: str, project_ids: Sequence[str]) -> list[CheckpointPermission]:
        """Let projects ask a model, all of them or none; one that may already keeps the permission that it has.

        Raises RequestError for a project that is not there.
        """
        made = []
        with self._write() as connection:
            now = self._database.clock(connection)
            for project_id in dict.fromkeys(project_ids):
                its = select(projects.c.number).where(projects.c.project_id == project_id)
                if connection.execute(its).first() is None:
                    raise RequestError(
                        f"project_ids has {project_id!r}, which is no project",
                        expected="ids of projects of this server",
                        do="correct it, or make the project first: luthier projects create NAME",
                    )
                permission = CheckpointPermission(
                    permission_id=f"cp_{secrets.token_hex(12)}",
                    model_id=model_id,
                    project_id=project_id,
                    created_at=now,
                )
                # All in one transaction: a project that is not there leaves no permissions for the others.
                known = _PERMISSIONS.first(connection, model_id=model_id, project_id=project_id)
                made.append(known or _PERMISSIONS.insert(connection, permission))
        return made

    def list(self, model_id: str, project_id: str | None = None) -> list[CheckpointPermission]:
        """The permissions of a model, newest first; that of one project, where it is named."""
        return self._list(_PERMISSIONS, model_id=model_id, project_id=project_id)

    def delete(self, model_id: str, permission_id: str) -> None:
        """Take a permission back. Raises NotFoundError."""
        self._delete(_PERMISSIONS, permission_id, model_id=model_id)
