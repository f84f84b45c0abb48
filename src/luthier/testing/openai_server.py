"""A small server on 127.0.0.1 that speaks OpenAI's completions API from a script, and can misbehave on demand."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from luthier.core.system.process_setup import start_daemon


@dataclass(frozen=True, slots=True)
class Trouble:
    """One answer that is no completion.

    Attributes:
        status: the HTTP status; 0 drops the connection.
        body: sent as it is; a document as JSON.
        headers: sent with it.
    """

    status: int
    body: str | Mapping[str, Any] = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class OpenAIServer:
    """A server of OpenAI's API for tests: what it answers, and what it was asked.

    With `stream` in a request, words are sent one by one.

    Attributes:
        answer: text for the content of the last message, or for the prompt of a completion; a word is a token.
        reply: text for the whole body, in place of `answer`.
        pace_seconds: time between two streamed words.
        broken: number of streams that clients left before their end.
        troubles: answered first, one a request, in the order of the requests.
        refuse: a Trouble for a body that must never succeed, or None.
        key: required in the Authorization header; None requires none.
        usage: whether answers count their tokens.
        hold: requests wait until it is set; None lets them through.
        requests: path and body of every request.
        authorizations: their headers, in the same order.
        most_at_once: how many were open together.
    """

    answer: Callable[[str], str] = lambda asked: f"You said {asked}"
    reply: Callable[[Mapping[str, Any]], str] | None = None
    pace_seconds: float = 0.0
    broken: int = 0
    troubles: list[Trouble] = field(default_factory=list)
    refuse: Callable[[Mapping[str, Any]], Trouble | None] = lambda _: None
    key: str | None = None
    usage: bool = True
    hold: threading.Event | None = None
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    most_at_once: int = 0
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def respond(self, path: str, body: dict[str, Any], authorization: str | None) -> Trouble:
        """The answer to one request; a completion is a Trouble with status 200."""
        # Each request has its own thread.
        with self._lock:
            self.requests.append((path, body))
            self.authorizations.append(authorization)
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
            trouble = self.troubles.pop(0) if self.troubles else None
        try:
            if self.hold is not None:
                self.hold.wait(60)
            if trouble is not None:
                return trouble
            if self.key is not None and authorization != f"Bearer {self.key}":
                words = f"Incorrect API key provided: {(authorization or '').removeprefix('Bearer ')}"
                return Trouble(401, {"error": {"message": words, "code": "invalid_api_key"}})
            return self.refuse(body) or self._completion(path, body)
        finally:
            with self._lock:
                self._open -= 1

    def _completion(self, path: str, body: Mapping[str, Any]) -> Trouble:
        if path not in ("/v1/chat/completions", "/v1/completions"):
            return Trouble(404, {"detail": "Not Found"})
        is_chat = path.endswith("chat/completions")
        asked = body["messages"][-1]["content"] if is_chat else body["prompt"]
        asked = asked if isinstance(asked, str) else " ".join(map(str, asked))
        limit = body.get("max_tokens", body.get("max_completion_tokens"))
        words = (self.answer(asked) if self.reply is None else self.reply(body)).split(" ")
        text, reason = " ".join(words[:limit]), "length" if limit is not None and len(words) > limit else "stop"
        choice = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        document: dict[str, Any] = {"choices": [{"index": 0, "finish_reason": reason, **choice}]}
        if self.usage:
            counts = {"prompt_tokens": len(asked.split()), "completion_tokens": len(words[:limit])}
            document["usage"] = counts
        return Trouble(200, document)

    def chunks(self, document: Mapping[str, Any]) -> Iterator[str]:
        """A completion as the events of a stream: one a word, one with the reason, one with the counts."""
        choice = document["choices"][0]
        is_chat = "message" in choice
        words = (choice["message"]["content"] if is_chat else choice["text"]).split(" ")
        for number, word in enumerate(words):
            # Joined, the pieces must be the text of the answer that is not streamed.
            text = word if number == 0 else f" {word}"
            yield _event(
                [{"index": 0, "finish_reason": None, **({"delta": {"content": text}} if is_chat else {"text": text})}]
            )
        yield _event(
            [{"index": 0, "finish_reason": choice["finish_reason"], **({"delta": {}} if is_chat else {"text": ""})}]
        )
        if "usage" in document:
            yield _event([], usage=document["usage"])
        # The end marker of OpenAI's streams, which is no JSON.
        yield "data: [DONE]\n\n"


def _event(choices: list[dict[str, Any]], *, usage: Mapping[str, int] | None = None) -> str:
    return f"data: {json.dumps({'choices': choices, 'usage': usage})}\n\n"


@contextmanager
def serving(server: OpenAIServer) -> Iterator[str]:
    """Serve while the block runs; gives the URL, up to and with /v1."""
    http = _QuietServer(("127.0.0.1", 0), handler_of(server))
    thread = start_daemon(partial(http.serve_forever, 0.02), "openai-server")
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}/v1"
    finally:
        if server.hold is not None:
            server.hold.set()
        http.shutdown()
        http.server_close()
        thread.join()


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up early is part of many tests; anything else is reported as usual."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def handler_of(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:
    """The handler of requests that answers as this server says."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made = server.respond(self.path, body, self.headers.get("Authorization"))
            if body.get("stream") and made.status == 200 and isinstance(made.body, Mapping):
                self._stream(made.body)
            else:
                self.send(made)

        def send(self, made: Trouble) -> None:
            """Answer with one document."""
            if made.status == 0:
                self.close_connection = True
                self.connection.close()
                return
            content = (made.body if isinstance(made.body, str) else json.dumps(made.body)).encode()
            self.send_response(made.status)
            for name, value in {"Content-Length": str(len(content)), **made.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def _stream(self, document: Mapping[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            # A stream has no length: its end is the end of the connection.
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                for event in server.chunks(document):
                    self.wfile.write(event.encode())
                    self.wfile.flush()
                    time.sleep(server.pace_seconds)
            except ConnectionError:
                server.broken += 1
            self.close_connection = True

    return Handler
