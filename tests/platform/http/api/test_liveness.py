"""A process whose threads are gone says so, also under many questions, and says that all is well again."""

from __future__ import annotations

import asyncio
import threading
import time

import httpx2
import pytest
from anyio.to_thread import current_default_thread_limiter, run_sync

from luthier.platform.home.context import Context
from luthier.platform.http import health
from luthier.platform.http.health import InThread
from luthier.server.api import create_app


async def _answers(client: httpx2.AsyncClient, path: str, num: int = 1) -> list[httpx2.Response]:
    return list(await asyncio.gather(*[client.get(path) for _ in range(num)]))


def test_threads_that_are_gone_are_told_and_seen_to_come_back(home: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    async def story() -> None:
        transport = httpx2.ASGITransport(app=create_app(home))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
            num = int(current_default_thread_limiter().total_tokens)
            assert [a.json() for a in await _answers(client, "/healthz")] == [{"status": "ok"}]
            monkeypatch.setattr(health, "THREAD_SECONDS", 0.2)
            stuck = [asyncio.create_task(run_sync(go.wait, 120)) for _ in range(num)]
            answers = await _answers(client, "/healthz", 100)
            assert {answer.status_code for answer in answers} == {503}
            assert f"{num} of {num} are busy" in answers[0].json()["problems"]["threads"]
            waiting = current_default_thread_limiter().statistics().tasks_waiting
            assert waiting == 1, "a hundred questions wait for one thread"
            go.set()
            await asyncio.gather(*stuck)
            # The one that waited for a thread may still be on its way: a probe asks again, and so does this test.
            deadline = time.monotonic() + 60
            while (again := (await _answers(client, "/healthz"))[0]).status_code != 200:
                assert time.monotonic() < deadline, again.text
                await asyncio.sleep(0.01)

    asyncio.run(story())


def test_threads_that_hash_and_do_not_end_are_told(home: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home.password_threads, "longest_seconds", lambda: health.HASH_SECONDS)

    async def story() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=create_app(home))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return (await _answers(client, "/healthz"))[0]

    answer = asyncio.run(story())
    assert answer.status_code == 503
    assert answer.json() == {"status": "unhealthy", "problems": {"passwords": "a sign-in has not ended for 120 s"}}


def test_checks_that_hang_take_one_thread_however_often_they_are_asked_for(
    home: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.platform.http.health._READINESS_SECONDS", 0.2)
    go, looks = threading.Event(), list[int]()

    def look(_: Context) -> tuple[health.Check, ...]:
        looks.append(1)
        assert go.wait(120)
        return ()

    monkeypatch.setattr(health, "look", look)

    async def story() -> None:
        transport = httpx2.ASGITransport(app=create_app(home))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
            answers = await _answers(client, "/readyz", 100)
            assert {answer.status_code for answer in answers} == {503}
            assert "have not ended" in answers[0].json()["checks"]["server"]
            assert current_default_thread_limiter().borrowed_tokens == 1
            go.set()
            while (await _answers(client, "/readyz"))[0].status_code != 200:
                await asyncio.sleep(0)

    asyncio.run(story())
    assert len(looks) == 1


def test_what_a_thread_raises_is_raised_for_all() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    async def story() -> list[object]:
        shared = InThread(broken)
        return list(await asyncio.gather(shared.found(60), shared.found(60), return_exceptions=True))

    assert [type(one) for one in asyncio.run(story())] == [ZeroDivisionError, ZeroDivisionError]
