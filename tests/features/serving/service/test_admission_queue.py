from __future__ import annotations

import pytest
from tests.clock import Clock

from luthier.core.errors import BusyError
from luthier.features.serving.admission_queue import AdmissionQueue


def test_so_many_in_all_and_so_many_of_a_key() -> None:
    queue = AdmissionQueue(4, 2)
    places = [queue.enter("a"), queue.enter("a")]
    with pytest.raises(BusyError, match=r"2 requests of this key.*"):
        queue.enter("a")
    places += [queue.enter("b"), queue.enter(None)]
    with pytest.raises(BusyError, match="4 requests are in progress"):
        queue.enter("c")
    places[0].leave(has_ended=True)
    places[0].leave(has_ended=True)
    queue.enter("a")
    with pytest.raises(BusyError):
        queue.enter("a")


def test_a_person_at_this_machine_may_take_all_places() -> None:
    queue = AdmissionQueue(4, 1)
    for _ in range(4):
        queue.enter(None)


def test_when_to_come_again_follows_the_pace() -> None:
    clock = Clock(100.0)
    queue = AdmissionQueue(8, 8, clock=clock)

    def seconds() -> float:
        with pytest.raises(BusyError) as caught:
            queue.enter("z")
        return caught.value.retry_seconds

    places = [queue.enter("a") for _ in range(8)]
    assert seconds() == 5  # nothing has ended yet: nobody knows
    for _ in range(6):  # one every two seconds
        places.pop(0).leave(has_ended=True)
        places.append(queue.enter("a"))
        clock.now += 2
    assert seconds() == 8  # half of the line at that pace
    clock.now += 1000
    assert seconds() == 5  # too long ago to say anything
