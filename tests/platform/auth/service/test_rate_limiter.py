"""So many a minute."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.platform.auth.rate_limiter import TokenBuckets


def test_a_minutes_worth_at_once_then_evenly() -> None:
    now = [0.0]
    buckets = TokenBuckets(clock=lambda: now[0])
    assert [buckets.take("k", 3).is_allowed for _ in range(4)] == [True, True, True, False]
    refused = buckets.take("k", 3)
    assert (refused.num_remaining, refused.wait_seconds, refused.reset_seconds) == (0, 20.0, 60.0)
    now[0] = 20.0
    assert buckets.take("k", 3).is_allowed
    assert not buckets.take("k", 3).is_allowed
    assert buckets.take("other", 3).num_remaining == 2
    now[0] = 1e6
    assert buckets.take("k", 3).num_remaining == 2, "it holds a minute's worth and no more"


@settings(deadline=None)
@given(st.integers(1, 40), st.lists(st.floats(0, 30), max_size=30))
def test_no_minute_ever_sees_more_than_twice_the_limit(limit: int, pauses: list[float]) -> None:
    now = [0.0]
    buckets = TokenBuckets(clock=lambda: now[0])
    allowed: list[float] = []
    for pause in pauses:
        now[0] += pause
        allowed += [now[0] for _ in range(limit + 1) if buckets.take("k", limit).is_allowed]
    for start in allowed:
        assert len([at for at in allowed if start <= at < start + 60]) <= 2 * limit + 1


def test_threads_do_not_get_more_than_there_is() -> None:
    buckets = TokenBuckets(clock=lambda: 0.0)
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: buckets.take("k", 50).is_allowed, range(200))) == 50


def test_memory_is_bounded() -> None:
    buckets = TokenBuckets(clock=lambda: 0.0, most=10)
    for number in range(100):
        buckets.take(str(number), 5)
    assert len(buckets._buckets) == 10


def test_a_look_takes_nothing() -> None:
    buckets = TokenBuckets(clock=lambda: 0.0)
    assert [buckets.take("k", 1, cost=0).is_allowed for _ in range(3)] == [True] * 3
    assert buckets.take("k", 1).is_allowed
    assert buckets.take("k", 1, cost=0).wait_seconds == pytest.approx(60)


def test_what_is_owed_is_waited_for_and_no_longer_than_a_minute() -> None:
    now = [0.0]
    buckets = TokenBuckets(clock=lambda: now[0])
    buckets.owe("k", 60, 70)
    refused = buckets.take("k", 60)
    assert not refused.is_allowed
    assert (refused.num_remaining, refused.wait_seconds) == (0, 11.0)
    now[0] = 11.0
    assert buckets.take("k", 60).is_allowed
    buckets.owe("k", 60, 1_000_000)
    assert buckets.take("k", 60).wait_seconds == 61.0
    assert buckets.take("other", 60).is_allowed
