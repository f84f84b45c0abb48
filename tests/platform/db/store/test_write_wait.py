"""Who waits to write waits the whole time once; those behind wait briefly until somebody gets a turn."""

from __future__ import annotations

import pytest

from luthier.platform.db.backend import BRIEF_SECONDS, WriteWait


class BusyError(Exception):
    pass


def test_after_one_has_waited_in_vain_the_others_wait_briefly_until_one_gets_a_turn() -> None:
    now = [100.0]
    wait = WriteWait(lambda error: isinstance(error, BusyError), clock=lambda: now[0])

    def try_to_write(seconds: float, error: Exception | None = None, *, is_whole_wait: bool = True) -> None:
        with wait.turn(is_whole_wait=is_whole_wait):
            now[0] += seconds
            if error is not None:
                raise error

    assert wait.seconds(30) == 30
    for error, is_whole in ((ZeroDivisionError(), True), (BusyError(), False)):
        with pytest.raises(type(error)):
            try_to_write(2, error, is_whole_wait=is_whole)
        assert wait.seconds(30) == 30, "that says nothing about those who write"
    assert wait.locked_seconds() is None
    for seconds in (30.0, 1.0, 1.0):
        with pytest.raises(BusyError):
            try_to_write(seconds, BusyError())
    assert wait.seconds(30) == BRIEF_SECONDS
    assert wait.seconds(30, 0.2) == 0.2
    assert wait.locked_seconds() == 32
    try_to_write(0.1)
    assert wait.seconds(30) == 30
    assert wait.locked_seconds() is None
