"""/v1/fine_tuning/checkpoints: which other projects may use the models that this one has tuned."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from luthier.core.frozen_model import ClosedModel
from luthier.features.serving.checkpoint_permissions import (
    CheckpointPermission,
    PermissionOrder,
    list_permissions,
    permit,
    take_back,
)
from luthier.platform.http.authentication import Admin, HomeContext
from luthier.platform.http.errors import documented
from luthier.platform.http.routes import ListPage

router = APIRouter(prefix="/v1/fine_tuning/checkpoints", tags=["fine-tuning"])


class PermissionRequest(ClosedModel):
    """The projects, by their ids."""

    project_ids: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=64)]], Field(min_length=1, max_length=100)
    ]


class PermissionObject(BaseModel):
    """A project that may use the checkpoint.

    Attributes:
        id: `cp_...`.
        object: Always `checkpoint.permission`.
        created_at: Seconds since 1970.
        project_id: The project.
    """

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


class PermissionList(ListPage[PermissionObject]):
    """A page of permissions.

    Attributes:
        object: Always `list`.
        data: The permissions.
        has_more: Whether more follow.
        first_id: Id of the first one; None for an empty page.
        last_id: Id of the last one, for `after`; None for an empty page.
    """


class PermissionDeleted(BaseModel):
    """A deleted permission."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: bool


@router.post("/{checkpoint:path}/permissions", responses=documented(404))
def create(checkpoint: str, body: PermissionRequest, caller: Admin, context: HomeContext) -> PermissionList:
    """Allow other projects to use a checkpoint."""
    made = permit(context, caller, checkpoint, body.project_ids)
    return PermissionList.of([_shown(one) for one in made], has_more=False)


@router.get("/{checkpoint:path}/permissions", responses=documented(404))
def list_all(
    checkpoint: str,
    caller: Admin,
    context: HomeContext,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    order: PermissionOrder = "descending",
    project_id: str | None = None,
) -> PermissionList:
    """List the permissions of a checkpoint, newest first by default."""
    found, has_more = list_permissions(
        context, caller, checkpoint, project_id=project_id, after=after, limit=limit, order=order
    )
    return PermissionList.of([_shown(one) for one in found], has_more=has_more)


@router.delete(
    "/{checkpoint:path}/permissions/{permission_id}", response_model=PermissionDeleted, responses=documented(404)
)
def delete(checkpoint: str, permission_id: str, caller: Admin, context: HomeContext) -> PermissionDeleted:
    """Revoke a permission."""
    take_back(context, caller, checkpoint, permission_id)
    return PermissionDeleted(id=permission_id, deleted=True)


def _shown(permission: CheckpointPermission) -> PermissionObject:
    return PermissionObject(
        id=permission.permission_id, created_at=int(permission.created_at), project_id=permission.project_id
    )
