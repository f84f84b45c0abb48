import asyncio
import json
import time

import httpx2
import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import RequestError
from luthier.core.ports import SilentProgress
from luthier.core.stream import Sampling, Served, Started, TextRequest
from luthier.features.serving.service import Answer, Choice
from luthier.ml.inference.engine_wrappers import generate_by_streaming
from luthier.ml.inference.models.templates.thinking import TAGS
from luthier.ml.inference.openai import stream
from luthier.ml.inference.openai.chunks import event_stream_lines
from luthier.ml.inference.openai.messages import stream_body
from luthier.ml.inference.openai.stream import NUM_ATTEMPTS, OpenAIStreamEngine, open_stream_engine
from luthier.ml.inference.thoughts import NO_THINKING, Thinking
from luthier.testing.engine_contract import ask
from luthier.testing.openai_server import OpenAIServer, Trouble, serving
from luthier.testing.stream_contract import Heard, StreamEngineContract, listen, question, write_all

KEY = "sk-very-secret-key"
WORDS = ["spruce", "maple", "ebony", "willow", "pear", "plum", "box", "rosewood"]


def reply(body):
    """Words that follow from the model, the question and, where they are drawn, the seed."""
    asked = body["messages"][-1]["content"] if "messages" in body else str(body["prompt"])
    start = sum(asked.encode()) + sum(body["model"].encode()) + (body["seed"] * 7 if body["temperature"] else 0)
    return " ".join(WORDS[(start * (n + 1) + n * n) % len(WORDS)] for n in range(400))


def refuse(body):
    if len(str(body.get("prompt", ""))) > 50_000:
        return Trouble(400, {"error": {"message": "This model's maximum context length is 8192 tokens"}})
    return None


@pytest.fixture
def server():
    return OpenAIServer(reply=reply, refuse=refuse)


@pytest.fixture
def url(server):
    with serving(server) as address:
        yield address


@pytest.fixture
def stream_engine(url):
    opened = OpenAIStreamEngine(url, "m", api_key=KEY, first_pause_seconds=0.001, most_answers=8)
    yield opened
    opened.close()


class TestContract(StreamEngineContract):
    @pytest.fixture
    def adapters(self):
        return ["tuned-a", "tuned-b"]


def failure(engine, request=None):
    heard = write_all(engine, {"a": request or question("Why?")})
    assert ("a", 0) not in heard.ends
    return heard.failures["a"].error


@pytest.mark.parametrize(("seed", "sent"), [(7, [7, 8]), (-1, [-1, 0]), (2**63 - 1, [2**63 - 1, -(2**63)])])
def test_seeds_of_all_choices_have_64_bits(seed, sent):
    request = TextRequest(text="Why?", max_new_tokens=1, num_choices=2, sampling=Sampling(seed=seed))
    assert [stream_body(request, "m", choice, "max_tokens")["seed"] for choice in range(2)] == sent


def test_the_request_is_as_the_api_wants_it(stream_engine, server):
    tool = {"type": "function", "function": {"name": "f"}}
    messages = (Message(role="system", content="Be short."), Message(role="user", content="Why?"))
    chat = TextRequest(
        conversation=Conversation(messages=messages, tools=(tool,)),
        sampling=Sampling(temperature=0.5, top_p=0.9, seed=3, presence_penalty=0.5, logit_bias=((7, -1.0),)),
        max_new_tokens=5,
        num_top=2,
        stop=("a", "b", "c", "d", "e"),
        json_schema={"type": "object"},
        tool_choice="required",
        tool_name="f",
        calls_in_parallel=False,
    )
    write_all(stream_engine, {"chat": chat, "ids": TextRequest(token_ids=(1, 2), max_new_tokens=2, num_top=0)})
    sent = dict(server.requests)
    common = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
    assert sent["/v1/chat/completions"] == common | {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "max_tokens": 5,
        "presence_penalty": 0.5,
        "logit_bias": {"7": -1.0},
        "stop": ["a", "b", "c", "d"],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}],
        "logprobs": True,
        "top_logprobs": 2,
        "tools": [tool],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
    }
    assert sent["/v1/completions"] == common | {
        "temperature": 1.0, "top_p": 1.0, "seed": 0, "max_tokens": 2, "prompt": [1, 2], "logprobs": 0,
    }  # fmt: skip
    assert set(server.authorizations) == {f"Bearer {KEY}"}


def test_a_server_gets_top_k_and_min_p_in_place_of_those_it_is_always_sent(url, server):
    sampled = {"a": Sampling(top_k=5, min_p=0.25), "b": Sampling(), "c": Sampling(temperature=0, top_k=5)}
    opened = OpenAIStreamEngine(url, "m", api_key=KEY, extra={"top_k": -1, "min_p": 0.0}, most_answers=1)
    asked = {key: TextRequest(text=key, max_new_tokens=2, sampling=one) for key, one in sampled.items()}
    write_all(opened, asked)
    opened.close()
    sent = {body["prompt"]: (body["top_k"], body["min_p"]) for _, body in server.requests}
    assert sent == {"a": (5, 0.25), "b": (-1, 0.0), "c": (-1, 0.0)}


def test_counts_of_the_prompt_come_with_the_end_where_only_the_server_knows_them(stream_engine):
    heard = write_all(stream_engine, {"a": question("one two three"), "b": TextRequest(token_ids=(5, 6))})
    assert heard.started["a"] == Started(num_prompt_tokens=0)
    assert heard.ends["a", 0].num_prompt_tokens == 3
    assert heard.started["b"] == Started(num_prompt_tokens=2)


def test_whole_answers_come_of_streams(stream_engine):
    (made,) = generate_by_streaming(stream_engine, [ask("one two three", max_new_tokens=4)], SilentProgress())
    assert (made.num_prompt_tokens, made.num_new_tokens, made.finish_reason) == (3, 4, "length")
    assert len(made.text.split()) == 4


def test_what_has_not_begun_is_tried_again(stream_engine, server):
    server.troubles = [Trouble(429, "", {"Retry-After": "0"}), Trouble(503, "busy"), Trouble(0)]
    heard = write_all(stream_engine, {"a": question("Why?")})
    assert heard.failures == {}
    assert len(server.requests) == 4


def test_there_is_an_end_to_trying(stream_engine, server):
    server.troubles = [Trouble(500, {"error": {"message": f"the GPU is gone, {KEY}"}})] * 99
    error = failure(stream_engine)
    assert error["came"].endswith(f"tried {NUM_ATTEMPTS} times; the last: HTTP 500: the GPU is gone, ***")
    assert len(server.requests) == NUM_ATTEMPTS


def test_a_dead_server_is_told_with_its_address():
    engine = OpenAIStreamEngine("http://127.0.0.1:9/v1", "m", first_pause_seconds=0.001)
    error = failure(engine)
    engine.close()
    assert error["type"] == "WorkError"
    assert "http://127.0.0.1:9/v1 gave no answer" in error["came"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("data: {nonsense\n\n", "Expecting property name"),
        ("data: [1]\n\n", "not an object"),
        ('data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        ('data: {"choices": [{"delta": {"content": "a"}}]}\n\n', "cut in the middle"),
        ('data: {"choices": [{"delta": {"content": 5}}]}\n\n', "a text that is none"),
        ('data: {"choices": [{"delta": 5}]}\n\n', "AttributeError"),
        ('data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n', "how many tokens"),
        ('data: {"choices": [], "usage": {"prompt_tokens": "3"}}\n\n', "in no numbers"),
        ("<html>hello</html>", "cut in the middle"),
        ("", "cut in the middle"),
    ],
)
def test_a_stream_that_is_none_fails_with_words_and_is_not_tried_again(stream_engine, server, body, words):
    server.troubles = [Trouble(200, body)]
    error = failure(stream_engine)
    assert (error["type"], len(server.requests)) == ("WorkError", 1)
    assert words in error["came"]


def test_refusals_keep_their_kind(stream_engine, server):
    server.troubles = [Trouble(404, {"error": {"message": "no model m"}})]
    assert failure(stream_engine)["type"] == "NotFoundError"
    assert failure(stream_engine, TextRequest(text="x" * 60_000))["type"] == "OverlongError"
    server.troubles = [Trouble(400, {"error": {"message": "use max_completion_tokens"}})]
    assert write_all(stream_engine, {"a": question("Why?")}).failures == {}
    assert "max_completion_tokens" in server.requests[-1][1]


def test_who_says_nothing_for_too_long_is_given_up(url, server):
    server.pace_seconds = 5.0
    engine = OpenAIStreamEngine(url, "m", timeout_seconds=0.2)
    error = failure(engine)
    engine.close()
    assert "broke off in the middle: ReadTimeout" in error["came"]


def test_cancelling_closes_the_connection(stream_engine, server):
    server.pace_seconds = 0.01
    heard = Heard()
    assert stream_engine.ask("a", question("Why?", max_new_tokens=400), None)
    while not heard.pieces["a", 0]:
        heard.hear(stream_engine)
    stream_engine.cancel("a")
    until = time.monotonic() + 10
    while not server.broken and time.monotonic() < until:
        time.sleep(0.01)
    assert server.broken == 1


def told(engine, server, chunks, request):
    server.troubles = [Trouble(200, "".join(f"data: {chunk}\n\n" for chunk in chunks))]
    heard = write_all(engine, {"a": request})
    assert heard.failures == {}
    return heard


USAGE = '{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}'


@pytest.mark.parametrize(
    ("details", "num"),
    [({"cached_tokens": 2}, 2), ({"cached_tokens": None}, 0), ({"cached_tokens": "2"}, 0), ({}, 0), (None, 0)],
)
def test_cached_tokens_of_the_prompt_are_those_that_the_server_counts(stream_engine, server, details, num):
    counts = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": details}
    end = '{"choices": [{"delta": {"content": "So"}, "finish_reason": "stop"}]}'
    heard = told(stream_engine, server, [end, json.dumps({"choices": [], "usage": counts})], question("Why?"))
    assert heard.ends["a", 0].num_cached_tokens == num


def test_calls_of_tools_are_told_as_such(stream_engine, server):
    first = '{"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}}'
    more = '{"index": 0, "function": {"arguments": "{}"}}'
    chunks = [
        f'{{"choices": [{{"delta": {{"tool_calls": [{first}]}}}}]}}',
        f'{{"choices": [{{"delta": {{"tool_calls": [{more}]}}, "finish_reason": "tool_calls"}}]}}',
        USAGE,
    ]
    heard = told(stream_engine, server, chunks, question("Why?"))
    calls = [call for piece in heard.pieces["a", 0] for call in piece.calls]
    assert [(call.call_id, call.name, call.arguments) for call in calls] == [("c1", "f", ""), (None, None, "{}")]
    assert heard.ends["a", 0].reason == "tool_calls"


def test_a_call_without_an_id_gets_one(stream_engine, server):
    calls = ", ".join(f'{{"index": {n}, "function": {{"name": "f", "arguments": "{{}}"}}}}' for n in range(2))
    chunk = f'{{"choices": [{{"delta": {{"tool_calls": [{calls}]}}, "finish_reason": "tool_calls"}}]}}'
    (piece,) = told(stream_engine, server, [chunk, USAGE], question("Why?")).pieces["a", 0]
    assert len({call.call_id for call in piece.calls}) == 2
    assert all(call.call_id.startswith("call_") for call in piece.calls)


@pytest.mark.parametrize(
    "sent",
    [
        # As Gemini: every call is whole, and has the index 0.
        [
            {"index": 0, "id": "a", "name": "f", "arguments": '{"n": 1}'},
            {"index": 0, "id": "b", "name": "g", "arguments": "{}"},
        ],
        # Without index and id.
        [{"name": "f", "arguments": '{"n": 1}'}, {"name": "g", "arguments": "{}"}],
        # The name comes with every chunk, with its id or without.
        [
            {"index": 0, "id": "a", "name": "f", "arguments": '{"n": '},
            {"index": 0, "id": "a", "name": "f", "arguments": "1}"},
            {"index": 1, "id": "b", "name": "g"},
            {"index": 1, "name": "g", "arguments": "{}"},
        ],
        # As older versions of vLLM for a tool that is required by name: each chunk has an id of its own, the last too.
        [
            {"index": 0, "id": "a", "name": "f", "arguments": '{"n"'},
            {"index": 0, "id": "b", "name": "f", "arguments": ": 1"},
            {"index": 0, "id": "c", "name": "f", "arguments": "}"},
            {"index": 0, "id": "d", "name": "f", "arguments": ""},
            {"index": 1, "id": "g", "name": "g", "arguments": "{}"},
        ],
        # Another tool at the index of one without arguments.
        [
            {"index": 0, "name": "f", "arguments": '{"n": 1}'},
            {"index": 0, "name": "g", "arguments": ""},
            {"index": 0, "arguments": "{}"},
        ],
        # Indices that do not begin at 0.
        [
            {"index": 1, "id": "a", "name": "f", "arguments": '{"n": 1}'},
            {"index": 2, "id": "b", "name": "g", "arguments": "{}"},
        ],
    ],
)
def test_calls_are_told_apart_however_a_server_numbers_them(stream_engine, server, sent):
    chunks = []
    for one in sent:
        function = {name: one[name] for name in ("name", "arguments") if name in one}
        call = {name: one[name] for name in ("index", "id") if name in one} | {"function": function}
        chunks.append(json.dumps({"choices": [{"delta": {"tool_calls": [call]}}]}))
    end = json.dumps({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    answer = Answer([Choice()])
    for event in told(stream_engine, server, [*chunks, end, USAGE], question("Why?")).pieces["a", 0]:
        answer.hear(event)
    calls = [call["function"] for call in answer.choices[0].tool_calls()]
    assert calls == [{"name": "f", "arguments": '{"n": 1}'}, {"name": "g", "arguments": "{}"}]


def test_a_call_that_goes_on_without_a_beginning_is_an_error(stream_engine, server):
    chunk = {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}}]}
    server.troubles = [Trouble(200, f"data: {json.dumps(chunk)}\n\n")]
    assert "has not begun" in failure(stream_engine)["came"]


@pytest.mark.parametrize(("field", "value", "found"), [
    ("stop_reason", "###", "###"), ("matched_stop", "###", "###"), ("stop_reason", 2, None), ("stop_reason", "x", None),
])  # fmt: skip
def test_the_stop_text_that_the_server_has_cut_off_is_known(stream_engine, server, field, value, found):
    end = {"delta": {"content": "It is"}, "finish_reason": "stop", field: value}
    asked = question("Why?").model_copy(update={"stop": ("###",)})
    heard = told(stream_engine, server, [json.dumps({"choices": [end]}), USAGE], asked)
    assert (heard.ends["a", 0].reason, heard.ends["a", 0].stop_text) == ("stop", found)


@pytest.mark.parametrize("is_open", [True, False])
def test_a_stop_text_within_reasoning_does_not_end_the_answer(stream_engine, server, is_open):
    start = "" if is_open else "<think> "
    server.reply = lambda _: f"{start}spruce or maple </think> spruce and then maple too"
    asked = TextRequest(token_ids=(1, 2), max_new_tokens=20, stop=("maple",))
    assert stream_engine.ask("a", asked, None, thinking=Thinking(TAGS, is_open=is_open))
    heard = Heard()
    listen(stream_engine, heard, lambda: ("a", 0) in heard.ends)
    assert "".join(piece.reasoning for piece in heard.pieces["a", 0]) == "spruce or maple"
    assert (heard.texts["a", 0], heard.ends["a", 0].stop_text) == ("spruce and then ", "maple")
    assert "stop" not in server.requests[0][1]


def test_a_stop_text_reaches_the_server_where_nothing_is_reasoned(stream_engine, server):
    assert stream_engine.ask("a", TextRequest(token_ids=(1, 2), stop=("maple",)), None, thinking=NO_THINKING)
    heard = Heard()
    listen(stream_engine, heard, lambda: ("a", 0) in heard.ends)
    assert server.requests[0][1]["stop"] == ["maple"]


@pytest.mark.parametrize("is_chat", [True, False])
def test_likelihoods_are_read_in_both_forms(stream_engine, server, is_chat):
    if is_chat:
        said = (
            '"delta": {"content": "ab"}, "logprobs": {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": '
            '[{"token": "b", "logprob": -2.0}, {"token": "a", "logprob": -1.0}]}, {"token": "b", "logprob": -0.5}]}'
        )
    else:
        said = (
            '"text": "ab", "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-1.0, -0.5], '
            '"top_logprobs": [{"b": -2.0, "a": -1.0}, null]}'
        )
    chunks = [f'{{"choices": [{{{said}, "finish_reason": "stop"}}]}}', USAGE]
    request = question("Why?") if is_chat else TextRequest(text="Why?")
    heard = told(stream_engine, server, chunks, request.model_copy(update={"num_top": 1}))
    first, second = (token for piece in heard.pieces["a", 0] for token in piece.tokens)
    assert (first.chosen.token, first.offset, second.offset) == ("a", 0, 1)
    assert [(one.token, one.log_probability) for one in first.top] == [("a", -1.0)]
    assert second.top == ()


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        (["a\ud83d", "\ude00b"], "a\U0001f600b"),
        (["\ud83d", "", "\ude00"], "\U0001f600"),
        (["a\ud83d", "b"], "a\ufffdb"),
        (["a", "\ude00b"], "a\ufffdb"),
        (["a\ud83d"], "a\ufffd"),
    ],
)
def test_characters_that_a_server_has_cut_are_whole_in_texts_thoughts_and_calls(stream_engine, server, pieces, whole):
    """No event may hold half a character: it could not be written as JSON, and would end all answers of the model."""
    said = [{"choices": [{"delta": {"content": one}}]} for one in pieces]
    thought = [{"choices": [{"delta": {"reasoning_content": one}}]} for one in pieces]
    begin = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a": "'}}
    parts = [begin, *({"index": 0, "function": {"arguments": one}} for one in [*pieces, '"}'])]
    called = [{"choices": [{"delta": {"tool_calls": [one]}}]} for one in parts]
    end = '{"choices": [{"delta": {}, "finish_reason": "stop"}]}'
    found = []
    for chunks in (said, thought, called):
        heard = told(stream_engine, server, [*map(json.dumps, chunks), end, USAGE], question("Why?"))
        answer = Answer([Choice()])
        for piece in heard.pieces["a", 0]:
            answer.hear(piece.model_validate_json(piece.model_dump_json()))
        found.append(answer.choices[0])
    text, reasoning, call = found
    assert (text.text, reasoning.reasoning) == (whole, whole)
    assert call.tool_calls()[0]["function"]["arguments"] == json.dumps({"a": whole}, ensure_ascii=False)


def test_likelihoods_of_halves_of_characters_are_in_their_place(stream_engine, server):
    chunks = [
        {"choices": [{"delta": {"content": one}, "logprobs": {"content": [{"token": one, "logprob": -1.0}]}}]}
        for one in ("a", "\ud83d", "\ude00", "b")
    ]
    end = '{"choices": [{"delta": {}, "finish_reason": "stop"}]}'
    request = question("Why?").model_copy(update={"num_top": 0})
    heard = told(stream_engine, server, [*map(json.dumps, chunks), end, USAGE], request)
    tokens = [token for piece in heard.pieces["a", 0] for token in piece.tokens]
    assert [(one.chosen.token, one.offset) for one in tokens] == [("a", 0), ("\ufffd", 1), ("\ufffd", 1), ("b", 2)]


def test_an_address_has_a_model():
    engine = open_stream_engine(Served(engine="openai_http", path="http://127.0.0.1:9/v1#m", sha256=""))
    engine.close()
    with pytest.raises(RequestError, match="address"):
        open_stream_engine(Served(engine="openai_http", path="http://127.0.0.1:9/v1", sha256=""))
    with pytest.raises(RequestError, match="no header"):
        OpenAIStreamEngine("http://127.0.0.1:9/v1", "m", api_key="ä")


def test_an_engine_closes_though_its_connections_do_not(url, monkeypatch, caplog):
    engine = OpenAIStreamEngine(url, "m")

    async def hanging():
        await asyncio.sleep(60)

    monkeypatch.setattr(engine._client, "aclose", hanging)
    monkeypatch.setattr(stream, "_CLOSE_SECONDS", 0.1)
    thread, loop = engine._thread, engine._loop
    with caplog.at_level("WARNING", logger="luthier.engines"):
        engine.close()
    thread.join(10)
    assert not thread.is_alive()
    assert loop.is_closed()
    assert "did not close" in caplog.text


def test_a_line_ends_where_server_sent_events_say_so(stream_engine, server):
    """U+2028, U+0085 and U+000B are whitespace within a text: servers leave them unescaped in their JSON."""
    text = "one\u2028two\x85three\u2029four"
    chunk = f'data: {{"choices": [{{"index": 0, "delta": {{"content": "{text}"}}}}]}}'
    end = 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}'
    usage = 'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}'
    for line_end in ("\n", "\r\n", "\r"):
        body = (line_end * 2).join((": hello", chunk, end, usage, "data: [DONE]"))
        server.troubles = [Trouble(200, body)]
        assert write_all(stream_engine, {"a": question("Why?")}).texts["a", 0] == text, repr(line_end)


def test_lines_are_whole_however_the_text_arrives():
    text = "a\r\nb\u2028c\n\rd\r\r\n\ne\x0bf"
    expected = ["a", "b\u2028c", "", "d", "", "", "e\x0bf"]
    for size in range(1, len(text) + 1):
        pieces = [text[at : at + size].encode() for at in range(0, len(text), size)]
        response = httpx2.Response(200, content=iter(pieces), headers={"Content-Type": "text/event-stream"})
        assert list(event_stream_lines(response)) == expected, size
