"""Far more clients than there is room for, and clients that do not keep to the rules: nobody else is hurt."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import threading
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import openai
from tests.vacuous import nonempty

from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context

ServedHome = tuple[Context, str]
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Which wood?"}], "max_tokens": 3}


def test_a_thousand_asks_at_once_are_answered_or_told_to_come_again(served: ServedHome) -> None:
    _, key = create_key(served[0], "crowd", scopes=("infer",))
    address, body = urlsplit(served[1]), json.dumps(BODY).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode()

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:  # both ends of every connection are in this process
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))

    async def ask() -> tuple[int, dict[str, str], Any]:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(head + body)
        answer, _, content = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        status, *lines = answer.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(status.split()[1]), headers, json.loads(content)

    async def ask_all() -> list[tuple[int, dict[str, str], Any]]:
        return await asyncio.gather(*(ask() for _ in range(1000)))

    answers = asyncio.run(ask_all())
    kinds = Counter(status for status, _, _ in answers)
    assert set(kinds) == {200, 429}
    assert kinds[200] >= 4
    for status, headers, document in nonempty(answers):
        if status == 429:
            assert int(headers["retry-after"]) >= 1
            assert document["error"]["code"] == "rate_limit_exceeded"
        else:
            assert document["usage"]["completion_tokens"] <= 3
    assert served[0].inference_client.num_under_way == 0


def test_clients_that_do_not_keep_to_the_rules_hurt_nobody(served: ServedHome, client: openai.OpenAI) -> None:
    address = urlsplit(served[1])
    _, key = create_key(served[0], "raw", scopes=("infer",))
    body = json.dumps(BODY | {"stream": True, "max_tokens": 400, "n": 8, "temperature": 2}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    wrong = {
        "half a body": head + body[:20],
        "no http": b"\x16\x03\x01 hello\r\n\r\n",
        "no json": head + b"{" * len(body),
        "a body that never ends": head.replace(b"Content-Length: ", b"Content-Length: 9") + body,
        "more behind the body": head + body + b"\r\n\r\nGET \x00 HTTP/9\r\n\r\n",
        "wrong chunks": head.split(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body,
    }
    sockets = []
    for sent in wrong.values():
        sockets.append(socket.create_connection((address.hostname, address.port)))
        sockets[-1].sendall(sent)
    # one that asks and never reads: what is written for it waits, and nobody with it
    deaf = socket.create_connection((address.hostname, address.port))
    deaf.sendall(head + body)
    try:
        made = client.chat.completions.create(**BODY)
        assert made.choices[0].message.content is not None
        assert client.models.list().data
    finally:
        for one in [*sockets, deaf]:
            one.close()
    deadline = time.monotonic() + 60
    while served[0].inference_client.num_under_way:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.chat.completions.create(**BODY).object == "chat.completion"


def test_prompts_of_megabytes_of_one_key_do_not_hold_up_a_chat_of_another(
    served: ServedHome, client: openai.OpenAI
) -> None:
    """Each took over ten seconds of the thread that writes; the bound is generous, for a machine with others."""
    _, key = create_key(served[0], "megabytes", scopes=("infer",))
    stop, refused = threading.Event(), list[str]()

    def send() -> None:
        with openai.OpenAI(base_url=f"{served[1]}/v1", api_key=key, max_retries=0, timeout=300) as other:
            while not stop.is_set():
                try:
                    other.completions.create(model="tiny", prompt="wood and more " * 285_000, max_tokens=2)
                except openai.BadRequestError as error:
                    refused.append(error.code or "")

    assert client.chat.completions.create(**BODY).object == "chat.completion"  # the model is loaded
    senders = [threading.Thread(target=send, daemon=True) for _ in range(2)]
    for sender in senders:
        sender.start()
    deadline = time.monotonic() + 120
    while len(refused) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    began = time.monotonic()
    for _ in range(3):
        assert client.chat.completions.create(**BODY).object == "chat.completion"
    took = time.monotonic() - began
    stop.set()
    for sender in senders:
        sender.join(300)
    assert set(refused) == {"context_length_exceeded"}
    assert took < 30, f"three chats took {took:.1f} s"
