"""Alerts open soon and close late; what goes to and fro is told of once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from luthier.core.records.monitoring import AlertRule, Signal, SignalState
from luthier.ml.drift.alerts import AlertState, looks_to_close, review_signals

HOUR = 3600.0
RULE = AlertRule(open_after=1, close_after=3)


def signal(state: SignalState, name: str = "errors") -> Signal:
    return Signal(name=name, title=name, group="serving", unit="", value=1.0, state=state)


def told(states: Iterable[SignalState], rule: AlertRule = RULE, *, every: float = HOUR) -> list[str]:
    """What a signal is told of in each look: +, - or nothing."""
    standings: Mapping[str, AlertState] = {}
    words = []
    for number, state in enumerate(states):
        found = review_signals([signal(state)], standings, at=1e9 + number * every, rule=rule)
        standings = found.standings
        words.append("+" if found.opened else "-" if found.closed else ".")
    return words


def looks(text: str) -> list[SignalState]:
    return [{"c": "changed", "s": "steady", "u": "unknown"}[letter] for letter in text]  # type: ignore[misc]


def test_it_opens_at_the_first_change_and_closes_after_three_steady_looks() -> None:
    assert "".join(told(looks("sscccssss"))) == "..+....-."


def test_a_signal_that_flaps_is_told_of_once() -> None:
    assert "".join(told(looks("cs" * 20))) == "+" + "." * 39
    assert "".join(told(looks("css" * 20))) == "+" + "." * 59


def test_one_that_comes_back_has_to_be_steady_for_longer_each_time() -> None:
    words = "".join(told(looks("csss" * 3 + "sss" + "c" + "s" * 12)))
    assert words.startswith("+..-+.....")
    assert words.count("+") == 3
    assert words.index("-", 5) - words.index("+", 4) >= 6, "twice as many looks the second time"


def test_after_a_week_of_peace_it_counts_as_new() -> None:
    quiet = 8 * 24
    words = "".join(told([*looks("csss"), *looks("s" * quiet), *looks("csss")]))
    assert words == "+..-" + "." * quiet + "+..-"


def test_a_slow_flapper_sends_few_messages_in_a_week() -> None:
    words = told(looks("csss" * 42))
    assert words.count("+") <= 2, "without the doubling there were 42"


def test_unknown_neither_opens_nor_closes() -> None:
    assert "".join(told(looks("uuu"))) == "..."
    assert "".join(told(looks("csusus"))) == "+....-"
    assert "".join(told(looks("cuc"), AlertRule(open_after=2))) == "..+"


def test_two_looks_in_a_row_can_be_asked_for() -> None:
    assert "".join(told(looks("cscscc"), AlertRule(open_after=2))) == ".....+"


def test_a_signal_that_is_watched_no_more_closes_its_alert() -> None:
    standings = review_signals([signal("changed")], {}, at=1e9, rule=RULE).standings
    for number in range(1, 4):
        found = review_signals([], standings, at=1e9 + number * HOUR, rule=RULE)
        standings = found.standings
    assert found.closed == ("errors",)


def test_what_never_changed_leaves_nothing_behind() -> None:
    assert review_signals([signal("steady"), signal("unknown", "b")], {}, at=1.0, rule=RULE).standings == {}


def test_a_clock_that_jumps_opens_and_closes_nothing() -> None:
    standings = review_signals([signal("changed")], {}, at=2e9, rule=RULE).standings
    back = review_signals([signal("changed")], standings, at=1e9, rule=RULE)
    assert not back.opened
    assert not back.closed
    ahead = review_signals([signal("changed")], back.standings, at=3e9, rule=RULE)
    assert not ahead.opened
    assert not ahead.closed
    assert looks_to_close(ahead.standings["errors"], RULE) == 3


def test_the_wait_is_bounded() -> None:
    many = AlertState(is_open=True, opened_at=tuple(float(n) for n in range(50)))
    assert looks_to_close(many, RULE) == 24
