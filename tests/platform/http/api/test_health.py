"""Alive and ready, as those who watch over processes ask."""

from __future__ import annotations

import shutil

import pytest
from fastapi import FastAPI
from sqlalchemy import text

from luthier.platform.home.context import Context
from luthier.platform.http import health as health


def test_ready_without_a_key(visitor) -> None:  # type: ignore[no-untyped-def]
    asked = visitor()
    assert asked.get("/healthz").json() == {"status": "ok"}
    answer = asked.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "checks": {"database": "ok", "artifacts": "ok", "disk": "ok"}}


def test_each_reason_stands_in_the_answer(visitor, home: Context, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    with home.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0003'"))
    home.settings.artifacts_folder.write_text("no folder")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1 << 20))
    answer = visitor().get("/readyz")
    assert answer.status_code == 503
    checks = answer.json()["checks"]
    assert checks["database"] == "its tables are of version 0003"
    assert checks["artifacts"] == "Not a directory"
    assert checks["disk"] == "1 MiB are free"
    assert visitor().get("/healthz").status_code == 200, "the process itself is well"


def test_it_is_remembered_for_a_moment_and_never_ready_while_stopping(
    visitor, home: Context, monkeypatch: pytest.MonkeyPatch  # type: ignore[no-untyped-def]
) -> None:  # fmt: skip
    looks: list[Context] = []

    def look(given: Context) -> tuple[health.Check, ...]:
        looks.append(given)
        return ()

    monkeypatch.setattr(health, "look", look)
    asked = visitor()
    for _ in range(5):
        assert asked.get("/readyz").status_code == 200
    assert looks == [home]
    app = asked.app
    assert isinstance(app, FastAPI)
    app.state.readiness.is_stopping = True
    stopping = asked.get("/readyz")
    assert (stopping.status_code, stopping.json()["checks"]) == (503, {"server": "it is shutting down"})
