"""Whose turn it is, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update
from tests.vacuous import nonempty

from luthier.platform.db.database import Database
from luthier.platform.db.tables import idempotency_keys
from luthier.platform.http.idempotency import KEPT_SECONDS, TAKE_OVER_SECONDS, IdempotencyStore


@pytest.fixture
def keys(database: Database) -> IdempotencyStore:
    return IdempotencyStore(database)


@pytest.fixture
def pass_time(database: Database):  # type: ignore[no-untyped-def]
    def age(seconds: float) -> None:
        with database.write() as connection:
            created_at = idempotency_keys.c.created_at - seconds
            connection.execute(update(idempotency_keys).values(created_at=created_at))

    return age


def test_of_many_at_once_one_works(keys: IdempotencyStore) -> None:
    with ThreadPoolExecutor(6) as pool:
        turns = list(pool.map(lambda _: keys.begin("p", "k", "a"), range(12)))
    assert sorted(turn.kind for turn in turns) == ["wait"] * 11 + ["work"]
    assert all(nonempty(0 < turn.seconds <= TAKE_OVER_SECONDS for turn in turns if turn.kind == "wait"))
    assert keys.begin("q", "k", "a").kind == "work", "another project's key is another key"


def test_the_answer_is_given_again(keys: IdempotencyStore) -> None:
    turn = keys.begin("p", "k", "a")
    keys.finish("p", "k", turn.ticket, status=201, answer='{"ö": 1}')
    again = keys.begin("p", "k", "a")
    assert (again.kind, again.status, again.answer) == ("replay", 201, '{"ö": 1}')
    assert keys.begin("p", "k", "b").kind == "other"


def test_what_was_forgotten_is_done_by_the_next(keys: IdempotencyStore) -> None:
    keys.forget("p", "k", keys.begin("p", "k", "a").ticket)
    turn = keys.begin("p", "k", "b")
    assert turn.kind == "work"
    keys.finish("p", "k", turn.ticket, status=200, answer="1")
    keys.forget("p", "k", turn.ticket)
    assert keys.begin("p", "k", "b").kind == "replay", "what is answered is not forgotten"


def test_who_died_at_it_is_followed_and_not_heard_any_more(keys: IdempotencyStore, pass_time) -> None:  # type: ignore[no-untyped-def]
    first = keys.begin("p", "k", "a")
    pass_time(TAKE_OVER_SECONDS + 1)
    second = keys.begin("p", "k", "a")
    assert second.kind == "work"
    keys.finish("p", "k", first.ticket, status=200, answer="late")
    keys.forget("p", "k", first.ticket)
    assert keys.begin("p", "k", "a").kind == "wait"
    keys.finish("p", "k", second.ticket, status=200, answer="mine")
    assert keys.begin("p", "k", "a").answer == "mine"


def test_a_day_later_all_is_forgotten(keys: IdempotencyStore, pass_time) -> None:  # type: ignore[no-untyped-def]
    for key in ("k", "l"):
        keys.finish("p", key, keys.begin("p", key, "a").ticket, status=200, answer="1")
    pass_time(KEPT_SECONDS + 1)
    assert keys.begin("p", "k", "b").kind == "work"
    assert keys.sweep() == 1
    assert keys.begin("p", "l", "b").kind == "work"


def test_a_clock_that_is_set_back_locks_nobody_out_and_loses_no_answer(
    keys: IdempotencyStore, set_clock: Callable[[float], None]
) -> None:
    done = keys.begin("p", "done", "a")
    keys.finish("p", "done", done.ticket, status=200, answer="1")
    first = keys.begin("p", "died", "a")
    set_clock(-3 * 3600.0)
    assert keys.begin("p", "done", "a").kind == "replay"
    second = keys.begin("p", "died", "a")
    assert second.kind == "work", "else it would have to wait for three hours"
    keys.finish("p", "died", first.ticket, status=200, answer="late")
    assert keys.begin("p", "died", "a").kind == "wait"
    keys.finish("p", "died", second.ticket, status=200, answer="2")
    assert keys.begin("p", "died", "a").answer == "2"
