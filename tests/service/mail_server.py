"""A mail server over a real socket, as small as RFC 5321 lets it be: it keeps what it is sent, or refuses, or hangs."""

from __future__ import annotations

import base64
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class MailServer:
    """greeting: sent first; empty: nothing ever is. refused: addresses that it does not take. login: user, password."""

    greeting: str = "220 test"
    refused: set[str] = field(default_factory=set)
    login: tuple[str, str] | None = None
    tls: ssl.SSLContext | None = None
    port: int = 0
    received: list[tuple[list[str], str]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def mail_server(**settings: Any) -> Iterator[MailServer]:
    server = MailServer(**settings)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            _Talk(server, self).run()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        server.port = listening.server_address[1]
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            listening.shutdown()
            thread.join()


class _Talk:
    def __init__(self, server: MailServer, handler: socketserver.StreamRequestHandler) -> None:
        self.server, self.handler = server, handler
        self.read, self.write = handler.rfile, handler.wfile
        self.to: list[str] = []
        self.is_secure = self.is_in = False

    def run(self) -> None:
        if not self.server.greeting:
            self.server.stopped.wait(20)
            return None
        self.say(self.server.greeting)
        while line := self.read.readline().decode().rstrip("\r\n"):
            self.server.commands.append(line)
            if line == "QUIT":
                return self.say("221 bye")
            self.say(self.answer(line))
        return None

    def say(self, text: str) -> None:
        self.write.write(text.encode() + b"\r\n")
        self.write.flush()

    def answer(self, line: str) -> str:
        verb = line.split(maxsplit=1)[0].upper()
        if verb == "EHLO":
            offers = ["test", *(["STARTTLS"] if self.server.tls and not self.is_secure else []), "AUTH PLAIN", "OK"]
            return "\r\n".join(f"250{' ' if one == 'OK' else '-'}{one}" for one in offers)
        if verb == "STARTTLS" and self.server.tls is not None:
            return self.start_tls()
        if verb == "AUTH":
            _, user, password = base64.b64decode(line.split()[2]).decode().split("\0")
            self.is_in = (user, password) == self.server.login
            return "235 in" if self.is_in else "535 wrong user or password"
        if self.server.login and not self.is_in:
            return "530 log in first"
        if verb == "RCPT":
            address = line.split("<")[1].split(">")[0]
            if address in self.server.refused:
                return f"550 no mailbox {address}"
            self.to.append(address)
        if verb == "DATA":
            return self.data()
        return "250 fine"

    def data(self) -> str:
        self.say("354 go on")
        lines = []
        while (line := self.read.readline().decode().rstrip("\r\n")) != ".":
            lines.append(line.removeprefix("."))
        self.server.received.append((self.to, "\n".join(lines)))
        self.to = []
        return "250 taken"

    def start_tls(self) -> str:
        assert self.server.tls is not None
        self.say("220 go on")
        secure = self.server.tls.wrap_socket(self.handler.connection, server_side=True)
        self.read, self.write = secure.makefile("rb"), secure.makefile("wb")
        self.is_secure = True
        return self.answer(self.read.readline().decode().rstrip("\r\n"))
