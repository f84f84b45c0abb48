"""Another process keeps the database locked: requests end with what is wrong, nothing is lost, nothing half done."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import Request
from fastapi.testclient import TestClient
from sqlalchemy import QueuePool

from luthier.core.access import Caller
from luthier.platform.auth.service import charge_tokens, create_key
from luthier.platform.auth.store import Use
from luthier.platform.db import sqlite
from luthier.platform.files.service import list_files
from luthier.platform.home.context import Context
from luthier.platform.http import health as health
from luthier.platform.http.idempotency import once

Visitor = Callable[..., TestClient]
HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
"""


@contextmanager
def locked(home: Context) -> Iterator[None]:
    """Another process is in the middle of a transaction that writes."""
    command = [sys.executable, "-c", HOLD, str(home.settings.database_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            process.communicate("\n", timeout=60)


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(health, "WRITE_SECONDS", 0.1)
    monkeypatch.setattr(health, "_REMEMBERED_SECONDS", 0.0)


def upload(client: TestClient) -> Any:
    rows = ("rows.jsonl", b'{"prompt": "a", "completion": "b"}\n')
    return client.post("/v1/files", files={"file": rows}, data={"purpose": "fine-tune"})


def test_requests_that_write_are_refused_and_leave_nothing_behind(visitor: Visitor, home: Context) -> None:
    client = visitor("admin")
    assert upload(client).status_code == 200
    with locked(home):
        for _ in range(2):
            answer = upload(client)
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert "was busy for" in answer.json()["error"]["message"]
        assert client.get("/v1/files").status_code == 200, "reading goes on"
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["checks"]["database"] == "no transaction that writes gets a turn within 0.1 s"
        assert str(home.home) not in ready.text
        assert client.get("/healthz").status_code == 200, "the process itself is well"
        assert list(home.artifacts.incoming.iterdir()) == []
    assert client.get("/readyz").status_code == 200
    assert upload(client).status_code == 200
    assert len(list_files(home, "default")[0]) == 2


def test_many_that_wait_to_write_keep_nobody_from_reading(home: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a pool of connections has by default; and all of them write in the end."""
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_SECONDS", 20)
    pool_of_connections = home.database._engine.pool
    assert isinstance(pool_of_connections, QueuePool)
    with ThreadPoolExecutor(36) as pool:
        with locked(home):
            writing = [pool.submit(create_key, home, f"k{number}", scopes=("read",)) for number in range(36)]
            while pool_of_connections.checkedout() < 15:
                time.sleep(0.01)
            assert home.access.keys() == []
            assert not any(one.done() for one in writing), "it was read while all of them waited"
        for one in writing:
            one.result(120)
    assert len(home.access.keys()) == 36


def test_an_answer_that_was_given_is_counted_when_the_database_answers_again(home: Context) -> None:
    key, _ = create_key(home, "k", scopes=("infer",), tokens_per_day=10)
    caller = Caller(project_id="default", key_id=key.key_id, name="k")
    use = Use(project_id="default", key_id=key.key_id, model="m", target="m", num_prompt_tokens=3, num_new_tokens=4)
    with locked(home):
        assert charge_tokens(home, caller, 7, may_refuse=False, use=use) is None
        assert len(home.late_charges) == 1
    assert home.late_charges.settle() == 1
    assert charge_tokens(home, caller, 1, may_refuse=False) == 2
    (day,) = home.usage.list("default")
    assert day.num_new_tokens == 4


def test_what_was_done_is_answered_although_it_cannot_be_written_down(home: Context) -> None:
    from luthier.server.api import create_app

    app, done = create_app(home), list[int]()

    @app.post("/work")
    def work(request: Request) -> Any:
        def do() -> dict[str, int]:
            done.append(1)
            if len(done) == 1:
                holding.__enter__()
            return {"n": len(done)}

        return once(request, Caller(), home, do)

    holding = locked(home)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        answer = client.post("/work", headers={"Idempotency-Key": "k"})
        refused = client.post("/work", headers={"Idempotency-Key": "other"})
        holding.__exit__(None, None, None)
        assert (answer.status_code, answer.json()) == (200, {"n": 1})
        assert refused.status_code == 503
        assert done == [1], "what cannot be written down first is not begun"
        first, second = (client.post("/work", headers={"Idempotency-Key": "other"}) for _ in range(2))
        assert first.json() == second.json() == {"n": 2}
        assert second.headers["idempotent-replayed"] == "true"
