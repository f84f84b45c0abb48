"""Members: who may be one, how passwords are kept, and what one may do to oneself."""

from __future__ import annotations

import json
import unicodedata

import pytest

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.platform.auth import members
from luthier.platform.auth.members import caller_for, session_of, sign_in_as
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

PASSWORD = "correct horse battery"


@pytest.mark.usefixtures("real_password_hash")
def test_a_name_and_a_password_let_a_member_in_and_neither_alone(context: Context) -> None:
    made = members.add_member(context, Caller(), " Ada ", PASSWORD, "viewer")
    assert made.name == "Ada"
    assert members.member_by_password(context, "Ada ", PASSWORD) == made
    assert members.member_by_password(context, "Ada", PASSWORD + " ") is None
    assert members.member_by_password(context, "Eva", PASSWORD) is None
    assert members.member_by_password(context, "Ada\0", PASSWORD) is None
    assert members.member_by_password(context, "Ada", "x" * 5000) is None
    assert members.find_member(context, "Ada") == made
    kept = context.members.with_password("Ada")
    assert kept is not None
    assert kept[1].startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert PASSWORD not in json.dumps([entry.document for entry in context.audit_log.newest(limit=9)])


def test_how_a_keyboard_writes_an_accent_makes_no_difference(context: Context) -> None:
    name, password = "Zoë Å", "pässwörter genug"
    composed, apart = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    made = members.add_member(context, Caller(), apart, unicodedata.normalize("NFD", password), "viewer")
    assert made.name == composed
    assert members.member_by_password(context, apart, unicodedata.normalize("NFC", password)) == made
    with pytest.raises(ConflictError):
        members.add_member(context, Caller(), composed, PASSWORD, "viewer")


@pytest.mark.parametrize(
    ("name", "password", "role"),
    [
        (" ", PASSWORD, "viewer"),
        ("x" * 101, PASSWORD, "viewer"),
        ("A\u202eda", PASSWORD, "viewer"),
        ("Ada", "nine char", "viewer"),
        ("Ada", "x" * 1025, "viewer"),
        ("Ada", PASSWORD, "owner"),
    ],
)
def test_what_cannot_be_a_member(context: Context, name: str, password: str, role: str) -> None:
    with pytest.raises(RequestError):
        members.add_member(context, Caller(), name, password, role)  # type: ignore[arg-type]
    assert members.list_members(context, Caller()) == []


def test_no_admin_takes_their_own_role_or_place_away(context: Context) -> None:
    ada = members.add_member(context, Caller(), "Ada", PASSWORD, "admin")
    eva = members.add_member(context, Caller(), "Eva", PASSWORD, "admin")
    for refused in (
        lambda: members.change_role(context, caller_for(ada), ada.member_id, "viewer"),
        lambda: members.remove_member(context, caller_for(ada), ada.member_id),
    ):
        with pytest.raises(ConflictError):
            refused()
    assert members.change_role(context, caller_for(eva), ada.member_id, "viewer").role == "viewer"
    assert members.remove_member(context, caller_for(eva), ada.member_id).name == "Ada"
    newest = context.audit_log.newest(limit=2)
    assert [(entry.action, entry.actor) for entry in newest] == [
        ("member.removed", f"{eva.member_id} Eva"),
        ("member.role_changed", f"{eva.member_id} Eva"),
    ]
    assert json.loads(newest[0].document) == {"name": "Ada"}


def test_an_admin_reaches_no_member_of_another_project(context: Context) -> None:
    ada = members.add_member(context, Caller(), "Ada", PASSWORD, "viewer")
    other = Caller(project_id=create_project(context, "mine").project_id, member_id="member-x", name="x")
    assert members.list_members(context, other) == []
    for refused in (
        lambda: members.change_role(context, other, ada.member_id, "admin"),
        lambda: members.change_password(context, other, ada.member_id, PASSWORD),
        lambda: members.remove_member(context, other, ada.member_id),
    ):
        with pytest.raises(NotFoundError):
            refused()


def test_one_changes_ones_own_password_by_the_one_before(context: Context) -> None:
    ada = members.add_member(context, Caller(), "Ada", PASSWORD, "viewer")
    secret = sign_in_as(context, ada)
    with pytest.raises(RequestError, match="current password"):
        members.change_own_password(context, caller_for(ada), "wrong password", "another password")
    assert session_of(context, secret) is not None
    members.change_own_password(context, caller_for(ada), PASSWORD, "another password")
    assert session_of(context, secret) is None
    assert members.member_by_password(context, "Ada", "another password") == ada
    with pytest.raises(RequestError, match="has no password"):
        members.change_own_password(context, Caller(), PASSWORD, "another password")
