"""Members, sessions and links, on both databases."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import delete, update

from luthier.core.access import DEFAULT_PROJECT, ApiKey
from luthier.core.errors import ConflictError, NotFoundError
from luthier.platform.auth.members_store import Member, MemberStore
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database
from luthier.platform.db.tables import projects, web_sessions

ADA = Member(member_id="member-1", project_id=DEFAULT_PROJECT, name="Ada", role="viewer")


@pytest.fixture
def store(database: Database) -> MemberStore:
    return MemberStore(database)


def test_a_member_is_kept_with_the_hash_of_a_password(store: MemberStore) -> None:
    made = store.add(ADA, "hash")
    assert made.created_at > 1e9
    assert store.list(DEFAULT_PROJECT) == [made]
    assert store.get(DEFAULT_PROJECT, "member-1") == made
    assert store.with_password("Ada") == (made, "hash")
    assert store.with_password("ada") is None
    with pytest.raises(ConflictError, match="exists already"):
        store.add(ADA.model_copy(update={"member_id": "member-2"}), "hash")


def test_members_of_other_projects_are_as_if_they_were_not_there(store: MemberStore, database: Database) -> None:
    AccessStore(database).add_project("proj-2", "mine")
    store.add(ADA, "hash")
    assert store.list("proj-2") == []
    for ask in (
        lambda: store.get("proj-2", "member-1"),
        lambda: store.change("proj-2", "member-1", role="admin"),
        lambda: store.remove("proj-2", "member-1"),
    ):
        with pytest.raises(NotFoundError):
            ask()
    assert store.get(DEFAULT_PROJECT, "member-1").role == "viewer"


def test_a_name_is_taken_once_and_a_member_that_is_not_there_cannot_be_changed(store: MemberStore) -> None:
    store.add(ADA, "hash")
    with pytest.raises(ConflictError):
        store.add(ADA, "hash")
    with pytest.raises(NotFoundError):
        store.change(DEFAULT_PROJECT, "member-none", role="admin")
    with pytest.raises(NotFoundError):
        store.remove(DEFAULT_PROJECT, "member-none")
    assert store.change(DEFAULT_PROJECT, "member-1", role="admin").role == "admin"
    store.remove(DEFAULT_PROJECT, "member-1")
    assert store.list(DEFAULT_PROJECT) == []


def test_a_session_stands_for_a_member_a_key_or_the_person_at_the_machine(
    store: MemberStore, database: Database
) -> None:
    key = AccessStore(database).add_key(
        ApiKey(key_id="key-1", project_id=DEFAULT_PROJECT, name="k", scopes=("read",)), "0" * 64
    )
    member = store.add(ADA, "hash")
    store.add_session("m", DEFAULT_PROJECT, seconds=60, member_id="member-1")
    store.add_session("k", DEFAULT_PROJECT, seconds=60, key_id="key-1")
    store.add_session("l", DEFAULT_PROJECT, seconds=60)
    found = {digest: store.session(digest) for digest in "mkl"}
    assert {digest: (one.member, one.key) for digest, one in found.items() if one} == {
        "m": (member, None),
        "k": (None, key),
        "l": (None, None),
    }
    assert store.session("none") is None
    whose = {"m": ("member-1", None), "k": (None, "key-1"), "l": (None, None)}
    for digest, (member_id, key_id) in whose.items():
        listed = store.sessions(DEFAULT_PROJECT, member_id=member_id, key_id=key_id)
        assert [one.digest for one in listed] == [digest]


def test_a_session_ends_by_time_by_hand_with_the_password_and_with_the_member(store: MemberStore) -> None:
    store.add(ADA, "hash")

    def begin(seconds: float = 60.0) -> None:
        store.add_session("s", DEFAULT_PROJECT, seconds=seconds, member_id="member-1")

    begin(seconds=-1)
    assert store.session("s") is None
    begin()  # what has expired is forgotten with the next one, or it would be in the way of this one
    store.end_session("s")
    assert store.session("s") is None
    begin()
    store.change(DEFAULT_PROJECT, "member-1", password="other")
    assert store.session("s") is None
    begin()
    store.remove(DEFAULT_PROJECT, "member-1")
    assert store.session("s") is None


def test_a_session_that_is_extended_lasts_from_now_on(store: MemberStore, database: Database) -> None:
    store.add_session("s", DEFAULT_PROJECT, seconds=60)
    with database.write() as connection:
        connection.execute(update(web_sessions).values(seen_at=1.0))
    store.extend("s", 1000)
    found = store.session("s")
    assert found is not None
    assert found.expires_at - found.seen_at == pytest.approx(1000)
    assert found.seen_at > 1e9


def test_all_other_sessions_of_one_are_ended_and_nobody_elses(store: MemberStore, database: Database) -> None:
    store.add(ADA, "hash")
    for digest in ("a", "b", "c"):
        store.add_session(digest, DEFAULT_PROJECT, seconds=60, member_id="member-1")
    store.add_session("l", DEFAULT_PROJECT, seconds=60)
    assert store.end_others("a", DEFAULT_PROJECT, member_id="member-1", key_id=None) == 2
    assert store.end_others("a", DEFAULT_PROJECT, member_id="member-1", key_id=None) == 0
    assert [digest for digest in "abcl" if store.session(digest)] == ["a", "l"]


def test_a_project_that_is_gone_takes_its_members_and_sessions_with_it(store: MemberStore, database: Database) -> None:
    AccessStore(database).add_project("proj-2", "mine")
    store.add(ADA.model_copy(update={"project_id": "proj-2"}), "hash")
    store.add_session("m", "proj-2", seconds=60, member_id="member-1")
    store.add_session("l", "proj-2", seconds=60)
    with database.write() as connection:
        connection.execute(delete(projects).where(projects.c.project_id == "proj-2"))
    assert store.session("m") is None
    assert store.session("l") is None
    assert store.with_password("Ada") is None


def test_a_link_works_once_and_in_time(store: MemberStore) -> None:
    store.add_link("good", 60)
    store.add_link("old", -1)
    assert [store.use_link(digest, 60) for digest in ("good", "good", "old", "none")] == [True, False, False, False]


def test_a_clock_that_is_set_signs_nobody_out_and_gives_no_link_a_longer_life(
    store: MemberStore, set_clock: Callable[[float], None]
) -> None:
    store.add_session("d", "default", seconds=14 * 24 * 3600.0)
    for seconds in (-5 * 3600.0, 10 * 3600.0, -5 * 3600.0):
        set_clock(seconds)
        assert store.session("d") is not None
    store.add_link("before", 900.0)
    set_clock(-3 * 3600.0)
    assert not store.use_link("before", 900.0), "it was good for a quarter of an hour, not for three hours and more"
    store.add_link("after", 900.0)
    assert store.use_link("after", 900.0)
