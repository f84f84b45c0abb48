"""Invitations: one member a link, with its role, before it expires; and the address that links begin with."""

from __future__ import annotations

import json
import threading

import pytest
from sqlalchemy import update

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, NotFoundError, RequestError
from luthier.platform.auth import invitations as invites
from luthier.platform.auth import members
from luthier.platform.auth.public_address import (
    is_loopback,
    learn_public_address,
    link_root,
    public_address,
    set_public_address,
)
from luthier.platform.auth.service import create_project
from luthier.platform.db.tables import invitations
from luthier.platform.home.context import Context

ADMIN, PASSWORD = Caller(name="Ada"), "correct horse battery"


def test_a_link_makes_one_member_with_its_role(context: Context) -> None:
    made = invites.invite(context, ADMIN, "trainer", recipient="  Ben   at desk 3 ")
    assert (made.invitation.recipient, made.invitation.created_by) == ("Ben at desk 3", "Ada")
    assert made.invitation.expires_at - made.invitation.created_at == invites.USUAL_SECONDS
    assert invites.open_invitation(context, made.token) == made.invitation
    ben = invites.accept_invitation(context, made.token, "Ben", PASSWORD)
    assert (ben.name, ben.role, ben.project_id) == ("Ben", "trainer", "default")
    assert members.member_by_password(context, "Ben", PASSWORD) == ben
    for use in (
        lambda: invites.open_invitation(context, made.token),
        lambda: invites.accept_invitation(context, made.token, "Cleo", PASSWORD),
    ):
        with pytest.raises(ConflictError, match="accepted already: it made the member 'Ben'"):
            use()
    assert [one.name for one in members.list_members(context, ADMIN)] == ["Ben"]
    (kept,) = invites.list_invitations(context, ADMIN)
    assert (kept.state(context.access.now()), kept.accepted_by) == ("accepted", "Ben")
    log = context.audit_log.newest(limit=9)
    assert [one.action for one in log] == ["member.created", "invitation.accepted", "invitation.created"]
    assert made.token not in json.dumps([one.document for one in log])


def test_two_who_open_one_link_together_make_one_member(context: Context) -> None:
    made = invites.invite(context, ADMIN, "viewer")
    came: list[str] = []

    def accept(name: str) -> None:
        try:
            came.append(invites.accept_invitation(context, made.token, name, PASSWORD).name)
        except LuthierError as error:
            came.append(type(error).__name__)

    threads = [threading.Thread(target=accept, args=(name,)) for name in ("Ben", "Cleo", "Dora")]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(came) == 3, came
    assert came.count("ConflictError") == 2, came
    assert len({"Ben", "Cleo", "Dora"} & set(came)) == 1, came
    assert len(members.list_members(context, ADMIN)) == 1


def test_a_taken_name_or_a_bad_password_leaves_the_invitation_open(context: Context) -> None:
    members.add_member(
        context, Caller(project_id=create_project(context, "other").project_id), "Ben", PASSWORD, "admin"
    )
    made = invites.invite(context, ADMIN, "viewer")
    with pytest.raises(ConflictError, match="exists already"):
        invites.accept_invitation(context, made.token, "Ben", PASSWORD)
    with pytest.raises(RequestError, match="10 characters"):
        invites.accept_invitation(context, made.token, "Cleo", "short")
    assert invites.accept_invitation(context, made.token, "Cleo", PASSWORD).role == "viewer"


def test_an_invitation_ends_by_time_or_by_hand(context: Context) -> None:
    late, withdrawn = invites.invite(context, ADMIN, "admin"), invites.invite(context, ADMIN, "admin")
    is_late = invitations.c.invitation_id == late.invitation.invitation_id
    with context.database.write() as connection:
        connection.execute(update(invitations).where(is_late).values(expires_at=late.invitation.created_at - 1))
    with pytest.raises(ConflictError, match="has expired"):
        invites.accept_invitation(context, late.token, "Ben", PASSWORD)
    found = invites.revoke_invitation(context, ADMIN, withdrawn.invitation.invitation_id)
    again = invites.revoke_invitation(context, ADMIN, withdrawn.invitation.invitation_id)
    assert again.revoked_at == found.revoked_at
    with pytest.raises(ConflictError, match="was withdrawn"):
        invites.accept_invitation(context, withdrawn.token, "Ben", PASSWORD)
    assert members.list_members(context, ADMIN) == []


def test_another_project_sees_and_revokes_nothing(context: Context) -> None:
    other = Caller(project_id=create_project(context, "other").project_id)
    made = invites.invite(context, ADMIN, "viewer")
    assert invites.list_invitations(context, other) == []
    with pytest.raises(NotFoundError):
        invites.revoke_invitation(context, other, made.invitation.invitation_id)
    assert invites.open_invitation(context, made.token).revoked_at is None


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"role": "owner"}, "one of viewer, trainer, admin"),
        ({"role": "viewer", "recipient": "x" * 101}, "at most 100"),
        ({"role": "viewer", "seconds": 5.0}, "one minute"),
        ({"role": "viewer", "seconds": 91 * 86400.0}, "90 days"),
    ],
)
def test_what_cannot_be_an_invitation(context: Context, asked: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        invites.invite(context, ADMIN, **asked)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        invites.open_invitation(context, "no such link")
    assert invites.list_invitations(context, ADMIN) == []


def test_the_address_of_links_is_kept_once_for_a_project(context: Context) -> None:
    assert not public_address(context, "default").is_known
    assert link_root(context, "default", "http://127.0.0.1:8520/") == "http://127.0.0.1:8520"
    learn_public_address(context, ADMIN, "http://127.0.0.1:8520/")
    assert public_address(context, "default").is_loopback
    learn_public_address(context, ADMIN, "no address at all")
    assert link_root(context, "default", "http://elsewhere") == "http://127.0.0.1:8520"
    kept = set_public_address(context, ADMIN, "https://luthier.example/")
    assert (kept.url, kept.is_loopback) == ("https://luthier.example", False)
    other = create_project(context, "other").project_id
    assert not public_address(context, other).is_known, "one project does not decide where links of others lead"


def test_a_trainer_does_not_decide_where_invitations_lead(context: Context) -> None:
    trainer = Caller(scopes=("read", "train", "infer"), name="Ben")
    learn_public_address(context, trainer, "https://ben.example")
    assert link_root(context, "default", "http://here") == "http://here"
    assert link_root(context, "default", "http://here", for_raters=True) == "https://ben.example"
    learn_public_address(context, ADMIN, "https://luthier.example")
    assert link_root(context, "default", "http://here", for_raters=True) == "https://luthier.example"


@pytest.mark.parametrize(
    "url", ["", "luthier.example", "ftp://x", "https://", "https://a b", "https://x/?q=1", "http://u@x"]
)
def test_what_is_no_address(context: Context, url: str) -> None:
    with pytest.raises(RequestError, match="the address of links"):
        set_public_address(context, ADMIN, url)


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("http://localhost:8520", True),
        ("http://127.1.2.3", True),
        ("http://[::1]:8520", True),
        ("http://0.0.0.0:8520", True),
        ("http://192.168.1.4", False),
        ("https://luthier.example", False),
    ],
)
def test_only_this_machine_reaches_a_loopback(url: str, is_local: bool) -> None:
    assert is_loopback(url) == is_local


def test_the_setting_wins_over_projects(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("LUTHIER_PUBLIC_URL", "https://luthier.example/")
    with Context.open(tmp_path / "home") as context:
        assert public_address(context, "default").source == "setting"
        assert link_root(context, "default", "http://x") == "https://luthier.example"
        with pytest.raises(RequestError, match="LUTHIER_PUBLIC_URL"):
            set_public_address(context, ADMIN, "https://other.example")
    monkeypatch.setenv("LUTHIER_PUBLIC_URL", "luthier.example")
    with pytest.raises(RequestError, match="LUTHIER_PUBLIC_URL"):
        Context.open(tmp_path / "home")
