"""An alert as text and as a document: what has changed, since when, what shows it, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from luthier.core.records.alert import Alert
from luthier.core.results.signal import Signal
from luthier.ml.charts.visible import shown

_MAX_EXAMPLES: Final = 5


def subject_of(alerts: Sequence[Alert]) -> str:
    """One line for all of them: `shop-bot: 2 alerts, 1 closed`."""
    opened, closed = _parted(alerts)
    model = _line(alerts[0].model)
    if len(alerts) == 1:
        return f"{model}: {_line(alerts[0].signal.title)}{' is steady again' if closed else ' has changed'}"
    parts = [f"{len(opened)} alert{'s' if len(opened) > 1 else ''}"] if opened else []
    return f"{model}: {', '.join([*parts, *([f'{len(closed)} closed'] if closed else [])])}"


def text_of(alerts: Sequence[Alert]) -> str:
    """The body of a mail about alerts of one model. Words of users are never in it, only the ids of exchanges."""
    return "\n\n".join(_paragraph(alert) for alert in alerts) + "\n"


def line_of(alert: Alert) -> str:
    """An alert for a log."""
    state = "open" if alert.status == "open" else "closed"
    return (
        f"alert {alert.alert_id} {state}: {_line(alert.model)}: {_line(alert.signal.title)}: {change_of(alert.signal)}"
    )


def document_of(alert: Alert) -> dict[str, Any]:
    """The data of a webhook's event."""
    signal = alert.signal
    return {
        "id": alert.alert_id,
        "model": alert.model,
        "status": alert.status,
        "signal": signal.name,
        "title": signal.title,
        "unit": signal.unit,
        "value": signal.value,
        "interval": None if signal.low is None else [signal.low, signal.high],
        "reference": signal.reference,
        "since": signal.since,
        "opened_at": alert.opened_at,
        "closed_at": alert.closed_at,
        "sentence": signal.sentence,
        # Ids only: a webhook may go to a third party, and texts of users stay in this home.
        "examples": list(signal.examples[:_MAX_EXAMPLES]),
        "do": signal.do,
    }


def change_of(signal: Signal) -> str:
    """`1.9 s (95%: 1.7 to 2.2), was 0.8 s`."""
    unit = f" {signal.unit}" if signal.unit else ""
    if signal.value is None:
        return "no value yet"
    words = f"{signal.value:.4g}{unit}"
    if signal.low is not None and signal.high is not None:
        words += f" (95%: {signal.low:.4g} to {signal.high:.4g})"
    return words if signal.reference is None else f"{words}, was {signal.reference:.4g}{unit}"


def _paragraph(alert: Alert) -> str:
    signal = alert.signal
    title = f"{_line(signal.title)}: {'changed' if alert.status == 'open' else 'steady again'}"
    lines = [title, f"  now       {change_of(signal)}"]
    if signal.sentence:
        lines.append(f"  seen      {_line(signal.sentence)}")
    lines.append(f"  since     {_when(alert.opened_at if signal.since is None else signal.since)}")
    if alert.status == "open":
        if signal.examples:
            lines.append(f"  examples  {', '.join(_line(one) for one in signal.examples[:_MAX_EXAMPLES])}")
        if signal.do:
            lines.append(f"  do        {_line(signal.do)}")
    elif alert.closed_at is not None:
        lines.append(f"  closed    {_when(alert.closed_at)}")
    return "\n".join([*lines, f"  alert     {alert.alert_id}"])


def _parted(alerts: Sequence[Alert]) -> tuple[list[Alert], list[Alert]]:
    return [one for one in alerts if one.status == "open"], [one for one in alerts if one.status == "closed"]


def _line(text: str) -> str:
    """On one line, with signs that would be hidden or move the cursor made visible."""
    # Folding line breaks also keeps a model's name from adding headers to a mail. `shown` makes bidirectional and
    # control characters visible.
    return str(shown(" ".join(text.split())))


def _when(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"
