"""The server looks at what is due, once, keeps what it saw, and goes on whatever fails."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.errors import WorkError
from luthier.core.records.deployment import Deployment, Revision, Share
from luthier.core.records.monitoring import SETTINGS_KIND, Signal, WatchReport, WatchSettings
from luthier.core.records.traffic import Exchange
from luthier.features.monitoring import alerts
from luthier.features.monitoring import loop as monitor_loop
from luthier.features.traffic import service as traffic
from luthier.platform.home.context import Context
from luthier.platform.processes import analysis as questions

Watch = Callable[..., WatchReport]
HOUR = 3600.0


def report(project_id: str, model: str, since: float, until: float, state: str = "steady") -> WatchReport:
    signal = Signal(name="errors", title="Errors", group="serving", unit="%", value=1.0, low=0.5, high=2.0, state=state)
    return WatchReport(
        project_id=project_id,
        model=model,
        since=since,
        until=until,
        num_exchanges=9,
        num_with_text=0,
        signals=(signal,),
    )


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float]]:
    """What was looked at; models whose name begins with `bad` cannot be."""
    seen: list[tuple[str, float, float]] = []

    def watch(_context: Context, project_id: str, model: str, *, since: float, until: float) -> WatchReport:
        seen.append((model, since, until))
        if model == "bad-data":
            raise WorkError("the files are damaged", expected="whole ones", do="restore them")
        if model == "bad-bug":
            raise ZeroDivisionError
        return report(project_id, model, since, until, "changed" if model == "sick" else "steady")

    monkeypatch.setitem(sys.modules, "luthier.features.monitoring.service", types.SimpleNamespace(watch=watch))
    # In this process, where what is looked at is made up; `test_a_process_of_its_own_looks` has a real one.
    monkeypatch.setattr(
        monitor_loop, "answer_to", lambda context, _question, asked: monitor_loop.run_checks(context, asked)
    )
    return seen


def deploy(context: Context, name: str) -> None:
    revision = Revision(number=1, kind="deploy", shares=(Share(target="run-1", fraction=1.0),))
    context.deployments.add(
        Deployment(deployment_id=f"d-{name}", project_id=DEFAULT_PROJECT, name=name, revision=revision)
    )


def be_due(context: Context, model: str) -> None:
    state = monitor_loop.state_of(context, DEFAULT_PROJECT, model)
    assert state is not None
    due = state.model_copy(update={"next_at": 0.0})
    context.watches.put(DEFAULT_PROJECT, "look", model, due.model_dump_json())


def test_deployments_are_looked_at_and_what_is_named_besides(context: Context, looked: list[object]) -> None:
    deploy(context, "shop-bot")
    deploy(context, "old-bot")
    alerts.change_settings(context, Caller(), {"models": ("base",), "left_out": ("old-bot",), "window_hours": 2})
    assert monitor_loop.run_due_checks(context) == 2
    assert sorted(model for model, _, _ in looked) == ["base", "shop-bot"]
    assert all(until - since == pytest.approx(2 * HOUR) for _, since, until in looked)
    assert monitor_loop.run_due_checks(context) == 0, "the hour is not over"
    be_due(context, "base")
    assert monitor_loop.run_due_checks(context) == 1


def test_nothing_is_looked_at_where_that_is_off(context: Context, looked: list[object]) -> None:
    deploy(context, "shop-bot")
    alerts.change_settings(context, Caller(), {"is_on": False})
    assert monitor_loop.run_due_checks(context) == 0
    assert looked == []


def test_alerts_of_what_is_not_monitored_any_more_are_closed(context: Context, looked: list[object]) -> None:
    deploy(context, "sick")
    monitor_loop.run_due_checks(context)
    alerts.change_settings(context, Caller(), {"is_on": False, "left_out": ("sick",)})
    monitor_loop.run_due_checks(context)
    assert [one.status for one in alerts.list_alerts(context, DEFAULT_PROJECT)] == ["open"], "nothing is checked"
    alerts.change_settings(context, Caller(), {"is_on": True})
    monitor_loop.run_due_checks(context)
    (alert,) = alerts.list_alerts(context, DEFAULT_PROJECT)
    assert (alert.status, alert.closed_at is not None) == ("closed", True)
    assert alert.signal.sentence == "It is no longer monitored."
    monitor_loop.run_due_checks(context)
    assert alerts.list_alerts(context, DEFAULT_PROJECT) == [alert], "it is closed once"
    # Looked at again, it is as sick as before.
    alerts.change_settings(context, Caller(), {"left_out": ()})
    be_due(context, "sick")
    monitor_loop.run_due_checks(context)
    assert [one.status for one in alerts.list_alerts(context, DEFAULT_PROJECT)] == ["open", "closed"]


def test_a_look_opens_alerts_and_is_persistent_for_charts(context: Context, looked: list[object]) -> None:
    deploy(context, "sick")
    monitor_loop.run_due_checks(context)
    (alert,) = alerts.list_alerts(context, DEFAULT_PROJECT)
    assert (alert.model, alert.signal.name, alert.status) == ("sick", "errors", "open")
    be_due(context, "sick")
    monitor_loop.run_due_checks(context)
    seen = monitor_loop.check_history(context, DEFAULT_PROJECT, "sick")
    assert seen.report is not None
    assert seen.report.until == seen.past[-1].at
    assert [look.signals["errors"].state for look in seen.past] == ["changed", "changed"]
    assert monitor_loop.state_of(context, DEFAULT_PROJECT, "sick").problem == ""  # type: ignore[union-attr]


def test_only_so_many_looks_are_kept(context: Context, looked: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_loop, "MAX_PAST_CHECKS", 3)
    for _ in range(5):
        monitor_loop.check_model(context, DEFAULT_PROJECT, "base")
    assert len(monitor_loop.check_history(context, DEFAULT_PROJECT, "base").past) == 3


def test_what_fails_with_one_model_is_kept_from_the_others(context: Context, looked: list[object]) -> None:
    for name in ("bad-bug", "bad-data", "well"):
        deploy(context, name)
    assert monitor_loop.run_due_checks(context) == 3
    states = {name: monitor_loop.state_of(context, DEFAULT_PROJECT, name) for name in ("bad-bug", "bad-data", "well")}
    assert {name: state.problem for name, state in states.items() if state} == {
        "bad-bug": "an unexpected error, see the server's log",
        "bad-data": "the files are damaged",
        "well": "",
    }
    assert states["bad-data"].looked_at is None  # type: ignore[union-attr]


def test_a_model_with_a_judge_is_looked_at_apart_and_keeps_nothing_from_the_others(
    context: Context, looked: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("judged", "one", "two"):
        deploy(context, name)
    judged = WatchSettings(judge="http://judge.example/v1#m").model_dump_json()
    context.watches.put(DEFAULT_PROJECT, SETTINGS_KIND, "judged", judged)
    asked_for: list[tuple[list[str], bool]] = []

    def answer(context: Context, _question: str, asked: dict[str, Any]) -> dict[str, Any]:
        names = [model for _, model in asked["models"]]
        asked_for.append((names, asked["canaries"]))
        if names == ["judged"]:
            raise WorkError("it took longer than 600 s", expected="a question about fewer rows", do="ask about less")
        return monitor_loop.run_checks(context, asked)

    monkeypatch.setattr(monitor_loop, "answer_to", answer)
    monkeypatch.setattr(monitor_loop, "_claim_canaries", lambda _: True)
    with pytest.raises(WorkError, match="600 s"):
        monitor_loop.run_due_checks(context)
    assert asked_for == [(["one", "two"], False), ([], True), (["judged"], False)]
    problems = [monitor_loop.state_of(context, DEFAULT_PROJECT, name) for name in ("judged", "one", "two")]
    assert [state.problem for state in problems if state] == ["it took longer than 600 s", "", ""]


def test_a_clock_that_was_set_back_does_not_stop_looks(context: Context, looked: list[object]) -> None:
    deploy(context, "shop-bot")
    far = monitor_loop.CheckState(next_at=context.access.now() + 400 * 24 * HOUR)
    context.watches.put(DEFAULT_PROJECT, "look", "shop-bot", far.model_dump_json())
    assert monitor_loop.run_due_checks(context) == 1


def test_two_servers_do_not_look_twice(context: Context, tmp_path: Path, looked: list[object]) -> None:
    deploy(context, "shop-bot")
    with Context.open(tmp_path / "home") as other:
        settings = alerts.alert_settings(context, DEFAULT_PROJECT)
        taken = [monitor_loop._claim(one, DEFAULT_PROJECT, "shop-bot", settings) for one in (context, other, context)]
    assert taken == [True, False, False]


def test_a_process_of_its_own_looks(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    deploy(context, "shop-bot")
    now = context.access.now()
    for number in range(5):
        exchange = Exchange(exchange_id=f"c-{number}", project_id=DEFAULT_PROJECT, at=now - number, model="shop-bot")
        traffic.record(context, exchange)
    assert monitor_loop.run_due_checks(context) == 1
    state, seen = (
        monitor_loop.state_of(context, DEFAULT_PROJECT, "shop-bot"),
        monitor_loop.check_history(context, DEFAULT_PROJECT, "shop-bot"),
    )
    assert state is not None
    assert (state.problem, seen.report.num_exchanges if seen.report else None) == ("", 5)


def test_a_process_that_dies_is_told_as_a_look_that_failed(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    deploy(context, "shop-bot")
    monkeypatch.setattr(questions, "_SERVE", "luthier.no_such_module:serve")
    with pytest.raises(WorkError, match="without an answer"):
        monitor_loop.run_due_checks(context)
    state = monitor_loop.state_of(context, DEFAULT_PROJECT, "shop-bot")
    assert state is not None
    assert "without an answer" in state.problem


def test_what_opens_is_in_the_log_of_the_server(
    context: Context, looked: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    deploy(context, "sick")
    monitor_loop.run_due_checks(context)
    assert any("open: sick: Errors" in line for line in caplog.messages)


def test_canaries_are_looked_at_where_there_is_one(
    context: Context, looked: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def check_canaries(_: Context) -> list[types.SimpleNamespace]:
        calls.append(1)
        return [types.SimpleNamespace(name="shop-bot", sentence="It errs more.", state="worse")]

    fake = types.SimpleNamespace(check_canaries=check_canaries)
    monkeypatch.setitem(sys.modules, "luthier.features.deployments.canary_release", fake)
    alerts.change_settings(context, Caller(), {"is_on": False})
    deploy(context, "plain")
    monitor_loop.run_due_checks(context)
    assert calls == []
    shares = (Share(target="run-1", fraction=0.9), Share(target="run-2", fraction=0.1))
    revision = Revision(number=1, kind="canary", shares=shares, canary="run-2")
    context.deployments.add(
        Deployment(deployment_id="d-c", project_id=DEFAULT_PROJECT, name="shop-bot", revision=revision)
    )
    monitor_loop.run_due_checks(context)
    monitor_loop.run_due_checks(context)
    assert calls == [1], "the minutes are not over"


def test_an_unexpected_error_is_in_the_log_of_the_server(
    context: Context, looked: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of the process that checks is not read: what it returns has the traceback."""

    def check_canaries(_: Context) -> list[types.SimpleNamespace]:
        logging.getLogger("luthier.service").error("the canary of shop-bot was not checked: no such file")
        return []

    fake = types.SimpleNamespace(check_canaries=check_canaries)
    monkeypatch.setitem(sys.modules, "luthier.features.deployments.canary_release", fake)
    asked = {"models": [[DEFAULT_PROJECT, "bad-bug"], [DEFAULT_PROJECT, "well"]], "canaries": True}
    lines = monitor_loop.run_checks(context, asked)["lines"]
    assert [line.splitlines()[0] for line in lines] == [
        "the check of bad-bug failed",
        "the check of bad-bug failed: an unexpected error, see the server's log",
        "the canary of shop-bot was not checked: no such file",
    ]
    assert lines[0].endswith("ZeroDivisionError")
    assert not any(isinstance(one, monitor_loop._ErrorLines) for one in logging.getLogger("luthier").handlers)


def test_canaries_do_not_wait_for_all_judges(
    context: Context, looked: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three"):
        deploy(context, name)
        judged = WatchSettings(judge="http://judge.example/v1#m").model_dump_json()
        context.watches.put(DEFAULT_PROJECT, SETTINGS_KIND, name, judged)
    asked_for: list[str] = []

    def answer(_context: Context, _question: str, asked: dict[str, Any]) -> dict[str, Any]:
        asked_for.append("canaries" if asked["canaries"] else "a model with a judge")
        return {"lines": []}

    due = iter([True, False, True])
    monkeypatch.setattr(monitor_loop, "answer_to", answer)
    monkeypatch.setattr(monitor_loop, "_claim_canaries", lambda _: next(due))
    assert monitor_loop.run_due_checks(context) == 3
    judged_one = "a model with a judge"
    assert asked_for == ["canaries", judged_one, judged_one, "canaries", judged_one]
