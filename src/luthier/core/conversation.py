"""A conversation as the OpenAI chat format writes it, checked once and then trusted everywhere."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from luthier.core.frozen_model import FrozenModel

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class Message(FrozenModel):
    """One turn.

    Attributes:
        role: Who speaks.
        content: The text; None for an answer of tool calls alone.
        name: The name of the speaker or of the function, as OpenAI's format has it.
        tool_calls: OpenAI's objects as they came: `{"id", "type": "function", "function": {"name", "arguments"}}`, with
            `arguments` a JSON string.
        tool_call_id: Of a tool's turn: the call that it answers.
        weight: Of an assistant's turn: 0 means "context, do not learn", 1 or None "learn".
        reasoning: What the assistant thought before its answer, apart from the answer.
        learn_reasoning: Whether this turn's thought is learned; None leaves it to the recipe.
    """

    role: Role
    content: str | None = None
    name: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None
    weight: Literal[0, 1] | None = None
    reasoning: str | None = None
    learn_reasoning: bool | None = None

    @model_serializer(mode="wrap")
    def _without_unused(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the fields of reasoning where they are not used: digests of turns that have none stay as they are."""
        document: dict[str, Any] = write(self)
        for name in ("reasoning", "learn_reasoning"):
            # `...` as default: a field that was excluded already is not there to be deleted.
            if document.get(name, ...) is None:
                del document[name]
        return document

    @property
    def is_learned(self) -> bool:
        """Whether training should learn this turn."""
        return self.role == "assistant" and self.weight != 0


class Conversation(FrozenModel):
    """Turns in order, and the tools the assistant may call (OpenAI's `tools` objects).

    Attributes:
        messages: the turns, in order.
        tools: the tools that the assistant may call, as OpenAI's `tools` objects.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()

    def up_to(self, num_messages: int) -> Conversation:
        """The conversation cut before message `num_messages` (counted from 0)."""
        return Conversation(messages=self.messages[:num_messages], tools=self.tools)

    @property
    def last_answer(self) -> int | None:
        """Index of the last assistant turn that is learned, or None."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].is_learned:
                return index
        return None
