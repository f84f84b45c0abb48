"""Projects, keys and what keys have used, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update
from tests.clock import today

from luthier.core.access import ApiKey
from luthier.core.errors import ConflictError, NotFoundError, QuotaError
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database
from luthier.platform.db.tables import key_usage


@pytest.fixture
def access(database: Database) -> AccessStore:
    return AccessStore(database)


def a_key(number: int, tokens_per_day: int | None = None, project_id: str = "default") -> ApiKey:
    return ApiKey(
        key_id=f"key-{number}",
        project_id=project_id,
        name="n",
        scopes=("read", "infer"),
        tokens_per_day=tokens_per_day,
    )


def test_projects(access: AccessStore) -> None:
    assert [project.name for project in access.projects()] == ["default"]
    made = access.add_project("proj-1", "mine")
    assert access.project("mine") == access.project("proj-1") == made
    for project_id, name in (("proj-1", "other"), ("proj-2", "mine")):
        with pytest.raises(ConflictError, match="exists already"):
            access.add_project(project_id, name)
    with pytest.raises(NotFoundError, match="one of default, mine"):
        access.project("yours")


def test_a_key_is_found_by_its_digest(access: AccessStore) -> None:
    made = access.add_key(a_key(1), "d1")
    assert access.key_of("d1") == made
    found, now = access.key_and_now("d1")
    assert found == made
    assert now >= made.created_at > 1.7e9
    assert access.key_and_now("d2")[0] is None
    assert access.keys() == [made]
    assert access.keys("other") == []


def test_a_revoked_key_stays_known(access: AccessStore) -> None:
    access.add_key(a_key(1), "d1")
    first, is_new = access.revoke("key-1")
    assert first.revoked_at is not None
    assert is_new
    assert access.revoke("key-1") == (first, False)
    for key_id, project_id in (("key-2", None), ("key-1", "other")):
        with pytest.raises(NotFoundError, match="luthier keys list"):
            access.revoke(key_id, project_id)


def test_the_first_key_is_made_once(access: AccessStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda number: access.add_first_key(a_key(number), f"d{number}"), range(8)))
    assert len([key for key in made if key is not None]) == 1
    access.revoke(access.keys()[0].key_id)
    assert access.add_first_key(a_key(9), "d9") is None, "who revoked all keys gets none for free"


def test_a_days_tokens(access: AccessStore, database: Database) -> None:
    access.add_key(a_key(1, tokens_per_day=100), "d1")
    assert access.charge("key-1", 60, may_refuse=True) == 40
    assert access.charge("key-1", 60, may_refuse=True) == 0
    with pytest.raises(QuotaError, match=r"used 120 of its 100 tokens of \d{4}-\d{2}-\d{2} \(UTC\)"):
        access.charge("key-1", 1, may_refuse=True)
    assert access.charge("key-1", 5, may_refuse=False) == 0, "what is done is done"
    with database.write() as connection:
        connection.execute(update(key_usage).values(day="2020-01-01"))
    assert access.num_tokens_on("key-1", "2020-01-01") == 125
    assert access.charge("key-1", 1, may_refuse=True) == 99, "a new day"


def test_tokens_are_counted_without_a_limit_too_and_beyond_32_bits(access: AccessStore) -> None:
    day = today().isoformat()
    access.add_key(a_key(1), "d1")
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: access.charge("key-1", 2**31, may_refuse=True), range(8))) == {None}
    assert access.num_tokens_on("key-1", day) == 8 * 2**31


def test_a_clock_that_is_set_to_and_fro_gives_no_day_twice_its_tokens(
    access: AccessStore, set_clock: Callable[[float], None]
) -> None:
    access.add_key(a_key(1, tokens_per_day=10), "d1")
    access.charge("key-1", 10, may_refuse=True)
    for number in range(2):
        set_clock(24 * 3600.0)
        if number == 0:
            assert access.charge("key-1", 10, may_refuse=True) == 0, "the next day has tokens of its own"
        with pytest.raises(QuotaError):
            access.charge("key-1", 1, may_refuse=True)
        set_clock(-24 * 3600.0)
        with pytest.raises(QuotaError):
            access.charge("key-1", 1, may_refuse=True)
