"""/api/v1/keys and /api/v1/projects: for administrators of a project. A key sees and makes those of its own project."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from luthier.core.access import ApiKey, Project, Scope
from luthier.core.frozen_model import ClosedModel
from luthier.platform.auth import service as access
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import Admin, HomeContext
from luthier.platform.http.errors import documented
from luthier.platform.http.routes import Id, ListObject

router = APIRouter(prefix="/api/v1", tags=["access"])


class KeyRequest(ClosedModel):
    """The key to create. expires_in_seconds: never, where it is left out."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=10)]
    expires_in_seconds: Annotated[int, Field(ge=1, le=10 * 366 * 24 * 3600)] | None = None
    requests_per_minute: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    tokens_per_day: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class KeyView(BaseModel):
    """A key, without the key itself."""

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    scopes: list[Scope]
    requests_per_minute: int | None
    tokens_per_day: int | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None


class NewKeyView(KeyView):
    """A key that was made just now. key: the key itself, which is never shown again."""

    key: str


class KeyList(ListObject[KeyView]):
    """The keys of the project, newest first."""


class ProjectView(BaseModel):
    """A project. file_bytes: what its files take, uploads in progress included. max_file_bytes: none for no limit."""

    id: str
    object: Literal["project"] = "project"
    name: str
    created_at: int
    file_bytes: int
    max_file_bytes: int | None


class ProjectChange(ClosedModel):
    """What is changed of a project. max_file_bytes: null for no limit."""

    max_file_bytes: Annotated[int, Field(ge=0, le=1 << 60)] | None


class ProjectList(ListObject[ProjectView]):
    """The projects that a key sees: its own."""


@router.post("/keys", status_code=201, summary="Create a key", responses=documented())
def create(context: HomeContext, caller: Admin, asked: KeyRequest) -> NewKeyView:
    """A key of the same project as the caller's."""
    made, key = access.create_key(
        context,
        asked.name,
        scopes=tuple(asked.scopes),
        project=caller.project_id,
        expires_in_seconds=asked.expires_in_seconds,
        requests_per_minute=asked.requests_per_minute,
        tokens_per_day=asked.tokens_per_day,
        by=caller,
    )
    return NewKeyView(**_view(made).model_dump(), key=key)


@router.get("/keys", summary="List keys", responses=documented())
def list_keys(context: HomeContext, caller: Admin) -> KeyList:
    """Those that were revoked or have expired, too."""
    return KeyList(data=[_view(key) for key in access.list_keys(context, project_id=caller.project_id)])


@router.delete("/keys/{key_id}", summary="Revoke a key", responses=documented(404))
def revoke(context: HomeContext, caller: Admin, key_id: Id) -> KeyView:
    """Revoke a key; a second time changes nothing."""
    return _view(access.revoke_key(context, key_id, project_id=caller.project_id, by=caller))


@router.get("/projects", summary="List projects", responses=documented())
def list_projects(context: HomeContext, caller: Admin) -> ProjectList:
    """The project of the key. Others are made with `luthier projects create` on the server."""
    # A key must not learn the names of other projects.
    own = [one for one in access.list_projects(context) if one.project_id == caller.project_id]
    return ProjectList(data=[_project(context, one) for one in own])


@router.patch("/projects/{project_id}", summary="Change a project", responses=documented(403, 404))
def change_project(context: HomeContext, caller: Admin, project_id: Id, asked: ProjectChange) -> ProjectView:
    """Set how many bytes the files of a project may take: for administrators of the project `default`."""
    return _project(context, access.set_file_quota(context, caller, project_id, asked.max_file_bytes))


def _project(context: Context, project: Project) -> ProjectView:
    return ProjectView(
        id=project.project_id,
        name=project.name,
        created_at=int(project.created_at),
        file_bytes=context.files.used_bytes().get(project.project_id, 0),
        max_file_bytes=project.max_file_bytes,
    )


def _view(key: ApiKey) -> KeyView:
    return KeyView(
        id=key.key_id,
        name=key.name,
        scopes=list(key.scopes),
        requests_per_minute=key.requests_per_minute,
        tokens_per_day=key.tokens_per_day,
        created_at=int(key.created_at),
        expires_at=None if key.expires_at is None else int(key.expires_at),
        revoked_at=None if key.revoked_at is None else int(key.revoked_at),
    )
