"""Tuned models: their records, and the store that finds them by name.

A tuned model is the outcome of a job's run, or a checkpoint of it after an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import Field
from sqlalchemy import ColumnElement, delete, select

from luthier.core.errors import NotFoundError
from luthier.core.frozen_model import FrozenModel
from luthier.platform.db.store import JSON, Missing, RecordTable, Store
from luthier.platform.db.tables import checkpoint_permissions, tuned_models


class TunedModel(FrozenModel):
    """A tuned model that can be asked by name.

    Attributes:
        model_id: `ft:BASE:PROJECT:SUFFIX:ID`; a checkpoint with `:ckpt-step-N` behind it.
        project_id: The project that owns it.
        job_id: The job that made it.
        run_id: The run of that job.
        base_model: The base model, as recipes name it.
        adapter_path: The folder of its weights, as `TrainResult.adapter_path`.
        step: The training step of a checkpoint; None for the outcome.
        checkpoint_id: The id of a checkpoint (`ftckpt_...`); None for the outcome.
        metrics: Losses (nats a trained token) and accuracies (0 to 1) after that step, by name.
        created_at: Seconds since 1970.
    """

    model_id: str
    project_id: str
    job_id: str
    run_id: str
    base_model: str
    adapter_path: str
    step: int | None = None
    checkpoint_id: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    created_at: float = 0.0


_MODELS: Final = RecordTable(
    tuned_models,
    TunedModel,
    key="model_id",
    clock="created_at",
    codecs={"metrics": JSON},
    missing=Missing(
        "the model {key!r} does not exist",
        "a base model or a model that a job of this project has made",
        "list them: GET /v1/models",
    ),
)


class TunedModelStore(Store):
    """What the database knows of tuned models.

    A model of another project is treated as missing, except for checkpoints that the project was permitted.
    """

    def add(self, model: TunedModel) -> TunedModel:
        """Store a model. An existing one of that name is unchanged: an attempt may repeat its end."""
        with self._write() as connection:
            # Read and insert in one write transaction: a job attempt that is repeated must not fail on its own model.
            known = _MODELS.first(connection, model_id=model.model_id)
            return known or _MODELS.insert(connection, model, self._database.clock(connection))

    def get(self, project_id: str, model_id: str) -> TunedModel:
        """One model that this project has or was permitted.

        Raises:
            NotFoundError: The project has no such model, and no permission for one.
        """
        is_seen = (tuned_models.c.project_id == project_id) | _is_permitted(project_id)
        with self._database.read() as connection:
            found = _MODELS.first(connection, tuned_models.c.model_id == model_id, is_seen)
            if found is None:
                # Inside the read: suggestions for a misspelt name come from the same snapshot.
                raise _MODELS.not_found(connection, model_id)
        return found

    def by_checkpoint(self, project_id: str, checkpoint_id: str) -> TunedModel:
        """The model of this project that is this checkpoint.

        Raises:
            NotFoundError: No model of the project is this checkpoint.
        """
        found = self._find(_MODELS, tuned_models.c.checkpoint_id == checkpoint_id, project_id=project_id)
        if found is None:
            raise NotFoundError(
                f"no checkpoint {checkpoint_id!r}", expected="the id of a checkpoint", do="list those of the job"
            )
        return found

    def list(self, project_id: str, *, job_id: str | None = None) -> list[TunedModel]:
        """The project's own models, newest first; of one job where it is named."""
        return self._list(_MODELS, project_id=project_id, job_id=job_id)

    def of_run(self, run_id: str) -> Sequence[str]:
        """The ids of the models that a run has made, of whichever project."""
        return self._scalars(select(tuned_models.c.model_id).where(tuned_models.c.run_id == run_id))

    def of_client(self, run_id: str, adapter_path: str) -> TunedModel | None:
        """The model with these weights that a training client has saved; None where no client has.

        Args:
            run_id: The run of the client.
            adapter_path: The folder of the weights.
        """
        # What a client of the Tinker API saves is a checkpoint of no job.
        is_it = tuned_models.c.step.is_not(None)
        return self._find(_MODELS, is_it, run_id=run_id, adapter_path=adapter_path, job_id="")

    def permitted(self, project_id: str) -> Sequence[TunedModel]:
        """Checkpoints of other projects that this one may use, newest first."""
        return self._list(_MODELS, _is_permitted(project_id), tuned_models.c.project_id != project_id)

    def delete(self, project_id: str, model_id: str) -> None:
        """Forget a model of this project; its files stay.

        Raises:
            NotFoundError: The project has no such model.
        """
        self._delete(_MODELS, model_id, project_id=project_id)

    def delete_of_run(self, run_id: str) -> None:
        """Forget all models that a run has made; their files stay."""
        with self._write() as connection:
            connection.execute(delete(tuned_models).where(tuned_models.c.run_id == run_id))


def _is_permitted(project_id: str) -> ColumnElement[bool]:
    # A subquery, not a join: a model with two permissions for the project would come twice.
    permitted = select(checkpoint_permissions.c.model_id).where(checkpoint_permissions.c.project_id == project_id)
    return tuned_models.c.model_id.in_(permitted)
