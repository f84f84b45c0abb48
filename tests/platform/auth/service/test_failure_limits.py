"""Failures are counted before the work, so that many at once pass no limit; successes are not counted."""

from __future__ import annotations

import threading

import pytest
from tests.clock import Clock

from luthier.platform.auth.rate_limiter import FailureLimit, TooManyFailuresError, block_of


def parallel(limit: FailureLimit, num: int, *, failed: bool) -> tuple[int, int]:
    """Attempts of one address, all begun before the first one ends where the limit allows; (worked, refused)."""
    worked, refused = list[int](), list[int]()
    together = threading.Barrier(num)

    def attempt(number: int) -> None:
        together.wait()
        try:
            with limit.attempt("192.0.2.7") as made:
                worked.append(number)
                made.failed = failed
        except TooManyFailuresError:
            refused.append(number)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return len(worked), len(refused)


def test_of_many_failures_at_once_no_more_work_is_done_than_the_limit_allows() -> None:
    clock = Clock()
    limit = FailureLimit("wrong keys", 10, clock=clock)
    assert parallel(limit, 45, failed=True) == (10, 35)
    with pytest.raises(TooManyFailuresError, match="too many wrong keys") as caught:
        limit.check("192.0.2.7")
    assert caught.value.retry_seconds == pytest.approx(6)
    limit.check("192.0.2.8")
    clock.now += 6
    assert parallel(limit, 3, failed=True) == (1, 2)


def test_of_many_successes_at_once_none_is_refused() -> None:
    limit = FailureLimit("wrong keys", 3, clock=Clock())
    assert parallel(limit, 45, failed=False) == (45, 0)
    assert parallel(limit, 4, failed=True) == (3, 1), "and none was counted"


def test_an_exception_counts_as_nothing() -> None:
    limit = FailureLimit("wrong keys", 1, clock=Clock())

    def broken() -> None:
        with limit.attempt("192.0.2.7") as made:
            made.failed = True
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            broken()
    limit.check("192.0.2.7")
    assert limit.num_running("192.0.2.7") == 0


@pytest.mark.parametrize(
    ("address", "block"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::2", "2001:db8::/64"),
        ("2001:db8:0:1::2", "2001:db8:0:1::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_what_failures_are_counted_by(address: str, block: str) -> None:
    assert block_of(address) == block
