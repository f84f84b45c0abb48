"""Permissions of checkpoints: use cases and store of the projects that may use a model."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from sqlalchemy import select

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.features.models.store import TunedModel
from luthier.platform.audit_log.service import record
from luthier.platform.db.store import Missing, RecordTable, Store
from luthier.platform.db.tables import checkpoint_permissions, projects
from luthier.platform.home.context import Context


class CheckpointPermission(FrozenModel):
    """One model and one project that may use it.

    Attributes:
        permission_id: Its id, `cp_...`.
        model_id: The model.
        project_id: The project that may use it.
        created_at: Seconds since 1970.
    """

    permission_id: str
    model_id: str
    project_id: str
    created_at: float


_PERMISSIONS: Final = RecordTable(
    checkpoint_permissions,
    CheckpointPermission,
    key="permission_id",
    missing=Missing(
        "no permission {key!r}",
        "the id of a permission of this checkpoint",
        "list them: GET /v1/fine_tuning/checkpoints/CHECKPOINT/permissions",
    ),
)


class CheckpointPermissionStore(Store):
    """Permissions of all models. The caller must ensure that it owns the model."""

    def add(self, model_id: str, project_ids: Sequence[str]) -> list[CheckpointPermission]:
        """Allow projects to use a model, all or none; existing permissions are kept.

        Raises:
            RequestError: A project is not known; then none of them is allowed.
        """
        made = []
        with self._write() as connection:
            now = self._database.clock(connection)
            for project_id in dict.fromkeys(project_ids):
                its = select(projects.c.number).where(projects.c.project_id == project_id)
                if connection.execute(its).first() is None:
                    raise RequestError(
                        f"project_ids has {project_id!r}, which is not a project",
                        expected="ids of projects of this server",
                        do="correct it, or make the project first: luthier projects create NAME",
                    )
                permission = CheckpointPermission(
                    permission_id=f"cp_{secrets.token_hex(12)}",
                    model_id=model_id,
                    project_id=project_id,
                    created_at=now,
                )
                # One transaction: an unknown project leaves no permissions for the others.
                known = _PERMISSIONS.first(connection, model_id=model_id, project_id=project_id)
                made.append(known or _PERMISSIONS.insert(connection, permission))
        return made

    def list(self, model_id: str, project_id: str | None = None) -> list[CheckpointPermission]:
        """The permissions of a model, newest first; only that of one project if it is named."""
        return self._list(_PERMISSIONS, model_id=model_id, project_id=project_id)

    def delete(self, model_id: str, permission_id: str) -> None:
        """Revoke a permission.

        Raises:
            NotFoundError: The model has none of this id.
        """
        self._delete(_PERMISSIONS, permission_id, model_id=model_id)


def permit(context: Context, caller: Caller, checkpoint: str, project_ids: Sequence[str]) -> list[CheckpointPermission]:
    """Allow projects to use a checkpoint.

    Raises:
        NotFoundError: The project of the caller has no such checkpoint.
        RequestError: A project is not known; then none of them is allowed.
    """
    model_id = _own(context, caller, checkpoint).model_id
    with context.database.transaction():
        made = context.checkpoint_permissions.add(model_id, project_ids)
        record(context, caller, "checkpoint.permitted", model_id, {"project_ids": list(project_ids)})
    return made


def list_permissions(
    context: Context, caller: Caller, checkpoint: str, *, project_id: str | None = None
) -> list[CheckpointPermission]:
    """The permissions of a checkpoint, newest first.

    Raises:
        NotFoundError: The project of the caller has no such checkpoint.
    """
    return context.checkpoint_permissions.list(_own(context, caller, checkpoint).model_id, project_id)


def take_back(context: Context, caller: Caller, checkpoint: str, permission_id: str) -> None:
    """Revoke a project's permission for a checkpoint.

    Raises:
        NotFoundError: The project of the caller has no such checkpoint, or the checkpoint no such permission.
    """
    model_id = _own(context, caller, checkpoint).model_id
    with context.database.transaction():
        context.checkpoint_permissions.delete(model_id, permission_id)
        record(context, caller, "checkpoint.permission_taken_back", model_id, {"permission_id": permission_id})


def _own(context: Context, caller: Caller, checkpoint: str) -> TunedModel:
    """A model of the caller's project, by its name or the id of the checkpoint."""
    if checkpoint.startswith("ftckpt_"):
        return context.tuned_models.by_checkpoint(caller.project_id, checkpoint)
    found = context.tuned_models.get(caller.project_id, checkpoint)
    if found.project_id != caller.project_id:  # it may use it, but not share it
        raise NotFoundError(
            f"no checkpoint {checkpoint!r} of this project",
            expected="a model that a job of this project has made",
            do="list them: GET /v1/models",
        )
    return found
