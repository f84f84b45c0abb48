"""Sessions: requests in order, repetitions, gaps, and what is lost with a client, a session or a process."""

from __future__ import annotations

from typing import Any

import pytest
from tests.features.tinker_api.conftest import Clock, HeldTrainer

from luthier.core.access import Caller
from luthier.core.errors import BusyError, LuthierError, NotFoundError, RequestError
from luthier.features.tinker_api import sessions as module
from luthier.features.tinker_api.live import Answer, LiveModel, LiveSampler, LiveSession, PendingRequest
from luthier.features.tinker_api.sessions import TinkerSessions
from luthier.platform.home.settings import Settings

CALLER = Caller(project_id="p", key_id="key")


@pytest.fixture
def session(sessions: TinkerSessions) -> LiveSession:
    return sessions.open(CALLER, {})


@pytest.fixture
def model(sessions: TinkerSessions, session: LiveSession) -> LiveModel:
    return sessions.add_model(session, 0)


def send(
    sessions: TinkerSessions, session: LiveSession, model: LiveModel, number: int, num_bytes: int = 0
) -> PendingRequest:
    def finish(result: dict[str, Any]) -> Answer:
        return Answer({"number": number, **result})

    request_id = f"{model.model_id}:{number}"
    return sessions.start(
        session,
        request_id,
        lambda: {"op": number},
        finish,
        model=model,
        number=number,
        num_bytes=num_bytes,
    )


def ops(trainer: HeldTrainer) -> list[Any]:
    return [request["op"] for request, _ in trainer.asked]


def test_requests_are_sent_in_the_order_of_their_numbers(
    sessions: TinkerSessions, session: LiveSession, model: LiveModel, trainer: HeldTrainer
) -> None:
    for number in (3, 2):
        send(sessions, session, model, number)
    assert ops(trainer) == []
    send(sessions, session, model, 1)
    assert ops(trainer) == [1, 2, 3]


def test_a_repeated_number_is_the_same_request(
    sessions: TinkerSessions, session: LiveSession, model: LiveModel, trainer: HeldTrainer
) -> None:
    first = send(sessions, session, model, 1)
    assert send(sessions, session, model, 1) is first
    trainer.answer({"x": 1})
    assert send(sessions, session, model, 1) is first
    assert first.result.result(0).document == {"number": 1, "x": 1}
    assert ops(trainer) == []


def test_numbers_that_were_answered_long_ago_or_are_far_ahead_are_refused(
    sessions: TinkerSessions, session: LiveSession, model: LiveModel, trainer: HeldTrainer, clock: Clock
) -> None:
    send(sessions, session, model, 1)
    trainer.answer()
    sessions.fetch("p", f"{model.model_id}:1")
    clock.now += 100
    sessions.beat("p", session.session_id)
    clock.now += 100
    sessions.look()
    for number in (1, 20_000):
        with pytest.raises(RequestError, match=f"seq_id {number}"):
            send(sessions, session, model, number)
    with pytest.raises(NotFoundError, match="was fetched"):
        sessions.fetch("p", f"{model.model_id}:1")


def test_a_request_that_fails_does_not_hold_up_the_next(
    sessions: TinkerSessions, session: LiveSession, model: LiveModel, trainer: HeldTrainer
) -> None:
    def refuse() -> dict[str, Any]:
        raise RequestError("wrong", expected="right", do="correct it")

    wrong = sessions.start(session, "a", refuse, lambda _: Answer(), model=model, number=1)
    later = send(sessions, session, model, 2)
    assert ops(trainer) == [2]
    error = wrong.result.result(0).error
    assert isinstance(error, LuthierError)
    assert error.came == "wrong"
    trainer.answer(error=error)
    assert later.result.result(0).error is error


def test_requests_behind_a_number_that_never_comes_fail_and_later_ones_go_on(
    sessions: TinkerSessions, session: LiveSession, model: LiveModel, trainer: HeldTrainer, clock: Clock
) -> None:
    waiting = [send(sessions, session, model, number) for number in (2, 3)]
    assert sessions.look()
    clock.now += module.GAP_SECONDS + 1
    assert sessions.look()
    errors = [one.result.result(0).error for one in waiting]
    assert [error is not None and error.came.startswith("request 1 of") for error in errors] == [True, True]
    with pytest.raises(RequestError, match="seq_id 1"):
        send(sessions, session, model, 1)
    send(sessions, session, model, 4)
    assert ops(trainer) == [4]


def test_a_gap_that_is_closed_in_time_fails_nothing(
    sessions: TinkerSessions, session: LiveSession, model: LiveModel, trainer: HeldTrainer, clock: Clock
) -> None:
    send(sessions, session, model, 2)
    for number in (1, 4, 3):
        sessions.look()
        clock.now += module.GAP_SECONDS - 1
        send(sessions, session, model, number)
    sessions.look()
    assert ops(trainer) == [1, 2, 3, 4]


def test_a_defect_while_a_result_is_stored_becomes_the_result(
    sessions: TinkerSessions, session: LiveSession, model: LiveModel, trainer: HeldTrainer
) -> None:
    made = sessions.start(session, "a", lambda: {"op": "x"}, lambda _: 1 / 0, model=model, number=1)  # type: ignore[arg-type, return-value]
    trainer.answer()
    error = made.result.result(0).error
    assert error is not None
    assert "an error of the server" in error.came


def test_a_silent_session_ends_with_all_that_waits(
    sessions: TinkerSessions, session: LiveSession, model: LiveModel, trainer: HeldTrainer, clock: Clock
) -> None:
    waiting = send(sessions, session, model, 2)
    clock.now += module.SILENT_SECONDS - 1
    assert sessions.look()
    clock.now += 2
    assert not sessions.look()
    error = waiting.result.result(0).error
    assert error is not None
    assert f"the session {session.session_id} has ended" in error.came
    assert trainer.asked == [({"op": "drop", "models": [model.model_id], "samplers": [], "project": "p"}, None)]
    assert sessions.fetch("p", waiting.request_id) is waiting  # its error is still there
    for call in (sessions.session, sessions.beat, sessions.model):
        with pytest.raises(NotFoundError, match="does not exist or has ended"):
            call("p", session.session_id)


def test_heartbeats_keep_a_session(sessions: TinkerSessions, session: LiveSession, clock: Clock) -> None:
    for _ in range(3):
        clock.now += module.SILENT_SECONDS - 1
        sessions.beat("p", session.session_id)
    assert sessions.ids("p") == [session.session_id]


def test_another_project_sees_nothing(
    sessions: TinkerSessions, session: LiveSession, model: LiveModel, trainer: HeldTrainer
) -> None:
    made = send(sessions, session, model, 1)
    for call, key in (
        (sessions.session, session.session_id),
        (sessions.model, model.model_id),
        (sessions.sampler, f"{session.session_id}:sample:0"),
        (sessions.fetch, made.request_id),
    ):
        with pytest.raises(NotFoundError):
            call("other", key)
    assert sessions.ids("other") == []


def test_an_unloaded_client_is_gone_and_the_session_stays(
    sessions: TinkerSessions, session: LiveSession, model: LiveModel, trainer: HeldTrainer
) -> None:
    sessions.drop_model(model)
    assert ops(trainer) == ["drop"]
    with pytest.raises(NotFoundError, match="is not in memory"):
        sessions.model("p", model.model_id)
    assert sessions.session("p", session.session_id) is session


def test_a_process_that_ends_takes_the_weights_of_its_clients_along(
    sessions: TinkerSessions, session: LiveSession, model: LiveModel, trainer: HeldTrainer
) -> None:
    sessions._lose_all()
    made = send(sessions, session, model, 1)
    error = made.result.result(0).error
    assert error is not None
    assert "the process that trains has ended" in error.came
    assert "create_training_client_from_state" in error.do
    assert trainer.asked == []


def test_more_clients_and_bytes_than_there_is_room_for_are_refused(
    sessions: TinkerSessions, session: LiveSession, model: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_CLIENTS", 1)
    with pytest.raises(BusyError, match="1 training clients"):
        sessions.add_model(session, 1)
    monkeypatch.setattr(module, "_MAX_OPEN_BYTES", 10)
    send(sessions, session, model, 1, num_bytes=8)
    with pytest.raises(BusyError, match="1 requests of 8 bytes"):
        send(sessions, session, model, 2, num_bytes=8)


def test_a_project_leaves_others_places_for_training_clients(
    sessions: TinkerSessions, session: LiveSession, model: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_OWN_CLIENTS", 1)
    for own in (session, sessions.open(CALLER, {})):
        with pytest.raises(BusyError, match="1 training clients of the project"):
            sessions.add_model(own, 2)
    other = sessions.open(Caller(project_id="q", key_id="other"), {})
    assert sessions.add_model(other, 1).model_id in other.models


def test_a_project_that_has_all_its_room_taken_locks_no_other_out(
    sessions: TinkerSessions, session: LiveSession, trainer: HeldTrainer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_OPEN", 2)
    monkeypatch.setattr(module, "_MAX_OPEN_BYTES", 10)
    others = {name: sessions.open(Caller(project_id=name, key_id=name), {}) for name in ("q", "r")} | {"p": session}

    def ask(project: str, key: str, num_bytes: int) -> None:
        made = Answer(message=b"123456")
        sessions.start(others[project], f"{project}{key}", lambda: {"op": "x"}, lambda _: made, num_bytes=num_bytes)

    ask("p", "1", 9)
    with pytest.raises(BusyError, match="of one project"):
        ask("p", "2", 9)
    ask("q", "1", 9)
    with pytest.raises(BusyError, match="2 requests of 18 bytes of all projects wait"):
        ask("r", "1", 9)
    assert [request["project"] for request, _ in trainer.asked] == ["p", "q"]
    trainer.answer()
    trainer.answer()
    sessions.fetch("p", "p1")
    sessions.fetch("q", "q1")
    clock.now += module._REPEAT_SECONDS
    # Room that one project needs for itself is made of its own results.
    ask("p", "2", 5)
    assert (sessions.known("p", "p1"), sessions.known("q", "q1") is None) == (None, False)


def test_sessions_and_sampling_clients_are_limited(sessions: TinkerSessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_SESSIONS", 1)
    monkeypatch.setattr(module, "_MAX_SAMPLERS", 1)
    first = sessions.open(CALLER, {})
    with pytest.raises(BusyError, match="1 sessions of the project"):
        sessions.open(CALLER, {})
    assert sessions.open(Caller(project_id="other"), {}).session_id != first.session_id
    sampler = LiveSampler("a", first.session_id, {}, "tiny")
    assert sessions.add_sampler(first, sampler) is sampler
    assert sessions.add_sampler(first, LiveSampler("a", first.session_id, {}, "tiny")) is sampler
    with pytest.raises(BusyError, match="1 sampling clients"):
        sessions.add_sampler(first, LiveSampler("b", first.session_id, {}, "tiny"))


def test_results_take_their_room_until_they_were_fetched(
    sessions: TinkerSessions, session: LiveSession, trainer: HeldTrainer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_OPEN_BYTES", 10)

    def ask(key: str) -> PendingRequest:
        return sessions.start(session, key, lambda: {"op": "x"}, lambda _: Answer(message=b"12345678"), num_bytes=3)

    first = ask("a")
    trainer.answer()
    with pytest.raises(BusyError, match="0 requests of 8 bytes"):
        ask("b")
    assert sessions.fetch("p", "a") is first
    with pytest.raises(BusyError):
        ask("b")  # the answer may not have arrived
    clock.now += module._REPEAT_SECONDS
    ask("b")
    with pytest.raises(NotFoundError, match="was fetched"):
        sessions.fetch("p", "a")
    sessions.finish(session)
    clock.now += 10 * module.SILENT_SECONDS
    sessions.look()
    clock.now += 10 * module.SILENT_SECONDS
    sessions.look()
    assert sessions._num_bytes == 0


def test_a_session_of_another_server_process_is_named_as_one(sessions: TinkerSessions, session: LiveSession) -> None:
    other = TinkerSessions(Settings())
    for call in (
        lambda: other.session("p", session.session_id),
        lambda: other.beat("p", session.session_id),
        lambda: other.model("p", f"{session.session_id}:train:0"),
        lambda: other.sampler("p", f"{session.session_id}:sample:0"),
        lambda: other.fetch("p", f"{session.session_id}:train:0:1"),
    ):
        with pytest.raises(NotFoundError, match=f"{session.session_id} was opened by another server") as caught:
            call()
        assert "X-API-Key" in caught.value.do
    # Its own that has ended, and what is no id of a session, are not.
    sessions.finish(session)
    for key in (session.session_id, "session-x", "x", f"{session.session_id}0"):
        with pytest.raises(NotFoundError, match="does not exist or has ended"):
            sessions.session("p", key)
