"""A project from rows to an answer by the official client of the Model Context Protocol, over both transports.

Everything is done by tools alone, against a real server with real workers; `luthier mcp` opens the same home.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from luthier.testing.servers import RunningServer
from tests.fixtures.forked_command import shell_folder

ROWS = [{"prompt": f"What comes after {n}?", "completion": f"After {n} comes {n + 1}."} for n in range(24)]
WATCHES = 60


class Session:
    """Calls tools, and records what was called and which progress came."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.calls: list[str] = []
        self.dataset: dict[str, Any] = {}
        self.run_id = ""
        self.progress: list[tuple[float, float | None, str]] = []

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        async def heard(progress: float, total: float | None, message: str | None) -> None:
            self.progress.append((progress, total, message or ""))

        self.calls.append(tool)
        found = await self._client.call_tool(tool, arguments, progress_callback=heard)
        assert not found.is_error, f"{tool}: {found.content}"
        assert isinstance(found.structured_content, dict)
        return found.structured_content


async def from_rows_to_an_answer(client: Client, name: str) -> Session:
    session = Session(client)
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    annotations = tools["deploy"].annotations
    assert annotations is not None
    assert (annotations.read_only_hint, annotations.destructive_hint) == (False, True)
    dataset = session.dataset = await session.call("create_dataset", name=name, rows=ROWS)
    recipe = {
        "base_model": "tiny",
        "data": {"train": dataset["newest"]["file_id"], "held_out": 0.25},
        "training": {"epochs": 1, "global_batch_size": 4},
        "evaluation": {"max_new_tokens": 4, "few_shot": 0},
    }
    planned = await session.call("plan_run", recipe=recipe)
    assert planned["predicted"]["num_steps"] > 0
    assert planned["predicted"]["hours_low"] <= planned["predicted"]["hours"] <= planned["predicted"]["hours_high"]
    assert "plan" not in planned
    run_id = session.run_id = (await session.call("start_run", recipe=recipe))["run_id"]
    for _ in range(WATCHES):
        state = await session.call("watch", id=run_id, max_seconds=10)
        if state["is_settled"]:
            break
    assert (state["status"], state["error"]) == ("succeeded", None), state
    assert state["step"] == state["num_steps"] == planned["predicted"]["num_steps"]
    verdict = await session.call("get_verdict", run_id=run_id)
    assert verdict["word"] in ("better", "worse", "not distinguishable")
    evaluation = await session.call("get_evaluation", evaluation_id=verdict["evaluation_id"])
    assert evaluation["verdict"]["headline"] == verdict["headline"]
    worth = await session.call("worth", answers_per_week=400, minutes_each=3, cost_of_an_error=5, run_id=run_id)
    assert worth["figures"]
    deployed = await session.call("deploy", name=name, target=run_id)
    assert deployed["revision"]["number"] == 1
    answer = await session.call("ask", model=name, prompt="What comes after 7?", max_tokens=8)
    assert answer["usage"]["completion_tokens"] in range(1, 9)
    assert (answer["model"], answer["target"]) == (name, run_id)
    again = await session.call(
        "ask", model=run_id, messages=[{"role": "user", "content": "What comes after 7?"}], max_tokens=8
    )
    assert again["text"] == answer["text"]
    return session


async def judged_and_compared(session: Session) -> None:
    """The run evaluated on two rows, and compared with another run, which is held in the middle and cancelled."""
    first, dataset = session.run_id, session.dataset
    asked = {"candidate": first, "dataset_id": dataset["dataset_id"], "max_rows": 2, "allow_leakage": True}
    queued = await session.call("evaluate", kind="rows", **asked)
    for _ in range(WATCHES):
        state = await session.call("watch", id=queued["job_id"], max_seconds=10)
        if state["is_settled"]:
            break
    assert state["status"] == "succeeded", state
    found = await session.call("get_evaluation", evaluation_id=queued["result_id"])
    assert found["num_rows"] == 2
    data = {"train": dataset["newest"]["file_id"], "held_out": 0.25}
    recipe = {"base_model": "tiny", "data": data, "training": {"epochs": 40, "global_batch_size": 2}}
    other = (await session.call("start_run", recipe=recipe))["run_id"]
    for _ in range(10 * WATCHES):
        # It does not settle, so each look takes all of its time.
        if (await session.call("watch", id=other, max_seconds=1))["step"]:
            break
    await session.call("cancel_run", run_id=other)
    compared = await session.call("compare_runs", run_ids=[first, other])
    assert list(compared["run_ids"]) == [first, other]
    assert [row["name"] for row in compared["plan"] if row["name"] == "training.epochs"] == ["training.epochs"]


def check(session: Session, *further: str) -> None:
    """The order of the calls, and of the progress of the run."""
    once = [tool for number, tool in enumerate(session.calls) if tool not in session.calls[:number]]
    assert once == [
        *(
            "create_dataset",
            "plan_run",
            "start_run",
            "watch",
            "get_verdict",
            "get_evaluation",
            "worth",
            "deploy",
            "ask",
        ),
        *further,
    ]
    said = [message for _, _, message in session.progress]
    assert any("step" in message for message in said), said
    assert any("succeeded" in message for message in said), said


def test_over_http(keys_and_server: tuple[dict[str, str], RunningServer]) -> None:
    keys, server = keys_and_server

    async def story() -> Session:
        headers = {"Authorization": f"Bearer {keys['admin']}"}
        async with httpx2.AsyncClient(headers=headers, timeout=120) as http:
            transport = streamable_http_client(f"{server.url}/mcp", http_client=http)
            async with Client(transport, read_timeout_seconds=240) as client:
                session = await from_rows_to_an_answer(client, "by-http")
                await judged_and_compared(session)
                return session

    check(asyncio.run(story()), "evaluate", "cancel_run", "compare_runs")


def test_over_stdio(keys_and_server: tuple[dict[str, str], RunningServer], tmp_path: Path) -> None:
    _, server = keys_and_server
    command = shell_folder(tmp_path) / "luthier"

    async def story() -> Session:
        arguments = ["mcp", "--home", str(server.home)]
        environment = {name: value for name, value in os.environ.items() if name != "LUTHIER_API_KEY"}
        parameters = StdioServerParameters(command=str(command), args=arguments, env=environment)
        async with Client(parameters, read_timeout_seconds=240) as client:
            return await from_rows_to_an_answer(client, "by-stdio")

    check(asyncio.run(story()))


def test_a_reader_over_http_starts_nothing(keys_and_server: tuple[dict[str, str], RunningServer]) -> None:
    keys, server = keys_and_server

    async def story() -> Any:
        headers = {"Authorization": f"Bearer {keys['reader']}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=120) as http,
            Client(streamable_http_client(f"{server.url}/mcp", http_client=http)) as client,
        ):
            names = {tool.name for tool in (await client.list_tools()).tools}
            return names, await client.call_tool("start_run", {"recipe": {}})

    names, refused = asyncio.run(story())
    assert "start_run" not in names
    assert refused.is_error
    assert refused.structured_content["error"]["code"] == "not_allowed"


pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")
