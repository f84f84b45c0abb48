"""A tool as the Model Context Protocol lists it, a call of one, and its result; without the library of the protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from luthier.core.access import Caller, Scope
from luthier.platform.home.context import Context

MAX_NAME_CHARACTERS: Final = 200


class Arguments(BaseModel):
    """The arguments of a tool. Unknown ones are refused, so that none is silently ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class NoArguments(Arguments):
    """A tool without arguments."""


RunId = Annotated[str, Field(min_length=1, max_length=64, description="The id of a run, such as run-20261129-....")]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
Limit = Annotated[int, Field(ge=1, le=100, description="The most entries to return.")]

Progress = Callable[[float, float | None, str], Awaitable[None]]
"""Sends a progress notification: how far, out of what (None: unknown), and one line for people."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool.

    Attributes:
        context: The open home.
        caller: Who calls; the project and the scopes are the caller's.
        progress: Sends progress to clients that asked for it.
    """

    context: Context
    caller: Caller
    progress: Progress


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of a call.

    Attributes:
        summary: One or two sentences for a reader without the document.
        document: The structured result, plain JSON.
    """

    summary: str
    document: dict[str, Any]


Handler = Callable[[Call, Any], ToolResult]
"""Called in a thread, with the checked arguments."""
AsyncHandler = Callable[[Call, Any], Awaitable[ToolResult]]
"""Called on the event loop: for what waits."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool.

    Attributes:
        name: As clients call it.
        title: For people.
        description: For the model that chooses a tool.
        scopes: A key needs one of these.
        arguments: The form of its arguments.
        handler: Carries it out in a thread; None for one that waits.
        waits: Carries it out on the event loop; None for one with a `handler`.
        is_read_only: Whether it changes nothing. A server with `--read-only` has only these.
        is_destructive: Whether it may end or replace what is there.
        is_idempotent: Whether the same call again changes nothing more.
    """

    name: str
    title: str
    description: str
    scopes: tuple[Scope, ...]
    arguments: type[Arguments]
    handler: Handler | None = None
    waits: AsyncHandler | None = None
    is_read_only: bool = False
    is_destructive: bool = False
    is_idempotent: bool = False

    def is_allowed(self, caller: Caller) -> bool:
        """Whether the caller has a scope for it."""
        return any(caller.may(scope) for scope in self.scopes)


def plain(text: str) -> str:
    """A text of pages with ordinary spaces: models split words at the narrow and unbreakable ones."""
    return text.replace("\N{NARROW NO-BREAK SPACE}", " ").replace("\N{NO-BREAK SPACE}", " ")
