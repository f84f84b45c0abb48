"""The older form of tools in chat completions: `functions`, `function_call`, and messages of the role `function`.

Code that was written before `tools` sends them, and reads a call from `function_call` of the answer. They mean the same
as tools, `tool_choice` and tool calls, and are passed to the model as these, as rows of training are. An answer has one
call at most, and its calls have no ids: those that prompts need are made from the place of the message, as in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field

from luthier.core.stream import CallPiece
from luthier.features.serving.api.sent_back import CalledFunction, ToolCall
from luthier.features.serving.api.tools import (
    MAX_TOOLS,
    NamedFunction,
    NamedTool,
    PlainChoice,
    Tool,
    ToolFunction,
)
from luthier.platform.http.errors import ApiError


def _refuse_other_choices(value: Any) -> Any:
    """Refuse another value by itself, rather than with an error for each kind that there is."""
    if isinstance(value, dict | BaseModel) or value in ("none", "auto", None):
        return value
    raise ValueError(f'{str(value)[:100]!r}; expected: none, auto or {{"name": NAME}}')


Functions = Annotated[list[ToolFunction], Field(fail_fast=True, max_length=MAX_TOOLS)]
"""What the model may call."""
FunctionChoice = Annotated[Literal["none", "auto"] | NamedFunction, BeforeValidator(_refuse_other_choices)]
"""Whether the model calls a function, or which one it has to call."""
PARALLEL: Final = "parallel_tool_calls"


def function_tools(
    functions: list[ToolFunction] | None,
    choice: Literal["none", "auto"] | NamedFunction | None,
    given: Mapping[str, Any],
) -> tuple[list[Tool], PlainChoice | None]:
    """The functions of a request as tools, and the choice among them.

    Args:
        functions: None if the request has no such field.
        choice: Among them.
        given: What the request has of the newer form, by the names of its fields.

    Raises:
        ApiError: Both forms are given, two functions have one name, or the choice is none of them.
    """
    names = [function.name for function in functions or ()]
    # One call at most is what `parallel_tool_calls: false` asks for.
    newer = [name for name, value in given.items() if value is not None and (name, value) != (PARALLEL, False)]
    if functions is not None and newer:
        message = f"functions with {newer[0]}; expected: either functions and function_call, or tools and tool_choice"
        raise ApiError(400, message, param="functions", code="invalid_value")
    if functions is None and choice == "none" and given.get("tools"):
        message = "function_call: none with tools, which may be called all the same; expected: tool_choice: none"
        raise ApiError(400, message, param="function_call", code="invalid_value")
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        message = f"two functions are called {twice!r}; expected: a name of its own for each"
        raise ApiError(400, message, param="functions", code="invalid_value")
    tools = [Tool(type="function", function=function) for function in functions or ()]
    if not isinstance(choice, NamedFunction):
        return tools, choice
    if choice.name not in names:
        message = f"function_call wants {choice.name[:100]!r}; expected: one of the functions sent: "
        raise ApiError(400, message + (", ".join(names) or "none"), param="function_call", code="invalid_value")
    return tools, NamedTool(type="function", function=choice)


def call_of(function: CalledFunction, number: int) -> ToolCall:
    """An earlier call, with an id that is unique in the conversation: the one that rows of training get.

    Args:
        function: What was called.
        number: The place of the message.
    """
    return ToolCall(id=f"call_{number}", function=function)


def as_function_call(calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The call of an answer in the older form; empty for no call."""
    return {"function_call": dict(calls[0]["function"])} if calls else {}


def function_delta(calls: Sequence[CallPiece]) -> dict[str, Any]:
    """More of the call of an answer that is streamed; empty for no more."""
    found: dict[str, Any] = {}
    for call in calls:
        if call.index == 0:
            found |= {} if call.name is None else {"name": call.name}
            found["arguments"] = found.get("arguments", "") + call.arguments
    return {"function_call": found} if found else {}
