import pytest

from luthier.core.conversation import Conversation, Message, text_with_calls


def test_a_turn_without_reasoning_is_written_as_before_there_was_any():
    plain = Message(role="assistant", content="spruce")
    assert set(plain.model_dump()) == {"role", "content", "name", "tool_calls", "tool_call_id", "weight"}
    assert "reasoning" not in Conversation(messages=(plain,)).model_dump_json()


def test_reasoning_is_kept_when_a_conversation_is_written_and_read():
    thoughtful = Message(role="assistant", content="spruce", reasoning="It is light.", learn_reasoning=False)
    conversation = Conversation(messages=(thoughtful,))
    assert Conversation.model_validate_json(conversation.model_dump_json()) == conversation
    assert thoughtful.model_dump()["reasoning"] == "It is light."


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ('{"b":2,"a":1}', '{"a": 1, "b": 2}'),
        ({"b": 2, "a": 1}, '{"a": 1, "b": 2}'),
        ("", "{}"),
        (None, "{}"),
        ('{"a": [1', '{"a": [1'),
        ('{"a": "\\ud83d"}', '{"a": "\\ud83d"}'),
        ("[" * 50_000, "[" * 50_000),
    ],
    ids=range(7),
)
def test_equal_calls_are_the_same_text_however_they_are_written(arguments: object, written: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "prüfe", "arguments": arguments}}
    text = f'<tool_call>{{"name": "prüfe", "arguments": {written}}}</tool_call>'
    assert text_with_calls("", [call]) == text
    assert text_with_calls("I look.", [call, {"id": "c2", "type": "other"}]) == f"I look.\n{text}"
    assert text_with_calls("So.", []) == "So."
