"""Unmodified libraries of others against a real server; and the requests that Open WebUI sends, as recorded."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest

from luthier.core.access import Scope
from luthier.features.models.service import pull_model
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import hardware_of
from luthier.testing.servers import RunningServer, running_server
from tests.fixtures.forked_children import SessionForkServer

FOLDER = Path(__file__).parents[2] / "build" / "third-party-clients"
SCRIPT = Path(__file__).with_name("third_parties.py")
TIMEOUT_SECONDS = 240
WOODS = ({"wood": wood, "hard": hard} for wood in ("spruce", "maple") for hard in (False, True))
INPUTS = list(WOODS)
KeysAndServer = tuple[dict[str, str], RunningServer]


@pytest.fixture(scope="module")
def keys_and_server(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, fork_server: SessionForkServer
) -> Iterator[KeysAndServer]:
    """A server without workers: nothing is trained here."""
    home = tmp_path_factory.mktemp("third-parties") / "home"
    with Context.open(home) as context:
        pull_model(context, str(tiny_model))
        hardware_of(context)  # measured by this process already; those of the server would do so again
        scopes: dict[str, tuple[Scope, ...]] = {"user": ("infer",), "reader": ("read",)}
        keys = {name: create_key(context, name, scopes=own)[1] for name, own in scopes.items()}
    with running_server(home, num_workers=0, popen=fork_server.popen_text) as server:
        yield keys, server


@pytest.fixture(scope="module")
def seen(keys_and_server: KeysAndServer) -> dict[str, Any]:
    """What each library has seen."""
    if not FOLDER.is_dir():
        pytest.skip("the libraries are not installed: bash tests/client_packages.sh .venv/bin/python")
    keys, server = keys_and_server
    done = subprocess.run(
        [str(FOLDER / "bin" / "python"), str(SCRIPT), server.url, "tiny"],
        input=keys["user"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", ["litellm", "langchain-openai", "instructor", "llm", "openai-agents"])
def test_a_library_chats_streams_calls_tools_and_follows_forms(name: str, seen: dict[str, Any]) -> None:
    found = seen[name]
    assert "error" not in found, found["error"]
    assert found["version"]
    checks = found.keys() & {"chat", "tool", "form"}
    assert len(checks) >= 2
    for one in checks & {"tool", "form"}:
        assert found[one] in INPUTS
    if "chat" in found:
        assert found["chat"]
        assert found["stream"] == found["chat"]


def test_litellm_speaks_messages_too(seen: dict[str, Any]) -> None:
    found = seen["litellm"]
    assert found["messages"] == found["messages stream"] == found["chat"]


def test_the_anthropic_client_talks_to_a_real_server(keys_and_server: KeysAndServer) -> None:
    keys, server = keys_and_server
    talk: list[Any] = [{"role": "user", "content": "Which wood is light?"}]
    with anthropic.Anthropic(base_url=server.url, api_key=keys["user"], max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        with client.messages.stream(model="tiny", max_tokens=8, messages=talk) as stream:
            assert "".join(stream.text_stream) == stream.get_final_message().content[0].to_dict()["text"]
        counted = client.messages.count_tokens(model="tiny", messages=talk)
        assert client.messages.create(model="tiny", max_tokens=1, messages=talk).usage.input_tokens == (
            counted.input_tokens
        )
    with (
        anthropic.Anthropic(base_url=server.url, api_key=keys["reader"], max_retries=0) as reader,
        pytest.raises(anthropic.PermissionDeniedError, match="permission_error"),
    ):
        reader.messages.create(model="tiny", max_tokens=1, messages=talk)


# What Open WebUI sends to a connection of the kind OpenAI (routers/openai.py and routers/tasks.py of its backend): the
# list of models, a chat as its settings form makes it, and the requests for title and tags behind it.
def open_webui(model: str) -> list[tuple[str, str, dict[str, Any] | None]]:
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Which wood is light?"}]
    task = [{"role": "user", "content": "### Task:\nGenerate a concise title. Output JSON."}]
    settings = {
        "temperature": 0.2,
        "top_p": 0.9,
        "max_tokens": 12,
        "frequency_penalty": 0.5,
        "seed": 7,
        "stop": ["###"],
    }
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    return [
        ("GET", "/models", None),
        ("POST", "/chat/completions", {"model": model, "messages": chat, **streamed, **settings}),
        ("POST", "/chat/completions", {"model": model, "messages": task, "stream": False, "max_completion_tokens": 20}),
    ]


def test_what_open_webui_sends_is_answered_as_it_reads_it(keys_and_server: KeysAndServer) -> None:
    keys, server = keys_and_server
    headers = {
        "Authorization": f"Bearer {keys['user']}",
        "X-OpenWebUI-User-Name": "Someone",
        "X-OpenWebUI-User-Id": "1",
        "X-OpenWebUI-User-Role": "user",
        "X-OpenWebUI-Chat-Id": "c",
    }
    answers = [
        httpx2.request(method, f"{server.url}/v1{path}", json=body, headers=headers, timeout=120)
        for method, path, body in open_webui("tiny")
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200], [answer.text for answer in answers]
    models, chat, title = answers
    # Its list needs the ids, and drops models whose id contains "babbage" and the like.
    assert [model["id"] for model in models.json()["data"]] == ["tiny"]
    assert "text/event-stream" in chat.headers["content-type"]
    lines = [line.removeprefix("data: ") for line in chat.text.split("\n") if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert chunks[-1]["usage"]["total_tokens"] > 0
    assert isinstance(title.json()["choices"][0]["message"]["content"], str)
