"""Sessions: whom a browser acts for, and when it does so no longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import update
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.platform.auth import members
from luthier.platform.auth.members import add_member, change_role
from luthier.platform.auth.service import create_key, create_project, revoke_key
from luthier.platform.db.tables import api_keys, web_sessions
from luthier.platform.home.context import Context

PASSWORD = "correct horse battery"


def age(context: Context, *, by: float) -> None:
    """Have all sessions been seen, and end, so many seconds earlier."""
    columns = web_sessions.c
    with context.database.write() as connection:
        connection.execute(
            update(web_sessions).values(seen_at=columns.seen_at - by, expires_at=columns.expires_at - by)
        )


def test_a_session_acts_with_what_its_key_may(context: Context) -> None:
    create_project(context, "mine")
    made, key = create_key(context, "ci", scopes=("read", "infer"), project="mine")
    secret = members.sign_in_with_key(context, key)
    assert secret is not None
    found = members.session_of(context, secret)
    assert found is not None
    assert found.caller == Caller(project_id=made.project_id, scopes=("read", "infer"), key_id=made.key_id, name="ci")
    assert (found.project_name, found.how) == ("mine", "key")
    assert not found.caller.is_local
    assert members.sign_in_with_key(context, key + "x") is None
    context.close()
    for file in nonempty(Path(context.home).rglob("*")):
        assert not file.is_file() or secret.encode() not in file.read_bytes()


def test_a_session_by_a_key_ends_with_the_key(context: Context) -> None:
    made, key = create_key(context, "ci", scopes=("read",), expires_in_seconds=3600)
    secret = members.sign_in_with_key(context, key)
    assert secret is not None
    found = members.session_of(context, secret)
    assert found is not None
    assert found.expires_at == made.expires_at, "the key ends before the session would"
    with context.database.write() as connection:
        connection.execute(update(api_keys).values(expires_at=1.0))
    assert members.session_of(context, secret) is None
    other, key = create_key(context, "ci", scopes=("read",))
    secret = members.sign_in_with_key(context, key)
    assert secret is not None
    revoke_key(context, other.key_id)
    assert members.session_of(context, secret) is None


def test_another_role_holds_from_the_next_request_on(context: Context) -> None:
    ada = add_member(context, Caller(), "Ada", PASSWORD, "viewer")
    secret = members.sign_in_as(context, ada)
    change_role(context, Caller(), ada.member_id, "trainer")
    found = members.session_of(context, secret)
    assert found is not None
    assert (found.how, found.caller.may("train"), found.caller.may("admin")) == ("password", True, False)


def test_a_session_lasts_while_it_is_used_and_ends_where_it_is_not(context: Context) -> None:
    secret = members.sign_in_with_link(context, members.make_link(context))
    assert secret is not None
    first = members.session_of(context, secret)
    assert first is not None
    age(context, by=members.SESSION_SECONDS - 60)
    later = members.session_of(context, secret)
    assert later is not None
    assert later.expires_at == pytest.approx(first.expires_at, abs=30), "it is extended, and says so"
    age(context, by=members.SESSION_SECONDS - 60)
    assert members.session_of(context, secret) is not None
    age(context, by=members.SESSION_SECONDS + 1)
    assert members.session_of(context, secret) is None


def test_a_session_by_the_identity_provider_is_not_prolonged(context: Context) -> None:
    ada = add_member(context, Caller(), "Ada", PASSWORD, "viewer")
    context.oidc.add_identity(ada.member_id, "https://issuer.example", "subject")
    secret = members.begin_session(context, members.caller_for(ada), how="oidc")
    age(context, by=members.SESSION_SECONDS - 60)
    found = members.session_of(context, secret)
    assert found is not None
    age(context, by=61)
    assert members.session_of(context, secret) is None, "the provider may have removed the person since"


def test_who_looks_often_writes_seldom(context: Context) -> None:
    secret = members.sign_in_with_link(context, members.make_link(context))
    assert secret is not None
    before = members.session_of(context, secret)
    assert members.session_of(context, secret) == before


def test_a_link_is_used_once_and_leaves_a_trace(context: Context) -> None:
    token = members.make_link(context)
    assert members.sign_in_with_link(context, token) is not None
    assert members.sign_in_with_link(context, token) is None
    newest = context.audit_log.newest(limit=1)[0]
    assert (newest.action, newest.actor, newest.subject) == ("session.begun", "local", "local")


def test_one_ends_ones_other_sessions_and_ones_own(context: Context) -> None:
    ada = add_member(context, Caller(), "Ada", PASSWORD, "viewer")
    eva = add_member(context, Caller(), "Eva", PASSWORD, "viewer")
    here, there, others = (members.sign_in_as(context, one) for one in (ada, ada, eva))
    caller = members.caller_for(ada)
    assert len(members.sessions_of(context, caller)) == 2
    assert members.end_others(context, caller, here) == 1
    assert members.session_of(context, there) is None
    members.sign_out(context, here)
    assert members.session_of(context, here) is None
    assert members.session_of(context, others) is not None
