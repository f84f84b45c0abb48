from luthier.core.conversation import Conversation, Message


def test_a_turn_without_reasoning_is_written_as_before_there_was_any():
    plain = Message(role="assistant", content="spruce")
    assert set(plain.model_dump()) == {"role", "content", "name", "tool_calls", "tool_call_id", "weight"}
    assert "reasoning" not in Conversation(messages=(plain,)).model_dump_json()


def test_reasoning_is_kept_when_a_conversation_is_written_and_read():
    thoughtful = Message(role="assistant", content="spruce", reasoning="It is light.", learn_reasoning=False)
    conversation = Conversation(messages=(thoughtful,))
    assert Conversation.model_validate_json(conversation.model_dump_json()) == conversation
    assert thoughtful.model_dump()["reasoning"] == "It is light."
