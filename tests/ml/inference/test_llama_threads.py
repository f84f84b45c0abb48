"""When llama.cpp's server is opened again for another number of threads, and that no answer waits for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import WorkError
from luthier.core.ports import RestingEngine
from luthier.core.system import free_cores
from luthier.core.system.free_cores import FreeCores
from luthier.ml.inference.llama_cpp import cpp
from luthier.ml.inference.llama_cpp.cpp import LlamaCppEngine
from luthier.ml.inference.llama_cpp.server import LlamaServer
from luthier.testing.stream_contract import Heard, listen, question, write_all

SECONDS = 120.0


class OneThread(LlamaServer):
    """A server that says how many threads it was given, and takes one."""

    def __init__(self, *given: Any, num_threads: int, **named: Any) -> None:
        super().__init__(*given, num_threads=1, **named)
        self.num_threads = num_threads


@pytest.fixture
def engine(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LlamaCppEngine]:
    """Of eight threads, whose free cores a test says."""
    monkeypatch.setattr(cpp, "usable_threads", lambda: 8)
    monkeypatch.setattr(free_cores, "num_usable_cores", lambda: 8)
    monkeypatch.setattr(cpp, "FreeCores", lambda num, **_: FreeCores(num, is_sampled=False))
    monkeypatch.setattr(cpp, "LlamaServer", OneThread)
    # Whatever else runs here: without room for two servers, no second one would ever be opened.
    monkeypatch.setattr(cpp, "memory_bytes", lambda: (8 << 30, 8 << 30))
    with closing(LlamaCppEngine(tiny_gguf, cache="float32")) as made:
        yield made


def take_others(engine: LlamaCppEngine, others: float) -> None:
    """Let other processes keep so many cores busy for long enough to count."""
    for _ in range(10):
        engine._cores.note(others)


def until(is_so: Callable[[], bool], each: Callable[[], object] = lambda: None) -> None:
    end = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < end, "it never came to be so"
        each()
        time.sleep(0.001)


def num_threads(engine: LlamaCppEngine) -> int:
    assert engine._server is not None
    return engine._server.num_threads


def rest_until(engine: LlamaCppEngine, threads: int) -> None:
    until(lambda: num_threads(engine) == threads, engine.rest)


def test_one_more_thread_of_many_is_not_worth_another_server(engine: LlamaCppEngine) -> None:
    seen = [num_threads(engine)]
    for others in (1.0, 0.0, 3.0, 0.0):
        take_others(engine, others)
        write_all(engine, {len(seen): question("Why?", max_new_tokens=2)})
        # An answer that has ended holds its slot until llama.cpp's last token of it.
        listen(engine, Heard(), lambda: engine._writing.is_idle)
        engine.rest()
        until(lambda: not engine._next.is_opening)
        engine.rest()
        seen.append(num_threads(engine))
    # The eighth thread does not come back to seven, three come back to five.
    assert seen == [8, 7, 7, 5, 8]


def test_a_request_does_not_wait_while_the_server_with_more_threads_is_opened(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(engine, RestingEngine)
    take_others(engine, 6.0)
    rest_until(engine, 2)
    wanted = write_all(engine, {"before": question("Why?")}).texts["before", 0]
    may_open, num_opened = threading.Event(), 0

    class Slow(OneThread):
        def __init__(self, *given: Any, **named: Any) -> None:
            nonlocal num_opened
            num_opened += 1
            assert may_open.wait(SECONDS)
            super().__init__(*given, **named)

    monkeypatch.setattr(cpp, "LlamaServer", Slow)
    take_others(engine, 0.0)
    engine.rest()
    until(lambda: num_opened == 1, engine.rest)
    heard = write_all(engine, {key: question("Why?") for key in ("one", "two")})
    assert (num_threads(engine), heard.texts["one", 0]) == (2, wanted)
    engine.rest()
    assert num_threads(engine) == 2
    may_open.set()
    rest_until(engine, 8)
    assert num_opened == 1
    assert write_all(engine, {"after": question("Why?")}).texts["after", 0] == wanted


def test_a_request_takes_the_server_that_was_opened_meanwhile(engine: LlamaCppEngine) -> None:
    take_others(engine, 6.0)
    rest_until(engine, 2)
    take_others(engine, 0.0)
    engine.rest()
    until(lambda: engine._next.is_done)
    write_all(engine, {"one": question("Why?")})
    assert num_threads(engine) == 8


def test_what_is_opened_is_dropped_where_the_cores_are_busy_again(engine: LlamaCppEngine) -> None:
    take_others(engine, 6.0)
    rest_until(engine, 2)
    take_others(engine, 0.0)
    engine.rest()
    take_others(engine, 6.0)
    engine.rest()
    assert not engine._next.is_opening
    assert not engine._next.is_done
    assert num_threads(engine) == 2


def test_without_memory_for_two_the_idle_server_is_opened_again_in_its_place(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpp, "memory_bytes", lambda: (2 << 30, engine.num_bytes))
    take_others(engine, 6.0)
    engine.rest()
    assert num_threads(engine) == 2
    take_others(engine, 0.0)
    write_all(engine, {"one": question("Why?")})
    assert num_threads(engine) == 2, "a request does not wait for it"
    rest_until(engine, 8)


def test_a_second_server_that_does_not_open_is_said_and_the_first_one_answers(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before, may_fail = engine._server, threading.Event()

    def refuse(*_: Any, **__: Any) -> LlamaServer:
        assert may_fail.wait(SECONDS)
        raise WorkError("no memory", expected="some", do="free some")

    with monkeypatch.context() as patched:
        patched.setattr(cpp, "LlamaServer", refuse)
        take_others(engine, 6.0)
        engine.rest()
        may_fail.set()
        until(lambda: not engine._next.is_opening)
        assert "no second llama.cpp server was opened: no memory" in capfd.readouterr().err
        assert engine._server is before
        engine.rest()  # in the place of the first one
        assert "llama.cpp's server was not opened again: no memory" in capfd.readouterr().err
    heard = write_all(engine, {"one": question("Why?", max_new_tokens=2)})
    assert heard.ends["one", 0].num_new_tokens == 2


def test_a_server_with_a_new_adapter_is_opened_while_the_answers_under_way_end(
    engine: LlamaCppEngine, gguf_adapters: list[Path]
) -> None:
    before, heard = engine._server, Heard()
    assert engine.ask("long", question("Why?", max_new_tokens=100), None)
    engine.load_adapter("late", str(gguf_adapters[0]))
    assert not engine.ask("late", question("Why?"), "late")
    assert engine._next.is_opening or engine._next.is_done
    assert engine._server is before
    listen(engine, heard, lambda: engine.ask("late", question("Why?"), "late"))
    listen(engine, heard, lambda: not engine.keys)
    heard.hear(engine)
    assert heard.ends["long", 0].num_new_tokens == 100
    assert write_all(engine, {"base": question("Why?")}).texts["base", 0] != heard.texts["late", 0]


def test_an_answer_that_was_cancelled_holds_up_no_later_one(engine: LlamaCppEngine) -> None:
    """Nothing polls an engine without requests: the end of its thread was read after the next request had begun."""
    heard = Heard()
    assert engine.ask("moved", question("Why?", max_new_tokens=200), None)
    listen(engine, heard, lambda: bool(heard.pieces["moved", 0]))
    engine.cancel("moved")
    assert not engine.keys
    until(lambda: not any(one.name == "llama.cpp answer" for one in threading.enumerate()))
    take_others(engine, 6.0)
    assert engine.ask("next", question("Why?", max_new_tokens=2), None)
    assert num_threads(engine) == 2
    listen(engine, heard, lambda: ("next", 0) in heard.ends)
    assert heard.ends["next", 0].num_new_tokens == 2
