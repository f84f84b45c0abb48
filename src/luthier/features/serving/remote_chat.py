"""A model behind a server that speaks OpenAI's API, heard as it writes.

API reference of OpenAI: "Create chat completion", "Chat completion chunk", "List models".
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2

from luthier.core.errors import LuthierError, RequestError, WorkError
from luthier.core.stream import Ended, Failed, Piece, StreamEvent, TextRequest
from luthier.core.system.threads import start_daemon
from luthier.features.generation.teachers import api_key, parse_address
from luthier.ml.inference.openai.answers import server_words, without_key
from luthier.ml.inference.openai.chunks import event_stream_lines

OWN_KEY: Final = "LUTHIER_API_KEY"
_TIMEOUT: Final = httpx2.Timeout(300.0, connect=15.0)
_REASONS: Final = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "content_filter": "stop"}


@dataclass(frozen=True, slots=True)
class RemoteChatClient:
    """A model of a server. url: up to and with the version."""

    url: str
    name: str
    key: str = field(default="", repr=False)

    def begin(self, request: TextRequest, hear: Callable[[StreamEvent], None]) -> Callable[[], None]:
        """Have a conversation continued; returns what cancels it. What goes wrong is heard as `Failed`.

        Raises:
            BusyError: The system starts no more threads; nothing is heard then.
        """
        has_gone = threading.Event()

        def work() -> None:
            try:
                for event in self._events(request, has_gone):
                    hear(event)
            except LuthierError as error:
                hear(Failed.of(error))
            except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ValueError) as error:
                hear(Failed(error=_no_answer(self.url, f"{type(error).__name__}: {error}", self.key).as_json()))
            # A chunk of another form. Whoever listens waits for a last event: this thread must not end without one.
            except (AttributeError, KeyError, TypeError) as error:
                words = f"a part of its answer has another form than a chat completion chunk ({error})"
                hear(Failed(error=_no_answer(self.url, words, self.key).as_json()))

        start_daemon(work, "remote")
        return has_gone.set

    def _events(self, request: TextRequest, has_gone: threading.Event) -> Iterator[StreamEvent]:
        num_pieces, usage, reason = 0, dict[str, Any](), None
        with (
            httpx2.Client(headers=_headers(self.key), timeout=_TIMEOUT) as client,
            client.stream("POST", f"{self.url}/chat/completions", json=self._body(request)) as response,
        ):
            if response.status_code != httpx2.codes.OK:
                response.read()
                raise _refused(response, self.url, self.key)
            for line in event_stream_lines(response):
                if has_gone.is_set():
                    return
                chunk = _chunk(line)
                if chunk is None:
                    continue
                if "error" in chunk:
                    raise _no_answer(self.url, json.dumps(chunk["error"]), self.key)
                usage = chunk.get("usage") or usage
                # The last chunk of a stream carries usage and an empty list of choices.
                for choice in (chunk.get("choices") or [])[:1]:
                    reason = choice.get("finish_reason") or reason
                    delta = choice.get("delta") or {}
                    # vLLM and DeepSeek call the thought reasoning_content, others reasoning.
                    text, thought = delta.get("content"), delta.get("reasoning_content") or delta.get("reasoning")
                    if text or thought:
                        num_pieces += 1
                        yield Piece(text=str(text or ""), num_new_tokens=num_pieces, reasoning=str(thought or ""))
        # A connection that closes early ends the iteration like a whole answer: only finish_reason tells them apart.
        if reason is None:
            raise _no_answer(self.url, "the answer broke off", self.key)
        num_new = usage.get("completion_tokens")
        ended: Any = _REASONS.get(str(reason), "stop")
        # A server that ignores include_usage leaves only the number of pieces, an approximation.
        yield Ended(reason=ended, num_new_tokens=num_new if isinstance(num_new, int) else num_pieces)

    def _body(self, request: TextRequest) -> dict[str, Any]:
        messages = () if request.conversation is None else request.conversation.messages
        return {
            "model": self.name,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": request.sampling.temperature,
            "seed": request.sampling.seed,
            "max_tokens": request.max_new_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def open_remote_chat_client(address: str) -> RemoteChatClient:
    """The model that an address names behind a `#`, or the only one that the server has.

    The key comes from the environment: LUTHIER_API_KEY, or OPENAI_API_KEY over https or to this machine.

    Raises RequestError for an address that is none, or a server with several models; WorkError where it gives no
    answer.
    """
    if "#" in address:
        url, model = parse_address(address)
        return RemoteChatClient(url, model, api_key(url, os.environ, own=OWN_KEY) or "")
    url, _ = parse_address(f"{address}#any")
    key = api_key(url, os.environ, own=OWN_KEY) or ""
    models = _models(url, key)
    if len(models) != 1:
        raise RequestError(
            f"{url} has {len(models)} models: {', '.join(models[:20]) or 'none'}",
            expected="the name of one of them behind the address",
            do=f"write for example: {url}#{models[0] if models else 'MODEL'}",
        )
    return RemoteChatClient(url, models[0], key)


def _models(url: str, key: str) -> list[str]:
    try:
        response = httpx2.get(f"{url}/models", headers=_headers(key), timeout=_TIMEOUT)
        if response.status_code != httpx2.codes.OK:
            raise _refused(response, url, key)
        return [str(one["id"]) for one in response.json()["data"]]
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise _no_answer(url, f"{type(error).__name__}: {error}", key) from error


def _chunk(line: str) -> dict[str, Any] | None:
    """The document of a line of server-sent events; None for all else. Raises ValueError for data that is no object."""
    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
    if not data or data == "[DONE]":
        return None
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError(f"a part of its answer is no JSON object: {data[:200]}")
    return found


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key.isascii() and key.isprintable() and key else {}


def _refused(response: httpx2.Response, url: str, key: str) -> LuthierError:
    words = server_words(response, key)
    needs_key = response.status_code in (401, 403)
    return RequestError(
        f"{url} refuses with HTTP {response.status_code}: {words}",
        expected="a key that this server accepts" if needs_key else "an answer",
        do=f"set {OWN_KEY} (or OPENAI_API_KEY, which is sent over https and to this machine only)"
        if needs_key
        else "correct what it names: the address, the model behind the #, or the question",
    )


def _no_answer(url: str, words: str, key: str) -> WorkError:
    return WorkError(
        f"{url} gave no answer: {without_key(words, key)}",
        expected="a server that speaks OpenAI's API",
        do="check that it runs at this address, then ask again",
    )
