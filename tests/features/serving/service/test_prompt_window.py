"""Prompts of one request are sent some at a time, and all of them end together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.errors import BusyError, WorkError
from luthier.core.stream import Ended, Failed, Piece, TextRequest
from luthier.features.serving import prompt_window
from luthier.features.serving.prompt_window import PromptWindow


class Engine:
    """Notes what is sent and cancelled; `fails_at` is the number of a prompt that cannot be queued."""

    def __init__(self, fails_at: int | None = None, error: Exception | None = None) -> None:
        self.hears: list[Callable[[Any], None]] = []
        self.had_slots: list[bool] = []
        self.cancelled: list[int] = []
        self._fails_at, self._error = fails_at, error

    def send(self, request: TextRequest, hear: Any, *, had_slot: bool) -> Callable[[], None]:
        number = len(self.hears)
        if number == self._fails_at:
            assert self._error is not None
            raise self._error
        self.hears.append(hear)
        self.had_slots.append(had_slot)
        return lambda: self.cancelled.append(number)


def ended(choice: int = 0) -> Ended:
    return Ended(choice=choice, reason="stop", num_new_tokens=1)


def busy() -> BusyError:
    return BusyError("full", expected="room", do="wait", retry_seconds=1)


@pytest.fixture(autouse=True)
def three_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_window, "PROMPTS_AT_ONCE", 3)


def test_the_next_prompt_is_sent_when_one_has_ended_and_choices_are_counted_through() -> None:
    engine, heard = Engine(), list[Any]()
    window = PromptWindow([TextRequest(text=str(n), num_choices=2) for n in range(5)], engine.send, heard.append)
    window.begin()
    assert len(engine.hears) == 3
    engine.hears[1](ended())
    assert len(engine.hears) == 3  # its second choice is still written
    engine.hears[1](ended(1))
    assert len(engine.hears) == 4
    for number in (0, 2, 3, 4):
        engine.hears[number](Piece(choice=1, text="a"))
        for choice in (0, 1):
            engine.hears[number](ended(choice))
    assert engine.had_slots == [False, False, False, True, True]
    assert sorted(one.choice for one in heard if isinstance(one, Ended)) == list(range(10))
    assert [one.choice for one in heard if isinstance(one, Piece)] == [1, 5, 7, 9]
    window()
    assert engine.cancelled == []  # all had ended


def test_a_prompt_that_cannot_be_queued_cancels_the_first_ones() -> None:
    engine = Engine(fails_at=2, error=busy())
    window = PromptWindow([TextRequest(text="a")] * 5, engine.send, lambda _: None)
    with pytest.raises(BusyError):
        window.begin()
    assert engine.cancelled == [0, 1]


def test_a_later_prompt_that_cannot_be_sent_fails_the_request() -> None:
    engine, heard = Engine(fails_at=3, error=WorkError("down", expected="up", do="wait")), list[Any]()
    window = PromptWindow([TextRequest(text="a")] * 5, engine.send, heard.append)
    window.begin()
    engine.hears[0](ended())
    assert isinstance(heard[-1], Failed)
    window()
    assert engine.cancelled == [1, 2]


def test_nothing_is_sent_after_a_failure_or_a_cancellation() -> None:
    for last in (Failed.of(WorkError("down", expected="up", do="wait")), None):
        engine = Engine()
        window = PromptWindow([TextRequest(text="a")] * 5, engine.send, lambda _: None)
        window.begin()
        if last is None:
            window()
        engine.hears[0](last or ended())
        assert len(engine.hears) == 3


def test_prompts_that_end_while_they_are_sent_are_followed_by_the_others() -> None:
    heard = list[Any]()

    def send(request: TextRequest, hear: Any, /, *, had_slot: bool) -> Callable[[], None]:
        hear(ended())
        return lambda: None

    PromptWindow([TextRequest(text="a")] * 2000, send, heard.append).begin()
    assert [one.choice for one in heard] == list(range(2000))
