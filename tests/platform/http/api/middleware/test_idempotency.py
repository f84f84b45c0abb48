"""A request that comes twice is carried out once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI, Request
from sqlalchemy import select, update
from starlette.testclient import TestClient

from luthier.platform.auth.service import create_project
from luthier.platform.db.tables import idempotency_keys
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import HomeContext, Trainer
from luthier.platform.http.idempotency import once

MakeClient = Callable[..., TestClient]
KEY = {"Idempotency-Key": "3f2b9c1e"}


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_the_same_again_gets_the_first_answer(client: MakeClient, made: list[int]) -> None:
    asker = client()
    first = asker.post("/v1/things", json={"size": 3}, headers=KEY)
    again = asker.post("/v1/things", json={"size": 3}, headers=KEY)
    assert first.json() == again.json() == {"size": 3, "number": 1}
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert made == [3]


def test_without_the_header_each_is_carried_out(client: MakeClient, made: list[int]) -> None:
    for _ in range(2):
        client().post("/v1/things", json={"size": 3})
    assert made == [3, 3]


def test_a_key_is_for_one_request(client: MakeClient, made: list[int]) -> None:
    asker = client()
    asker.post("/v1/things", json={"size": 3}, headers=KEY)
    assert code(asker.post("/v1/things", json={"size": 4}, headers=KEY)) == (422, "idempotency_key_reused")
    assert made == [3]


def test_projects_do_not_share_keys(client: MakeClient, home: Context, made: list[int]) -> None:
    create_project(home, "other")
    client().post("/v1/things", json={"size": 3}, headers=KEY)
    assert client(project="other").post("/v1/things", json={"size": 4}, headers=KEY).json() == {"size": 4, "number": 2}


@pytest.mark.parametrize(("size", "status"), [(-1, 409), (101, 500)])
def test_what_failed_is_not_kept(client: MakeClient, made: list[int], size: int, status: int) -> None:
    asker = client()
    for _ in range(2):
        failed = asker.post("/v1/things", json={"size": size}, headers=KEY)
        assert (failed.status_code, "idempotent-replayed" in failed.headers) == (status, False)
    assert asker.post("/v1/things", json={"size": 1}, headers=KEY).status_code == 200, "corrected, by the same key"


def test_while_the_first_is_at_work_the_second_is_told_to_wait(client: MakeClient, things_app: FastAPI) -> None:
    answers: list[Any] = []
    asker = client()

    @things_app.post("/v1/slow")
    def slow(request: Request, caller: Trainer, context: HomeContext) -> Any:
        def work() -> str:
            answers.append(asker.post("/v1/slow", json={}, headers=KEY))
            return "done"

        return once(request, caller, context, work)

    assert asker.post("/v1/slow", json={}, headers=KEY).json() == "done"
    assert code(answers[0]) == (409, "idempotency_key_in_use")
    assert answers[0].headers["retry-after"] == "1"
    assert answers[0].headers["x-should-retry"] == "true"


def test_what_another_process_died_at_is_taken_over(client: MakeClient, home: Context, made: list[int]) -> None:
    asker = client()
    asker.post("/v1/things", json={"size": 3}, headers=KEY)
    with home.database.write() as connection:
        connection.execute(update(idempotency_keys).values(status=None, answer=None))
    waiting = asker.post("/v1/things", json={"size": 3}, headers=KEY)
    assert waiting.status_code == 409
    assert 1 <= int(waiting.headers["retry-after"]) <= 60
    with home.database.write() as connection:
        connection.execute(update(idempotency_keys).values(created_at=idempotency_keys.c.created_at - 61))
    assert asker.post("/v1/things", json={"size": 3}, headers=KEY).json() == {"size": 3, "number": 2}
    assert asker.post("/v1/things", json={"size": 3}, headers=KEY).headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
def test_a_key_that_cannot_be(client: MakeClient, home: Context, key: str) -> None:
    answer = client().post("/v1/things", json={"size": 3}, headers={"Idempotency-Key": key})
    assert code(answer) == (400, "invalid_idempotency_key")
    with home.database.read() as connection:
        assert connection.execute(select(idempotency_keys)).all() == []
