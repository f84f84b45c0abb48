"""Conversations with one model and with two; models here and behind an address."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import BusyError, RequestError, WorkError
from luthier.core.stream import Ended, Failed, Piece, Started, StreamEvent, TextRequest
from luthier.features.serving.chat import Chat, RemoteChatClient, Reply, open_remote_chat_client


@dataclass
class Echo:
    """Answers with how many turns it was shown and the last words; `fail` fails, `wait` never answers."""

    name: str
    asked: list[TextRequest] = field(default_factory=list)
    num_cancelled: int = 0

    def begin(self, request: TextRequest, hear: Callable[[StreamEvent], None]) -> Callable[[], None]:
        self.asked.append(request)
        assert request.conversation is not None
        words = request.conversation.messages[-1].content or ""
        if words == "refuse":
            raise WorkError("too many", expected="fewer", do="wait")
        if words == f"fail {self.name}":
            hear(Failed(error=WorkError("broke", expected="x", do="y").as_json()))
        elif words != "wait":
            hear(Started(num_prompt_tokens=4))
            for number, text in enumerate(("you said ", words)):
                hear(Piece(text=text, num_new_tokens=number + 1))
            hear(Ended(reason="stop", num_new_tokens=2))

        def cancel() -> None:
            self.num_cancelled += 1

        return cancel

    def shown(self) -> list[str | None]:
        assert self.asked[-1].conversation is not None
        return [message.content for message in self.asked[-1].conversation.messages]


def silently(_: list[Reply]) -> None:
    """Show nothing."""


def test_each_remembers_its_own_answers() -> None:
    a, b = Echo("a"), Echo("b")
    chat = Chat([a, b], system="Be kind.")
    first = chat.ask("one", silently)
    assert [(reply.name, reply.text, reply.reason) for reply in first.replies] == [
        ("a", "you said one", "stop"),
        ("b", "you said one", "stop"),
    ]
    chat.ask("fail b", silently)
    chat.ask("two", silently)
    assert a.shown() == ["Be kind.", "one", "you said one", "fail b", "you said fail b", "two"]
    assert b.shown() == ["Be kind.", "one", "you said one", "two"]
    undone = chat.undo()
    assert undone is not None
    assert undone.question == "two"
    chat.turns.clear()
    chat.ask("three", silently)
    assert a.shown() == ["Be kind.", "three"]
    assert (chat.undo() is None, chat.undo()) == (False, None)


def test_figures_and_errors_are_told() -> None:
    reply = Chat([Echo("a")]).ask("one", silently).replies[0]
    document = reply.as_json()
    assert (document["prompt_tokens"], document["new_tokens"], document["finish_reason"]) == (4, 2, "stop")
    assert 0 <= document["first_seconds"] <= document["seconds"]
    assert (document["error"], reply.has_ended) == (None, True)
    for words in ("fail a", "refuse"):
        assert Chat([Echo("a")]).ask(words, silently).replies[0].as_json()["error"]["type"] == "WorkError"


def test_an_interrupt_ends_the_answer_and_not_the_chat() -> None:
    client, looks = Echo("a"), []

    def interrupt(replies: list[Reply]) -> None:
        looks.append(1)
        if len(looks) == 1:
            raise KeyboardInterrupt

    chat = Chat([client])
    assert chat.ask("wait", interrupt).replies[0].reason == "stopped"
    assert client.num_cancelled == 1
    assert chat.ask("on", silently).replies[0].text == "you said on"


class _Server(BaseHTTPRequestHandler):
    """Streams what it was asked; `break` breaks off, a wrong key is refused."""

    models = ("only",)

    def do_GET(self) -> None:
        self._answer(200, json.dumps({"data": [{"id": model} for model in self.models]}).encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers.get("Authorization") != "Bearer secret-secret":
            self._answer(401, b'{"error": {"message": "no such key secret-wrong"}}')
            return
        words = asked["messages"][-1]["content"]
        chunks = [{"choices": [{"delta": {"content": part}, "finish_reason": None}]} for part in ("é ", words)]
        if words != "break":
            chunks.append({"choices": [{"delta": {}, "finish_reason": "length"}]})
            chunks.append({"choices": [], "usage": {"completion_tokens": 7}})
        lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        if words.startswith("as it is: "):
            lines = f"data: {words.removeprefix('as it is: ')}\n\n" + lines
        self._answer(200, f": hello\n\n{lines}data: [DONE]\n\n".encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join()


def test_a_model_behind_an_address(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_API_KEY", "secret-secret")
    client = open_remote_chat_client(url)
    assert (client, client.name) == (open_remote_chat_client(f"{url}#only"), "only")
    reply = Chat([client]).ask("hello", silently).replies[0]
    assert (reply.text, reply.reason, reply.num_new_tokens, reply.error) == ("é hello", "length", 7, None)
    assert "broke off" in str(Chat([client]).ask("break", silently).replies[0].error)
    refused = Chat([RemoteChatClient(url, "only", "secret-wrong")]).ask("hello", silently).replies[0]
    assert "LUTHIER_API_KEY" in str(refused.error)
    assert "secret-wrong" not in str(refused.error) + repr(client)


@pytest.mark.parametrize(
    "data",
    [
        '{"choices": [null]}',
        '{"choices": ["text"]}',
        '{"choices": {"delta": {}}}',
        '{"choices": [{"delta": "text"}]}',
        '{"choices": 3}',
        '{"choices": [{"delta": {"conte',
        "[1]",
    ],
)
def test_a_malformed_chunk_fails_the_answer(url: str, data: str) -> None:
    """It must not end the thread that reads: nothing would ever be heard again."""
    heard: queue.Queue[StreamEvent] = queue.Queue()
    conversation = Conversation(messages=(Message(role="user", content=f"as it is: {data}"),))
    RemoteChatClient(url, "only", "secret-secret").begin(TextRequest(conversation=conversation), heard.put)
    event = heard.get(timeout=120)
    assert isinstance(event, Failed)
    assert "a part of its answer" in event.error["came"] or "JSONDecodeError" in event.error["came"]


def test_a_machine_that_starts_no_more_threads_is_an_error_of_the_reply(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    reply = Chat([RemoteChatClient(url, "only", "secret-secret")]).ask("hello", silently).replies[0]
    assert isinstance(reply.error, BusyError)


def test_addresses_that_cannot_be_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Server, "models", ("a", "b"))
    with pytest.raises(RequestError, match="has 2 models: a, b"):
        open_remote_chat_client(url)
    with pytest.raises(RequestError, match="password"):
        open_remote_chat_client(url.replace("http://", "http://me:secret@"))
    with pytest.raises(WorkError, match="gave no answer"):
        open_remote_chat_client("http://127.0.0.1:1/v1")
    assert Chat([RemoteChatClient("http://127.0.0.1:1/v1", "m")]).ask("x", silently).replies[0].error is not None


def test_a_thought_is_kept_apart_from_the_answer() -> None:
    reply = Reply("m")
    for event in (Piece(text="", reasoning="so"), Piece(text="4"), Ended(reason="stop", num_new_tokens=3)):
        reply.hear(event, 0.1)
    assert (reply.text, reply.reasoning) == ("4", "so")
    assert reply.as_json()["reasoning"] == "so"
    plain = Reply("m")
    plain.hear(Piece(text="4"), 0.1)
    assert "reasoning" not in plain.as_json()
