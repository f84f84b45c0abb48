"""Keys and projects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, QuotaError, RequestError
from luthier.platform.auth import service as access
from luthier.platform.home.context import Context


def test_a_key_lets_its_holder_in_and_only_a_digest_is_kept(context: Context) -> None:
    made, key = access.create_key(context, "ci", scopes=("infer", "read"), requests_per_minute=5)
    caller = access.caller_of(context, key)
    assert caller == Caller(project_id="default", scopes=("read", "infer"), key_id=made.key_id, name="ci")
    assert access.caller_of(context, key + "x") is None
    context.close()
    for file in nonempty(Path(context.home).rglob("*")):
        assert not file.is_file() or key.encode() not in file.read_bytes()


def test_a_key_that_was_revoked_or_has_ended_lets_nobody_in(context: Context) -> None:
    made, key = access.create_key(context, "ci", scopes=("read",))
    access.revoke_key(context, made.key_id)
    assert access.caller_of(context, key) is None
    _, ended = access.create_key(context, "ci", scopes=("read",), expires_in_seconds=-1)
    assert access.caller_of(context, ended) is None
    with pytest.raises(NotFoundError):
        access.revoke_key(context, "key-none")


@pytest.mark.parametrize(
    "wrong",
    [
        {"scopes": ()},
        {"scopes": ("write",)},
        {"name": " "},
        {"name": "x" * 101},
        {"name": "a\nb"},
        {"requests_per_minute": 0},
        {"tokens_per_day": -5},
        {"project": "none"},
    ],
)
def test_what_cannot_be_a_key(context: Context, wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        access.create_key(context, **({"name": "n", "scopes": ("read",)} | wrong))
    assert access.list_keys(context) == []


def test_the_first_key_comes_once(context: Context) -> None:
    key = access.first_key(context)
    assert key is not None
    caller = access.caller_of(context, key)
    assert caller is not None
    assert caller.may("train")
    assert access.first_key(context) is None


def test_who_made_what_is_in_the_audit_log(context: Context) -> None:
    by = Caller(key_id="key-1", name="root")
    project = access.create_project(context, "mine", by=by)
    made, key = access.create_key(context, "ci", scopes=("read",), project="mine", by=by)
    access.revoke_key(context, made.key_id)
    revoked, created, project_made = context.audit_log.newest(limit=5)
    assert (project_made.action, project_made.subject, project_made.actor) == (
        "project.created",
        project.project_id,
        "key-1 root",
    )
    assert (created.action, created.subject) == ("key.created", made.key_id)
    assert json.loads(created.document)["scopes"] == ["read"]
    assert key not in created.document
    assert (revoked.action, revoked.actor) == ("key.revoked", "local")
    assert [project.name for project in access.list_projects(context)] == ["default", "mine"]


def test_tokens_of_a_person_at_the_machine_are_not_counted(context: Context) -> None:
    assert access.charge_tokens(context, Caller(), 10**9) is None
    _, key = access.create_key(context, "ci", scopes=("infer",), tokens_per_day=5)
    caller = access.caller_of(context, key)
    assert caller is not None
    assert access.charge_tokens(context, caller, 5) == 0
    assert access.charge_tokens(context, caller, 5, may_refuse=False) == 0
    with pytest.raises(QuotaError):
        access.charge_tokens(context, caller, 0)
