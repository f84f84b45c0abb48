"""What people do with libraries that speak OpenAI's or Anthropic's API: chat, streams, tools, structured output.

    python third_parties.py ADDRESS MODEL < KEY      ADDRESS: of the server, without /v1; MODEL: one that writes text

Runs with the packages of `tests/client_packages.sh`; knows nothing of Luthier. Prints what each library saw, or the
error that it raised, as one JSON object by library.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

# Each would ask servers of its own.
os.environ |= {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LANGCHAIN_TRACING_V2": "false",
}
QUESTION = "Which wood is light?"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"wood": {"enum": ["spruce", "maple"]}, "hard": {"type": "boolean"}},
    "required": ["wood", "hard"],
    "additionalProperties": False,
}
FUNCTION = {"name": "look_up", "description": "Looks a wood up.", "parameters": SCHEMA}


def litellm(address: str, model: str, key: str) -> dict[str, Any]:
    import litellm as library

    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    ours: dict[str, Any] = {"model": f"openai/{model}", "api_base": f"{address}/v1", "api_key": key, "max_tokens": 12}
    plain = library.completion(messages=messages, temperature=0, **ours)
    pieces = list(library.completion(messages=messages, temperature=0, stream=True, **ours))
    tool = {"type": "function", "function": FUNCTION}
    called = library.completion(messages=messages, tools=[tool], tool_choice="required", **(ours | {"max_tokens": 120}))
    (call,) = called.choices[0].message.tool_calls[:1]
    form = {"type": "json_schema", "json_schema": {"name": "wood", "schema": SCHEMA, "strict": True}}
    formed = library.completion(messages=messages, response_format=form, **(ours | {"max_tokens": 120}))
    theirs = {"model": f"anthropic/{model}", "api_base": address, "api_key": key, "max_tokens": 12}
    other = library.completion(messages=messages, temperature=0, **theirs)
    other_pieces = list(library.completion(messages=messages, temperature=0, stream=True, **theirs))
    return {
        "chat": plain.choices[0].message.content,
        "stream": "".join(piece.choices[0].delta.content or "" for piece in pieces),
        "tool": json.loads(call.function.arguments),
        "form": json.loads(formed.choices[0].message.content),
        "messages": other.choices[0].message.content,
        "messages stream": "".join(piece.choices[0].delta.content or "" for piece in other_pieces),
    }


def langchain_openai(address: str, model: str, key: str) -> dict[str, Any]:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    ours: dict[str, Any] = {"model": model, "base_url": f"{address}/v1", "api_key": key, "temperature": 0}
    chat = ChatOpenAI(max_tokens=12, **ours)
    long = ChatOpenAI(max_tokens=120, **ours)
    called = long.bind_tools([{"type": "function", "function": FUNCTION}], tool_choice="look_up").invoke(QUESTION)
    form = long.with_structured_output({"title": "wood", **SCHEMA}, method="json_schema").invoke(QUESTION)
    vectors = OpenAIEmbeddings(
        model=model, base_url=f"{address}/v1", api_key=key, check_embedding_ctx_length=False
    ).embed_documents(["a", "b"])
    answer = chat.invoke(QUESTION)
    return {
        "chat": answer.content,
        "stream": "".join(str(piece.content) for piece in chat.stream(QUESTION)),
        "tool": called.tool_calls[0]["args"],
        "form": form,
        "tokens": answer.usage_metadata["output_tokens"],
        "vectors": len(vectors),
    }


def instructor(address: str, model: str, key: str) -> dict[str, Any]:
    import openai
    from instructor import Mode, from_openai
    from pydantic import BaseModel, ConfigDict

    class Wood(BaseModel):
        model_config = ConfigDict(extra="forbid")

        wood: Literal["spruce", "maple"]
        hard: bool

    seen = {}
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key) as client:
        for name, mode, options in (
            ("tool", Mode.TOOLS, {"parallel_tool_calls": False}),
            ("form", Mode.JSON_SCHEMA, {}),
        ):
            asked = from_openai(client, mode=mode)
            made = asked.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": QUESTION}],
                response_model=Wood,
                max_retries=0,
                max_tokens=200,
                temperature=0,
                **options,
            )
            seen[name] = made.model_dump()
    return seen


def llm(address: str, model: str, key: str) -> dict[str, Any]:
    import yaml

    with tempfile.TemporaryDirectory() as folder:
        os.environ["LLM_USER_PATH"] = folder
        import llm as library

        known = {
            "model_id": "here",
            "model_name": model,
            "api_base": f"{address}/v1",
            "api_key_name": "here",
            "supports_schema": True,
            "supports_tools": True,
        }
        (Path(folder) / "keys.json").write_text(json.dumps({"here": key}), encoding="utf-8")
        (Path(folder) / "extra-openai-models.yaml").write_text(yaml.safe_dump([known]), encoding="utf-8")
        asked = library.get_model("here")
        plain = asked.prompt(QUESTION, stream=False, max_tokens=12, temperature=0).text()
        pieces = list(asked.prompt(QUESTION, stream=True, max_tokens=12, temperature=0))
        form = asked.prompt(QUESTION, stream=False, max_tokens=120, schema=SCHEMA).text()
    return {"chat": plain, "stream": "".join(pieces), "form": json.loads(form)}


def openai_agents(address: str, model: str, key: str) -> dict[str, Any]:
    import agents
    import openai

    async def run() -> dict[str, Any]:
        called: list[dict[str, Any]] = []

        @agents.function_tool
        def look_up(wood: Literal["spruce", "maple"], hard: bool) -> str:
            """Look a wood up."""
            called.append({"wood": wood, "hard": hard})
            return "It is light."

        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=key) as client:
            asked = agents.OpenAIChatCompletionsModel(model=model, openai_client=client)
            plain = agents.Agent(
                name="one", model=asked, model_settings=agents.ModelSettings(max_tokens=12, temperature=0)
            )
            forced = agents.Agent(
                name="two",
                model=asked,
                tools=[look_up],
                tool_use_behavior="stop_on_first_tool",
                model_settings=agents.ModelSettings(max_tokens=200, temperature=0, tool_choice="required"),
            )
            answer = await agents.Runner.run(plain, QUESTION)
            streamed = agents.Runner.run_streamed(plain, QUESTION)
            kinds = {event.type async for event in streamed.stream_events()}
            result = await agents.Runner.run(forced, QUESTION)
        return {
            "chat": answer.final_output,
            "stream": streamed.final_output,
            "kinds": sorted(kinds),
            "tool": called[0],
            "result": result.final_output,
        }

    return asyncio.run(run())


LIBRARIES: dict[str, Callable[[str, str, str], dict[str, Any]]] = {
    "litellm": litellm,
    "langchain-openai": langchain_openai,
    "instructor": instructor,
    "llm": llm,
    "openai-agents": openai_agents,
}


def main(address: str, model: str, key: str) -> None:
    seen = {}
    for name, walk in LIBRARIES.items():
        try:
            seen[name] = {"version": version(name)} | walk(address, model, key)
        except Exception:  # noqa: BLE001 - the others go on
            seen[name] = {"error": traceback.format_exc()[-3000:]}
    print(json.dumps(seen))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.stdin.read().strip())
