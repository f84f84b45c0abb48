import threading
import time

from luthier.core.stream import Ended, Failed, Started, TextRequest
from luthier.ml.inference.llama_cpp.active_requests import Choice, Slots, Writing


def test_a_slot_goes_to_who_begins_as_it_has_read_with_the_same_adapter():
    slots = Slots(3, 1000)
    taken = [
        slots.take(name, adapter, ids, 10)
        for name, adapter, ids in [("a", None, [1, 2, 3]), ("b", "x", [1, 2, 3]), ("c", None, [7])]
    ]
    assert sorted(taken) == [0, 1, 2]
    for number in taken:
        slots.give_back(number)
    assert slots.take("d", "x", [1, 2, 9], 10) == taken[1]
    assert slots.take("e", None, [1, 2, 9], 10) == taken[0]


def test_without_a_common_beginning_the_longest_unused_is_taken():
    slots = Slots(2, 1000)
    first, second = slots.take("a", None, [1], 1), slots.take("b", None, [2], 1)
    slots.give_back(second)
    slots.give_back(first)
    assert slots.take("c", None, [3], 1) == first
    assert slots.num_used == 1


def test_a_slot_continues_only_from_what_was_read_in_the_same_way():
    slots = Slots(1, 1000)
    reuses = []
    for reader, ids in [(("x", "a"), [1, 2]), (("x", "a"), [1, 2]), (("x", "b"), [1, 2]), (("x", "b"), [1, 2])]:
        number = slots.take("user", reader, ids, 10)
        reuses.append(slots.reuses(number))
        slots.give_back(number)
    # The third one would learn by its time that the second one has begun alike.
    assert reuses == [True, True, False, True]


def test_room_is_that_of_slots_and_of_tokens():
    slots = Slots(4, 100)
    slots.take("a", None, [1], 60)
    assert slots.has_room_for(2, 20)
    assert not slots.has_room_for(3, 20)
    assert not slots.has_room_for(4, 1)
    assert Slots(4, 100).has_room_for(4, 25)


class _Reader:
    ended = False

    def read(self, chunk):
        return []


class _Server:
    def scales(self, adapter):
        return []

    def complete(self, body, hear):
        raise AssertionError("no thread, no request")


def test_an_answer_whose_thread_cannot_start_gives_its_slot_back(monkeypatch):
    """Else every such moment of a crowded machine would cost the engine a slot for good."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    writing, asked = Writing(2, 100), TextRequest(text="a", max_new_tokens=4)
    for key in ("first", "second", "third"):
        choices = [Choice(key, number, asked, None, [1, 2], 4, _Reader()) for number in range(2)]
        writing.begin(_Server(), (key, Started(num_prompt_tokens=2)), choices)
        assert writing.keys == {key}, "an engine without keys is not polled"
        failed = [event for where, event in writing.poll(_Server(), 0) if where == key and isinstance(event, Failed)]
        assert failed
        assert failed[0].error["type"] == "BusyError"
        assert writing.is_idle
        assert not writing.keys
        assert writing.has_room_for(2, 6)
        assert not writing._slots.num_used


class _EndReader:
    ended = False

    def read(self, chunk):
        self.ended = True
        return [Ended(reason="stop", num_new_tokens=1)]


class _EndingServer(_Server):
    def complete(self, body, hear):
        hear("the end")


def test_an_answer_whose_end_was_read_before_another_request_is_polled_all_the_same():
    """Where that request fails, nothing is left to write, and an engine without keys is not polled."""
    writing, asked = Writing(2, 100), TextRequest(text="a", max_new_tokens=4)
    choice = Choice("first", 0, asked, None, [1, 2], 4, _EndReader())
    writing.begin(_EndingServer(), ("first", Started(num_prompt_tokens=2)), [choice])
    end = time.monotonic() + 60
    while not writing.is_idle:
        assert time.monotonic() < end, "its thread has not ended"
        writing.settle()
    assert writing.keys == {"first"}
    assert [type(event) for _, event in writing.poll(_EndingServer(), 0)] == [Started, Ended]
    assert not writing.keys


def test_a_conversation_keeps_its_slot_beside_prompts_that_begin_with_the_same_template():
    """A few tokens of a template are in every prompt: the next request must not overwrite what it cannot use."""
    header, talk = [1, 2, 3], list(range(100, 300))
    slots = Slots(4, 10_000)
    own = slots.take("talk", None, [*header, *talk], 500)
    slots.give_back(own)
    for number in range(3):
        other = slots.take(number, None, [*header, 1000 + number, 1001, 1002, 1003], 20)
        assert other != own
        slots.give_back(other)
    assert slots.take("talk", None, [*header, *talk, 7, 8], 500) == own


def test_a_slot_is_taken_for_a_beginning_that_is_most_of_what_it_has_read():
    system = list(range(50))
    slots = Slots(2, 10_000)
    first = slots.take("a", None, [*system, 90, 91, 92], 100)
    slots.give_back(first)
    assert slots.take("b", None, [*system, 80, 81], 100) == first


def test_short_prompts_get_lower_numbers_than_long_ones_that_are_being_read():
    """llama.cpp reads prompts in the order of its slots: a short one behind a long one would wait for all of it."""
    slots = Slots(4, 100_000, step_tokens=8)
    long = slots.take("long", None, list(range(1, 90)), 100)
    short = [slots.take(number, None, [200 + number, 300], 10) for number in range(2)]
    assert max(short) < long
    # A conversation stays where its beginning is known.
    slots.give_back(long)
    assert slots.take("again", None, list(range(1, 92)), 100) == long


def _running(writing, *adapters):
    found = [
        Choice(str(number), 0, TextRequest(text="a"), adapter, [1], 4, _Reader())
        for number, adapter in enumerate(adapters)
    ]
    writing._running.update(found)
    return found


def test_no_answer_is_taken_up_beside_an_adapter_that_others_wait_for():
    """llama.cpp computes one adapter until none of its answers is left: with ever new ones others would never begin."""
    now = 0.0
    writing = Writing(8, 10_000, clock=lambda: now)
    busy, waits = _running(writing, "busy", "waits")
    assert writing.has_room_for(1, 5, "busy")
    now = 3.0
    writing._inbox.put((busy, "a chunk"))
    writing.settle()
    assert not writing.has_room_for(1, 5, "busy")
    assert not writing.has_room_for(1, 5, None)
    assert writing.has_room_for(1, 5, "waits")
    # Its turn has come.
    now = 4.0
    writing._inbox.put((waits, "a chunk"))
    writing.settle()
    assert writing.has_room_for(1, 5, "busy")


def test_an_answer_that_nobody_waits_for_holds_up_no_others():
    now = 0.0
    writing = Writing(8, 10_000, clock=lambda: now)
    busy, waits = _running(writing, "busy", "waits")
    waits.stop.set()
    now = 3.0
    writing._inbox.put((busy, "a chunk"))
    writing.settle()
    assert writing.has_room_for(1, 5, "busy")
