"""Passwords: hashed by many at once, kept in a form that stays, in a line that refuses what is too much."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable

import pytest
from argon2.exceptions import HashingError, VerificationError

from luthier.core.errors import BusyError, RequestError, WorkError
from luthier.platform.auth import password_hashing
from luthier.platform.auth.password_hashing import PasswordThreads, fits, hashed

pytestmark = pytest.mark.usefixtures("real_password_hash")
PASSWORD = "correct horse battery"
# Made by cryptography 50.0.2 with OpenSSL 4: iterations=3, lanes=4, memory_cost=65536.
OLD = "$argon2id$v=19$m=65536,t=3,p=4$J2fxi9jetYRDJ+VoamkPJA$HtQhqdHl4fVrLzRI5SFhIFROqVPRQTjLmVCnxzb3tSk"


def test_what_openssl_has_hashed_before_still_fits() -> None:
    assert fits("x" * 12, OLD)
    assert not fits("x" * 13, OLD)


def test_many_hashes_at_once_all_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the two turns of a process, so that as many derivations as possible really run at the same time."""
    monkeypatch.setattr(password_hashing, "_turns", threading.BoundedSemaphore(12))
    kept, made = hashed(PASSWORD), list[object]()
    barrier = threading.Barrier(24)

    def work(number: int) -> None:
        barrier.wait()
        made.append(hashed(PASSWORD) if number % 2 else fits(PASSWORD, kept))

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads)
    texts = [one for one in made if isinstance(one, str)]
    assert made.count(True) == len(texts) == 12
    assert len(set(texts)) == 12, "each has a salt of its own"
    assert all(re.fullmatch(r"\$argon2id\$v=19\$m=65536,t=3,p=4\$[\w+/]{22}\$[\w+/]{43}", text) for text in texts)


@pytest.mark.parametrize("password", ["nine char", "x" * 1025])
def test_a_password_has_bounds(password: str) -> None:
    with pytest.raises(RequestError):
        hashed(password)
    assert not fits("x" * 1025, OLD)


@pytest.mark.parametrize("kept", ["", "plain", "$argon2id$v=19$m=65536,t=3,p=4$J2fx", "$argon2id$nonsense"])
def test_what_is_no_hash_is_no_wrong_password(kept: str) -> None:
    with pytest.raises(WorkError, match="cannot be read") as caught:
        fits(PASSWORD, kept)
    assert "luthier users password" in caught.value.do


def test_a_machine_without_memory_is_no_wrong_password(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def hash(self, _: bytes) -> str:
            raise HashingError("Memory allocation error")

        def verify(self, *_: object) -> bool:
            raise VerificationError("Threading failure")

    monkeypatch.setattr(password_hashing, "_hasher", Full())
    for work in (lambda: hashed(PASSWORD), lambda: fits(PASSWORD, OLD)):
        with pytest.raises(BusyError, match="cannot be checked now"):
            work()


async def _until(seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not seen():
            await asyncio.sleep(0)


def test_the_line_refuses_what_is_too_much_of_all_and_of_one() -> None:
    threads = PasswordThreads(num_threads=1, most_waiting=4, most_waiting_of_one=2)
    go, at_work = threading.Event(), threading.Event()

    def work() -> str:
        at_work.set()
        assert go.wait(60)
        return threading.current_thread().name

    async def story() -> list[str]:
        waiting = [asyncio.create_task(threads.run(name, work)) for name in ("a", "a", "b", "b")]
        await _until(at_work.is_set)
        for name, words in (("a", "4 passwords wait to be checked, 2 of them"), ("c", "0 of them")):
            with pytest.raises(BusyError, match=words) as caught:
                await threads.run(name, work)
            assert caught.value.retry_seconds > 0
        waiting[3].cancel()  # who gives up leaves room for others
        await asyncio.gather(waiting[3], return_exceptions=True)
        waiting[3] = asyncio.create_task(threads.run("c", work))
        await asyncio.sleep(0)
        go.set()
        return list(await asyncio.gather(*waiting))

    names = asyncio.run(story())
    threads.close()
    assert len(names) == 4
    assert all(name.startswith("password") for name in names)


def test_it_is_known_how_long_the_oldest_hash_is_under_way() -> None:
    now = [100.0]
    threads, go, at_work = PasswordThreads(clock=lambda: now[0]), threading.Event(), threading.Event()

    def work() -> None:
        at_work.set()
        assert go.wait(60)

    async def story() -> float:
        task = asyncio.create_task(threads.run("a", work))
        await _until(at_work.is_set)
        now[0] = 170.0
        seen = threads.longest_seconds()
        go.set()
        await task
        return seen

    assert threads.longest_seconds() == 0
    assert asyncio.run(story()) == 70
    assert threads.longest_seconds() == 0
    threads.close()
