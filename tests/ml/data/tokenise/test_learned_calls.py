"""What is learned of a turn that calls a tool is what the server reads as a call, under templates of many makers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.zoo.makers import MAKERS, make_tokenizer, stop_ids

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.stream import TextRequest
from luthier.ml.data.tokenise.loss_mask import tokenise_sides
from luthier.ml.inference.engine_prompts import text_of
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.inference.tool_calls.forms import form_of

TOOL = {
    "type": "function",
    "function": {
        "name": "price",
        "description": "The price of a wood.",
        "parameters": {
            "type": "object",
            "properties": {"wood": {"type": "string", "description": "Its name."}},
            "required": ["wood"],
        },
    },
}
ARGUMENTS = {"wood": "ebony"}
CALL = {"id": "callAB123", "type": "function", "function": {"name": "price", "arguments": json.dumps(ARGUMENTS)}}
MESSAGES = (
    Message(role="user", content="What does the darkest wood cost?"),
    Message(role="assistant", tool_calls=(CALL,)),
    Message(role="tool", tool_call_id="callAB123", content="twelve-euro"),
    Message(role="assistant", content="It costs 12."),
)
# Templates that write calls and no tools: rows for them have none.
WITHOUT_TOOLS = ("deepseek_r1", "deepseek_v31")


def _learned(template: ChatTemplate, conversation: Conversation) -> list[str]:
    """The learned stretches of a row, as text with special tokens."""
    rows = tokenise_sides(Example(id="rows.jsonl:1", conversation=conversation), template)
    found = []
    for row in rows:
        stretch: list[int] = []
        for token, is_learned in zip([*row.input_ids, 0], [*row.loss_mask, 0], strict=True):
            if is_learned:
                stretch.append(token)
            elif stretch:
                found.append(str(template.tokenizer.decode(stretch, skip_special_tokens=False)))
                stretch = []
    return found


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name",
    ["deepseek_r1", "deepseek_v31", "gemma4", "glm46", "gpt_oss", "llama31", "mistral_nemo", "mistral_small",
     "nemotron3", "qwen25", "qwen3", "qwen3_coder", "qwen35"],
)  # fmt: skip
def test_a_learned_call_is_read_as_that_call(shared_data: Path, name: str) -> None:
    assert (shared_data / "chat_templates" / str(MAKERS[name].template)).is_file()
    tokenizer = make_tokenizer(name)
    template = ChatTemplate(tokenizer, "chat", stop_ids=tuple(stop_ids(name, tokenizer)))
    tools = () if name in WITHOUT_TOOLS else (TOOL,)
    call, answer = _learned(template, Conversation(messages=MESSAGES, tools=tools))
    assert "It costs 12." in answer
    assert "twelve-euro" not in call + answer
    # The turn ends once, at its end: nothing that a model would not write is learned.
    ends = [text for text in template.end_texts if text in call]
    assert len(ends) == 1
    assert call.count(ends[0]) == 1
    said, ended, rest = call.partition(ends[0])
    assert (bool(ended), rest.strip()) == (True, "")
    request = TextRequest(conversation=Conversation(messages=MESSAGES[:1], tools=(TOOL,)))
    reader = form_of(text_of(template)).reader(request)
    (text, calls), (left, more) = reader.add(said), reader.end()
    assert [piece.name for piece in calls if piece.name is not None] == ["price"]
    assert json.loads("".join(piece.arguments for piece in [*calls, *more])) == ARGUMENTS
    assert (text + left).replace("<think>", "").replace("</think>", "").strip() == ""
