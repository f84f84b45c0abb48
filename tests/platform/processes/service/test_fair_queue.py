"""Keys take turns."""

from __future__ import annotations

from luthier.platform.processes.fair_queue import FairQueue


def drained(queue: FairQueue[str]) -> list[str]:
    found = []
    while heads := queue.heads():
        found.append(queue.pop(heads[0][0]))
    return found


def test_whoever_asks_much_gets_one_turn_in_each_round() -> None:
    queue = FairQueue[str]()
    for number in range(4):
        queue.push("much", f"much{number}")
    queue.push("little", "little0")
    queue.push(None, "person0")
    queue.push("little", "little1")
    assert len(queue) == 7
    assert drained(queue) == ["much0", "little0", "person0", "much1", "little1", "much2", "much3"]
    assert len(queue) == 0


def test_whoever_is_not_done_with_an_item_waits_for_one_turn_of_each_other() -> None:
    queue = FairQueue[str]()
    for owner, item in (("a", "a0"), ("a", "a1"), ("b", "b0"), ("c", "c0")):
        queue.push(owner, item)
    queue.postpone("a")
    assert queue.heads() == [("b", "b0"), ("c", "c0"), ("a", "a0")]
    assert drained(queue) == ["b0", "c0", "a0", "a1"]


def test_what_is_taken_out_has_no_turn() -> None:
    queue = FairQueue[str]()
    for owner, item in (("a", "a0"), ("a", "a1"), ("b", "b0")):
        queue.push(owner, item)
    queue.remove(lambda item: item in ("a0", "b0"))
    assert drained(queue) == ["a1"]
