"""Conversations that are too long, shortened by their oldest turns until an answer has room."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import OverlongError, RequestError
from luthier.core.stream import TextRequest
from luthier.ml.inference.engine_prompts import fitted, overlong

TURNS = [("system", "S"), ("user", "aaaa"), ("assistant", "b"), ("tool", "t"), ("user", "cc"), ("system", "T"),
         ("assistant", "d"), ("user", "e")]  # fmt: skip


def request(turns: list[tuple[Any, str]] = TURNS, **changes: Any) -> TextRequest:
    messages = tuple(Message(role=role, content=text) for role, text in turns)
    return TextRequest(conversation=Conversation(messages=messages), drops_oldest=True, **changes)


class Counter:
    """A token is a character; the context has so many."""

    def __init__(self, context_tokens: int) -> None:
        self.context_tokens, self.num_tries = context_tokens, 0

    def __call__(self, asked: TextRequest) -> tuple[TextRequest, int]:
        self.num_tries += 1
        assert asked.conversation is not None
        num = len(self.words(asked))
        if num >= self.context_tokens:
            raise overlong(num, self.context_tokens)
        return asked, min(asked.max_new_tokens, self.context_tokens - num)

    @staticmethod
    def words(asked: TextRequest) -> str:
        assert asked.conversation is not None
        return "".join(message.content or "" for message in asked.conversation.messages)


def shortened(context_tokens: int, **changes: Any) -> TextRequest:
    found: TextRequest = fitted(request(**changes), Counter(context_tokens), lambda made: made[1])[0]
    return found


@pytest.mark.parametrize(
    ("context_tokens", "words", "num_dropped"),
    [(100, "Saaaabtcc" + "Tde", 0), (13, "SaaaabtccTde", 0), (12, "SccTde", 3), (7, "SccTde", 3), (6, "STe", 5)],
)
def test_whole_turns_go_until_it_fits_and_system_messages_stay(
    context_tokens: int, words: str, num_dropped: int
) -> None:
    found = shortened(context_tokens, max_new_tokens=1)
    assert (Counter.words(found), found.num_dropped) == (words, num_dropped)


def test_an_answer_gets_the_room_that_it_may_take() -> None:
    assert Counter.words(shortened(16, max_new_tokens=4)) == "SaaaabtccTde"
    assert Counter.words(shortened(15, max_new_tokens=4)) == "SccTde"
    # Where no answer of that length has room, the shortest conversation is taken.
    assert Counter.words(shortened(5, max_new_tokens=99)) == "STe"
    assert Counter.words(shortened(2 * 256, max_new_tokens=9999)) == "SaaaabtccTde"


def test_what_cannot_be_shortened_is_refused() -> None:
    with pytest.raises(OverlongError, match="3 tokens"):
        shortened(3)
    whole = request().model_copy(update={"drops_oldest": False})
    with pytest.raises(OverlongError, match="12 tokens"):
        fitted(whole, Counter(12), lambda made: made[1])

    def wrong(asked: TextRequest) -> tuple[TextRequest, int]:
        raise RequestError("wrong", expected="right", do="correct it")

    with pytest.raises(RequestError, match="wrong"):
        fitted(request(), wrong, lambda made: made[1])


def test_a_conversation_of_many_turns_is_written_a_few_times() -> None:
    turns: list[tuple[Any, str]] = [("user", "a"), ("assistant", "b")] * 1000
    counter = Counter(500)
    found, _ = fitted(request(turns, max_new_tokens=1), counter, lambda made: made[1])
    assert len(Counter.words(found)) == 498
    assert counter.num_tries <= 13
