"""The end of a client's messages is passed on once each of its requests has an answer or was cancelled."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from mcp.shared.message import SessionMessage
from mcp.types import ErrorData, JSONRPCError, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from luthier.features.mcp_server.stdio import Incoming, Outgoing, Unanswered


def request(key: int | str) -> SessionMessage:
    return SessionMessage(JSONRPCRequest(jsonrpc="2.0", id=key, method="tools/list"))


def result(key: int) -> SessionMessage:
    return SessionMessage(JSONRPCResponse(jsonrpc="2.0", id=key, result={}))


def failure(key: int) -> SessionMessage:
    return SessionMessage(JSONRPCError(jsonrpc="2.0", id=key, error=ErrorData(code=-1, message="no")))


def cancelled(key: Any) -> SessionMessage:
    params = {"requestId": key}
    return SessionMessage(JSONRPCNotification(jsonrpc="2.0", method="notifications/cancelled", params=params))


async def _events(heard: list[SessionMessage], answers: list[SessionMessage]) -> list[str]:
    """What happens in which order: messages that are read, answers that are sent, the end."""
    seen: list[str] = []
    unanswered = Unanswered()
    to_server, from_client = anyio.create_memory_object_stream[SessionMessage](len(heard))
    to_client, _from_server = anyio.create_memory_object_stream[SessionMessage](len(answers) + 1)
    for one in heard:
        to_server.send_nowait(one)
    to_server.close()
    incoming, outgoing = Incoming(from_client, unanswered), Outgoing(to_client, unanswered)

    async def read() -> None:
        async with incoming:
            async for _ in incoming:
                seen.append("read")
        seen.append("end")

    async with anyio.create_task_group() as tasks, _from_server:
        tasks.start_soon(read)
        for answer in answers:
            await anyio.wait_all_tasks_blocked()
            seen.append("answer")
            async with anyio.create_task_group() as sending:
                sending.start_soon(outgoing.send, answer)
        await anyio.wait_all_tasks_blocked()
        await outgoing.aclose()
    return seen


@pytest.mark.parametrize(
    ("heard", "answers", "expected"),
    [
        ([], [], ["end"]),
        ([request(1), request(2)], [result(2), failure(1)], ["read", "read", "answer", "answer", "end"]),
        # Two requests of the same id have two answers; an answer to nothing changes nothing.
        ([request(1), request(1)], [result(7), result(1), result(1)], ["read", "read", *["answer"] * 3, "end"]),
        # What the client has cancelled gets no answer.
        ([request(1), cancelled(1)], [], ["read", "read", "end"]),
        ([request(1), cancelled("1"), cancelled(None)], [], ["read", "read", "read", "end"]),
        ([request(1), cancelled(9)], [result(1)], ["read", "read", "answer", "end"]),
    ],
)
def test_the_end_comes_after_the_last_answer(
    heard: list[SessionMessage], answers: list[SessionMessage], expected: list[str]
) -> None:
    assert anyio.run(_events, heard, answers) == expected
