"""A body of /v1/messages as a request for the engine.

Turns of one role that follow each other are one turn, as in Anthropic's API. What a turn may hold, in this order:

    user         tool_result blocks, one for each call of the turn before; then text
    assistant    thinking blocks; then text and tool_use
    system       text

Text blocks of a turn are joined by a line break. A chat template writes the text of an answer before its calls.

Source: Anthropic's API reference, "Create a Message", "Handle tool calls" and "Extended thinking".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from luthier.core.conversation import Conversation, Message, Role
from luthier.core.stream import Sampling, TextRequest
from luthier.core.text.json_schema import check_schema
from luthier.features.serving.api.message_body import (
    EnabledThinking,
    MessagesBody,
    OneTool,
    PromptBody,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from luthier.features.serving.api.tools import NamedFunction, NamedTool, tool_wishes
from luthier.features.serving.service import new_seed
from luthier.platform.http.errors import ApiError

_JOINT: Final = "\n"
ERROR_PREFIX: Final = "Error: "
"""Before the content of a tool_result with `is_error`: chat templates have no other place for it."""


def message_request(body: PromptBody) -> TextRequest:
    """The request for the engine; only to count its tokens where the body has no limit.

    Raises:
        ApiError: Blocks are in the wrong order, or parameters contradict each other.
        UnsupportedError: A schema has no finite instance.
    """
    if isinstance(body, MessagesBody) and body.thread is not None:
        raise _no_threads()
    tools = [tool.as_openai() for tool in body.tools or ()]
    messages = _Turns().read(body)
    request = TextRequest(
        conversation=Conversation(messages=messages, tools=tuple(tool.document() for tool in tools)),
        max_new_tokens=1,
        json_schema=_schema(body),
        calls_in_parallel=not getattr(body.tool_choice, "disable_parallel_tool_use", None),
        reasoning_effort=None if body.output_config is None else body.output_config.effort,
        thinks={"enabled": True, "disabled": False}.get(getattr(body.thinking, "type", "")),
        counts_tokens=not isinstance(body, MessagesBody),
        **tool_wishes(tools, _choice(body)),
    )
    if not isinstance(body, MessagesBody):
        return request
    return request.model_copy(
        update={
            "max_new_tokens": body.max_tokens,
            "thinking_budget": _budget(body),
            "stop": tuple(body.stop_sequences or ()),
            "sampling": Sampling(
                temperature=1.0 if body.temperature is None else body.temperature,
                top_p=1.0 if body.top_p is None else body.top_p,
                top_k=body.top_k or 0,
                seed=new_seed(),
            ),
        }
    )


def _choice(body: PromptBody) -> Any:
    """In the format of chat completions."""
    chosen = body.tool_choice
    if isinstance(chosen, OneTool):
        return NamedTool(type="function", function=NamedFunction(name=chosen.name))
    return {None: None, "auto": "auto", "any": "required", "none": "none"}[None if chosen is None else chosen.type]


def _schema(body: PromptBody) -> dict[str, Any] | None:
    wanted = None if body.output_config is None else body.output_config.format
    if wanted is not None:
        check_schema(wanted.own_schema, "output_config.format.schema")
    is_forced = getattr(body.tool_choice, "type", "auto") in ("any", "tool")
    # The schema of an optional tool is enforced where it is strict.
    for number, tool in enumerate(body.tools or ()):
        if is_forced or wanted is not None or tool.strict:
            check_schema(tool.input_schema, f"tools.{number}.input_schema")
    # A forced call is a grammar from the first token on, which leaves no place for a thought.
    if is_forced and isinstance(body.thinking, EnabledThinking):
        raise _wrong(
            "thinking",
            "thinking is enabled, and tool_choice forces a call, which begins at once",
            "tool_choice auto or none beside thinking",
            "leave one of them out",
        )
    return None if wanted is None else wanted.own_schema


def _budget(body: MessagesBody) -> int | None:
    if not isinstance(body.thinking, EnabledThinking):
        return None
    budget = body.thinking.budget_tokens
    if budget >= body.max_tokens:
        raise _wrong(
            "thinking.budget_tokens",
            f"budget_tokens={budget} with max_tokens={body.max_tokens}, which limits thought and answer together",
            "a budget under max_tokens",
            "raise max_tokens, or lower the budget",
        )
    return budget


def _no_threads() -> ApiError:
    """Conversations are not held here.

    `tool_runner` of Anthropic's clients begins a thread by default, and knows this code: it sends the request again
    without one, and all later ones with the whole conversation.
    """
    message = (
        "thread: a conversation that the server holds; expected: the whole conversation in messages; what to do: leave "
        "thread out (client.beta.messages.thread has unsupported_request_behavior='continue_unthreaded' for that)"
    )
    return ApiError(400, message, param="thread", code="thread_unsupported_request")


def _wrong(param: str, came: str, expected: str, do: str) -> ApiError:
    message = f"{param}: {came}; expected: {expected}; what to do: {do}"
    return ApiError(400, message, param=param, code="invalid_value")


@dataclass(slots=True)
class _Turn:
    """A turn while its blocks are read.

    Attributes:
        role: Whose.
        place: Of its first message.
        texts: In order.
        thoughts: In order.
        calls: In OpenAI's format.
        results: (tool_use_id, text).
    """

    role: Role
    place: str
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    results: list[tuple[str, str]] = field(default_factory=list)


class _Turns:
    """Reads the messages of a body, and refuses blocks in a wrong order."""

    def __init__(self) -> None:
        self._turns: list[_Turn] = []
        self._open: list[str] = []  # calls of the turn before that have no result yet
        self._called: set[str] = set()
        self._take: dict[str, Callable[[_Turn, str, Any], None]] = {
            "text": self._text,
            "tool_use": self._call,
            "tool_result": self._result,
            "thinking": self._thought,
        }

    def read(self, body: PromptBody) -> tuple[Message, ...]:
        """The messages, the system prompt first.

        Raises:
            ApiError: A call has no result or a result no call, a block is in the wrong place, or the assistant has the
                last turn.
        """
        for number, message in enumerate(body.messages):
            place = f"messages.{number}"
            turn = self._turn(message.role, place)
            content = message.content
            blocks = [TextBlock(type="text", text=content)] if isinstance(content, str) else content
            for nth, block in enumerate(blocks):
                where = f"{place}.content" if isinstance(content, str) else f"{place}.content.{nth}"
                self._take[block.type](turn, where, block)
        last = self._turns[-1]
        self._check_answered(last.place, is_end=True)
        if last.role == "assistant":
            raise _wrong(
                last.place,
                "the last message is one of the assistant, which the answer would continue",
                "a last message of the user",
                "ask for the beginning in a user message: no model of this server continues a turn",
            )
        system = [] if body.system is None else [Message(role="system", content=_text_of(body.system))]
        return (*system, *(message for turn in self._turns for message in _messages(turn)))

    def _turn(self, role: Role, place: str) -> _Turn:
        """The open turn of this role, or the next one."""
        # Turns of one role are one: their blocks are read as if they had come in one message.
        if self._turns and self._turns[-1].role == role:
            return self._turns[-1]
        if self._turns:
            self._check_answered(place)
        elif role == "assistant":
            raise _wrong(
                place, "the first message is one of the assistant", "one of the user", "leave it out, or put one before"
            )
        # The calls of the turn that ends here wait for their results in the turn that begins.
        self._open = [call["id"] for call in self._turns[-1].calls] if self._turns else []
        self._turns.append(_Turn(role, place))
        return self._turns[-1]

    def _check_answered(self, place: str, *, is_end: bool = False) -> None:
        """Every call must have its result in the turn behind it."""
        turn = self._turns[-1]
        missing = self._open or ([call["id"] for call in turn.calls] if is_end else [])
        if missing:
            raise _wrong(
                turn.place if not is_end else place,
                f"tool_use ids without a tool_result: {', '.join(missing[:8])}",
                "a user message behind the calls that begins with a tool_result for each of them",
                "send the results, in one message",
            )

    def _text(self, turn: _Turn, place: str, block: TextBlock) -> None:
        if self._open:
            raise _wrong(
                place,
                "a text before the results of calls",
                f"tool_result blocks for {', '.join(self._open[:8])} first, then text",
                "put the tool_result blocks at the beginning of the message",
            )
        turn.texts.append(block.text)

    def _call(self, turn: _Turn, place: str, block: ToolUseBlock) -> None:
        self._check_role(turn, place, "tool_use", "assistant")
        if block.id in self._called:
            raise _wrong(place, f"a second call with the id {block.id!r}", "an id for each call", "give it its own id")
        self._called.add(block.id)
        arguments = json.dumps(block.input, ensure_ascii=False)
        function = {"name": block.name, "arguments": arguments}
        turn.calls.append({"id": block.id, "type": "function", "function": function})

    def _result(self, turn: _Turn, place: str, block: ToolResultBlock) -> None:
        self._check_role(turn, place, "tool_result", "user")
        if block.tool_use_id not in self._open:
            raise _wrong(
                place,
                f"a tool_result for {block.tool_use_id!r}, which the message before does not call, or which has one",
                "a tool_result for each tool_use of the message before, first in the message",
                "leave it out, or send the message with its tool_use before",
            )
        # A second result for the same call is refused like one for a call that never was.
        self._open.remove(block.tool_use_id)
        text = _text_of(block.content or "")
        turn.results.append((block.tool_use_id, (ERROR_PREFIX if block.is_error else "") + text))

    def _thought(self, turn: _Turn, place: str, block: ThinkingBlock) -> None:
        self._check_role(turn, place, "thinking", "assistant")
        if turn.texts or turn.calls:
            raise _wrong(
                place,
                "a thinking block behind text or calls",
                "thinking blocks first in a turn of the assistant, then text and tool_use",
                "put it first",
            )
        if block.thinking:
            turn.thoughts.append(block.thinking)

    def _check_role(self, turn: _Turn, place: str, kind: str, role: Role) -> None:
        if turn.role != role:
            raise _wrong(
                place,
                f"a {kind} block in a message of the role {turn.role}",
                f"{kind} blocks in messages of the role {role} only",
                "send it in such a message, or leave it out",
            )


def _text_of(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else _JOINT.join(block.text for block in content)


def _messages(turn: _Turn) -> list[Message]:
    """A turn in the format of chat completions: results of tools are their own turns."""
    text = _JOINT.join(turn.texts)
    if turn.role == "assistant":
        thought = _JOINT.join(turn.thoughts) or None
        return [Message(role="assistant", content=text, tool_calls=tuple(turn.calls), reasoning=thought)]
    # A turn without text is kept where it has no results either: templates expect roles that alternate.
    found = [Message(role="tool", content=result, tool_call_id=number) for number, result in turn.results]
    return [*found, *([Message(role=turn.role, content=text)] if turn.texts or not found else [])]
