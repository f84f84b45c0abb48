"""The client of the engine process, where its child misses a request or a caller gives up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.clock import Clock

from luthier.core.engine_rates import EngineRates, EngineSpeed
from luthier.core.errors import WorkError
from luthier.core.stream import Ended, Failed, LoadedModel, Piece, Served, Started, TextRequest
from luthier.features.serving import inference_client
from luthier.features.serving.engine_balance import EngineBalance, EnginePick
from luthier.features.serving.inference_client import Event, InferenceClient
from luthier.features.serving.open_request import PickedRequest
from luthier.platform.home.settings import Settings

MODEL = Served(path="/nowhere", sha256="")
REQUEST = TextRequest(text="Why?", max_new_tokens=4)


def test_a_child_that_has_ended_keeps_no_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = SimpleNamespace(ask=lambda *_, **__: None)
    monkeypatch.setattr(inference_client, "_Child", lambda *_, **__: ended)
    client = InferenceClient(Settings(home=tmp_path, serving_queue=2))
    # More often than there are slots: a lost slot would make it a BusyError, forever.
    for _ in range(4):
        with pytest.raises(WorkError, match="has ended"):
            client.ask(MODEL, REQUEST, lambda _: None)


def test_a_model_is_loaded_before_the_first_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_client._Child, "_live", lambda _: None)
    client = InferenceClient(Settings(home=tmp_path))
    client.preload(MODEL)
    child = client._child
    assert child is not None
    assert child._outbox.get_nowait() == ({"load": MODEL.model_dump(mode="json"), "num_bytes": 0}, 0.0)
    # The first request goes to the same process; one that has ended is replaced.
    client.ask(MODEL, REQUEST, lambda _: None)
    assert (client._child, child.num_under_way) == (child, 1)
    child.has_ended = True
    client.preload(MODEL)
    assert client._child is not child
    client.close()
    closed = client._child
    client.preload(MODEL)
    assert client._child is closed


class SlotOfCanceller:
    """Cancels where the last event has been taken out and is not heard yet."""

    def __init__(self) -> None:
        self.cancel: Any = None

    def leave(self, *, has_ended: bool) -> None:
        if has_ended:
            self.cancel()


def test_nothing_is_heard_after_cancelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_client._Child, "_live", lambda _: None)
    child = inference_client._Child(Settings(home=tmp_path))
    heard: list[Event] = []
    slot: Any = SlotOfCanceller()
    slot.cancel = child.ask(MODEL, REQUEST, heard.append, slot, None)
    key = next(iter(child._asks))
    child._tell(key, Ended(reason="stop", num_new_tokens=1))
    assert (heard, child.num_under_way) == ([], 0)


def test_a_callback_may_cancel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_client._Child, "_live", lambda _: None)
    child = inference_client._Child(Settings(home=tmp_path))
    heard: list[Event] = []
    slot: Any = SimpleNamespace(leave=lambda **_: None)

    def hear(event: Event) -> None:
        heard.append(event)
        cancel()

    cancel: Any = child.ask(MODEL, REQUEST.model_copy(update={"num_choices": 2}), hear, slot, None)
    key = next(iter(child._asks))
    for choice in range(2):
        child._tell(key, Ended(choice=choice, reason="stop", num_new_tokens=1))
    assert (len(heard), child.num_under_way) == (1, 0)


OWN = Served(path="/model", sha256="a")
RATES = EngineRates(engine=EngineSpeed(alone=30, crowd=27), fallback=EngineSpeed(alone=15, crowd=43, num_bytes=300))
COPY = Served(engine="llama_cpp", path="/copy", sha256="b", fallback=OWN, rates=(RATES,))
DEAD = Failed.of(WorkError("it failed", expected="an answer", do="ask again"), is_of_engine=True)
WRONG = Failed.of(WorkError("a wrong request", expected="a good one", do="correct it"))


class TwoEngines:
    """A client whose child starts no process: the test reads what it sends, and sends its events."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, loaded: tuple[Served, ...]) -> None:
        monkeypatch.setattr(inference_client._Child, "_live", lambda _: None)
        self.client = InferenceClient(Settings(home=folder))
        self.client._balance._clock = Clock()  # all requests come in one burst, however slow the machine is
        self.client.ask(MODEL, REQUEST, lambda _: None)  # starts the child
        assert self.client._child is not None
        self.child = self.client._child
        self.child.loaded = tuple(LoadedModel(served=one) for one in loaded)
        self.heard: list[Event] = []
        self.moved: list[str] = []
        self.sent()

    def sent(self) -> list[dict[str, Any]]:
        found = []
        while not self.child._outbox.empty():
            found.append(self.child._outbox.get())
        return [one[0] for one in found if one is not None]

    def ask(self, **given: Any) -> Any:
        pick = self.client.pick(COPY, [REQUEST], **given)
        return self.client.ask_picked(
            pick,
            REQUEST,
            self.heard.append,
            as_loaded=lambda served: served,
            moved=lambda other: self.moved.append(other.served.engine),
        )

    def tell_last(self, *events: Event) -> None:
        key = list(self.child._asks)[-1]
        for event in events:
            self.child._tell(key, event)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TwoEngines:
    return TwoEngines(tmp_path, monkeypatch, (COPY, OWN))


def test_a_request_whose_engine_dies_before_it_begins_is_answered_by_the_other(two: TwoEngines) -> None:
    two.ask()
    two.tell_last(DEAD)
    assert (two.heard, two.moved) == ([], ["transformers"])
    assert [one["model"]["engine"] for one in two.sent()] == ["llama_cpp", "transformers"]
    events = (Started(num_prompt_tokens=1), Piece(text="a"), Ended(reason="stop", num_new_tokens=1))
    two.tell_last(*events)
    assert two.heard == list(events)
    assert two.client.num_requests == {("llama_cpp", "load"): 1, ("transformers", "failed"): 1}
    # The slots of both are free again: the first request of this client alone is left.
    assert two.client.num_under_way == 1
    assert two.client.pick(COPY, [REQUEST]).served == COPY


def test_what_has_begun_stays_with_its_engine(two: TwoEngines) -> None:
    two.ask()
    events = (Started(num_prompt_tokens=1), Piece(text="a"), DEAD)
    two.tell_last(*events)
    assert two.heard == list(events)
    assert two.moved == []


def test_what_was_taken_up_and_not_begun_to_be_written_moves_and_is_taken_up_once(two: TwoEngines) -> None:
    two.ask()
    two.tell_last(Started(num_prompt_tokens=1))
    assert two.heard == []  # by which engine the answer is written is not known before it begins
    two.tell_last(DEAD)
    events = (Started(num_prompt_tokens=2), Ended(reason="stop", num_new_tokens=0))
    two.tell_last(*events)
    assert two.heard == list(events)


def test_of_a_burst_those_that_wait_follow_to_the_engine_for_a_crowd(two: TwoEngines) -> None:
    for _ in range(4):
        two.ask()
    first, *waiting = list(two.child._asks)[1:]
    two.child._tell(first, Started(num_prompt_tokens=1))
    two.child._tell(first, Piece(text="a"))
    two.sent()
    two.ask()
    assert two.moved == ["transformers"] * 3
    sent = two.sent()
    assert {one["cancel"] for one in sent if "cancel" in one} == set(waiting)
    assert [one["model"]["engine"] for one in sent if "ask" in one] == ["transformers"] * 4
    # What comes late of the engine before is not heard.
    for key in waiting:
        two.child._tell(key, Piece(text="late"))
    assert [one.text for one in two.heard if isinstance(one, Piece)] == ["a"]
    assert two.client.num_requests == {
        ("llama_cpp", "load"): 4,
        ("transformers", "load"): 1,
        ("transformers", "moved"): 3,
    }
    assert two.client.num_under_way == 1 + 5
    two.ask()
    assert len(two.moved) == 3  # each moves once


def test_prompts_of_one_request_stay_together(two: TwoEngines) -> None:
    pick = two.client.pick(COPY, [REQUEST, REQUEST])
    assert (pick.served, pick.other) == (COPY, None)


def test_a_wrong_request_goes_to_no_other_engine(two: TwoEngines) -> None:
    two.ask()
    two.tell_last(WRONG)
    assert (two.heard, two.moved) == ([WRONG], [])


def test_a_pinned_request_fails_with_its_engine(two: TwoEngines) -> None:
    two.ask(engine="llama_cpp")
    two.tell_last(DEAD)
    assert (two.heard, two.moved) == ([DEAD], [])


def test_both_engines_failing_is_an_error_of_the_second(two: TwoEngines) -> None:
    two.ask()
    two.tell_last(DEAD)
    two.tell_last(DEAD)
    assert two.heard == [DEAD]


def test_a_request_that_moves_keeps_its_place_where_the_queue_is_full(two: TwoEngines) -> None:
    two.ask()
    two.client._admission_queue._most = 1  # as if another request had taken the slot that it leaves
    two.tell_last(DEAD)
    assert (two.heard, two.moved) == ([], ["transformers"])
    assert two.client.num_under_way == 2


def test_cancelling_reaches_a_request_that_has_moved(two: TwoEngines) -> None:
    cancel = two.ask()
    two.tell_last(DEAD)
    (_, moved) = two.sent()
    cancel()
    assert {"cancel": moved["ask"]} in two.sent()
    assert two.client.num_under_way == 1


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_request_that_moves_while_it_is_being_sent_has_one_engine_and_can_be_cancelled(is_refused: bool) -> None:
    balance = EngineBalance()
    first = balance.pick(COPY, [REQUEST], (LoadedModel(served=COPY), LoadedModel(served=OWN)))
    dropped: list[str] = []

    def send(pick: EnginePick, _: Any) -> Any:
        if pick is first:  # another thread asks for the other engine before this one has returned
            other = balance.after_failure(first)
            assert other is not None
            made.move(other)
            if is_refused:
                raise WorkError("the server is shutting down", expected="a running server", do="ask again later")
        return lambda: dropped.append(pick.served.engine)

    made = PickedRequest(first, send, lambda _: None, balance, moved=lambda _: None, settled=lambda _: None)
    made.begin()
    assert dropped == ([] if is_refused else ["llama_cpp"])
    made()
    assert dropped[-1] == "transformers"


def test_a_server_that_shuts_down_moves_nothing(two: TwoEngines) -> None:
    two.ask()
    two.client._is_closed = True
    two.tell_last(DEAD)
    (failed,) = two.heard
    assert isinstance(failed, Failed)
    assert "shutting down" in failed.error["came"]


def test_the_engine_that_the_load_asks_for_is_loaded_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = TwoEngines(tmp_path, monkeypatch, (COPY,))
    for _ in range(7):
        two.ask()
    sent = two.sent()
    loads = [one for one in sent if "load" in one]
    assert loads == [{"load": OWN.model_dump(mode="json"), "num_bytes": 300}]
    assert [one["model"]["engine"] for one in sent if "ask" in one] == ["llama_cpp"] * 7
    assert two.client.num_requests == {("llama_cpp", "load"): 4, ("llama_cpp", "loading"): 3}


@pytest.mark.parametrize(("asked", "num_threads"), [(0, 6), (2, 2)])
def test_an_engine_may_have_all_cores_that_others_leave_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, num_threads: int
) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(inference_client, "usable_threads", lambda: 6)
    monkeypatch.setattr(inference_client, "ChildProcess", lambda _, document, **__: started.append(document))
    monkeypatch.setattr(inference_client._Child, "_live", lambda _: None)
    inference_client._Child(Settings(home=tmp_path, serving_threads=asked)).start()
    assert [one["num_threads"] for one in started] == [num_threads]
    assert [one["has_threads"] for one in started] == [asked > 0]
