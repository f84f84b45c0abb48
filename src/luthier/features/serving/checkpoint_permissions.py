"""Use cases: let other projects ask a checkpoint, see who may, and take it back."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError
from luthier.features.models.tuned_records import TunedModel
from luthier.features.serving.checkpoint_permission_records import CheckpointPermission
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context


def permit(context: Context, caller: Caller, checkpoint: str, project_ids: Sequence[str]) -> list[CheckpointPermission]:
    """Let projects ask a checkpoint. Raises NotFoundError for the checkpoint, RequestError for a project."""
    model_id = _own(context, caller, checkpoint).model_id
    made = context.checkpoint_permissions.add(model_id, project_ids)
    # Written after the change: the log must not name a permission that was refused.
    record(context, caller, "checkpoint.permitted", model_id, {"project_ids": list(project_ids)})
    return made


def list_permissions(
    context: Context, caller: Caller, checkpoint: str, *, project_id: str | None = None
) -> list[CheckpointPermission]:
    """Who may ask a checkpoint, newest first. Raises NotFoundError."""
    return context.checkpoint_permissions.list(_own(context, caller, checkpoint).model_id, project_id)


def take_back(context: Context, caller: Caller, checkpoint: str, permission_id: str) -> None:
    """Let a project ask a checkpoint no longer. Raises NotFoundError."""
    model_id = _own(context, caller, checkpoint).model_id
    context.checkpoint_permissions.delete(model_id, permission_id)
    record(context, caller, "checkpoint.permission_taken_back", model_id, {"permission_id": permission_id})


def _own(context: Context, caller: Caller, checkpoint: str) -> TunedModel:
    """A model of the caller's project, by its name or the id of the checkpoint."""
    if checkpoint.startswith("ftckpt_"):
        return context.tuned_models.by_checkpoint(caller.project_id, checkpoint)
    found = context.tuned_models.get(caller.project_id, checkpoint)
    if found.project_id != caller.project_id:  # it may ask it, not give it on
        raise NotFoundError(
            f"no checkpoint {checkpoint!r} of this project",
            expected="a model that a job of this project has made",
            do="list them: GET /v1/models",
        )
    return found
