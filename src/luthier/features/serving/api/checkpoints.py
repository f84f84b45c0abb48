"""/v1/fine_tuning/checkpoints: which other projects may use the models that this one has tuned."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from luthier.core.frozen_model import ClosedModel
from luthier.features.serving.checkpoint_permissions import CheckpointPermission, list_permissions, permit, take_back
from luthier.platform.http.authentication import Admin, HomeContext
from luthier.platform.http.errors import documented
from luthier.platform.http.routes import ListPage, page

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


@router.post("/{checkpoint:path}/permissions", response_model=PermissionList, responses=documented(404))
def create(checkpoint: str, body: PermissionRequest, caller: Admin, context: HomeContext) -> dict[str, Any]:
    """Allow other projects to use a checkpoint."""
    made = permit(context, caller, checkpoint, body.project_ids)
    return page(made, after=None, limit=len(made), id_of=_id, show=_shown)


@router.get("/{checkpoint:path}/permissions", response_model=PermissionList, responses=documented(404))
def list_all(
    checkpoint: str,
    caller: Admin,
    context: HomeContext,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    order: Literal["ascending", "descending"] = "descending",
    project_id: str | None = None,
) -> dict[str, Any]:
    """List the permissions of a checkpoint, newest first by default."""
    found = list_permissions(context, caller, checkpoint, project_id=project_id)
    ordered = found if order == "descending" else found[::-1]
    return page(ordered, after=after, limit=limit, id_of=_id, show=_shown)


@router.delete(
    "/{checkpoint:path}/permissions/{permission_id}", response_model=PermissionDeleted, responses=documented(404)
)
def delete(checkpoint: str, permission_id: str, caller: Admin, context: HomeContext) -> PermissionDeleted:
    """Revoke a permission."""
    take_back(context, caller, checkpoint, permission_id)
    return PermissionDeleted(id=permission_id, deleted=True)


def _id(permission: CheckpointPermission) -> str:
    return permission.permission_id


def _shown(permission: CheckpointPermission) -> PermissionObject:
    return PermissionObject(
        id=permission.permission_id, created_at=int(permission.created_at), project_id=permission.project_id
    )
