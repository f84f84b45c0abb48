"""The unmodified Anthropic client with a real server and a real child process: a tiny model, and one that thinks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx2
import openai
import pytest
import uvicorn
from tests.features.serving.openai.answers.conftest import Server
from tests.vacuous import nonempty

from luthier.core.access import Scope
from luthier.core.ports import SilentProgress
from luthier.features.models.store import TunedModel
from luthier.features.serving.api.messages import signature_of
from luthier.ml.inference.models import sources
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import hardware_of
from luthier.platform.home.settings import Settings
from luthier.server.api import create_app
from luthier.testing.tiny import ANSWER, THOUGHT

ASKED: list[Any] = [{"role": "user", "content": "Which wood?"}]
TOOL: dict[str, Any] = {
    "name": "look_up",
    "description": "Looks a wood up.",
    "input_schema": {
        "type": "object",
        "properties": {"wood": {"enum": ["spruce", "maple"]}, "hard": {"type": "boolean"}},
        "required": ["wood", "hard"],
        "additionalProperties": False,
    },
}
MakeClient = Callable[..., anthropic.Anthropic]


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_thinker: Callable[..., Path]
) -> Iterator[tuple[Context, str]]:
    """A home with both models, and the address at which it is served."""
    home = tmp_path_factory.mktemp("api") / "home"
    home.mkdir(parents=True)
    with Context(Settings(home=home, serving_threads=1), SilentProgress()) as context:
        sources.pull(str(tiny_model), home, SilentProgress())
        sources.pull(str(tiny_thinker()), home, SilentProgress())
        hardware_of(context)  # this process has measured the machine; the one that answers would do so again
        server = Server(uvicorn.Config(create_app(context), port=0, log_level="warning"))
        yield context, server.start()
        server.stop()


@pytest.fixture(scope="module")
def make_client(served: tuple[Context, str]) -> Iterator[MakeClient]:
    """Makes clients, each with a key of its own; without retries, so that what is answered is seen."""
    context, address = served
    made: list[anthropic.Anthropic] = []

    def make(*scopes: Scope, project: str = "default", **options: Any) -> anthropic.Anthropic:
        _, key = create_key(context, "test", scopes=scopes or ("infer",), project=project, **options)
        made.append(anthropic.Anthropic(base_url=address, api_key=key, max_retries=0, timeout=120))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture(scope="module")
def client(make_client: MakeClient) -> anthropic.Anthropic:
    return make_client()


@pytest.fixture(scope="module")
def thinker(client: anthropic.Anthropic) -> str:
    """The name of the model that thinks."""
    (name,) = [model.id for model in client.models.list() if model.id != "tiny"]
    return name


def ask(client: anthropic.Anthropic, **wishes: Any) -> Any:
    extra = {"temperature": wishes.pop("temperature", 0)} | wishes.pop("extra_body", {})
    given = {"model": "tiny", "max_tokens": 12, "messages": ASKED} | wishes
    return client.messages.create(**given, extra_body=extra)


def events(client: anthropic.Anthropic, **wishes: Any) -> list[Any]:
    return list(ask(client, stream=True, **wishes))


def streamed(client: anthropic.Anthropic, **wishes: Any) -> Any:
    """The message that the client has put together from a stream."""
    given = {"model": "tiny", "max_tokens": 12, "messages": ASKED} | wishes
    with client.messages.stream(**given, extra_body={"temperature": 0}) as stream:
        return stream.get_final_message()


def url(client: anthropic.Anthropic, path: str) -> str:
    return f"{str(client.base_url).rstrip('/')}/{path}"


def num_input(usage: Any) -> int:
    """Tokens of the prompt, those from the cache included."""
    return int(usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens)


def without_ids(message: Any) -> Any:
    """A message that can be compared: without ids, and with all tokens of the prompt, wherever they came from."""
    document = message.to_dict() | {"id": None}
    usage = document["usage"] | {"input_tokens": num_input(message.usage), "cache_read_input_tokens": 0}
    document["usage"] = usage
    document["content"] = [block | {"id": None} if "id" in block else block for block in document["content"]]
    return document


def test_a_message_is_the_answer_of_chat_completions(client: anthropic.Anthropic) -> None:
    made = ask(client, system="Be short.")
    with openai.OpenAI(base_url=url(client, "v1"), api_key=client.api_key, max_retries=0) as other:
        talk = [{"role": "system", "content": "Be short."}, *ASKED]
        same = other.chat.completions.create(model="tiny", messages=talk, max_tokens=12, temperature=0)
    (block,) = made.content
    assert (block.type, block.text) == ("text", same.choices[0].message.content)
    assert (made.type, made.role, made.model, made.stop_reason) == ("message", "assistant", "tiny", "max_tokens")
    assert made.id.startswith("msg_")
    assert num_input(made.usage) == same.usage.prompt_tokens
    assert made.usage.output_tokens == same.usage.completion_tokens == 12
    assert made._request_id.startswith("req_")


def test_the_events_of_a_stream_come_in_order_and_make_the_same_message(client: anthropic.Anthropic) -> None:
    found = events(client, max_tokens=20)
    kinds = [event.type for event in found]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    whole = ask(client, max_tokens=20)
    assert num_input(found[0].message.usage) == num_input(whole.usage)
    assert (found[0].message.content, found[0].message.stop_reason) == ([], None)
    assert "".join(event.delta.text for event in nonempty(found[2:-3])) == whole.content[0].text
    assert (found[-2].delta.stop_reason, found[-2].usage.output_tokens) == ("max_tokens", 20)
    assert without_ids(streamed(client, max_tokens=20)) == without_ids(whole)


def test_usage_has_the_tokens_that_came_from_the_cache_apart(client: anthropic.Anthropic) -> None:
    talk = [{"role": "user", "content": "Which wood is the back of a cello made of? " * 4}]
    first, again = (ask(client, messages=talk).usage for _ in range(2))
    assert first.cache_read_input_tokens < again.cache_read_input_tokens
    assert 0 < again.input_tokens < first.input_tokens
    assert (
        num_input(first) == num_input(again) == client.messages.count_tokens(model="tiny", messages=talk).input_tokens
    )
    usage = streamed(client, messages=talk).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (again.input_tokens, again.cache_read_input_tokens)


def test_lines_of_a_stream_have_the_names_of_their_events(client: anthropic.Anthropic) -> None:
    body = {"model": "tiny", "max_tokens": 2, "messages": ASKED, "stream": True}
    answer = httpx2.post(url(client, "v1/messages"), json=body, headers={"x-api-key": str(client.api_key)})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.split("\n")
    assert lines[0] == "event: message_start"
    assert lines[3:5] == ["event: ping", 'data: {"type":"ping"}']
    assert "[DONE]" not in answer.text


def test_a_stop_sequence_is_named(client: anthropic.Anthropic) -> None:
    text = ask(client, max_tokens=30).content[0].text
    stop = text[4:7]
    before = text[: text.index(stop)]
    made = ask(client, max_tokens=30, stop_sequences=["not there", stop])
    assert (made.stop_reason, made.stop_sequence, made.content[0].text) == ("stop_sequence", stop, before)
    last = events(client, max_tokens=30, stop_sequences=[stop])[-2]
    assert (last.delta.stop_reason, last.delta.stop_sequence) == ("stop_sequence", stop)


def test_a_full_context_is_its_own_reason(client: anthropic.Anthropic) -> None:
    window = client.models.retrieve("tiny").max_input_tokens
    made = ask(client, max_tokens=window, messages=[{"role": "user", "content": "wood " * (window // 8)}])
    assert num_input(made.usage) + made.usage.output_tokens <= window
    assert made.stop_reason in ("model_context_window_exceeded", "end_turn")


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look_up"}])
def test_a_tool_is_called_and_its_result_goes_back(client: anthropic.Anthropic, choice: dict[str, Any]) -> None:
    wishes = {"tools": [TOOL], "tool_choice": choice | {"disable_parallel_tool_use": True}, "max_tokens": 120}
    made = ask(client, **wishes)
    (block,) = made.content
    assert (made.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "look_up")
    assert set(block.input) == {"wood", "hard"}
    assert block.id.startswith("toolu_")
    assert without_ids(streamed(client, **wishes)) == without_ids(made)
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "It is light."}
    talk = [*ASKED, {"role": "assistant", "content": made.content}, {"role": "user", "content": [result]}]
    after = ask(client, messages=talk, tools=[TOOL])
    assert num_input(after.usage) > num_input(made.usage)
    assert after.content[0].type == "text"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_tool_runner_of_the_client_runs_its_tools(client: anthropic.Anthropic, is_streamed: bool) -> None:
    called: list[tuple[str, bool]] = []

    @anthropic.beta_tool
    def look_up(wood: Literal["spruce", "maple"], hard: bool) -> Any:
        """Look a wood up."""
        called.append((wood, hard))
        return "It is light." if len(called) > 1 else None

    runner: Any = client.beta.messages.tool_runner(
        model="tiny",
        max_tokens=120,
        messages=ASKED,
        tools=[look_up],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        max_iterations=3,
        stream=is_streamed,
        extra_body={"temperature": 0},
    )
    made = [one.get_final_message() if is_streamed else one for one in runner]
    assert [one.stop_reason for one in made] == ["tool_use"] * 3
    asked = [(block.input["wood"], block.input["hard"]) for one in made for block in one.content]
    assert called == asked[: len(called)]
    assert len(called) >= 2
    sizes = [num_input(one.usage) for one in made]
    assert sizes == sorted(set(sizes))


def test_a_thread_is_refused_by_the_code_that_clients_know(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.beta.messages.thread(model="tiny", max_tokens=4, messages=ASKED).send()
    assert caught.value.body["error"]["details"] == {"error_code": "thread_unsupported_request"}
    thread = client.beta.messages.thread(
        model="tiny", max_tokens=4, messages=ASKED, unsupported_request_behavior="continue_unthreaded"
    )
    first = thread.send()
    second = thread.send({"role": "user", "content": "And the back?"})
    assert num_input(second.usage) > num_input(first.usage)


def test_edits_of_the_conversation_are_told_to_be_none(client: anthropic.Anthropic) -> None:
    edits: list[Any] = [{"type": "clear_thinking_20251015", "keep": "all"}, {"type": "compact_20260112"}]
    wishes: dict[str, Any] = {
        "model": "tiny", "messages": ASKED, "betas": ["context-management-2025-06-27"],
        "context_management": {"edits": edits},
    }  # fmt: skip
    answer = client.beta.messages.with_raw_response.create(max_tokens=4, **wishes)
    made = answer.parse()
    assert made.context_management is not None
    assert made.context_management.applied_edits == []
    assert "context_management" in answer.headers["x-luthier-warning"]
    with client.beta.messages.stream(max_tokens=4, **wishes) as stream:
        found = [one.context_management for one in stream if one.type == "message_delta"]
    assert [one and one.applied_edits for one in found] == [[]]
    counted = client.beta.messages.count_tokens(**wishes)
    assert counted.context_management is not None
    assert counted.context_management.original_input_tokens == counted.input_tokens
    plain = client.beta.messages.with_raw_response.create(model="tiny", messages=ASKED, max_tokens=4)
    assert "x-luthier-warning" not in plain.headers


def test_a_call_that_is_cut_off_has_what_is_complete_of_it(client: anthropic.Anthropic) -> None:
    wishes = {"tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 30}
    made = ask(client, **wishes)
    assert made.stop_reason == "max_tokens"
    assert without_ids(streamed(client, **wishes)) == without_ids(made)


def test_a_form_is_followed(client: anthropic.Anthropic) -> None:
    form = {"format": {"type": "json_schema", "schema": TOOL["input_schema"]}}
    assert ask(client, output_config=form, max_tokens=120).content[0].text.startswith('{"wood"')


def test_tokens_are_counted_as_a_message_counts_them_and_not_charged(make_client: MakeClient) -> None:
    poor = make_client(tokens_per_day=1)
    wishes: dict[str, Any] = {"system": "Be short.", "tools": [TOOL], "tool_choice": {"type": "auto"}}
    counted = poor.messages.count_tokens(model="tiny", messages=ASKED, **wishes)
    assert poor.messages.count_tokens(model="tiny", messages=ASKED, **wishes) == counted
    assert num_input(ask(poor, **wishes).usage) == counted.input_tokens
    for call in (lambda: ask(poor), lambda: poor.messages.count_tokens(model="tiny", messages=ASKED)):
        with pytest.raises(anthropic.RateLimitError) as caught:
            call()
        assert caught.value.body["error"]["details"] == {"error_code": "insufficient_quota"}


def test_a_thought_is_a_block_with_a_signature(client: anthropic.Anthropic, thinker: str) -> None:
    wishes: dict[str, Any] = {"model": thinker, "max_tokens": 200}
    made = ask(client, **wishes)
    assert [(block.type, getattr(block, "thinking", None)) for block in made.content] == [
        ("thinking", THOUGHT),
        ("text", None),
    ]
    assert made.content[1].text == ANSWER
    assert made.content[0].signature == signature_of(THOUGHT)
    assert 0 < made.usage.output_tokens_details.thinking_tokens < made.usage.output_tokens
    assert made.stop_reason == "end_turn"
    assert without_ids(streamed(client, **wishes)) == without_ids(made)
    kinds = [event.delta.type for event in events(client, **wishes) if event.type == "content_block_delta"]
    assert list(dict.fromkeys(kinds)) == ["thinking_delta", "signature_delta", "text_delta"]
    talk = [*ASKED, {"role": "assistant", "content": made.content}, *ASKED]
    assert num_input(ask(client, messages=talk, **wishes).usage) > num_input(made.usage)


def test_a_thought_is_left_out_or_turned_off(client: anthropic.Anthropic, thinker: str) -> None:
    wishes: dict[str, Any] = {"model": thinker, "max_tokens": 200}
    hidden = ask(client, thinking={"type": "adaptive", "display": "omitted"}, **wishes)
    assert (hidden.content[0].thinking, hidden.content[0].signature) == ("", signature_of(THOUGHT))
    assert [block.type for block in ask(client, thinking={"type": "disabled"}, **wishes).content] == ["text"]
    assert ask(client, output_config={"effort": "high"}, **wishes).content[0].thinking == THOUGHT


def test_a_thought_is_closed_when_its_budget_is_used_up(client: anthropic.Anthropic, thinker: str) -> None:
    wishes: dict[str, Any] = {"model": thinker, "max_tokens": 200}
    whole = ask(client, thinking={"type": "enabled", "budget_tokens": 199}, **wishes)
    assert whole.content[0].thinking == THOUGHT
    num_thinking = whole.usage.output_tokens_details.thinking_tokens
    budget = num_thinking // 2
    cut = ask(client, thinking={"type": "enabled", "budget_tokens": budget}, **wishes)
    assert [block.type for block in cut.content] == ["thinking", "text"]
    assert cut.content[0].thinking
    assert THOUGHT.startswith(cut.content[0].thinking.rstrip())
    assert cut.content[0].thinking != THOUGHT
    assert cut.content[1].text
    assert budget <= cut.usage.output_tokens_details.thinking_tokens < num_thinking + 8


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking, of a model"),
        ({"output_config": {"effort": "low"}}, "output_config.effort 'low'"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "'image'"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "It"}]}, "the last message is one of the assistant"),
        ({"extra_body": {"mcp_servers": []}}, "mcp_servers"),
        ({"extra_headers": {"anthropic-version": "2023-01-01"}}, "anthropic-version: '2023-01-01'"),
        ({"extra_headers": {"anthropic-workspace-id": "w"}}, "the header anthropic-workspace-id"),
    ],
)
def test_what_is_refused_is_named(client: anthropic.Anthropic, wishes: dict[str, Any], says: str) -> None:
    for is_streamed in (False, True):
        with pytest.raises(anthropic.BadRequestError) as caught:
            ask(client, stream=is_streamed, **wishes)
        error = caught.value.body
        assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
        assert says in error["error"]["message"]
        assert error["request_id"] == caught.value.request_id


def test_errors_have_the_classes_of_the_client(
    served: tuple[Context, str], make_client: MakeClient, client: anthropic.Anthropic
) -> None:
    context, address = served
    context.access.add_project("proj-other", "other")
    name = "ft:tiny:other:w:1"
    context.tuned_models.add(
        TunedModel(
            model_id=name, project_id="proj-other", job_id="ftjob-1", run_id="r", base_model="tiny", adapter_path="/x"
        )
    )
    with pytest.raises(anthropic.PermissionDeniedError, match="permission_error"):
        ask(make_client("read"))
    for model in (name, "gpt-4o"):
        with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
            ask(client, model=model)
        with pytest.raises(anthropic.NotFoundError):
            client.messages.count_tokens(model=model, messages=ASKED)
    with (
        anthropic.Anthropic(base_url=address, api_key="sk-wrong", max_retries=0) as wrong,
        pytest.raises(anthropic.AuthenticationError, match="authentication_error"),
    ):
        ask(wrong)
    for path, body in (("v1/messages", b"{"), ("v1/messages/other", b"{}")):
        headers = {"x-api-key": str(client.api_key)}
        answer = httpx2.post(url(client, path), content=body, headers=headers)
        assert answer.json()["type"] == "error"
        assert answer.json()["request_id"] == answer.headers["request-id"]
    large = httpx2.post(url(client, "v1/messages"), content=b" " * (5 << 20), headers=headers)
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")
    slow = make_client(requests_per_minute=1)
    ask(slow, max_tokens=1)
    with pytest.raises(anthropic.RateLimitError) as caught:
        ask(slow)
    assert int(caught.value.response.headers["retry-after"]) > 0


def test_models_are_listed_in_its_form_page_by_page(client: anthropic.Anthropic, thinker: str) -> None:
    found = {model.id: model for model in client.models.list(limit=1)}  # pages itself through
    assert set(found) == {"tiny", thinker}
    tiny = client.models.retrieve("tiny")
    assert tiny == found["tiny"]
    assert (tiny.type, tiny.lifecycle, tiny.display_name) == ("model", "active", "tiny")
    assert tiny.created_at.year > 2000
    assert found[thinker].capabilities.thinking.supported
    assert not tiny.capabilities.thinking.supported
    assert tiny.capabilities.structured_outputs.supported
    assert list(client.models.list(lifecycle=["retired"])) == []
    first, second = list(found)
    assert client.models.list(before_id=second, limit=5).first_id == first
    assert client.models.list(after_id=second).data == []
    for wishes in ({"limit": 0}, {"after_id": "other"}, {"extra_query": {"since": "1"}}):
        with pytest.raises(anthropic.BadRequestError):
            client.models.list(**wishes)
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("gpt-4o")
