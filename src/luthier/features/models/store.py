"""Models that jobs have made, by the name that they are asked by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import ColumnElement, select

from luthier.core.errors import NotFoundError
from luthier.features.models.tuned_records import TunedModel
from luthier.platform.db.store import JSON, Missing, RecordTable, Store
from luthier.platform.db.tables import checkpoint_permissions, tuned_models

_MODELS: Final = RecordTable(
    tuned_models,
    TunedModel,
    key="model_id",
    clock="created_at",
    codecs={"metrics": JSON},
    missing=Missing(
        "the model {key!r} does not exist",
        "a base model or a model that a job of this project has made",
        "list what there is: GET /v1/models",
    ),
)


class TunedModelStore(Store):
    """What the database knows of tuned models.

    A model of another project is treated as missing, except for checkpoints that the project was permitted.
    """

    def add(self, model: TunedModel) -> TunedModel:
        """Keep a model. One of that name that is there already stays as it is: an attempt may do its end over again."""
        with self._write() as connection:
            # Read and insert in one write transaction: a job attempt that is repeated must not fail on its own model.
            known = _MODELS.first(connection, model_id=model.model_id)
            return known or _MODELS.insert(connection, model, self._database.clock(connection))

    def get(self, project_id: str, model_id: str) -> TunedModel:
        """One model that this project has or was permitted. Raises NotFoundError."""
        is_seen = (tuned_models.c.project_id == project_id) | _is_permitted(project_id)
        with self._database.read() as connection:
            found = _MODELS.first(connection, tuned_models.c.model_id == model_id, is_seen)
            if found is None:
                # Inside the read: suggestions for a misspelt name come from the same snapshot.
                raise _MODELS.not_found(connection, model_id)
        return found

    def by_checkpoint(self, project_id: str, checkpoint_id: str) -> TunedModel:
        """The model of this project that is this checkpoint. Raises NotFoundError."""
        found = self._find(_MODELS, tuned_models.c.checkpoint_id == checkpoint_id, project_id=project_id)
        if found is None:
            raise NotFoundError(
                f"no checkpoint {checkpoint_id!r}", expected="the id of a checkpoint", do="list those of the job"
            )
        return found

    def list(self, project_id: str, *, job_id: str | None = None) -> list[TunedModel]:
        """The project's own models, newest first; of one job where it is named."""
        return self._list(_MODELS, project_id=project_id, job_id=job_id)

    def permitted(self, project_id: str) -> Sequence[TunedModel]:
        """Checkpoints of other projects that this one may use, newest first."""
        return self._list(_MODELS, _is_permitted(project_id), tuned_models.c.project_id != project_id)

    def delete(self, project_id: str, model_id: str) -> None:
        """Forget a model of this project; its files stay. Raises NotFoundError."""
        self._delete(_MODELS, model_id, project_id=project_id)


def _is_permitted(project_id: str) -> ColumnElement[bool]:
    # A subquery, not a join: a model with two permissions for the project would come twice.
    permitted = select(checkpoint_permissions.c.model_id).where(checkpoint_permissions.c.project_id == project_id)
    return tuned_models.c.model_id.in_(permitted)
