"""What of an example is learned, in bytes."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example

CALL = {"type": "function", "function": {"name": "price", "arguments": '{"wood": "spruce"}'}}


def example(**answer: Any) -> Example:
    turns = (Message(role="user", content="Which wood?"), Message(role="assistant", **answer))
    return Example(id="rows.jsonl:1", conversation=Conversation(messages=turns))


@pytest.mark.parametrize(
    ("answer", "with_thoughts", "without"),
    [
        ({"content": "käse"}, "käse", "käse"),
        ({"content": "spruce", "reasoning": "It is light."}, "It is light.spruce", "spruce"),
        ({"content": "<think>\nlight\n</think>\n\nspruce"}, "<think>\nlight\n</think>\n\nspruce", "spruce"),
        ({"content": None, "reasoning": "ask", "tool_calls": (CALL,)}, 'ask{"wood": "spruce"}', '{"wood": "spruce"}'),
    ],
)
def test_thoughts_count_where_they_are_learned(answer: dict[str, Any], with_thoughts: str, without: str) -> None:
    row = example(**answer)
    num = len(with_thoughts.encode())
    assert (row.learned_bytes, row.learned_bytes_with(None), row.learned_bytes_with(True)) == (num, num, num)
    assert row.learned_bytes_with(False) == len(without.encode())


def test_a_turn_that_says_whether_its_thought_is_learned_takes_precedence() -> None:
    answer = {"content": "spruce", "reasoning": "It is light."}
    assert example(**answer, learn_reasoning=False).learned_bytes_with(True) == len("spruce")
    assert example(**answer, learn_reasoning=True).learned_bytes_with(False) == len("It is light.spruce")
