"""Many sign-ins of one address at once: the wrong ones are held to the limit, the right ones all come in."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import pytest

from luthier.core.errors import BusyError, UnreachableError
from luthier.platform.auth.password_hashing import MOST_WAITING_OF_ONE, PasswordThreads, SignInQueue
from luthier.platform.auth.rate_limiter import FailureLimit, TooManyFailuresError

HERE, THERE = "192.0.2.7", "192.0.2.8"


class World:
    """Sign-ins whose checks are counted. per_minute: failures that come back are one in 60 / per_minute seconds."""

    def __init__(self, per_minute: int, *, longest_wait_seconds: float = 0.0) -> None:
        self.now = 0.0
        self.threads = PasswordThreads()
        self.limit = FailureLimit("wrong passwords", per_minute, clock=lambda: self.now)
        self.queue = SignInQueue(self.threads, self.limit, longest_wait_seconds=longest_wait_seconds)
        self.checked: Counter[bool] = Counter()
        self.lock = threading.Lock()

    async def sign_in(self, is_right: bool, address: str = HERE) -> str:
        def check() -> str | None:
            with self.lock:
                self.checked[is_right] += 1
            return "secret" if is_right else None

        try:
            return "wrong" if await self.queue.attempt(address, check) is None else "in"
        except TooManyFailuresError:
            return "refused"

    def all_at_once(self, *are_right: bool) -> list[str]:
        async def story() -> list[str]:
            async with asyncio.timeout(120):
                return list(await asyncio.gather(*map(self.sign_in, are_right)))

        return asyncio.run(story())


def test_of_45_wrong_passwords_at_once_ten_are_hashed() -> None:
    world = World(10)
    ends = Counter(world.all_at_once(*[False] * 45))
    assert ends == {"wrong": 10, "refused": 35}
    assert world.checked == {False: 10}


def test_of_50_right_passwords_at_once_none_is_refused() -> None:
    world = World(2)
    assert world.all_at_once(*[True] * 50) == ["in"] * 50
    world.limit.check(HERE)
    assert world.all_at_once(False, False, False) == ["wrong", "wrong", "refused"], "none of them was counted"


def test_right_ones_go_on_when_the_wrong_ones_before_them_are_done() -> None:
    """All failures but one are used up; the right ones hand the last one on to each other."""
    world = World(10)
    assert world.all_at_once(*[False] * 9, *[True] * 50) == ["wrong"] * 9 + ["in"] * 50


def test_who_was_there_in_time_waits_for_the_next_failure_that_is_allowed() -> None:
    world = World(6000, longest_wait_seconds=60)  # one comes back every 10 ms of the world's clock
    world.limit.check(HERE)
    for _ in range(5999):
        world.limit.begin(HERE)
        world.limit.end(HERE, failed=True)

    async def story() -> list[str]:
        both = [asyncio.create_task(world.sign_in(is_right)) for is_right in (False, True)]
        first = await both[0]
        assert not both[1].done()
        with pytest.raises(TooManyFailuresError):
            world.limit.check(HERE)
        world.now += 0.01
        return [first, await both[1]]

    assert asyncio.run(story()) == ["wrong", "in"]


def test_one_address_does_not_hold_up_another() -> None:
    world = World(1, longest_wait_seconds=600)

    async def story() -> str:
        stuck = [asyncio.create_task(world.sign_in(False)) for _ in range(5)]
        assert await stuck[0] == "wrong"
        found = await world.sign_in(True, THERE)
        assert not any(task.done() for task in stuck[1:])
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        return found

    assert asyncio.run(story()) == "in"
    assert world.checked == {False: 1, True: 1}


def test_a_database_that_does_not_answer_counts_for_nobody() -> None:
    world = World(1)

    def away() -> str | None:
        raise UnreachableError("it is away", expected="an answer", do="wait")

    for _ in range(3):
        with pytest.raises(UnreachableError):
            asyncio.run(world.queue.attempt(HERE, away))
    assert world.all_at_once(True) == ["in"]


def test_addresses_that_wait_for_another_failure_take_no_place_from_others() -> None:
    """As many as the line of the threads holds, from few addresses that have used up their failures."""
    world = World(1, longest_wait_seconds=600)
    addresses = [f"192.0.2.{number}" for number in range(3)]

    async def story() -> tuple[str, list[type[BaseException]]]:
        stuck = [
            asyncio.create_task(world.sign_in(False, address))
            for address in addresses
            for _ in range(MOST_WAITING_OF_ONE)
        ]
        while world.checked[False] < len(addresses) or sum(task.done() for task in stuck) < len(addresses):
            await asyncio.sleep(0.001)
        found = await world.sign_in(True, "192.0.2.9")
        refused = []
        for address in addresses:
            extra = [asyncio.create_task(world.queue.attempt(address, lambda: None)) for _ in range(2)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            refused += [type(task.exception()) for task in extra if task.done() and task.exception() is not None]
            stuck += extra
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        return found, refused

    found, refused = asyncio.run(story())
    assert found == "in"
    assert refused == [BusyError] * len(addresses), "one of each address had a place that was free"
    assert world.checked == {False: len(addresses), True: 1}
