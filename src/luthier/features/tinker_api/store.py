"""Training clients of all projects, and what they have saved."""

from __future__ import annotations

from typing import Final

from sqlalchemy import func, select

from luthier.features.tinker_api.records import CheckpointKind, TinkerCheckpoint, TinkerModel
from luthier.platform.db.store import Missing, RecordTable, Store
from luthier.platform.db.tables import tinker_checkpoints, tinker_models

_MODELS: Final = RecordTable(
    tinker_models,
    TinkerModel,
    key="model_id",
    clock="created_at",
    missing=Missing(
        "no training client {key!r}",
        "the id of a training client of this project",
        "list them: RestClient().list_training_runs()",
    ),
)
_CHECKPOINTS: Final = RecordTable(
    tinker_checkpoints,
    TinkerCheckpoint,
    key="checkpoint_id",
    clock="created_at",
    overlay=("expires_at",),
    missing=Missing(
        "no checkpoint {key!r}",
        "a checkpoint of this project that was saved and not deleted",
        "list them: RestClient().list_user_checkpoints()",
    ),
)


class TinkerStore(Store):
    """What the database knows of training clients. What belongs to another project is treated as missing."""

    def now(self) -> float:
        """The time of the database, seconds since 1970."""
        with self._database.read() as connection:
            return self._database.clock(connection)

    def add_model(self, model: TinkerModel) -> TinkerModel:
        """Keep a training client."""
        return self._insert(_MODELS, model)

    def model(self, project_id: str, model_id: str) -> TinkerModel:
        """One training client.

        Raises:
            NotFoundError: the project has none of this id.
        """
        return self._get(_MODELS, model_id, project_id=project_id)

    def models(self, project_id: str, *, limit: int, offset: int) -> tuple[list[TinkerModel], int]:
        """A page of a project's training clients, newest first, and how many there are.

        Args:
            project_id: the project.
            limit: clients of a page.
            offset: clients before it.
        """
        query = _MODELS.query(limit=limit, project_id=project_id).offset(offset)
        count = select(func.count()).select_from(tinker_models).where(tinker_models.c.project_id == project_id)
        return self._records(_MODELS, query), int(self._scalar(count) or 0)

    def add_checkpoint(self, one: TinkerCheckpoint) -> TinkerCheckpoint:
        """Keep a checkpoint."""
        return self._insert(_CHECKPOINTS, one)

    def find_checkpoint(
        self, project_id: str, model_id: str, kind: CheckpointKind, name: str
    ) -> TinkerCheckpoint | None:
        """The checkpoint of this name, expired or not; None where there is none.

        Args:
            project_id: the project.
            model_id: the training client that has saved it.
            kind: what it was saved for.
            name: as the client has named it.
        """
        return self._find(_CHECKPOINTS, project_id=project_id, model_id=model_id, kind=kind, name=name)

    def is_expired(self, one: TinkerCheckpoint) -> bool:
        """Whether the time of a checkpoint is over."""
        return one.expires_at is not None and one.expires_at <= self.now()

    def checkpoint(self, project_id: str, model_id: str, kind: CheckpointKind, name: str) -> TinkerCheckpoint:
        """The checkpoint of this name.

        Args:
            project_id: the project.
            model_id: the training client that has saved it.
            kind: what it was saved for.
            name: as the client has named it.

        Raises:
            NotFoundError: there is none, or its time is over.
        """
        found = self.find_checkpoint(project_id, model_id, kind, name)
        if found is None or self.is_expired(found):
            with self._database.read() as connection:
                raise _CHECKPOINTS.not_found(connection, f"{model_id}/{kind}/{name}")
        return found

    def checkpoints(
        self, project_id: str, *, model_id: str | None = None, limit: int | None = None, offset: int = 0
    ) -> tuple[list[TinkerCheckpoint], int]:
        """A page of a project's checkpoints, or of those of a training client, newest first, and how many there are.

        Args:
            project_id: the project.
            model_id: of one training client; None for all of them.
            limit: checkpoints of a page; None for all.
            offset: checkpoints before it.
        """
        where = _CHECKPOINTS.where(project_id=project_id, model_id=model_id)
        query = _CHECKPOINTS.query(*where, limit=limit).offset(offset)
        count = select(func.count()).select_from(tinker_checkpoints).where(*where)
        return self._records(_CHECKPOINTS, query), int(self._scalar(count) or 0)

    def expired(self) -> list[TinkerCheckpoint]:
        """Checkpoints of all projects whose time is over."""
        return self._list(_CHECKPOINTS, tinker_checkpoints.c.expires_at <= self.now())

    def set_expiry(self, checkpoint_id: str, expires_at: float | None) -> None:
        """Change when a checkpoint expires (seconds since 1970); None for never.

        Raises:
            NotFoundError: it was deleted.
        """
        with self._write() as connection:
            _CHECKPOINTS.change(connection, checkpoint_id, {"expires_at": expires_at})

    def remove_checkpoint(self, checkpoint_id: str) -> None:
        """Forget a checkpoint; its files stay.

        Raises:
            NotFoundError: it was deleted already.
        """
        self._delete(_CHECKPOINTS, checkpoint_id)
