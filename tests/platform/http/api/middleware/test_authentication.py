"""Who is let in, who may what, and how often."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from tests.clock import Clock

from luthier.core.errors import WorkError
from luthier.platform.auth import authenticator as authenticator_module
from luthier.platform.auth.authenticator import (
    FAILURES_PER_MINUTE,
    REMEMBERED_SECONDS,
    WHILE_ASKED_SECONDS,
    Authenticator,
)
from luthier.platform.auth.service import create_project, list_keys, revoke_key
from luthier.platform.home.context import Context

MakeClient = Callable[..., TestClient]


@pytest.fixture
def clock(things_app: FastAPI, home: Context) -> Clock:
    clock = Clock()
    things_app.state.authenticator = Authenticator(home, clock=clock)
    return clock


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer  ", "Basic abc", "sk-luthier-x"])
def test_without_a_key_nobody_is_let_in(client: MakeClient, header: str | None) -> None:
    stranger = client()
    del stranger.headers["Authorization"]
    answer = stranger.get("/v1/things", headers={} if header is None else {"Authorization": header})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "missing_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_wrong_key_is_told_so(client: MakeClient) -> None:
    answer = client().get("/v1/things", headers={"Authorization": "Bearer sk-luthier-wrong"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


def test_a_key_opens_its_own_project_and_its_own_scopes(client: MakeClient, home: Context) -> None:
    other = create_project(home, "other")
    reader = client("read", project="other")
    assert reader.get("/v1/things").json() == {"project": other.project_id}
    refused = reader.post("/v1/things", json={"size": 1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
    assert client("admin").post("/v1/things", json={"size": 1}).status_code == 200


def test_a_revoked_key_is_out_within_seconds(
    client: MakeClient, home: Context, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    asker = client("read")
    assert asker.get("/v1/things").status_code == 200
    revoke_key(home, list_keys(home)[0].key_id)
    assert REMEMBERED_SECONDS + WHILE_ASKED_SECONDS <= 5
    clock.now += REMEMBERED_SECONDS
    caplog.set_level("INFO", "luthier.service")
    assert asker.get("/v1/things").status_code == 401
    assert list_keys(home)[0].key_id in caplog.text


def test_while_one_asks_again_the_others_are_let_in(client: MakeClient, home: Context, clock: Clock) -> None:
    asker = client("read")
    assert asker.get("/v1/things").status_code == 200
    authenticator: Authenticator = asker.app.state.authenticator  # type: ignore[attr-defined]
    key = asker.headers["Authorization"].removeprefix("Bearer ")
    clock.now += REMEMBERED_SECONDS
    assert authenticator.recall(key) is None, "this one asks"
    assert authenticator.recall(key) is not None
    clock.now += WHILE_ASKED_SECONDS
    assert authenticator.recall(key) is None, "it got no answer: now all ask"
    assert authenticator.recall(key) is None
    assert authenticator.look_up(key, "").caller is not None
    assert authenticator.recall(key) is not None
    authenticator.forget_all()
    assert authenticator.recall(key) is None


def test_a_key_that_expires_is_not_remembered_beyond_that(
    client: MakeClient, home: Context, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Keys expire by the database's clock, which goes on: however slow this machine is, this one is still valid.
    monkeypatch.setattr(authenticator_module, "REMEMBERED_SECONDS", 7200.0)
    asker = client("read", expires_in_seconds=3600.0)
    assert asker.get("/v1/things").status_code == 200
    authenticator: Authenticator = asker.app.state.authenticator  # type: ignore[attr-defined]
    key = asker.headers["Authorization"].removeprefix("Bearer ")
    assert authenticator.recall(key) is not None
    clock.now += 3600
    assert authenticator.recall(key) is None, "the database is asked again, and its clock decides"


def test_so_many_requests_a_minute(client: MakeClient, clock: Clock) -> None:
    asker = client("read", requests_per_minute=2)
    first = asker.get("/v1/things")
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"] == "30000ms"
    assert asker.get("/v1/things").status_code == 200
    refused = asker.get("/v1/things")
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("30", "30000")
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    clock.now += 30
    assert asker.get("/v1/things").status_code == 200
    assert asker.get("/v1/things").status_code == 429
    assert client("read", requests_per_minute=2).get("/v1/things").status_code == 200, "each key has its own"


def test_a_refused_scope_counts_too(client: MakeClient, clock: Clock) -> None:
    asker = client("read", requests_per_minute=1)
    assert asker.post("/v1/things", json={"size": 1}).status_code == 403
    assert asker.get("/v1/things").status_code == 429


def test_who_tries_keys_is_slowed_down_and_nobody_else(client: MakeClient, home: Context, clock: Clock) -> None:
    known = client("read")
    assert known.get("/v1/things").status_code == 200
    for number in range(FAILURES_PER_MINUTE):
        wrong = {"Authorization": f"Bearer sk-luthier-{number}"}
        assert known.get("/v1/things", headers=wrong).status_code == 401
    refused = known.get("/v1/things", headers={"Authorization": "Bearer sk-luthier-one-more"})
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    assert int(refused.headers["retry-after"]) >= 1
    clock.now += 1
    assert known.get("/v1/things").status_code == 200, "who was let in before is not shut out by others"
    clock.now += 10 * REMEMBERED_SECONDS
    assert client("read").get("/v1/things").status_code == 200


def test_the_same_wrong_key_again_costs_nothing(client: MakeClient, clock: Clock) -> None:
    old = {"Authorization": "Bearer sk-luthier-old"}
    asker = client("read")
    for _ in range(3 * FAILURES_PER_MINUTE):
        assert asker.get("/v1/things", headers=old).status_code == 401
    assert asker.get("/v1/things").status_code == 200


def test_a_day_holds_so_many_tokens(client: MakeClient) -> None:
    asker = client("infer", tokens_per_day=10)
    assert asker.post("/v1/answers?num_tokens=4").json() == {"left": 6}
    assert asker.post("/v1/answers?num_tokens=8").json() == {"left": 0}, "what has begun within the limit is finished"
    refused = asker.post("/v1/answers?num_tokens=1")
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    assert refused.json()["error"]["type"] == refused.json()["error"]["code"] == "insufficient_quota"
    assert client("infer").post("/v1/answers?num_tokens=5").json() == {"left": None}


def test_no_key_no_look_at_the_body(client: MakeClient) -> None:
    wrong = {"Authorization": "Bearer sk-luthier-wrong", "Content-Type": "application/json"}
    for path in ("/v1/things", "/v1/nowhere", "/api/v1/nowhere"):
        assert client().post(path, content=b"{not json", headers=wrong).status_code == 401


def test_a_database_that_does_not_answer_is_told_as_such(client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise WorkError("the database does not answer", expected="an answer", do="start it")

    monkeypatch.setattr(Authenticator, "look_up", fail)
    answer = client().get("/v1/things")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_without_a_key_no_file_is_taken(client: MakeClient) -> None:
    sent: list[int] = []

    def body() -> object:
        for number in range(3):
            sent.append(number)
            yield b"x"

    answer = client().post("/v1/files/", content=body(), headers={"Authorization": "Bearer sk-luthier-wrong"})  # type: ignore[arg-type]
    assert answer.status_code == 401
    taken = client("train", requests_per_minute=5).post("/v1/files/", content=b"x" * (5 << 20))
    assert taken.json() == {"num_bytes": 5 << 20}
    assert taken.headers["x-ratelimit-remaining-requests"] == "4", "looked at twice, counted once"
