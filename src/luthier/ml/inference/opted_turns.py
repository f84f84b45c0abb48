"""What a recipe has written in another way, for templates that have no place for it: system turns, tools, thoughts.

    data.system: fold           the system text, a blank line, then the first user turn
    data.tools: as_text         tools as text in the system turn, calls and their results as text, as a server writes
                                them for models whose template knows no tools (`ml/inference/tool_prompt.py`)
    data.reasoning: as_text     <think>, the thought, </think>, then the answer, all of it content
    data.reasoning: drop        the answer without its thought

Nothing of this happens unasked: a row that the template cannot write is refused. What is rewritten once is not changed
by a second time, so that rows of a run and conversations of a client go the same way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.opted_turns import AS_THEY_ARE, OptedTurns
from luthier.ml.inference.models.thought_writing import TAGS, ThoughtWriting, split_thought
from luthier.ml.inference.tool_calls import ToolForm, form_of
from luthier.ml.inference.tool_prompt import with_tools_as_text

if TYPE_CHECKING:
    from luthier.ml.inference.models.chat_template import ChatTemplate

_START, _END = TAGS[0]
_WRITING = ThoughtWriting("content", f"{_START}\n", f"\n{_END}\n\n")
_SYSTEM = ("system", "developer")


def text_of(template: ChatTemplate) -> str:
    """The text of a chat template, or of all that a tokenizer has, as one; empty for the plain layout."""
    return json.dumps(template.tokenizer.chat_template or "") if template.kind == "chat" else ""


def rewritten_examples(opted: OptedTurns, examples: Sequence[Example], template: ChatTemplate) -> Sequence[Example]:
    """The examples, both sides of a pair, rewritten; the same where nothing is requested."""
    if opted == AS_THEY_ARE:
        return examples
    form = form_of(text_of(template))
    return tuple(_example(opted, example, form) for example in examples)


def rewritten(opted: OptedTurns, conversation: Conversation, form: ToolForm) -> Conversation:
    """One conversation, rewritten.

    Args:
        opted: which turns are rewritten, and how.
        conversation: left as it is.
        form: in which the model calls tools.
    """
    if opted.reasoning is not None:
        messages = tuple(_thought(opted, message) for message in conversation.messages)
        conversation = conversation.model_copy(update={"messages": messages})
    # Before folding: the description of the tools goes into the system turn, which is folded next.
    if opted.tools_as_text:
        conversation = with_tools_as_text(conversation, form)
    return _folded(conversation) if opted.folds_system else conversation


def _example(opted: OptedTurns, example: Example, form: ToolForm) -> Example:
    sides = {"conversation": example.conversation, "rejected": example.rejected}
    changed = {name: rewritten(opted, side, form) for name, side in sides.items() if side is not None}
    return example.model_copy(update=changed)


def _thought(opted: OptedTurns, message: Message) -> Message:
    if message.role != "assistant":
        return message
    thought, answer = message.reasoning, message.content or ""
    # A row may hold its thought in the content already, in tags: it is moved or dropped like one in a field.
    if thought is None:
        thought, answer = split_thought(answer, _WRITING)
    if thought is None:
        return message
    if opted.reasoning == "as_text":
        answer = f"{_WRITING.before}{thought.strip()}{_WRITING.between}{answer}"
    return message.model_copy(update={"content": answer, "reasoning": None})


def _folded(conversation: Conversation) -> Conversation:
    """System text before the first user turn; a user turn of its own where there is none."""
    system = [message.content for message in conversation.messages if message.role in _SYSTEM and message.content]
    rest = [message for message in conversation.messages if message.role not in _SYSTEM]
    if not system:
        return conversation
    words = "\n\n".join(system)
    place = next((n for n, message in enumerate(rest) if message.role == "user"), None)
    if place is None:
        rest.insert(0, Message(role="user", content=words))
    else:
        rest[place] = rest[place].model_copy(update={"content": f"{words}\n\n{rest[place].content or ''}"})
    return conversation.model_copy(update={"messages": tuple(rest)})
