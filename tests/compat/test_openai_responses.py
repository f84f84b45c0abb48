"""Responses by the unmodified `openai` package and by agents of `openai-agents`, against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict

from luthier.testing.servers import RunningServer


class Wood(BaseModel):
    model_config = ConfigDict(extra="forbid")

    wood: Literal["spruce", "maple"]


@pytest.fixture(scope="module")
def client(keys_and_server: tuple[dict[str, str], RunningServer]) -> Iterator[openai.OpenAI]:
    keys, server = keys_and_server
    with openai.OpenAI(api_key=keys["admin"], base_url=f"{server.url}/v1", max_retries=0) as made:
        yield made


def test_the_way_of_a_conversation(client: openai.OpenAI) -> None:
    first = client.responses.create(model="tiny", input="Which wood?", max_output_tokens=6, temperature=0)
    assert (first.object, first.status) == ("response", "incomplete")
    with client.responses.stream(
        model="tiny", input="And the back?", previous_response_id=first.id, text_format=Wood
    ) as stream:
        kinds = [event.type for event in stream]
        second = stream.get_final_response()
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert isinstance(second.output_parsed, Wood)
    assert client.responses.retrieve(second.id).previous_response_id == first.id
    (item,) = client.responses.input_items.list(second.id)
    assert item.content[0].text == "And the back?"  # type: ignore[union-attr]
    counted = client.responses.input_tokens.count(model="tiny", input="Which wood?")
    assert first.usage is not None
    assert counted.input_tokens == first.usage.input_tokens
    for one in (second, first):
        client.responses.delete(one.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


@pytest.fixture
def agents(keys_and_server: tuple[dict[str, str], RunningServer]) -> Any:
    """The package with its client pointed at the server, and the model for its agents."""
    made = pytest.importorskip("agents", reason="the package openai-agents is not installed")
    keys, server = keys_and_server
    made.set_tracing_disabled(True)
    return made, lambda client: made.OpenAIResponsesModel("tiny", client), keys["admin"], f"{server.url}/v1"


def carried_out(agents: Any, make: Any, *, streams: bool) -> Any:
    """Run an agent from its making to its end within one event loop, whose client is closed."""
    package, model_of, key, url = agents

    async def run() -> Any:
        async with openai.AsyncOpenAI(api_key=key, base_url=url, max_retries=0) as client:
            agent = make(package, model_of(client))
            if not streams:
                return await package.Runner.run(agent, "Which wood?", max_turns=4)
            result = package.Runner.run_streamed(agent, "Which wood?", max_turns=4)
            async for _ in result.stream_events():
                pass
            return result

    return asyncio.run(run())


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
def test_an_agent_calls_its_tool_and_answers_in_its_form(agents: Any, streams: bool) -> None:
    asked: list[str] = []

    def make(package: Any, model: Any) -> Any:
        @package.function_tool
        def find_wood(part: Literal["front", "back"]) -> str:
            """Find the wood of a part."""
            asked.append(part)
            return "spruce" if part == "front" else "maple"

        settings = package.ModelSettings(tool_choice="required", temperature=0, parallel_tool_calls=False)
        return package.Agent(
            name="maker", instructions="Answer shortly.", model=model, tools=[find_wood], model_settings=settings,
            tool_use_behavior="stop_on_first_tool",
        )  # fmt: skip

    result = carried_out(agents, make, streams=streams)
    assert asked in (["front"], ["back"])
    assert result.final_output == {"front": "spruce", "back": "maple"}[asked[0]]
    assert [item.type for item in result.new_items] == ["tool_call_item", "tool_call_output_item"]
    (response,) = result.raw_responses
    assert response.response_id.startswith("resp_")
    assert response.usage.input_tokens > 0
    assert json.loads(response.output[0].arguments)["part"] == asked[0]


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
def test_an_agent_hands_over_to_another_one(agents: Any, streams: bool) -> None:
    def make(package: Any, model: Any) -> Any:
        second = package.Agent(name="woods", instructions="Name a wood.", model=model, output_type=Wood)
        settings = package.ModelSettings(tool_choice="required", temperature=0)
        return package.Agent(
            name="desk", instructions="Hand over.", model=model, handoffs=[second], model_settings=settings
        )

    result = carried_out(agents, make, streams=streams)
    assert isinstance(result.final_output, Wood)
    assert result.last_agent.name == "woods"
    kinds = [item.type for item in result.new_items]
    assert kinds == ["handoff_call_item", "handoff_output_item", "message_output_item"]


def test_a_conversation_is_kept_by_the_server(client: openai.OpenAI) -> None:
    made = client.conversations.create(metadata={"use": "compat"})
    first = client.responses.create(model="tiny", input="Which wood?", conversation=made.id, max_output_tokens=6)
    with client.responses.stream(model="tiny", input="And the back?", conversation=made.id, text_format=Wood) as stream:
        second = stream.get_final_response()
    assert first.conversation is not None
    assert second.conversation is not None
    assert first.conversation.id == second.conversation.id == made.id
    listed = list(client.conversations.items.list(made.id, order="asc", limit=3))
    said = [item.content[0].text for item in listed if item.type == "message"]  # type: ignore[union-attr]
    assert said == ["Which wood?", first.output_text, "And the back?", second.output_text]
    assert client.conversations.items.retrieve(listed[1].id or "", conversation_id=made.id) == listed[1]
    client.conversations.items.delete(listed[3].id or "", conversation_id=made.id)
    assert len(client.conversations.items.list(made.id).data) == 3
    assert client.conversations.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(made.id)


def test_sessions_of_agents_are_conversations(agents: Any) -> None:
    package, model_of, key, url = agents

    @package.function_tool
    def find_wood(part: Literal["front", "back"]) -> str:
        """Find the wood of a part."""
        return "spruce" if part == "front" else "maple"

    async def run() -> tuple[list[Any], list[Any], Any]:
        async with openai.AsyncOpenAI(api_key=key, base_url=url, max_retries=0) as made:
            session = package.OpenAIConversationsSession(openai_client=made)
            settings = package.ModelSettings(tool_choice="required", temperature=0, parallel_tool_calls=False)
            agent = package.Agent(
                name="maker", instructions="Answer shortly.", model=model_of(made), tools=[find_wood],
                model_settings=settings, tool_use_behavior="stop_on_first_tool",
            )  # fmt: skip
            await package.Runner.run(agent, "Which wood?", session=session, max_turns=4)
            after_one = await session.get_items()
            await package.Runner.run(agent, "And the back?", session=session, max_turns=4)
            after_two = await session.get_items()
            last = await session.pop_item()
            assert len(await session.get_items()) == len(after_two) - 1
            await session.clear_session()
            return after_one, after_two, last

    one, two, last = asyncio.run(run())
    kinds = [item["type"] for item in one]
    assert kinds[0] == "message"
    assert kinds[-2:] == ["function_call", "function_call_output"]
    assert two[: len(one)] == one
    assert two[len(one)]["content"][0]["text"] == "And the back?"
    assert last == two[-1]


def test_an_agent_continues_a_conversation_of_the_server(agents: Any, client: openai.OpenAI) -> None:
    package, model_of, key, url = agents
    kept = client.conversations.create()

    async def run() -> None:
        async with openai.AsyncOpenAI(api_key=key, base_url=url, max_retries=0) as made:
            agent = package.Agent(name="maker", model=model_of(made), output_type=Wood)
            for question in ("Which wood?", "And the back?"):
                await package.Runner.run(agent, question, conversation_id=kept.id)

    asyncio.run(run())
    roles = [item.role for item in client.conversations.items.list(kept.id, order="asc") if item.type == "message"]
    assert roles == ["user", "assistant", "user", "assistant"]
