"""Permissions of checkpoints: use cases and store of the projects that may use a model."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final, Literal

from sqlalchemy import select

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.features.models.store import TunedModel
from luthier.platform.audit_log.service import record
from luthier.platform.db.database import Database
from luthier.platform.db.store import DeletedPositions, Missing, RecordTable, Store
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


PermissionOrder = Literal["ascending", "descending"]
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

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._places: DeletedPositions[int] = DeletedPositions()

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

    def list(
        self,
        model_id: str,
        *,
        project_id: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        order: PermissionOrder = "descending",
    ) -> tuple[list[CheckpointPermission], bool]:
        """One page of the permissions of a model, and whether more follow.

        Args:
            model_id: The model.
            project_id: Only that of one project; None for all.
            after: The id of the permission before the page, which may be deleted by now; None begins at the first.
            limit: The most permissions; None for all.
            order: `descending` for the newest first.

        Raises:
            UnsupportedError: `after` is no permission of the model, or was deleted before the last start of the server.
        """
        number, where = checkpoint_permissions.c.number, []
        with self._database.snapshot():
            if after is not None:
                expected = "the id of a permission of this checkpoint"
                place = self._places.place_of(model_id, after, self._place(model_id, after), expected)
                where.append(number > place if order == "ascending" else number < place)
            # One more than asked for shows whether a further page exists.
            found = self._list(
                _PERMISSIONS,
                *where,
                order=[number.asc() if order == "ascending" else number.desc()],
                limit=None if limit is None else limit + 1,
                model_id=model_id,
                project_id=project_id,
            )
        return found[:limit], limit is not None and len(found) > limit

    def delete(self, model_id: str, permission_id: str) -> None:
        """Revoke a permission.

        Raises:
            NotFoundError: The model has none of this id.
        """
        place = self._place(model_id, permission_id)
        self._delete(_PERMISSIONS, permission_id, model_id=model_id)
        self._places.keep(model_id, permission_id, place)

    def _place(self, model_id: str, permission_id: str) -> int | None:
        """The number of its row; None where the model has no such permission."""
        columns = checkpoint_permissions.c
        is_it = (columns.model_id == model_id) & (columns.permission_id == permission_id)
        found: int | None = self._scalar(select(columns.number).where(is_it))
        return found


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
    context: Context,
    caller: Caller,
    checkpoint: str,
    *,
    project_id: str | None = None,
    after: str | None = None,
    limit: int | None = None,
    order: PermissionOrder = "descending",
) -> tuple[list[CheckpointPermission], bool]:
    """One page of the permissions of a checkpoint, and whether more follow.

    Args:
        context: The home.
        caller: Whose project it is.
        checkpoint: By its name or its id.
        project_id: As of `CheckpointPermissionStore.list`.
        after: The same.
        limit: The same.
        order: The same.

    Raises:
        NotFoundError: The project of the caller has no such checkpoint.
        UnsupportedError: `after` is not in the list.
    """
    model_id = _own(context, caller, checkpoint).model_id
    store = context.checkpoint_permissions
    return store.list(model_id, project_id=project_id, after=after, limit=limit, order=order)


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
