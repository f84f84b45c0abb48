"""Chats with a model that thinks, by the client as it is: thoughts apart from answers, and the options for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import uvicorn
from openai.lib.responses_tool_runner import ResponsesToolRunner
from tests.features.serving.openai.answers.conftest import Server

from luthier.core.ports import SilentProgress
from luthier.ml.inference.models import sources
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import hardware_of
from luthier.platform.home.settings import Settings
from luthier.server.api import create_app
from luthier.testing.tiny import ANSWER, OPENING_TEMPLATE, THINKING_TEMPLATE, THOUGHT

ASKED = [{"role": "user", "content": "Which wood?"}]
OFF = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture(scope="module", params=[THINKING_TEMPLATE, OPENING_TEMPLATE, None], ids=["writes", "opens", "unknown"])
def thinker(request: pytest.FixtureRequest, tiny_thinker: Callable[..., Path]) -> Path:
    return tiny_thinker(request.param)


@pytest.fixture(scope="module")
def address_and_key(thinker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    home = tmp_path_factory.mktemp("api") / "home"
    home.mkdir(parents=True)
    with Context(Settings(home=home, serving_threads=1), SilentProgress()) as context:
        sources.pull(str(thinker), home, SilentProgress())
        hardware_of(context)  # this process has measured the machine; the one that answers would do so again
        server = Server(uvicorn.Config(create_app(context), port=0, log_level="warning"))
        address = server.start()
        _, key = create_key(context, "test", scopes=("admin",), project="default")
        yield address, key
        server.stop()


@pytest.fixture(scope="module")
def client(address_and_key: tuple[str, str]) -> Iterator[openai.OpenAI]:
    address, key = address_and_key
    made = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=120)
    yield made
    made.close()


def chat(client: openai.OpenAI, **wishes: Any) -> Any:
    (model,) = [one.id for one in client.models.list()]
    return client.chat.completions.create(**({"model": model, "messages": ASKED, "temperature": 0} | wishes))


def test_the_thought_is_told_beside_the_answer(client: openai.OpenAI) -> None:
    found = chat(client)
    message = found.choices[0].message
    assert (message.content, message.reasoning_content) == (ANSWER, THOUGHT)
    num = found.usage.completion_tokens_details.reasoning_tokens
    assert 0 < num < found.usage.completion_tokens


def test_deltas_of_a_stream_tell_it_first(client: openai.OpenAI) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    thoughts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    answers = [delta.content or "" for delta in deltas]
    assert ("".join(thoughts), "".join(answers)) == (THOUGHT, ANSWER)
    assert len([one for one in thoughts if one]) > 1
    last_thought = max(place for place, one in enumerate(thoughts) if one)
    assert not any(answers[: last_thought + 1])
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens > 0


def test_a_response_has_the_thought_as_an_item_before_the_message(client: openai.OpenAI) -> None:
    (model,) = [one.id for one in client.models.list()]
    wishes: dict[str, Any] = {"model": model, "input": "Which wood?", "temperature": 0, "store": False}
    found = client.responses.create(**wishes)
    thought, message = found.output
    assert (thought.type, thought.content[0].text, thought.summary) == ("reasoning", THOUGHT, [])
    assert (message.type, found.output_text, found.status) == ("message", ANSWER, "completed")
    assert 0 < found.usage.output_tokens_details.reasoning_tokens < found.usage.output_tokens
    events = list(client.responses.create(**wishes, reasoning={"summary": "auto"}, stream=True))
    deltas = [event.delta for event in events if event.type == "response.reasoning_summary_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == THOUGHT
    final = events[-1].response
    assert (final.output[0].summary[0].text, final.output_text) == (THOUGHT, ANSWER)
    cut = client.responses.create(**wishes, max_output_tokens=6)
    assert (cut.status, cut.output_text, {item.status for item in cut.output}) == ("incomplete", "", {"incomplete"})
    for earlier in (found.output, final.output):
        again = [{"role": "user", "content": "Which wood?"}, *earlier, {"role": "user", "content": "Hi"}]
        assert client.responses.create(**wishes | {"input": again}, max_output_tokens=4).usage.output_tokens > 0


def test_a_thought_goes_back_by_its_encrypted_content_alone(client: openai.OpenAI) -> None:
    (model,) = [one.id for one in client.models.list()]
    wishes: dict[str, Any] = {"model": model, "temperature": 0, "store": False}
    wishes["include"] = ["reasoning.encrypted_content"]
    first = client.responses.create(input="Which wood?", **wishes)
    *_, last = client.responses.create(input="Which wood?", stream=True, **wishes)
    thought, message = first.output
    assert thought.encrypted_content
    assert last.response.output[0].encrypted_content == thought.encrypted_content
    # As clients without a store on the server keep it: no text of the thought.
    kept = {"type": "reasoning", "summary": [], "encrypted_content": thought.encrypted_content}
    hi = {"role": "user", "content": "Hi"}
    counts = []
    for items in ([thought, message], [kept, message], [message]):
        talk: Any = [{"role": "user", "content": "Which wood?"}, *items, hi]
        counts.append(client.responses.create(input=talk, max_output_tokens=2, **wishes).usage.input_tokens)
    assert counts[0] == counts[1] >= counts[2]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_tool_runner_of_the_client_runs(client: openai.OpenAI, is_streamed: bool) -> None:
    (model,) = [one.id for one in client.models.list()]
    params: dict[str, Any] = {"model": model, "input": "Which wood?", "temperature": 0}
    # Without functions, since the prompt of this model is one that it has learned.
    found = ResponsesToolRunner().run(client, params, stream=is_streamed)  # type: ignore[arg-type]
    assert (found.output_text, found.output[0].type) == (ANSWER, "reasoning")


def test_likelihoods_are_those_of_the_answer_alone(client: openai.OpenAI) -> None:
    found = chat(client, logprobs=True).choices[0]
    assert found.message.reasoning_content == THOUGHT
    told = [token.token for token in found.logprobs.content]
    assert "".join(told).lstrip() == ANSWER
    chunks = [chunk.choices[0] for chunk in chat(client, logprobs=True, stream=True)]
    streamed = [token.token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content]
    assert streamed == told
    (model,) = [one.id for one in client.models.list()]
    wishes: dict[str, Any] = {"model": model, "input": "Which wood?", "temperature": 0, "store": False}
    wishes["include"] = ["message.output_text.logprobs"]
    whole = client.responses.create(**wishes).output[1]
    assert [token.token for token in whole.content[0].logprobs] == told
    events = list(client.responses.create(**wishes, stream=True))
    deltas = [event.logprobs for event in events if event.type == "response.output_text.delta"]
    assert [token.token for one in deltas for token in one] == told


def test_one_limit_holds_for_both(client: openai.OpenAI) -> None:
    found = chat(client, max_tokens=6)
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == ("", "length")
    assert found.usage.completion_tokens == found.usage.completion_tokens_details.reasoning_tokens == 6


def test_options_of_the_template_turn_it_off(client: openai.OpenAI, thinker: Path) -> None:
    if "enable_thinking" not in (thinker / "chat_template.jinja").read_text():
        for wishes, param in (
            ({"extra_body": OFF}, "chat_template_kwargs"),
            ({"reasoning_effort": "low"}, "reasoning_effort"),
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                chat(client, **wishes)
            assert caught.value.param == param
        assert chat(client, reasoning_effort="none").choices[0].message.content == ANSWER
        return
    for wishes in ({"extra_body": OFF}, {"reasoning_effort": "none"}):
        found = chat(client, **wishes)
        assert found.choices[0].message.content == ANSWER
        assert not hasattr(found.choices[0].message, "reasoning_content")
        assert found.usage.completion_tokens_details.reasoning_tokens == 0
    assert chat(client, reasoning_effort="high").choices[0].message.reasoning_content == THOUGHT


def test_a_model_says_by_which_path_it_writes_once_it_is_loaded(client: openai.OpenAI) -> None:
    chat(client)
    (listed,) = client.models.list()
    shown = client.models.retrieve(listed.id)
    assert listed.decoding == shown.decoding
    assert listed.decoding["path"] == "batched"
    assert listed.decoding["description"] == "rows together over a key-value cache"
    assert (listed.template_options, listed.rewritten_turns) == ({}, {})  # nobody has trained it


@pytest.mark.parametrize(
    "options",
    [{"messages": "x"}, {"tools": True}, {"enable_thinking": {"a": 1}}, {"enable_thinking": [1]}, ["a"], "a", {"": 1}],
)
def test_options_that_are_none_are_refused_by_name(client: openai.OpenAI, options: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, extra_body={"chat_template_kwargs": options})
    assert (caught.value.param or "").startswith("chat_template_kwargs")


def test_an_answer_may_be_sent_back_with_its_thought(
    client: openai.OpenAI, address_and_key: tuple[str, str], thinker: Path
) -> None:
    found = chat(client)
    answer = found.choices[0].message.model_dump(exclude_none=True)
    assert answer["reasoning_content"]
    without = {key: value for key, value in answer.items() if key != "reasoning_content"}
    num_tokens = []
    for earlier in (answer, without):  # what is written to a conversation that it was not trained on is left open
        again = chat(client, messages=[*ASKED, earlier, {"role": "user", "content": "Hi"}], max_tokens=4)
        assert again.usage.completion_tokens > 0
        num_tokens.append(again.usage.prompt_tokens)
    is_read = "reasoning_content" in (thinker / "chat_template.jinja").read_text()
    assert (num_tokens[0] > num_tokens[1]) is is_read
    address, key = address_and_key
    wrong = {"model": found.model, "messages": [{"role": "user", "content": "a", "reasoning_content": "b"}]}
    answer = httpx2.post(f"{address}/v1/chat/completions", json=wrong, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages.0.reasoning_content"
