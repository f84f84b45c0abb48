"""Work that outlives a request stops with the key or the member that started it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.access import Caller
from luthier.core.errors import NotAllowedError
from luthier.platform.auth.access_check import REMEMBERED_SECONDS, AccessCheck
from luthier.platform.auth.members_store import Member
from luthier.platform.auth.service import create_key, revoke_key
from luthier.platform.db.tables import api_keys
from luthier.platform.home.context import Context


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context.open(tmp_path / "home")


def refused(check: AccessCheck) -> str:
    with pytest.raises(NotAllowedError) as caught:
        check.require()
    return caught.value.came


def test_a_revoked_key_is_noticed_within_a_second(context: Context) -> None:
    with context:
        key, _ = create_key(context, "ci", scopes=("infer",))
        clock = Clock()
        caller = Caller(key_id=key.key_id, name="ci", scopes=("infer",))
        check = AccessCheck(context, caller, "infer", clock=clock)
        check.require()
        revoke_key(context, key.key_id)
        check.require()  # known for a moment, so that not every unit of work reads the database
        clock.now += REMEMBERED_SECONDS
        assert "'ci'" in refused(check)
        assert "was revoked" in refused(check)


def test_expired_and_missing_keys_and_lost_scopes(context: Context) -> None:
    with context:
        key, _ = create_key(context, "ci", scopes=("read",), expires_in_seconds=3600)
        caller = Caller(key_id=key.key_id, name="ci")
        AccessCheck(context, caller, "read").require()
        assert "has lost the scope infer" in refused(AccessCheck(context, caller, "infer"))
        other = caller.model_copy(update={"project_id": "proj-other"})
        assert "is gone" in refused(AccessCheck(context, other, "read"))
        with context.database.write() as connection:
            connection.execute(api_keys.update().values(expires_at=1.0))
        assert "has expired" in refused(AccessCheck(context, caller, "read"))
        unknown = Caller(key_id="key-none", name="old")
        assert "the key 'old' (key-none) is gone" in refused(AccessCheck(context, unknown, "read"))


def test_members_may_as_long_as_they_are_in_the_project_with_such_a_role(context: Context) -> None:
    with context:
        member = Member(member_id="mem-1", project_id="default", name="anna", role="viewer")
        context.members.add(member, "hash")
        caller = Caller(member_id="mem-1", name="anna")
        AccessCheck(context, caller, "infer").require()
        assert "has lost the scope train" in refused(AccessCheck(context, caller, "train"))
        context.members.remove("default", "mem-1")
        assert "was removed from the project" in refused(AccessCheck(context, caller, "infer"))


def test_a_person_at_the_machine_may_always(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    with context:
        reads: list[Callable[..., object]] = []
        monkeypatch.setattr(context.access, "key_by_id", reads.append)
        AccessCheck(context, Caller(), "infer").require()
        assert reads == []
