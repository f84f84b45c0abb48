"""A server of llama.cpp that is opened beside another one: taken once, closed where nobody wants it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.ml.inference.llama_cpp.next_server import NextServer, close_soon

SECONDS = 120.0
A, B = Path("/a.gguf"), Path("/b.gguf")


class Server:
    def __init__(self, adapters: list[Path], num_threads: int) -> None:
        self.adapters, self.num_threads = adapters, num_threads
        self.is_closed = threading.Event()

    def close(self) -> None:
        assert not self.is_closed.is_set()
        self.is_closed.set()


class Opening:
    """Opens servers, each once `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.made: list[Server] = []
        self.num_threads, self.has_room = 2, True

    def open(self, adapters: list[Path]) -> Any:
        assert self.go.wait(SECONDS)
        self.made.append(Server(adapters, self.num_threads))
        return self.made[-1]


@pytest.fixture
def opening() -> Opening:
    return Opening()


@pytest.fixture
def following(opening: Opening) -> NextServer:
    return NextServer(opening.open, lambda: opening.has_room)


def test_one_is_opened_for_the_same_threads_and_adapters_and_taken_once(
    opening: Opening, following: NextServer
) -> None:
    following.begin(2, [B, A, A])
    following.begin(2, [A, B])
    assert (following.is_opening, following.is_done) == (True, False)
    opening.go.set()
    taken: Any = following.take(2, [A, B])
    assert [taken] == opening.made
    assert opening.made[0].adapters == [A, B]
    assert not opening.made[0].is_closed.is_set()
    assert (following.is_opening, following.is_done) == (False, False)
    assert following.take(2, [A, B]) is None


@pytest.mark.parametrize("wanted", [(3, [A]), (2, []), (2, [A, B]), (2, [A], 1)])
def test_one_that_is_not_what_is_needed_now_is_closed_once_it_is_open(
    opening: Opening, following: NextServer, wanted: tuple[Any, ...]
) -> None:
    following.begin(2, [A])
    assert following.take(*wanted) is None, "it waits for nothing"
    opening.num_threads = wanted[0]
    opening.go.set()
    wait_until_free(following)
    (other,) = opening.made
    assert other.is_closed.is_set()
    following.begin(*wanted)
    taken: Any = following.take(*wanted)
    assert [other, taken] == opening.made


def wait_until_free(following: NextServer) -> None:
    end = time.monotonic() + SECONDS
    while following.is_blocked:
        assert time.monotonic() < end, "what is not needed was never closed"
        time.sleep(0.001)


def test_adapters_that_come_one_after_another_open_one_server_at_a_time(
    opening: Opening, following: NextServer
) -> None:
    """Each asks for the room before the others have taken theirs: together they may take more than there is."""
    following.begin(2, [A])
    following.begin(2, [A, B])
    assert (following.is_opening, following.is_blocked) == (False, True)
    opening.go.set()
    wait_until_free(following)
    assert [(server.adapters, server.is_closed.is_set()) for server in opening.made] == [([A], True)]
    following.begin(2, [A, B])
    taken: Any = following.take(2, [A, B])
    assert [server.adapters for server in opening.made] == [[A], [A, B]]
    assert not taken.is_closed.is_set()


def test_one_with_other_threads_than_were_asked_for_is_closed(opening: Opening, following: NextServer) -> None:
    opening.go.set()
    opening.num_threads = 1  # that of the moment in which it was opened
    following.begin(2, [])
    assert following.take(2, []) is None
    assert opening.made[0].is_closed.wait(SECONDS)


def test_an_open_one_that_is_not_needed_is_closed_at_once(opening: Opening, following: NextServer) -> None:
    opening.go.set()
    following.begin(2, [])
    end = time.monotonic() + SECONDS
    while not following.is_done:
        assert time.monotonic() < end, "it was never open"
        time.sleep(0.001)
    following.discard()
    assert opening.made[0].is_closed.wait(SECONDS)


def test_without_room_none_is_opened(opening: Opening, following: NextServer) -> None:
    opening.has_room = False
    opening.go.set()
    following.begin(2, [])
    assert (following.is_opening, following.is_done, following.take(2, []), opening.made) == (False, False, None, [])


def test_a_fault_is_in_the_log_and_whoever_waits_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(_: list[Path]) -> Any:
        raise MemoryError("no more")

    following = NextServer(fail, lambda: True)
    following.begin(2, [])
    assert following.take(2, []) is None
    assert "MemoryError: no more" in capfd.readouterr().err


def test_a_system_without_threads_opens_none_and_closes_at_once(
    following: NextServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    following.begin(2, [])
    assert (following.is_opening, following.take(2, [])) == (False, None)
    server: Any = Server([], 2)
    close_soon(server)
    assert server.is_closed.is_set()
