"""When two texts, and two examples, are the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.ml.data.text.normalise import content_key, normalised, prompt_key


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


def test_case_space_and_unicode_forms_fold() -> None:
    assert normalised("  Cafe\u0301\n\tSTRASSE ") == normalised("café straße") == "café strasse"


def test_roles_and_tool_calls_count() -> None:
    def example(*messages: Message) -> Example:
        return Example(id="x:1", conversation=Conversation(messages=messages))

    user, answer = Message(role="user", content="a"), Message(role="assistant", content="b")
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    keys = {
        content_key(example(user, answer)),
        content_key(example(Message(role="system", content="a"), answer)),
        content_key(example(user, answer.model_copy(update={"tool_calls": (call,)}))),
        content_key(example(Message(role="user", content="ab"), Message(role="assistant", content=""))),
        content_key(Example(id="x:1", text="a b")),
    }
    assert len(keys) == 5
    assert prompt_key(example(user, answer)) == prompt_key(example(user, Message(role="assistant", content="c")))
    assert prompt_key(Example(id="x:1", text="a")) is None
