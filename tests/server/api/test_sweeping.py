"""The server clears away by itself."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from sqlalchemy import update

from luthier.core.errors import WorkError
from luthier.platform.db.tables import files
from luthier.platform.files.service import add_file, sweep_files
from luthier.platform.home.context import Context
from luthier.server import api
from luthier.server.api import swept


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (WorkError("the store does not answer", expected="an answer", do="wait"), "the store does not answer"),
        (OSError("the disk is gone"), "the disk is gone"),
        (KeyError("sha256"), "failed: an error of our own"),
    ],
)
def test_what_expires_goes_without_being_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, words: str
) -> None:
    calls: list[int] = []

    def sweep(context: Context) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise error
        sweep_files(context)

    async def serve(context: Context) -> None:
        async with swept(context, every_seconds=0.01):
            while len(calls) < 3 and len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(api, "sweep_files", sweep)
    (tmp_path / "rows").write_text("rows")
    with Context.open(tmp_path / "home") as context:
        file = add_file(context, "default", tmp_path / "rows", filename="rows", purpose="fine-tune")
        with context.database.write() as connection:
            connection.execute(update(files).values(expires_at=1.0))
        asyncio.run(serve(context))
        assert not context.artifacts.has(file.sha256)
    assert words in caplog.text


def test_an_error_before_the_sweeps_keeps_none_of_the_later_ones_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    async def serve(context: Context) -> None:
        def settle() -> None:
            calls.append("settle")
            if len(calls) == 1:
                raise KeyError("tokens")

        monkeypatch.setattr(context.late_charges, "settle", settle)
        async with swept(context, every_seconds=0.01):
            while "sweep" not in calls and len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(api, "sweep_files", lambda context: calls.append("sweep"))
    with Context.open(tmp_path / "home") as context:
        asyncio.run(serve(context))
    assert calls[:3] == ["settle", "settle", "sweep"]
    assert "has to wait: an error of our own" in caplog.text


def test_nothing_is_deleted_just_after_the_clock_was_set_forward(caplog: pytest.LogCaptureFixture) -> None:
    passed, wall = [0.0], [1.7e9]
    steady = api._SteadyClock(lambda: passed[0])

    def go_on(seconds: float, *, set_by: float = 0.0) -> bool:
        passed[0] += seconds
        wall[0] += seconds + set_by
        return steady.is_steady(wall[0])

    assert go_on(60)
    assert go_on(60)
    assert not go_on(60, set_by=30 * 86400.0)
    assert "the clock was set forward by 2592000 s" in caplog.text
    assert not go_on(60)
    assert not go_on(60, set_by=-30 * 86400.0), "set right again; nothing was lost"
    assert go_on(api.WAIT_AFTER_JUMP_SECONDS)
    assert go_on(60, set_by=-3600), "a clock that is set back deletes nothing"


def test_a_sweep_that_is_running_at_the_end_is_waited_for_and_no_further_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread would otherwise work on with a context that is closed."""
    begun, go_on, calls = threading.Event(), threading.Event(), list[str]()

    def sweep(context: Context) -> None:
        begun.set()
        assert go_on.wait(60)
        calls.append("ended")

    async def serve(context: Context) -> None:
        async with swept(context, every_seconds=0.01):
            await asyncio.to_thread(begun.wait, 60)
            # While the block is being left.
            asyncio.get_running_loop().call_later(0.2, go_on.set)
        calls.append("left")

    monkeypatch.setattr(api, "sweep_files", sweep)
    monkeypatch.setattr(api, "sweep_traffic", lambda context: calls.append("further"))
    with Context.open(tmp_path / "home") as context:
        asyncio.run(serve(context))
    assert calls == ["ended", "left"]


def test_the_folders_of_jobs_are_looked_at_once_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    passed = [0.0]

    def sweep(context: Context) -> None:
        calls.append("files")
        passed[0] += 1800.0

    async def serve(context: Context) -> None:
        async with swept(context, every_seconds=0.01):
            while calls.count("files") < 4 and len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(api, "sweep_files", sweep)
    monkeypatch.setattr(api, "sweep_job_files", lambda context: calls.append("jobs"))
    monkeypatch.setattr(api, "elapsed", lambda: passed[0])
    with Context.open(tmp_path / "home") as context:
        asyncio.run(serve(context))
    assert [calls[:place].count("files") for place, call in enumerate(calls) if call == "jobs"][:2] == [1, 3]
