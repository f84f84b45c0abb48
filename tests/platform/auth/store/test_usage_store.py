"""Usage is summed up by key, day, model and target, on both databases."""

from __future__ import annotations

from luthier.core.access import ApiKey
from luthier.platform.auth.store import AccessStore, UsageStore, Use, day_of
from luthier.platform.db.database import Database


def a_use(**changes: object) -> Use:
    values = {"project_id": "default", "key_id": "", "model": "m", "target": "t"}
    return Use(**(values | {"num_prompt_tokens": 10, "num_new_tokens": 3} | changes))  # type: ignore[arg-type]


def test_answers_are_summed_up(database: Database) -> None:
    store = UsageStore(database)
    for use in (a_use(), a_use(cost_usd=0.5), a_use(cost_usd=0.25), a_use(target="u"), a_use(key_id="key-1")):
        store.add(use)
    found = {(row.target, row.key_id): row for row in store.list("default")}
    assert set(found) == {("t", ""), ("u", ""), ("t", "key-1")}
    row = found["t", ""]
    assert (row.num_requests, row.num_prompt_tokens, row.num_new_tokens, row.cost_usd) == (3, 30, 9, 0.75)
    assert found["u", ""].cost_usd is None
    assert row.day == day_of(AccessStore(database).now())
    assert store.num_requests("default", ["m", "none"]) == {("m", "t"): 4, ("m", "u"): 1}
    assert store.list("default", model="other") == store.list("default", since="9999-01-01") == []
    AccessStore(database).add_project("proj-b", "b")
    assert store.list("proj-b") == []


def test_it_is_counted_with_the_tokens_of_the_key(database: Database) -> None:
    access, store = AccessStore(database), UsageStore(database)
    access.add_key(ApiKey(key_id="key-1", project_id="default", name="k", scopes=("infer",)), "0" * 64)
    access.charge("key-1", 0, may_refuse=True)
    access.charge("key-1", 13, may_refuse=False, use=a_use(key_id="key-1"))
    assert [(row.key_id, row.num_requests) for row in store.list("default")] == [("key-1", 1)]
    assert access.num_tokens_on("key-1", store.list("default")[0].day) == 13


def test_a_long_name_is_cut_not_refused(database: Database) -> None:
    store = UsageStore(database)
    for _ in range(2):
        store.add(a_use(model="m" * 300, target="t" * 300))
    assert [(len(row.model), row.num_requests) for row in store.list("default")] == [(255, 2)]


def test_days_are_of_utc() -> None:
    assert (day_of(0), day_of(86_399.9), day_of(86_400)) == ("1970-01-01", "1970-01-01", "1970-01-02")
