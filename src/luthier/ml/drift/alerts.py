"""When an alert opens and when it closes, so that a signal that goes to and fro is reported once.

Two thresholds with a gap between them (hysteresis, as in a Schmitt trigger): an alert opens soon and closes late. Each
time that a signal comes back within a week it has to be steady for twice as many looks before its alert closes, as
routers treat a route that comes and goes (RFC 2439, "BGP Route Flap Damping", 1998, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.frozen_model import FrozenModel
from luthier.core.records.monitoring import AlertRule, Signal, SignalState

REMEMBERED_SECONDS: Final = 7 * 24 * 3600.0
MAX_LOOKS_TO_CLOSE: Final = 24


class AlertState(FrozenModel):
    """The state of a signal between looks.

    Attributes:
        num_changed, num_steady: consecutive looks with that result.
        opened_at: when its alerts opened within the last week, in seconds since 1970.
        is_open: whether an alert of it is open.
    """

    num_changed: int = 0
    num_steady: int = 0
    opened_at: tuple[float, ...] = ()
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Review:
    """The result of a look.

    Attributes:
        standings: of all signals that matter any longer.
        opened, closed: names of signals.
    """

    standings: Mapping[str, AlertState]
    opened: tuple[str, ...]
    closed: tuple[str, ...]


def review_signals(
    signals: Sequence[Signal], standings: Mapping[str, AlertState], *, at: float, rule: AlertRule
) -> Review:
    """Process one look at all signals of a model.

    `unknown` is no evidence: it neither opens nor closes, and looks before and after it count as consecutive. A signal
    that is in the report no longer is watched no longer: that counts as steady.

    Args:
        signals: of the report.
        standings: what earlier looks have found, by signal.
        at: when it was, in seconds since 1970.
        rule: how many looks open and close an alert.
    """
    states: dict[str, SignalState] = dict.fromkeys(standings, "steady")
    # Missing signals were set to "steady" above; those of this look replace that.
    states |= {signal.name: signal.state for signal in signals}
    after = {name: _next(standings.get(name, AlertState()), state, at, rule) for name, state in states.items()}
    was_open = {name for name, standing in standings.items() if standing.is_open}
    is_open = {name for name, standing in after.items() if standing.is_open}
    kept = {name: standing for name, standing in after.items() if standing.num_changed or standing.opened_at}
    return Review(
        kept, tuple(n for n in after if n in is_open - was_open), tuple(n for n in after if n in was_open - is_open)
    )


def looks_to_close(standing: AlertState, rule: AlertRule) -> int:
    """How many steady looks in a row close the alert of a signal in this state."""
    times = max(1, len(standing.opened_at))
    # Doubled with each opening. The shift is bounded, since the length of `opened_at` is not.
    return max(rule.close_after, min(MAX_LOOKS_TO_CLOSE, rule.close_after << min(times - 1, 10)))


def _next(before: AlertState, state: SignalState, at: float, rule: AlertRule) -> AlertState:
    # By distance: where the clock was set back, openings of "the future" are no newer than the past ones.
    recent = tuple(moment for moment in before.opened_at if before.is_open or abs(at - moment) < REMEMBERED_SECONDS)
    now = before.model_copy(update={"opened_at": recent})
    if state == "unknown":
        return now
    if state == "changed":
        num = now.num_changed + 1
        opens = not now.is_open and num >= rule.open_after
        opened = {"is_open": True, "opened_at": (*recent, at)} if opens else {}
        return now.model_copy(update={"num_changed": num, "num_steady": 0} | opened)
    num = now.num_steady + 1
    closed = {"is_open": False} if now.is_open and num >= looks_to_close(now, rule) else {}
    return now.model_copy(update={"num_changed": 0, "num_steady": num} | closed)
