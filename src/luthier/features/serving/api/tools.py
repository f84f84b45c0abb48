"""Tools of a request to /v1/chat/completions, and the choice among them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field

from luthier.core.frozen_model import StrictModel
from luthier.ml.inference.tool_calls.arguments import TOOL_NAME
from luthier.platform.http.errors import ApiError

NAME: Final = rf"^{TOOL_NAME}$"
"""Of a tool, and of a response format."""
MAX_TOOLS: Final = 128


class ToolFunction(StrictModel):
    """A callable function. parameters: JSON schema of its arguments. strict: always on for required calls."""

    name: Annotated[str, Field(pattern=NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(StrictModel):
    """A function; other kinds of tools exist only in the hosted service."""

    type: Literal["function"]
    function: ToolFunction

    def document(self) -> dict[str, Any]:
        """In the format of chat templates."""
        # Some templates print every key, so keys without a value are omitted.
        left_out = {"strict"} | {name for name in ("description", "parameters") if getattr(self.function, name) is None}
        return {"type": self.type, "function": self.function.model_dump(exclude=left_out)}


class NamedFunction(StrictModel):
    """By its name."""

    name: str


class NamedTool(StrictModel):
    """The required tool."""

    type: Literal["function"]
    function: NamedFunction


class ToolSubset(StrictModel):
    """The tools of the request that may be called.

    Attributes:
        mode: `required` if one of them has to be called.
        tools: By their names.
    """

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(fail_fast=True, min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(StrictModel):
    """The choice among some of the tools.

    Attributes:
        type: Always `allowed_tools`.
        allowed_tools: Which ones.
    """

    type: Literal["allowed_tools"]
    allowed_tools: ToolSubset


PlainChoice = Literal["none", "auto", "required"] | NamedTool


def refuse_other_choices(value: Any) -> Any:
    """Refuse a `tool_choice` of an unknown kind by its name, rather than with an error for each kind there is."""
    kind = value
    kinds: tuple[str | None, ...] = ("none", "auto", "required", None)
    if isinstance(value, dict):
        kind, kinds = value.get("type"), ("function", "allowed_tools")
    if kind not in kinds and not isinstance(value, BaseModel):
        raise ValueError(f"{str(kind)[:100]!r}; expected: none, auto, required, function or allowed_tools")
    return value


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | Annotated[NamedTool | AllowedToolsChoice, Field(discriminator="type")],
    BeforeValidator(refuse_other_choices),
]


def tools_allowed(tools: list[Tool], names: set[str], param: str) -> list[Tool]:
    """The tools with these names; raises ApiError for a name that no tool has.

    Args:
        tools: Of the request.
        names: Of those that may be called.
        param: Where the names are in the request, for the error.
    """
    if unknown := sorted(names - {tool.function.name for tool in tools}):
        message = f"tool_choice allows {unknown[0][:100]!r}; expected: tools of this request"
        raise ApiError(400, message, param=param, code="invalid_value")
    return [tool for tool in tools if tool.function.name in names]


def tool_wishes(tools: list[Tool] | None, choice: PlainChoice | None) -> dict[str, Any]:
    """What a TextRequest has of tools and choice. Raises ApiError for a choice that does not match the tools."""
    names = [tool.function.name for tool in tools or []]
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise ApiError(400, f"two tools are called {twice!r}", param="tools", code="invalid_value")
    if choice in (None, "auto", "none"):
        strict = tuple(tool.function.name for tool in tools or [] if tool.function.strict and choice != "none")
        return {"tool_choice": choice or "auto", **({"strict_tools": strict} if strict else {})}
    named = choice.function.name if isinstance(choice, NamedTool) else None
    if not names or (named is not None and named not in names):
        raise ApiError(
            400,
            f"tool_choice wants {named or 'a tool'!r}; expected: one of the tools sent: {', '.join(names) or 'none'}",
            param="tool_choice",
            code="invalid_value",
        )
    return {"tool_choice": "required", "tool_name": named}
