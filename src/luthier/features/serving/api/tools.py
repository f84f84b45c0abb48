"""Tools and formats of an answer, as chat completions are asked for them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from luthier.platform.http.errors import ApiError

_STRICT: Final = ConfigDict(extra="forbid", strict=True)
_NAME: Final = r"^[a-zA-Z0-9_-]{1,64}$"
MAX_TOOLS: Final = 128


class CalledFunction(BaseModel):
    """What a call names. arguments: JSON text, as the model wrote it."""

    model_config = _STRICT

    name: Annotated[str, Field(min_length=1, max_length=1024)]
    arguments: str = "{}"


class ToolCall(BaseModel):
    """A call that an earlier answer has made."""

    model_config = _STRICT

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ToolFunction(BaseModel):
    """What may be called. parameters: the JSON schema of its arguments. strict: is always so where a call is forced."""

    model_config = _STRICT

    name: Annotated[str, Field(pattern=_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A function; other kinds of tools are the hosted service's own."""

    model_config = _STRICT

    type: Literal["function"]
    function: ToolFunction

    def document(self) -> dict[str, Any]:
        """As chat templates take it."""
        # Some templates print every key they find, so keys without a value are left out.
        left_out = {"strict"} | {name for name in ("description", "parameters") if getattr(self.function, name) is None}
        return {"type": self.type, "function": self.function.model_dump(exclude=left_out)}


class NamedFunction(BaseModel):
    """By its name."""

    model_config = _STRICT

    name: str


class NamedTool(BaseModel):
    """The one that shall be called."""

    model_config = _STRICT

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class TextFormat(BaseModel):
    """Whatever the model writes."""

    model_config = _STRICT

    type: Literal["text"]


class ObjectFormat(BaseModel):
    """Any JSON object."""

    model_config = _STRICT

    type: Literal["json_object"]


class NamedSchema(BaseModel):
    """A JSON schema; it is kept to the letter, whatever `strict` says."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    name: Annotated[str, Field(pattern=_NAME)]
    description: str | None = None
    # "schema" is a method of pydantic's own
    own_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class SchemaFormat(BaseModel):
    """JSON of a schema."""

    model_config = _STRICT

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


def schema_of(wanted: TextFormat | ObjectFormat | SchemaFormat | None) -> dict[str, Any] | None:
    """What the answer has to keep to; None for any text."""
    if isinstance(wanted, SchemaFormat):
        return wanted.json_schema.own_schema or {"type": "object"}
    return {"type": "object"} if isinstance(wanted, ObjectFormat) else None


def tool_wishes(tools: list[Tool] | None, choice: ToolChoice | None) -> dict[str, Any]:
    """`tool_choice` and `tool_name` of a TextRequest. Raises ApiError for a choice that the tools do not allow."""
    names = [tool.function.name for tool in tools or []]
    if len(set(names)) < len(names):
        raise ApiError(400, f"two tools are called {_twice(names)!r}", param="tools", code="invalid_value")
    if choice in (None, "auto", "none"):
        return {"tool_choice": choice or "auto"}
    named = choice.function.name if isinstance(choice, NamedTool) else None
    if not names or (named is not None and named not in names):
        raise ApiError(
            400,
            f"tool_choice wants {named or 'a tool'!r}; expected: one of the tools sent: {', '.join(names) or 'none'}",
            param="tool_choice",
            code="invalid_value",
        )
    return {"tool_choice": "required", "tool_name": named}


def _twice(names: list[str]) -> str:
    return next(name for name in names if names.count(name) > 1)
