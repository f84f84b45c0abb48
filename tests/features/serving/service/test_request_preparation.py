"""Requests are made ready in two threads, keys in turn."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import LuthierError, RequestError
from luthier.core.pooling import PoolingRequest
from luthier.core.ports import Prepared
from luthier.core.stream import TextRequest
from luthier.features.serving.engine_thread import SMALL_CHARACTERS, Ask, Preparation, is_small

LARGE = "a" * (SMALL_CHARACTERS + 1)
Told = queue.Queue[tuple[str, Prepared | LuthierError]]


def started(prepare: Callable[[TextRequest | PoolingRequest], Prepared]) -> tuple[Preparation, Told]:
    told: Told = queue.Queue()
    return Preparation(prepare, lambda ask, made: told.put((ask.key, made)), "test"), told


def ask(key: str, text: str, owner: str) -> Ask:
    return Ask(key, TextRequest(text=text), None, owner)


def test_small_ones_do_not_wait_for_large_ones_and_keys_take_turns_among_those() -> None:
    gate, begun = threading.Event(), queue.Queue[str]()

    def prepare(request: TextRequest | PoolingRequest) -> Prepared:
        assert isinstance(request, TextRequest)
        text = request.text or ""
        if len(text) > SMALL_CHARACTERS:
            begun.put(text)
            assert gate.wait(60)
        return len(text)

    preparation, told = started(prepare)
    preparation.add(ask("first", LARGE, "much"))
    begun.get(timeout=60)
    for number in range(3):
        preparation.add(ask(f"next{number}", LARGE, "much"))
    preparation.add(ask("other", LARGE, "little"))
    preparation.add(ask("small", "a", "third"))
    assert told.get(timeout=60) == ("small", 1)
    preparation.cancel("next1")
    gate.set()
    assert [told.get(timeout=60)[0] for _ in range(4)] == ["first", "next0", "other", "next2"]
    preparation.close()


def test_what_goes_wrong_is_told_and_the_next_one_is_made_ready(capfd: pytest.CaptureFixture[str]) -> None:
    def prepare(request: TextRequest | PoolingRequest) -> Prepared:
        assert isinstance(request, TextRequest)
        if request.text == "wrong":
            raise RequestError("came", expected="expected", do="do")
        if request.text == "bug":
            raise ValueError("a bug")
        return request.text

    preparation, told = started(prepare)
    for text in ("wrong", "bug", "fine"):
        preparation.add(ask(text, text, "a"))
    found = dict(told.get(timeout=60) for _ in range(3))
    assert found["fine"] == "fine"
    assert isinstance(found["wrong"], RequestError)
    assert "ValueError" in str(found["bug"])
    assert "a bug" in capfd.readouterr().err
    preparation.close()


@pytest.mark.parametrize(
    ("request_", "small"),
    [
        (TextRequest(text="a"), True),
        (TextRequest(text=LARGE), False),
        (TextRequest(token_ids=(1,) * (SMALL_CHARACTERS + 1)), False),
        (TextRequest(text="a", json_schema={"type": "object"}), False),
        (TextRequest(conversation=Conversation(messages=(Message(role="user", content="a"),))), True),
        (TextRequest(conversation=Conversation(messages=(Message(role="user", content=LARGE),))), False),
        (TextRequest(conversation=Conversation(messages=(), tools=({"function": {"name": LARGE}},))), False),
        (PoolingRequest(inputs=("a", (1, 2))), True),
        (PoolingRequest(inputs=(LARGE,)), False),
    ],
)
def test_what_may_take_long_is_large(request_: TextRequest | PoolingRequest, small: bool) -> None:
    assert is_small(request_) is small
