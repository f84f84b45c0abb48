"""Models that jobs have made, by the name that they are asked by."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import RowMapping, delete, insert, select

from luthier.core.errors import NotFoundError
from luthier.features.models.tuned_records import TunedModel
from luthier.platform.db.database import Database
from luthier.platform.db.tables import checkpoint_permissions, tuned_models


class TunedModelStore:
    """What the database knows of tuned models. Every method is one short transaction.

    A model of another project is as one that is not there, but for checkpoints that the project was permitted.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, model: TunedModel) -> TunedModel:
        """Keep a model. One of that name that is there already stays as it is: an attempt may do its end over again."""
        with self._database.write() as connection:
            known = select(tuned_models).where(tuned_models.c.model_id == model.model_id)
            if connection.execute(known).first() is None:
                now = self._database.clock(connection)
                values = model.model_dump() | {"metrics": json.dumps(model.metrics), "created_at": now}
                connection.execute(insert(tuned_models).values(**values))
            return _model(connection.execute(known).mappings().one())

    def get(self, project_id: str, model_id: str) -> TunedModel:
        """One model that this project has or was permitted. Raises NotFoundError."""
        permitted = select(checkpoint_permissions.c.model_id).where(checkpoint_permissions.c.project_id == project_id)
        is_seen = (tuned_models.c.project_id == project_id) | tuned_models.c.model_id.in_(permitted)
        query = select(tuned_models).where(tuned_models.c.model_id == model_id, is_seen)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise _no_such_model(model_id)
        return _model(row)

    def by_checkpoint(self, project_id: str, checkpoint_id: str) -> TunedModel:
        """The model of this project that is this checkpoint. Raises NotFoundError."""
        is_it = (tuned_models.c.project_id == project_id) & (tuned_models.c.checkpoint_id == checkpoint_id)
        with self._database.read() as connection:
            row = connection.execute(select(tuned_models).where(is_it)).mappings().first()
        if row is None:
            raise NotFoundError(
                f"no checkpoint {checkpoint_id!r}", expected="the id of a checkpoint", do="list those of the job"
            )
        return _model(row)

    def list(self, project_id: str, *, job_id: str | None = None) -> list[TunedModel]:
        """The project's own models, newest first; of one job where it is named."""
        query = select(tuned_models).where(tuned_models.c.project_id == project_id)
        if job_id is not None:
            query = query.where(tuned_models.c.job_id == job_id)
        with self._database.read() as connection:
            found = connection.execute(query.order_by(tuned_models.c.number.desc())).mappings()
            return [_model(row) for row in found]

    def permitted(self, project_id: str) -> Sequence[TunedModel]:
        """Checkpoints of other projects that this one may use, newest first."""
        permitted = select(checkpoint_permissions.c.model_id).where(checkpoint_permissions.c.project_id == project_id)
        is_it = tuned_models.c.model_id.in_(permitted) & (tuned_models.c.project_id != project_id)
        query = select(tuned_models).where(is_it).order_by(tuned_models.c.number.desc())
        with self._database.read() as connection:
            return [_model(row) for row in connection.execute(query).mappings()]

    def delete(self, project_id: str, model_id: str) -> None:
        """Forget a model of this project; its files stay. Raises NotFoundError."""
        is_it = (tuned_models.c.project_id == project_id) & (tuned_models.c.model_id == model_id)
        with self._database.write() as connection:
            if connection.execute(delete(tuned_models).where(is_it)).rowcount == 0:
                raise _no_such_model(model_id)


def _model(row: RowMapping) -> TunedModel:
    values = {name: value for name, value in row.items() if name != "number"}
    values["metrics"] = json.loads(values["metrics"] or "{}")
    return TunedModel(**values)


def _no_such_model(model_id: str) -> NotFoundError:
    return NotFoundError(
        f"the model {model_id!r} does not exist",
        expected="a base model or a model that a job of this project has made",
        do="list what there is: GET /v1/models",
    )
