"""The unmodified OpenAI client talks to a real server with a real child process and a tiny model."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from tests.vacuous import nonempty

from luthier.core.ports import SilentProgress
from luthier.ml.inference.models import sources
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.testing.tiny import make_tiny_model

QUESTION: list[Any] = [{"role": "user", "content": "Which wood?"}]
CALL: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ServedHome = tuple[Context, str]


@pytest.fixture
def ask(client: openai.OpenAI) -> Callable[..., Any]:
    """Asks the tiny model; keywords go to the client as they are."""

    def create(**wishes: Any) -> Any:
        given = {"model": "tiny", "messages": QUESTION, "max_tokens": 12, "seed": 7} | wishes
        return client.chat.completions.create(**given)

    return create


def test_an_answer_has_what_openai_writes(ask: Callable[..., Any]) -> None:
    made = ask(n=2)
    assert (made.object, made.model) == ("chat.completion", "tiny")
    assert made.id.startswith("chatcmpl-")
    assert made.system_fingerprint.startswith("fp_")
    assert abs(made.created - time.time()) < 120
    assert [choice.index for choice in made.choices] == [0, 1]
    for choice in made.choices:
        assert (choice.message.role, choice.logprobs) == ("assistant", None)
        assert choice.finish_reason in ("stop", "length")
    assert made.choices[0].message.content != made.choices[1].message.content
    usage = made.usage
    assert usage.prompt_tokens > 0
    assert 0 < usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("wishes", [{}, {"n": 3}, {"stop": ["e", "a"]}, {"top_p": 0.5, "presence_penalty": 1.0}])
def test_a_stream_is_the_answer_in_pieces(ask: Callable[..., Any], wishes: dict[str, Any]) -> None:
    whole = ask(max_tokens=40, **wishes)
    chunks = list(ask(max_tokens=40, stream=True, stream_options={"include_usage": True}, **wishes))
    *chunks, last = chunks
    assert last.choices == []
    assert last.usage == whole.usage
    assert {chunk.id for chunk in chunks} == {last.id}
    assert all(chunk.object == "chat.completion.chunk" and chunk.usage is None for chunk in chunks)
    for choice in nonempty(whole.choices):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert own[0].delta.role == "assistant"
        assert {piece.delta.role for piece in own[1:]} <= {None}
        assert "".join(piece.delta.content or "" for piece in own) == choice.message.content
        assert [piece.finish_reason for piece in own] == [None] * (len(own) - 1) + [choice.finish_reason]
    without = list(ask(max_tokens=3, stream=True))
    assert all(nonempty(chunk.choices for chunk in without))


def test_likelihoods_come_with_their_tokens(ask: Callable[..., Any]) -> None:
    made = ask(logprobs=True, top_logprobs=2, temperature=0)
    told = made.choices[0].logprobs.content
    assert len(told) == made.usage.completion_tokens
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in told)
    assert told[0].top_logprobs[0].token == told[0].token
    chunks = ask(logprobs=True, top_logprobs=2, temperature=0, stream=True)
    streamed = [token for chunk in chunks for token in (chunk.choices[0].logprobs or NO_TOKENS).content]
    assert streamed == told


class NO_TOKENS:  # noqa: N801 - stands in for the likelihoods of a chunk without any
    content: tuple[()] = ()


def test_content_may_come_in_parts_and_an_answer_goes_back_as_it_came(ask: Callable[..., Any]) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Which "}, {"type": "text", "text": "wood?"}]}]
    first = ask(temperature=0)
    assert ask(messages=parts, temperature=0).choices[0].message.content == first.choices[0].message.content
    talk = [{"role": "developer", "content": "Be short."}, *QUESTION, first.choices[0].message, *QUESTION]
    assert ask(messages=talk).usage.prompt_tokens > first.usage.prompt_tokens
    dumped = [*QUESTION, first.choices[0].message.model_dump(), *QUESTION]
    assert ask(messages=dumped).object == "chat.completion"


def test_usage_counts_the_tokens_of_a_prompt_that_were_known(ask: Callable[..., Any]) -> None:
    talk = [{"role": "user", "content": "Which wood is the front of a violin made of? " * 4}]
    first, again = (ask(messages=talk, n=2, temperature=0).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens < first.prompt_tokens == again.prompt_tokens
    assert first.prompt_tokens_details.cached_tokens < again.prompt_tokens_details.cached_tokens < again.prompt_tokens
    assert first.total_tokens == again.total_tokens
    *_, last = ask(messages=talk, temperature=0, stream=True, stream_options={"include_usage": True})
    assert last.usage.prompt_tokens_details == again.prompt_tokens_details


def test_only_the_likeliest_tokens_are_drawn_where_a_request_wants_that(ask: Callable[..., Any]) -> None:
    greedy = ask(temperature=0).choices[0].message.content
    for wishes in ({"top_k": 1}, {"min_p": 1.0}):
        drawn = {ask(temperature=2, seed=seed, extra_body=wishes).choices[0].message.content for seed in range(3)}
        assert drawn == {greedy}
    free = [ask(temperature=2, extra_body=wishes) for wishes in ({}, {"top_k": -1}, {"top_k": 0, "min_p": 0})]
    assert len({one.choices[0].message.content for one in free}) == 1
    assert free[0].choices[0].message.content != greedy


def test_marks_of_a_prompt_cache_change_no_answer(ask: Callable[..., Any]) -> None:
    mark = {"prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}}
    parts = [{"type": "text", "text": "Which "} | mark, {"type": "text", "text": "wood?"} | mark]
    made = ask(messages=[QUESTION[0] | {"content": parts}], prompt_cache_options={"mode": "explicit"}, temperature=0)
    assert made.choices[0].message.content == ask(temperature=0).choices[0].message.content
    wrong = {"type": "text", "text": "Which wood?", "prompt_cache_breakpoint": {"mode": "always"}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(messages=[QUESTION[0] | {"content": [wrong]}])
    assert caught.value.param == "messages.0.content.0.prompt_cache_breakpoint.mode"


def test_a_refusal_goes_back_as_a_part_of_an_answer(ask: Callable[..., Any]) -> None:
    refusal = {"type": "refusal", "refusal": "No, I will not say."}
    talks = [
        [*QUESTION, {"role": "assistant", "content": content}, *QUESTION]
        for content in ([{"type": "text", "text": "Well. "}, refusal], "Well. No, I will not say.")
    ]
    parts, text = [ask(messages=talk, temperature=0) for talk in talks]
    assert parts.usage.prompt_tokens == text.usage.prompt_tokens
    assert parts.choices[0].message.content == text.choices[0].message.content


def test_unknown_keys_of_messages_are_not_read_and_named_in_a_header(client: openai.OpenAI) -> None:
    added: list[Any] = [QUESTION[0] | {"weight": 1, "line\nbreak ü": None, **{f"k{n}": n for n in range(9)}}]
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 4, "temperature": 0}
    chats = client.chat.completions
    plain, whole = (chats.with_raw_response.create(messages=one, **asked) for one in (QUESTION, added))
    assert "x-luthier-warning" not in plain.headers
    assert whole.parse().choices[0].message.content == plain.parse().choices[0].message.content
    named = '"weight", "line\\nbreak \\u00fc", "k0", "k1", "k2", "k3", "k4", "k5" and 3 more'
    warning = f"keys of messages that the API does not have were not read: {named}"
    assert whole.headers["x-luthier-warning"] == warning
    with chats.with_streaming_response.create(messages=added, stream=True, **asked) as streamed:
        assert streamed.headers["x-luthier-warning"] == warning
        assert "[DONE]" in streamed.read().decode()


def test_wishes_that_change_no_answer_are_accepted(ask: Callable[..., Any]) -> None:
    wishes = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "logit_bias": {},
        "stop": None,
    }
    assert ask(**wishes).choices[0].message.content == ask().choices[0].message.content


@pytest.mark.parametrize(
    ("wishes", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "no name"}}]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 2}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"logit_bias": {"1": 200}}, "logit_bias"),
        ({"logit_bias": {"wood": 2}}, "logit_bias"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"extra_body": {"min_p": 1.5}}, "min_p"),
        ({"extra_body": {"top_k": -2}}, "top_k"),
        ({"extra_body": {"repetition_penalty": 1.1}}, "repetition_penalty"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 17}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 5}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages.0.tool_calls"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "No."}]}]}, "messages.0.content"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(ask: Callable[..., Any], wishes: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(**wishes)
    assert (caught.value.param or "").startswith(param)
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context_and_an_unknown_model_are_told_before_the_stream(
    ask: Callable[..., Any], stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match="512") as caught:
        ask(messages=[{"role": "user", "content": "word " * 600}], stream=stream)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(model="gpt-4o", stream=stream)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="luthier models pull"):
        ask(model="smollm2-135m-instruct", stream=stream)


@pytest.fixture(scope="module")
def long_wish(served: ServedHome, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A wish for an answer that takes minutes: the end tokens of the model are never drawn."""
    patient = make_tiny_model(tmp_path_factory.mktemp("models") / "patient", context_length_tokens=1 << 16)
    sources.pull(str(patient), served[0].home, SilentProgress())
    endless = {"max_tokens": 60_000, "logit_bias": {"0": -100, "2": -100}}
    return {"model": "patient", "temperature": 2.0, "stream": True, **endless}


def test_a_crash_in_a_stream_is_an_error_in_it_and_the_next_ask_is_answered(
    ask: Callable[..., Any], served: ServedHome, long_wish: dict[str, Any]
) -> None:
    inference_client = served[0].inference_client
    before = ask(temperature=0).choices[0].message.content
    stream = ask(**long_wish)
    next(stream)
    assert inference_client.pid is not None
    os.kill(inference_client.pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="has ended in the middle"):
        list(stream)
    assert ask(temperature=0).choices[0].message.content == before


def test_a_crash_before_the_answer_is_503_with_a_time_to_wait(ask: Callable[..., Any], served: ServedHome) -> None:
    ask()
    pid = served[0].inference_client.pid
    assert pid is not None
    wait_until(lambda: num_under_way(served) == 0)
    os.kill(pid, signal.SIGSTOP)

    def kill() -> None:
        wait_until(lambda: num_under_way(served) == 1)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(openai.InternalServerError) as caught:
        ask()
    killer.join()
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) > 0


def test_readers_that_leave_make_room(ask: Callable[..., Any], served: ServedHome, long_wish: dict[str, Any]) -> None:
    for _ in range(6):  # more than the server takes at once
        stream = ask(**long_wish)
        next(stream)
        stream.close()
        wait_until(lambda: num_under_way(served) < 4)
    wait_until(lambda: num_under_way(served) == 0)


def test_too_many_asks_are_told_to_come_back_and_who_hangs_up_waits_no_more(
    ask: Callable[..., Any], served: ServedHome
) -> None:
    ask()
    pid = served[0].inference_client.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # nothing is written meanwhile: all that come wait
    sockets = [raw_ask(served) for _ in range(4)]
    try:
        wait_until(lambda: num_under_way(served) == 4)
        with pytest.raises(openai.RateLimitError, match="4 requests are in progress") as caught:
            ask()
        assert int(caught.value.response.headers["retry-after"]) > 0
        assert (caught.value.type, caught.value.code) == ("rate_limit_error", "rate_limit_exceeded")
        for one in sockets:
            one.close()
        wait_until(lambda: num_under_way(served) == 0)
    finally:
        for one in sockets:
            one.close()
        os.kill(pid, signal.SIGCONT)
    assert ask().object == "chat.completion"


def num_under_way(served: ServedHome) -> int:
    return served[0].inference_client.num_under_way


def raw_ask(served: ServedHome) -> socket.socket:
    """An ask over a bare socket, which can hang up without waiting for an answer."""
    address = urlsplit(served[1])
    _, key = create_key(served[0], "raw", scopes=("infer",))
    body = json.dumps({"model": "tiny", "messages": QUESTION, "max_tokens": 4}).encode()
    opened = socket.create_connection((address.hostname, address.port))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    opened.sendall(head.encode() + body)
    return opened


def wait_until(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_defaults_that_clients_spell_out_change_nothing(ask: Callable[..., Any]) -> None:
    plain = ask(temperature=0)
    spelt = ask(temperature=0, verbosity="medium", logprobs=False, top_logprobs=0)
    assert spelt.choices[0].message.content == plain.choices[0].message.content
    assert spelt.choices[0].logprobs is None
    for wishes in ({"verbosity": "low"}, {"top_logprobs": 2}):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(**wishes)
        assert caught.value.param == next(iter(wishes))
