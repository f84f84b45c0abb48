"""System turns, tools and thoughts as text, where a recipe asks for it."""

from __future__ import annotations

from tests.data.template_rows import ROWS

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.recipe import DataRecipe
from luthier.data.opted_turns import OptedTurns
from luthier.models.chat_template import ChatTemplate


def _roles_and_contents(conversation: Conversation) -> list[tuple[str, str | None]]:
    return [(message.role, message.content) for message in conversation.messages]


def test_nothing_is_rewritten_unasked(chat: ChatTemplate) -> None:
    examples = [Example(id="r:1", conversation=row) for row in ROWS.values()]
    assert OptedTurns.of(DataRecipe(train="x.jsonl")).examples(examples, chat) is examples


def test_system_text_goes_before_the_first_user_turn(chat: ChatTemplate) -> None:
    opted = OptedTurns.of(DataRecipe(train="x.jsonl", system="fold"))
    found = opted.conversation(ROWS["system"], chat)
    assert _roles_and_contents(found) == [("user", "You build guitars.\n\nWhich wood?"), ("assistant", "Spruce wood.")]
    assert opted.conversation(ROWS["two"], chat) == ROWS["two"]
    alone = Conversation(messages=(Message(role="system", content="Hi."), Message(role="assistant", content="a")))
    assert _roles_and_contents(opted.conversation(alone, chat))[0] == ("user", "Hi.")


def test_tools_calls_and_results_are_text_and_a_weight_stays(chat: ChatTemplate) -> None:
    messages = list(ROWS["tools"].messages)
    messages[1] = messages[1].model_copy(update={"weight": 0})
    row = ROWS["tools"].model_copy(update={"messages": tuple(messages)})
    found = OptedTurns(tools_as_text=True).conversation(row, chat)
    assert found.tools == ()
    assert [message.role for message in found.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert '"name": "price"' in (found.messages[0].content or "")
    assert found.messages[2].tool_calls == ()
    assert found.messages[2].weight == 0
    assert "spruce" in (found.messages[2].content or "")
    assert "12 Euro" in (found.messages[3].content or "")


def test_a_thought_is_written_into_the_answer_or_left_out(chat: ChatTemplate) -> None:
    for kind in ("reasoning", "think"):
        written = OptedTurns(reasoning="as_text").conversation(ROWS[kind], chat).messages[1]
        assert written.content == "<think>\nIt is light and stiff.\n</think>\n\nSpruce wood."
        assert written.reasoning is None
        dropped = OptedTurns(reasoning="drop").conversation(ROWS[kind], chat).messages[1]
        assert (dropped.content, dropped.reasoning) == ("Spruce wood.", None)


def test_both_sides_of_a_pair_are_rewritten(chat: ChatTemplate) -> None:
    pair = Example(id="r:1", conversation=ROWS["system"], rejected=ROWS["system"])
    (found,) = OptedTurns(folds_system=True).examples([pair], chat)
    assert found.conversation == found.rejected
    assert found.rejected is not None
    assert found.rejected.messages[0].content == "You build guitars.\n\nWhich wood?"
