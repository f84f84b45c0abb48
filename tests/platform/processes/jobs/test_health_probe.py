"""A program is asked whether it is healthy without ever waiting for it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from luthier.platform.processes.supervisor import HealthCheck, HealthProbe

OK = b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{"status":"ok"}'
BAD = b'HTTP/1.1 503 Service Unavailable\r\n\r\n{"problems":{"threads":\r\n"40 of 40 are busy"}}'


class World:
    """A listener that answers only what a test has it say, and a clock that is set by hand."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener, self.now = listener, 1000.0
        host, port = listener.getsockname()
        check = HealthCheck(host, port, every_seconds=5, timeout_seconds=10, unhealthy_seconds=60, start_seconds=300)
        self.probe = HealthProbe(check, clock=lambda: self.now)

    def look_until(self, seen: Callable[[], bool]) -> None:
        """Look at one moment of the probe's clock again and again, as a supervisor does."""
        deadline = time.monotonic() + 60
        while not seen():
            self.probe.look()
            assert time.monotonic() < deadline

    def answer(self, said: bytes) -> bytes:
        """The next question, answered so; returns what was asked."""
        self.now += 5
        self.probe.look()
        with self.listener.accept()[0] as connection:
            self.look_until(lambda: self.probe._is_sent)
            asked = connection.recv(4096)
            connection.sendall(said)
        self.look_until(lambda: self.probe._socket is None)
        return asked


@pytest.fixture
def world() -> Iterator[World]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = World(listener)
        yield made
        made.probe.close()


def test_a_healthy_program_is_left_alone(world: World) -> None:
    assert world.answer(OK).startswith(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
    for _ in range(100):
        world.answer(OK)
        assert world.probe.look() is None


def test_one_that_is_unhealthy_for_long_is_to_be_started_again_and_it_is_said_why(world: World) -> None:
    world.answer(OK)
    for _ in range(11):
        world.answer(BAD)
        assert world.probe.look() is None, "not for long enough yet"
    world.answer(BAD)
    assert world.probe.look() == ('status 503: {"problems":{"threads": "40 of 40 are busy"}}; not healthy for 60 s')
    world.answer(OK)
    assert world.probe.look() is None, "it has come back by itself"


def test_one_that_accepts_and_never_answers_is_unhealthy(world: World) -> None:
    world.answer(OK)
    for _ in range(13):
        world.now += 5
        world.probe.look()
    assert world.probe.look() == "no answer within 10 s; not healthy for 65 s"


def test_one_that_says_something_else_is_unhealthy(world: World) -> None:
    world.answer(OK)
    for _ in range(12):
        world.answer(b"hello")
    assert world.probe.look() == "an answer that is not HTTP; not healthy for 60 s"


def test_a_start_has_longer_and_each_start_begins_afresh(world: World) -> None:
    world.now += 299
    assert world.probe.look() is None
    world.now += 1
    assert world.probe.look() == "it has not answered yet; not healthy for 300 s"
    world.probe.restart()
    assert world.probe.look() is None


def test_a_start_is_over_with_the_first_answer_whatever_it_says(world: World) -> None:
    for _ in range(12):
        world.answer(BAD)
    found = world.probe.look()
    assert found is not None
    assert found.endswith("not healthy for 60 s")


def test_nobody_listening_is_unhealthy() -> None:
    now = [0.0]
    with socket.socket() as reserved:  # a port that nobody else gets meanwhile, and nobody listens on
        reserved.bind(("127.0.0.1", 0))
        check = HealthCheck("127.0.0.1", reserved.getsockname()[1], start_seconds=20)
        probe = HealthProbe(check, clock=lambda: now[0])
        found, deadline = None, time.monotonic() + 60
        while found is None:
            now[0] += 1
            found = probe.look()
            assert time.monotonic() < deadline
        assert "cannot be reached" in found
        probe.close()
