"""System turns, tools and thoughts as text, where a recipe asks for it."""

from __future__ import annotations

import copy

from tests.ml.data.tokenise.template_rows import ROWS

from luthier.core.conversation import Conversation, Message, OptedTurns
from luthier.core.dataset import Example
from luthier.core.ports import Prompt
from luthier.core.recipe import DataRecipe
from luthier.core.stream import TextRequest
from luthier.ml.inference.engine_prompts import (
    ToolFormat,
    prompts_with_tools,
    rewritten,
    rewritten_examples,
    text_of,
)
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.tool_calls.forms import form_of


def _rewritten(opted: OptedTurns, conversation: Conversation, template: ChatTemplate) -> Conversation:
    return rewritten(opted, conversation, form_of(text_of(template)))


def _roles_and_contents(conversation: Conversation) -> list[tuple[str, str | None]]:
    return [(message.role, message.content) for message in conversation.messages]


def test_nothing_is_rewritten_unasked(template: ChatTemplate) -> None:
    examples = [Example(id="r:1", conversation=row) for row in ROWS.values()]
    assert rewritten_examples(OptedTurns.of(DataRecipe(train="x.jsonl")), examples, template) is examples


def test_system_text_goes_before_the_first_user_turn(template: ChatTemplate) -> None:
    opted = OptedTurns.of(DataRecipe(train="x.jsonl", system="fold"))
    found = _rewritten(opted, ROWS["system"], template)
    assert _roles_and_contents(found) == [("user", "You build guitars.\n\nWhich wood?"), ("assistant", "Spruce wood.")]
    assert _rewritten(opted, ROWS["two"], template) == ROWS["two"]
    alone = Conversation(messages=(Message(role="system", content="Hi."), Message(role="assistant", content="a")))
    assert _roles_and_contents(_rewritten(opted, alone, template))[0] == ("user", "Hi.")


def test_tools_calls_and_results_are_text_and_a_weight_stays(template: ChatTemplate) -> None:
    messages = list(ROWS["tools"].messages)
    messages[1] = messages[1].model_copy(update={"weight": 0})
    row = ROWS["tools"].model_copy(update={"messages": tuple(messages)})
    found = _rewritten(OptedTurns(tools_as_text=True), row, template)
    assert found.tools == ()
    assert [message.role for message in found.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert '"name": "price"' in (found.messages[0].content or "")
    assert found.messages[2].tool_calls == ()
    assert found.messages[2].weight == 0
    assert "spruce" in (found.messages[2].content or "")
    assert "12 Euro" in (found.messages[3].content or "")


def test_a_thought_is_written_into_the_answer_or_left_out(template: ChatTemplate) -> None:
    for kind in ("reasoning", "think"):
        written = _rewritten(OptedTurns(reasoning="as_text"), ROWS[kind], template).messages[1]
        assert written.content == "<think>\nIt is light and stiff.\n</think>\n\nSpruce wood."
        assert written.reasoning is None
        dropped = _rewritten(OptedTurns(reasoning="drop"), ROWS[kind], template).messages[1]
        assert (dropped.content, dropped.reasoning) == ("Spruce wood.", None)


def test_both_sides_of_a_pair_are_rewritten(template: ChatTemplate) -> None:
    pair = Example(id="r:1", conversation=ROWS["system"], rejected=ROWS["system"])
    (found,) = rewritten_examples(OptedTurns(folds_system=True), [pair], template)
    assert found.conversation == found.rejected
    assert found.rejected is not None
    assert found.rejected.messages[0].content == "You build guitars.\n\nWhich wood?"


def test_what_is_rewritten_once_is_not_changed_by_a_second_time(template: ChatTemplate) -> None:
    changed = 0
    for reasoning in ("as_text", "drop", None):
        opted = OptedTurns(folds_system=True, tools_as_text=True, reasoning=reasoning)
        for row in ROWS.values():
            once = _rewritten(opted, row, template)
            assert _rewritten(opted, once, template) == once
            changed += once != row
    assert changed > len(ROWS)


def test_tools_are_in_a_prompt_of_a_batch_as_they_are_in_one_of_the_server(template: ChatTemplate) -> None:
    """Also where nothing is opted for, and the template has no place for them or for calls."""
    row = ROWS["tools"].up_to(3)
    text = Prompt(text="Which wood?", max_new_tokens=1)
    prompts = [Prompt(conversation=row, max_new_tokens=4), text]
    simple = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    for jinja in (simple, "{{ tools }}" + simple, None):
        own = copy.deepcopy(template.tokenizer)
        own.chat_template = jinja or own.chat_template
        other = ChatTemplate(own, "chat")
        made, unchanged = prompts_with_tools(prompts, other, OptedTurns())
        assert unchanged == text
        assert made.max_new_tokens == 4
        assert made.conversation == ToolFormat(text_of(other)).conversation(TextRequest(conversation=row))
        written = other.render(made.conversation, add_generation_prompt=True)
        behind = written.rpartition("How much is spruce?")[2]
        assert ("price" in written, "price" in behind, "spruce" in behind) == (True, True, True)
    assert prompts_with_tools(prompts, ChatTemplate(own, "plain"), OptedTurns()) == prompts


def test_results_of_tools_are_one_turn_where_a_template_demands_that_turns_alternate(template: ChatTemplate) -> None:
    """As Gemma's, which has no place for tools: agents send two results, or a text behind one."""
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    check = (
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    )
    system = "{% for m in messages if m.role == 'system' %}" + turn + "{% endfor %}"
    jinja = system + "{% for m in messages if m.role != 'system' %}" + check + turn + "{% endfor %}"
    calls = tuple(
        {"id": f"c{n}", "type": "function", "function": {"name": "price", "arguments": "{}"}} for n in range(2)
    )
    messages = (
        Message(role="user", content="How much?"),
        Message(role="assistant", tool_calls=calls),
        Message(role="tool", tool_call_id="c0", content="12"),
        Message(role="tool", tool_call_id="c1", content="13"),
        Message(role="user", content="So?"),
    )
    row = Conversation(messages=messages, tools=ROWS["tools"].tools)
    results = ["<tool_response>12</tool_response>", "<tool_response>13</tool_response>", "So?"]
    for text, expected in ((jinja, ["\n".join(results)]), (jinja.replace(check, ""), results)):
        own = copy.deepcopy(template.tokenizer)
        own.chat_template = text
        other = ChatTemplate(own, "chat")
        made = ToolFormat.of(other).written(row, OptedTurns())
        assert [one.role for one in made.messages] == ["system", "user", "assistant"] + ["user"] * len(expected)
        assert [one.content for one in made.messages[3:]] == expected
        assert "So?" in other.render(made)
        assert _rewritten(OptedTurns(tools_as_text=True), made, other) == made
