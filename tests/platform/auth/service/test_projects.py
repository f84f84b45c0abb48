"""Who knows of which projects, and who opens new ones."""

from __future__ import annotations

import pytest

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.platform.auth.service import (
    caller_of,
    create_project,
    known_projects,
    may_open_projects,
    open_project,
    rename_project,
)
from luthier.platform.home.context import Context


def test_the_first_key_of_a_project_opens_that_one_alone(context: Context) -> None:
    made, kept, key = open_project(context, Caller(), " mine ")
    assert made.name == "mine"
    caller = caller_of(context, key)
    assert caller == Caller(project_id=made.project_id, scopes=("admin",), key_id=kept.key_id, name="first")
    assert [one.name for one in known_projects(context, Caller())] == ["default", "mine"]
    assert [one.name for one in known_projects(context, caller)] == ["mine"]
    assert [entry.action for entry in context.audit_log.newest(limit=9)] == ["key.created", "project.created"]
    with pytest.raises(ConflictError):
        open_project(context, Caller(), "mine")


@pytest.mark.parametrize(
    "caller",
    [Caller(scopes=("read", "train", "infer"), key_id="key-1"), Caller(project_id="proj-2", key_id="key-2")],
)
def test_nobody_else_opens_one(context: Context, caller: Caller) -> None:
    assert not may_open_projects(caller)
    with pytest.raises(RequestError, match="may not create a project"):
        open_project(context, caller, "mine")
    assert len(known_projects(context, Caller())) == 1


@pytest.mark.parametrize("name", ["proj-1", " proj-x"])
def test_no_project_has_a_name_that_looks_like_an_id(context: Context, name: str) -> None:
    made = create_project(context, "mine")
    for one in (made.project_id, name):
        with pytest.raises(RequestError, match="a name that is not an id"):
            create_project(context, one)
    with pytest.raises(RequestError, match="a name that is not an id"):
        open_project(context, Caller(), name)
    assert [one.name for one in known_projects(context, Caller())] == ["default", "mine"]


def test_an_error_of_a_rename_names_no_project_of_others(context: Context) -> None:
    own = Caller(project_id=create_project(context, "mine").project_id)
    create_project(context, "secret client")
    for project in ("secret client", "no such project"):
        with pytest.raises(NotFoundError) as caught:
            rename_project(context, own, project, "x")
        assert "expected: your own project" in str(caught.value)
    assert rename_project(context, own, "mine", "ours").name == "ours"
