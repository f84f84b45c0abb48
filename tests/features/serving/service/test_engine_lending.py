"""Jobs ask the engine process of the server where it has their model, behind live requests."""

from __future__ import annotations

import errno
import queue
from collections.abc import Iterator
from typing import Any

import pytest
from tests.clock import wait_until

from luthier.core.errors import WorkError, error_from
from luthier.core.stream import Ended, Failed, LoadedModel, Piece, Served, Started, StreamEvent, TextRequest
from luthier.features.serving import borrowed_engine, engine_lending, inference_client
from luthier.features.serving.borrowed_engine import BorrowingClient
from luthier.features.serving.engine_lending import SOCKET, EngineLending
from luthier.features.serving.inference_client import InferenceClient
from luthier.platform.home.context import Context

SECONDS = 120.0
MODEL = Served(path="/model", sha256="a")
TUNED = MODEL.model_copy(update={"adapter_path": "/adapter"})
OTHER = Served(path="/other", sha256="b")
REQUEST = TextRequest(text="Why?", max_new_tokens=4)
DONE = Ended(reason="stop", num_new_tokens=1)


class Lent:
    """A server with a model in memory, and a job; neither starts a process: the test reads what they would get."""

    def __init__(self, context: Context, most_at_once: int) -> None:
        self.server = InferenceClient(context.settings)
        context.__dict__["inference_client"] = self.server
        self.server.preload(MODEL)
        assert self.server._child is not None
        self.child = self.server._child
        self.child._outbox.get()
        self.child.loaded = (LoadedModel(served=MODEL),)
        self.seconds = 0.0
        self.lending = EngineLending(context, most_at_once=most_at_once, clock=lambda: self.seconds)
        self.lending.__enter__()
        self.job = BorrowingClient(context.settings)
        self.heard: queue.SimpleQueue[StreamEvent] = queue.SimpleQueue()

    def ask(self, model: Served = MODEL) -> Any:
        return self.job.ask(model, REQUEST, self.heard.put)

    def sent(self) -> dict[str, Any]:
        """What the engine process of the server gets next."""
        found = self.child._outbox.get(timeout=SECONDS)
        assert found is not None
        document, _ = found
        return document

    def own(self) -> dict[str, Any]:
        """What the engine process of the job gets next."""
        wait_until(lambda: self.job._child is not None)
        assert self.job._child is not None
        found = self.job._child._outbox.get(timeout=SECONDS)
        assert found is not None
        document, _ = found
        return document

    def end(self, key: str) -> None:
        self.child._tell(key, DONE)
        assert self.heard.get(timeout=SECONDS) == DONE

    def close(self) -> None:
        self.lending.__exit__()
        self.job.close()
        self.server.close()


@pytest.fixture
def lent(home: Context, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lent]:
    monkeypatch.setattr(inference_client._Child, "_live", lambda _: None)
    made = Lent(home, most_at_once=2)
    yield made
    made.close()


def test_a_model_that_the_server_has_is_not_loaded_again(lent: Lent, home: Context) -> None:
    assert (home.home / SOCKET).stat().st_mode & 0o777 == 0o600
    assert [one.served for one in lent.job.loaded] == [MODEL]
    lent.job.preload(MODEL)
    lent.ask(TUNED)
    asked = lent.sent()
    assert (asked["only_loaded"], asked["owner"]) == (True, "job-1")
    assert TextRequest.model_validate(asked["request"]) == REQUEST
    assert Served.model_validate(asked["model"]) == TUNED
    events: list[StreamEvent] = [Started(num_prompt_tokens=3), Piece(text="Since", num_new_tokens=1), DONE]
    for event in events:
        lent.child._tell(asked["ask"], event)
    assert [lent.heard.get(timeout=SECONDS) for _ in events] == events
    assert lent.job._child is None
    # A model that it does not have, the job loads itself.
    lent.job.preload(OTHER)
    assert "load" in lent.own()
    lent.ask(OTHER)
    assert "only_loaded" not in lent.own()
    assert lent.child._outbox.empty()


def test_a_model_that_was_dropped_meanwhile_is_loaded_by_the_job(lent: Lent) -> None:
    lent.ask()
    key = lent.sent()["ask"]
    lent.child.hear({"declined": key})
    own = lent.own()
    assert Served.model_validate(own["model"]) == MODEL
    # From now on the job knows it.
    lent.child.loaded = ()
    wait_until(lambda: lent.job.loaded == ())
    lent.ask()
    assert "only_loaded" not in lent.own()
    child = lent.job._child
    assert child is not None
    child._tell(own["ask"], DONE)
    assert lent.heard.get(timeout=SECONDS) == DONE


def test_live_requests_come_first(lent: Lent) -> None:
    cancel_live = lent.server.ask(MODEL, REQUEST, lambda _: None, key="live")
    live = lent.sent()["ask"]
    for _ in range(4):
        lent.ask()
    first = lent.sent()["ask"]
    # Beside a live request one of the job is answered at a time; without one as many as fit, here two.
    lent.end(first)
    second = lent.sent()["ask"]
    assert lent.child._outbox.empty()
    lent.child._tell(live, DONE)
    third = lent.sent()["ask"]
    assert lent.child._outbox.empty()
    lent.end(second)
    fourth = lent.sent()["ask"]
    lent.end(third)
    lent.end(fourth)
    assert len({first, second, third, fourth}) == 4
    cancel_live()
    # Requests of jobs take no slot of the queue of live ones.
    assert lent.server._admission_queue._num_of.total() == 0


def test_a_job_learns_for_how_long_live_requests_hold_it_back(lent: Lent) -> None:
    lent.server.ask(MODEL, REQUEST, lambda _: None, key="live")
    live = lent.sent()["ask"]
    for _ in range(3):
        lent.ask()
    lender = lent.job._server.lender
    assert lender is not None
    wait_until(lambda: (len(lent.lending._running), len(lent.lending._waiting)) == (1, 2))
    first = lent.sent()["ask"]
    lent.seconds = 90.0
    wait_until(lambda: lender.held_back_seconds == 90.0)
    # The next one is still alone: that is no pause.
    lent.end(first)
    second = lent.sent()["ask"]
    lent.seconds = 150.0
    wait_until(lambda: lender.held_back_seconds == 150.0)
    lent.child._tell(live, DONE)
    wait_until(lambda: lender.held_back_seconds == 0.0)
    lent.end(second)
    lent.end(lent.sent()["ask"])


def test_answers_are_counted_and_not_requests(lent: Lent) -> None:
    three = REQUEST.model_copy(update={"num_choices": 3})
    for _ in range(2):
        lent.job.ask(MODEL, three, lent.heard.put)
    lent.ask()
    # Of more answers than the two that may be written at once, one request is alone.
    first = lent.sent()["ask"]
    assert lent.child._outbox.empty()
    for choice in range(3):
        lent.child._tell(first, DONE.model_copy(update={"choice": choice}))
    second = lent.sent()["ask"]
    assert lent.child._outbox.empty()
    assert second != first


def test_jobs_leave_places_for_live_requests(home: Context) -> None:
    from luthier.ml.inference.llama_cpp.server import DEFAULT_SLOTS

    assert 0 < EngineLending(home)._most < DEFAULT_SLOTS
    home.settings = home.settings.model_copy(update={"max_num_seqs": 8})
    assert EngineLending(home)._most == 7


def test_what_is_cancelled_is_not_answered(lent: Lent) -> None:
    cancels = [lent.ask() for _ in range(3)]
    keys = [lent.sent()["ask"] for _ in range(2)]
    cancels[2]()  # it waits
    cancels[0]()
    assert lent.sent() == {"cancel": keys[0]}
    lent.end(keys[1])
    assert lent.heard.empty()
    # A job that is gone is not answered either.
    lent.ask()
    last = lent.sent()["ask"]
    lent.job.close()
    assert lent.sent() == {"cancel": last}


def test_without_its_server_a_job_loads_models_itself(lent: Lent) -> None:
    lent.ask()
    lent.sent()
    lent.lending.__exit__()
    failed = lent.heard.get(timeout=SECONDS)
    assert isinstance(failed, Failed)
    assert failed.is_of_engine
    error = error_from(failed.error)
    assert isinstance(error, WorkError)
    assert error.retry_helps
    assert lent.job.loaded == ()
    lent.ask()
    assert Served.model_validate(lent.own()["model"]) == MODEL


def test_a_home_without_a_server_has_no_lender(home: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_client._Child, "_live", lambda _: None)
    now = [100.0]
    job = BorrowingClient(home.settings, clock=lambda: now[0])
    assert job.loaded == ()
    server = InferenceClient(home.settings)
    home.__dict__["inference_client"] = server
    with EngineLending(home):
        assert job._server._lender is None, "it does not try again at once"
        now[0] += 60
        assert job.loaded == ()
        assert job._server._lender is not None
    job.close()
    server.close()


def test_a_server_that_does_not_answer_is_not_waited_for_each_time(
    home: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, num_tries = [100.0], 0

    def hangs(_: object) -> None:
        nonlocal num_tries
        num_tries += 1
        now[0] += 10.0

    monkeypatch.setattr(borrowed_engine, "_connect", hangs)
    job = BorrowingClient(home.settings, clock=lambda: now[0])
    for _ in range(3):
        assert job.loaded == ()
    assert num_tries == 1
    now[0] += 10.0
    assert job.loaded == ()
    assert num_tries == 2
    job.close()


def test_jobs_are_taken_again_after_the_server_had_too_many_open_files(
    home: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    lending, num_tries = EngineLending(home), 0

    class Full:
        def accept(self) -> None:
            nonlocal num_tries
            num_tries += 1
            lending._is_closed = num_tries == 3
            raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(engine_lending.time, "sleep", lambda _: None)
    lending._listening = Full()  # type: ignore[assignment]
    lending._accept_all()
    assert num_tries == 3
