import threading
import time

import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import NotFoundError, OverlongError, RequestError, WorkError
from luthier.core.ports import Prompt, SilentProgress
from luthier.ml.inference.openai import http
from luthier.ml.inference.openai.http import NUM_ATTEMPTS, OpenAIHttpEngine
from luthier.testing.engine_contract import CountingProgress, GenerationContract, ask
from luthier.testing.openai_server import OpenAIServer, Trouble, serving
from luthier.testing.servers import wait_for

SILENT = SilentProgress()
KEY = "sk-very-secret-key"


@pytest.fixture
def server():
    return OpenAIServer()


@pytest.fixture
def url(server):
    with serving(server) as address:
        yield address


@pytest.fixture
def engine(url):
    opened = OpenAIHttpEngine(url, "m", first_pause_seconds=0.001)
    yield opened
    opened.close()


class TestContract(GenerationContract):
    """As every engine."""


def asked(texts):
    return [ask(text, max_new_tokens=9) for text in texts]


def test_the_request_is_as_the_api_wants_it(engine, server):
    tool = {"type": "function", "function": {"name": "f"}}
    messages = (Message(role="system", content="Be short."), Message(role="user", content="Why?", weight=0))
    chat = Prompt(conversation=Conversation(messages=messages, tools=(tool,)), max_new_tokens=5, seed=3)
    plain = Prompt(text="Once", max_new_tokens=7, temperature=0.5)
    first, second = engine.generate([chat], SILENT) + engine.generate([plain], SILENT)
    assert (first.text, first.num_new_tokens, first.finish_reason) == ("You said Why?", 3, "stop")
    assert second.text == "You said Once"
    assert server.requests == [
        (
            "/v1/chat/completions",
            {
                "model": "m",
                "temperature": 0.0,
                "seed": 3,
                "max_tokens": 5,
                "tools": [tool],
                "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}],
            },
        ),
        ("/v1/completions", {"model": "m", "temperature": 0.5, "seed": 0, "max_tokens": 7, "prompt": "Once"}),
    ]


def test_calls_of_rows_without_ids_get_some(engine):
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = (
        Message(role="user", content="Why?"),
        Message(role="assistant", tool_calls=(call, call | {"id": "own"})),
        Message(role="tool", content="a"),
        Message(role="tool", content="b"),
    )
    _, body, _ = engine.request_of(Prompt(conversation=Conversation(messages=messages)), 0)
    _, called, *results = body["messages"]
    ids = [one["id"] for one in called["tool_calls"]]
    assert ids == ["call_0", "own"] == [one["tool_call_id"] for one in results]


def test_passing_troubles_are_tried_again(engine, server):
    server.troubles = [
        Trouble(429, {"error": {"message": "slow down"}}, {"Retry-After": "0"}),
        Trouble(500, "oops"),
        Trouble(0),
        Trouble(503, "", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    ]
    (made,) = engine.generate(asked(["Why?"]), SILENT)
    assert made.text == "You said Why?"
    assert len(server.requests) == 5


def test_there_is_an_end_to_trying(engine, server):
    server.troubles = [Trouble(500, {"error": {"message": "the GPU is gone"}})] * 99
    with pytest.raises(WorkError, match=r"tried 6 times; the last: HTTP 500: the GPU is gone"):
        engine.generate(asked(["Why?"]), SILENT)
    assert len(server.requests) == NUM_ATTEMPTS


def test_a_server_that_asks_for_hours_is_not_waited_for(engine, server):
    server.troubles = [Trouble(429, "quota", {"Retry-After": "7200"})]
    with pytest.raises(WorkError, match="requests a wait of 7200 s"):
        engine.generate(asked(["Why?"]), SILENT)
    assert len(server.requests) == 1


def test_nobody_at_the_address():
    with serving(OpenAIServer()) as gone:
        pass
    engine = OpenAIHttpEngine(gone, "m", first_pause_seconds=0.001)
    with pytest.raises(WorkError, match="ConnectError"):
        engine.generate(asked(["Why?"]), SILENT)
    engine.close()


def test_a_server_that_is_silent_for_long_is_not_asked_again(url, server, monkeypatch):
    server.hold = threading.Event()
    monkeypatch.setattr(http, "_SILENT_SECONDS", 0.0)
    engine = OpenAIHttpEngine(url, "m", timeout_seconds=0.05, first_pause_seconds=0.001, concurrency=1)
    with pytest.raises(WorkError, match="tried 1 times; the last: ReadTimeout"):
        engine.generate(asked(["Why?", "How?"]), SILENT)
    engine.close()
    server.hold.set()


def test_a_server_that_never_answers_is_given_up(url, server):
    server.hold = threading.Event()
    engine = OpenAIHttpEngine(url, "m", timeout_seconds=0.05, first_pause_seconds=0.001)
    with pytest.raises(WorkError, match="ReadTimeout"):
        engine.generate(asked(["Why?"]), SILENT)
    engine.close()


def test_a_wrong_key_is_told_without_the_key(url, server):
    server.key = "the right one"
    engine = OpenAIHttpEngine(url, "m", api_key=KEY)
    with pytest.raises(RequestError, match=r"HTTP 401: Incorrect API key provided: \*\*\*") as caught:
        engine.generate(asked(["Why?"]), SILENT)
    engine.close()
    assert KEY not in str(caught.value) + repr(caught.value.as_json()) + repr(engine)
    assert "LUTHIER_TEACHER_API_KEY" in caught.value.do
    assert server.authorizations == [f"Bearer {KEY}"]


def test_a_right_key_opens_and_none_sends_no_header(url, server, engine):
    engine.generate(asked(["Why?"]), SILENT)
    server.key = KEY
    keyed = OpenAIHttpEngine(url, "m", api_key=f" {KEY}\n")
    assert keyed.generate(asked(["Why?"]), SILENT)[0].text
    keyed.close()
    assert server.authorizations == [None, f"Bearer {KEY}"]


def test_a_key_that_no_header_can_carry():
    with pytest.raises(RequestError, match="no header") as caught:
        OpenAIHttpEngine("http://127.0.0.1:1/v1", "m", api_key="sk-one\nsk-two")
    assert "sk-one" not in str(caught.value)


@pytest.mark.parametrize(
    ("trouble", "kind", "words"),
    [
        (Trouble(404, {"error": {"message": "no model m", "code": "model_not_found"}}), NotFoundError, "no model m"),
        (Trouble(400, {"error": {"message": "temperature is fixed"}}), RequestError, "temperature is fixed"),
        (Trouble(400, {"message": "maximum context length is 8 tokens"}), OverlongError, "8 tokens"),
        (Trouble(400, {"error": {"message": "too long", "code": "context_length_exceeded"}}), OverlongError, "long"),
        (Trouble(403, "<html>\nno\n</html>"), RequestError, "<html> no </html>"),
        (Trouble(302, "", {"Location": "http://elsewhere/v1"}), RequestError, "sends on to http://elsewhere"),
    ],
)
def test_refusals_carry_the_words_of_the_server(engine, server, trouble, kind, words):
    server.troubles = [trouble]
    with pytest.raises(kind, match=words):
        engine.generate(asked(["Why?"]), SILENT)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("<html>welcome</html>", "welcome"),
        ({"choices": []}, "no choices"),
        ([], "no choices"),
        ({"choices": [{"message": {"content": 7}}]}, "without text"),
        ({"choices": [{"message": {"content": "hi"}}]}, "how many tokens"),
        ({"choices": [{"message": {"content": "hi"}}], "usage": {"prompt_tokens": True}}, "how many tokens"),
    ],
)
def test_what_is_no_completion_is_an_error(engine, server, body, words):
    server.troubles = [Trouble(200, body)]
    with pytest.raises(WorkError, match=words):
        engine.generate(asked(["Why?"]), SILENT)


def test_a_refusal_of_the_model_is_its_text(engine, server):
    message = {"content": None, "refusal": "I will not."}
    usage = {"prompt_tokens": 1, "completion_tokens": 3}
    server.troubles = [Trouble(200, {"choices": [{"message": message}], "usage": usage})]
    assert engine.generate(asked(["Why?"]), SILENT)[0].text == "I will not."


def test_models_that_want_another_name_for_the_limit_get_it(engine, server):
    words = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server.refuse = lambda body: Trouble(400, {"error": {"message": words}}) if "max_tokens" in body else None
    assert [made.text for made in engine.generate(asked(["a", "b"]), SILENT)] == ["You said a", "You said b"]


def let_go_once(server, num_held, more_seconds=0.0):
    """Answers are held back until so many requests wait for theirs, and a while longer."""

    def let_go():
        wait_for(lambda: len(server.requests) >= num_held)
        time.sleep(more_seconds)
        server.hold.set()

    server.hold = threading.Event()
    threading.Thread(target=let_go, daemon=True).start()


def test_a_few_requests_at_once_and_no_more(url, server):
    let_go_once(server, 3, more_seconds=0.2)  # in which a fourth would come
    engine = OpenAIHttpEngine(url, "m", concurrency=3)
    made = engine.generate(asked([str(n) for n in range(12)]), SILENT)
    engine.close()
    assert [one.text for one in made] == [f"You said {n}" for n in range(12)]
    assert server.most_at_once == 3


def test_answers_are_handed_over_as_they_come(url, server):
    server.refuse = lambda body: Trouble(400, "no") if body["messages"][0]["content"] == "3" else None
    kept = []
    engine = OpenAIHttpEngine(url, "m", concurrency=1, keep=lambda prompt, made: kept.append(made.text))
    with pytest.raises(RequestError, match="400"):
        engine.generate(asked([str(n) for n in range(6)]), SILENT)
    engine.close()
    assert kept == ["You said 0", "You said 1", "You said 2"]


def test_what_is_under_way_when_another_fails_is_handed_over_too(url, server):
    let_go_once(server, 4)
    server.troubles = [Trouble(400, "no")]
    kept = []
    engine = OpenAIHttpEngine(url, "m", concurrency=4, keep=lambda prompt, made: kept.append(made.text))
    with pytest.raises(RequestError, match="400"):
        engine.generate(asked([str(n) for n in range(9)]), SILENT)
    engine.close()
    assert len(kept) == len(server.requests) - 1 >= 3


def test_long_pauses_are_told(engine, server):
    said = []

    class Noting(CountingProgress):
        def note(self, text):
            said.append(text)

    server.troubles = [Trouble(429, {"error": {"message": "busy"}}, {"Retry-After": "1"})]
    engine.generate(asked(["Why?"]), Noting())
    assert said == ["waits 1 s: HTTP 429: busy"]


def test_likelihoods_are_refused(engine, examples):
    with pytest.raises(RequestError, match="likelihoods of 3 rows"):
        engine.score(examples, SILENT)


@pytest.mark.parametrize("prompt", [Prompt(), Prompt(text="a", max_new_tokens=0), Prompt(text="a", temperature=-1)])
def test_a_prompt_that_makes_no_sense(engine, server, prompt):
    with pytest.raises(RequestError, match="prompt 1"):
        engine.generate([prompt], SILENT)
    assert server.requests == []


def test_a_closed_engine_refuses(engine):
    engine.close()
    with pytest.raises(RequestError, match="closed"):
        engine.generate(asked(["Why?"]), SILENT)


def test_impossible_settings_are_refused():
    with pytest.raises(RequestError, match="concurrency=0"):
        OpenAIHttpEngine("http://127.0.0.1:1/v1", "m", concurrency=0)


FORM = {"type": "object"}


def test_a_schema_is_sent_as_the_form_of_the_answer(engine, server):
    engine.generate([ask("a").model_copy(update={"json_schema": FORM})], SILENT)
    named = {"name": "answer", "schema": FORM, "strict": True}
    assert server.requests[0][1]["response_format"] == {"type": "json_schema", "json_schema": named}


def test_a_server_that_knows_no_form_is_asked_without_from_then_on(engine, server):
    words = {"error": {"message": "Unknown field: response_format"}}
    server.refuse = lambda body: Trouble(422, words) if "response_format" in body else None
    prompts = [one.model_copy(update={"json_schema": FORM}) for one in asked(["a", "b"])]
    assert [made.text for made in engine.generate(prompts, SILENT)] == ["You said a", "You said b"]
    num_before = len(server.requests)
    engine.generate(prompts, SILENT)
    assert len(server.requests) == num_before + 2
