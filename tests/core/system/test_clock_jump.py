"""A wall clock that was set is noticed; one that only goes on, or a machine that sleeps, is not."""

from __future__ import annotations

import pytest

from luthier.core.system.clock_jump import JumpWatch, elapsed


@pytest.mark.parametrize(
    ("wall", "passed", "jumped"),
    [
        (60.0, 60.0, 0.0),
        (64.0, 60.0, 0.0),
        (8 * 3600.0, 8 * 3600.0, 0.0),
        (3660.0, 60.0, 3600.0),
        (-3540.0, 60.0, -3600.0),
    ],
)
def test_what_counts_as_a_jump(wall: float, passed: float, jumped: float) -> None:
    now = [1000.0]
    watch = JumpWatch(lambda: now[0])
    assert watch.look(1.7e9) == 0, "nothing is known at first"
    now[0] += passed
    assert watch.look(1.7e9 + wall) == jumped
    now[0] += 1
    assert watch.look(1.7e9 + wall + 1) == 0, "it is said once"


def test_the_clock_that_nobody_sets_goes_on() -> None:
    assert elapsed() <= elapsed()
