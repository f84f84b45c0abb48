"""The protocol's own client beside the server in one process, as callers with chosen scopes and projects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.platform.home.context import Context


@dataclass(frozen=True)
class Answer:
    """Result of a call: text, structured content, whether it is an error; and the progress that came before it."""

    text: str
    document: dict[str, Any]
    is_error: bool
    progress: Sequence[tuple[float, float | None, str]] = field(default=())


Calls = Callable[..., Answer]


def call(home: Context, caller: Caller, tool: str, arguments: dict[str, Any], *, is_read_only: bool = False) -> Answer:
    """Call a tool as a caller. Raises MCPError for errors of the protocol."""
    from mcp import Client, MCPError

    from luthier.features.mcp_server.protocol import make_server
    from luthier.features.mcp_server.service import Toolbox

    async def identify(_: Any) -> Caller:
        return caller

    said: list[tuple[float, float | None, str]] = []

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        said.append((progress, total, message or ""))

    async def talk() -> Answer | MCPError:
        toolbox = Toolbox(is_read_only, home.settings.max_request_bytes)
        async with Client(make_server(home, toolbox, identify)) as client:
            try:
                found = await client.call_tool(tool, arguments, progress_callback=heard)
            except MCPError as error:
                return error  # raised in the block, it would come out as one of a group
        content = found.structured_content or {}
        assert json.loads(json.dumps(content)) == content
        texts = [part.text for part in found.content if part.type == "text"]
        return Answer("\n".join(texts), content, found.is_error, said)

    answer = asyncio.run(talk())
    if isinstance(answer, MCPError):
        raise answer
    return answer


@pytest.fixture
def as_caller(home: Context) -> Calls:
    """Calls a tool with the scopes of a key; `project` is another one than the default."""

    def make(
        tool: str,
        arguments: dict[str, Any] | None = None,
        *,
        scopes: tuple[Any, ...] = ("read", "train", "infer"),
        project: str = "default",
        is_read_only: bool = False,
    ) -> Answer:
        caller = Caller(project_id=project, scopes=scopes, key_id="key-of-the-test", name="agent")
        return call(home, caller, tool, arguments or {}, is_read_only=is_read_only)

    return make
