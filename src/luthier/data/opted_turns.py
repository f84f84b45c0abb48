"""What a recipe has written in another way, for templates that have no place for it: system turns, tools, thoughts.

    data.system: fold           the system text, a blank line, then the first user turn
    data.tools: as_text         tools in words in the system turn, calls and their results as text, as a server writes
                                them for models whose template knows no tools (`engines/tool_prompt.py`)
    data.reasoning: as_text     <think>, the thought, </think>, then the answer, all of it content
    data.reasoning: drop        the answer without its thought

Nothing of this happens unasked: a row that the template cannot write is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.models.thought_writing import TAGS, ThoughtWriting, split_thought

if TYPE_CHECKING:
    from luthier.core.recipe import DataRecipe
    from luthier.models.chat_template import ChatTemplate

_START, _END = TAGS[0]
_WRITING = ThoughtWriting("content", f"{_START}\n", f"\n{_END}\n\n")
_SYSTEM = ("system", "developer")


@dataclass(frozen=True, slots=True)
class OptedTurns:
    """What is written in another way."""

    folds_system: bool = False
    tools_as_text: bool = False
    reasoning: str | None = None

    @classmethod
    def of(cls, recipe: DataRecipe) -> OptedTurns:
        """As a recipe asks for."""
        return cls(recipe.system == "fold", recipe.tools == "as_text", recipe.reasoning)

    def examples(self, examples: Sequence[Example], template: ChatTemplate) -> Sequence[Example]:
        """The examples, rewritten; the very same where nothing is asked for."""
        if self == OptedTurns():
            return examples
        return tuple(self._example(example, template) for example in examples)

    def conversation(self, conversation: Conversation, template: ChatTemplate) -> Conversation:
        """One conversation, rewritten."""
        if self.reasoning is not None:
            messages = tuple(map(self._thought, conversation.messages))
            conversation = conversation.model_copy(update={"messages": messages})
        if self.tools_as_text:
            from luthier.engines.tool_calls import form_of
            from luthier.engines.tool_prompt import with_tools_as_text

            conversation = with_tools_as_text(conversation, form_of(str(template.tokenizer.chat_template or "")))
        return _folded(conversation) if self.folds_system else conversation

    def _example(self, example: Example, template: ChatTemplate) -> Example:
        sides = {"conversation": example.conversation, "rejected": example.rejected}
        changed = {name: self.conversation(side, template) for name, side in sides.items() if side is not None}
        return example.model_copy(update=changed)

    def _thought(self, message: Message) -> Message:
        if message.role != "assistant":
            return message
        thought, answer = message.reasoning, message.content or ""
        if thought is None:
            thought, answer = split_thought(answer, _WRITING)
        if thought is None:
            return message
        if self.reasoning == "as_text":
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
