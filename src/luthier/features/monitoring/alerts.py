"""Use cases: a project's monitored models and alert receivers; checks open and close alerts and notify.

Each alert goes to the log of the server, to webhooks that want `luthier.alert.opened` and `luthier.alert.closed`, and
by mail, one mail a check. Messages are stored in the transaction that writes the alert, and sent later: a receiver that
hangs or refuses delays no check, and loses no message. As text and as a document an alert says what has changed, since
when, what shows it, and what to do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from pydantic import Field, ValidationError

from luthier.core.access import Caller
from luthier.core.errors import RequestError, WorkError, validation_reason
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import new_id
from luthier.core.ports import track
from luthier.core.records.monitoring import Alert, AlertSettings, AlertStatus, Signal, WatchReport
from luthier.core.text.counted import counted
from luthier.features.monitoring.alerts_store import Event, Settled
from luthier.ml.charts.visible import shown
from luthier.ml.drift.alerts import AlertState, review_signals
from luthier.platform.audit_log.service import record
from luthier.platform.cli.figures import utc
from luthier.platform.db.monitor_state import WatchDocument
from luthier.platform.home.context import Context
from luthier.platform.notifications import mails, webhooks
from luthier.platform.notifications.store import EventType
from luthier.platform.ui.i18n.environments import words

_MAX_EXAMPLES: Final = 5
_UNWATCHED: Final = "It is no longer monitored."
_FACTS: Final = ("now", "seen", "since", "examples", "do", "closed", "alert")
"""The heads of the lines of a mail."""


def subject_of(alerts: Sequence[Alert], say: Callable[[str], str] = str) -> str:
    """One line for all of them: `shop-bot: 2 alerts, 1 closed`. say: writes a text in the language of the mail."""
    opened, closed = _parted(alerts)
    model = _line(alerts[0].model)
    if len(alerts) == 1:
        ending = f"is {_ending(alerts[0])}" if closed else "has changed"
        return say(f"{model}: {_line(alerts[0].signal.title)} {ending}")
    parts = [say(counted(len(opened), "alert"))] if opened else []
    return f"{model}: {', '.join([*parts, *([say(f'{len(closed)} closed')] if closed else [])])}"


def text_of(alerts: Sequence[Alert], say: Callable[[str], str] = str) -> str:
    """The body of a mail about alerts of one model. Words of users are never in it, only the ids of exchanges.

    say: writes a text in the language of the mail.
    """
    return "\n\n".join(_paragraph(alert, say) for alert in alerts) + "\n"


def line_of(alert: Alert) -> str:
    """An alert for a log."""
    state = "open" if alert.status == "open" else "closed"
    return (
        f"alert {alert.alert_id} {state}: {_line(alert.model)}: {_line(alert.signal.title)}: {change_of(alert.signal)}"
    )


def document_of(alert: Alert, say: Callable[[str], str] = str) -> dict[str, Any]:
    """The data of a webhook's event. say: writes its texts in the language of messages."""
    signal = alert.signal
    return {
        "id": alert.alert_id,
        "model": alert.model,
        "status": alert.status,
        "signal": signal.name,
        "title": say(signal.title),
        "unit": signal.unit,
        "value": signal.value,
        "interval": None if signal.low is None else [signal.low, signal.high],
        "reference": signal.reference,
        "since": signal.since,
        "opened_at": alert.opened_at,
        "closed_at": alert.closed_at,
        "sentence": say(signal.sentence),
        # Ids only: a webhook may go to a third party, and texts of users stay in this home.
        "examples": list(signal.examples[:_MAX_EXAMPLES]),
        "do": say(signal.do),
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


def _paragraph(alert: Alert, say: Callable[[str], str]) -> str:
    signal = alert.signal
    ending = "changed" if alert.status == "open" else _ending(alert)
    facts = [("now", say(change_of(signal)))]
    if signal.sentence:
        facts.append(("seen", _line(say(signal.sentence))))
    facts.append(("since", _when(alert.opened_at if signal.since is None else signal.since)))
    if alert.status == "open":
        if signal.examples:
            facts.append(("examples", ", ".join(_line(one) for one in signal.examples[:_MAX_EXAMPLES])))
        if signal.do:
            facts.append(("do", _line(say(signal.do))))
    elif alert.closed_at is not None:
        facts.append(("closed", _when(alert.closed_at)))
    facts.append(("alert", alert.alert_id))
    # As wide for all alerts of a mail, so that they are read as one table.
    width = 2 + max(len(say(name)) for name in _FACTS)
    lines = [f"  {say(name):<{width}}{value}" for name, value in facts]
    return "\n".join([say(f"{_line(signal.title)}: {ending}"), *lines])


def _ending(alert: Alert) -> str:
    """How a closed alert has ended."""
    return "no longer monitored" if alert.signal.sentence == _UNWATCHED else "steady again"


def _parted(alerts: Sequence[Alert]) -> tuple[list[Alert], list[Alert]]:
    return [one for one in alerts if one.status == "open"], [one for one in alerts if one.status == "closed"]


def _line(text: str) -> str:
    """On one line, with signs that would be hidden or move the cursor made visible."""
    # Folding line breaks also keeps a model's name from adding headers to a mail. `shown` makes bidirectional and
    # control characters visible.
    return str(shown(" ".join(text.split())))


def _when(moment: float) -> str:
    return f"{utc(moment)} UTC"


log = logging.getLogger("luthier.alerts")

_SETTINGS: Final = "alerting"
_STANDINGS: Final = "standings"


def alert_settings(context: Context, project_id: str) -> AlertSettings:
    """A project's monitored models, and who is notified."""
    document = context.watches.get(project_id, _SETTINGS)
    return AlertSettings() if document is None else AlertSettings.model_validate_json(document)


def change_settings(context: Context, caller: Caller, changes: dict[str, Any]) -> AlertSettings:
    """Change some of the settings of the caller's project.

    Args:
        context: The home.
        caller: Whose project it is.
        changes: By the names of `AlertSettings`.

    Raises:
        RequestError: A value is out of its range, or contradicts another.
    """
    # Outside `change`, which may run several times.
    for address in changes.get("emails", ()):
        mails.check_address(address)

    def change(before: str | None) -> str:
        now = {} if before is None else AlertSettings.model_validate_json(before).model_dump()
        try:
            # Validated as a whole: single values may be fine and contradict each other.
            return AlertSettings.model_validate(now | changes).model_dump_json()
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise RequestError(
                f"{place} {first['input']!r}"[:300],
                expected=validation_reason(first),
                do="correct it; `luthier alerts settings`",
            ) from None

    # Merged inside the swap: two concurrent changes of different settings are both kept.
    with context.database.transaction():
        after = context.watches.change(caller.project_id, _SETTINGS, "", change)
        record(context, caller, "alerts.settings_changed", caller.project_id, changes)
    assert after is not None
    return AlertSettings.model_validate_json(after)


def list_alerts(
    context: Context,
    project_id: str,
    *,
    model: str | None = None,
    status: AlertStatus | None = None,
    limit: int | None = None,
) -> list[Alert]:
    """The alerts of a project, newest first."""
    return list(context.alerts.list(project_id, model=model, status=status, limit=limit))


def review(context: Context, project_id: str, report: WatchReport) -> list[Alert]:
    """Process a check of a model: open, keep and close its alerts, and notify of changes; returns the changed ones.

    The same check a second time changes nothing.
    """
    while True:
        changed = _reviewed(context, project_id, report)
        if changed is None:
            return []
        to_send, settled = changed
        # Where another check of the model was written meanwhile, this one is compared with the states after that.
        if context.alerts.settle(project_id, settled):
            break
    for alert in to_send:
        log.warning("%s", line_of(alert))
    return to_send


def _reviewed(context: Context, project_id: str, report: WatchReport) -> tuple[list[Alert], Settled] | None:
    """The alerts that a check opens and closes, and all that is written for it; None where it was written before."""
    settings = alert_settings(context, project_id)
    # The states before the open alerts: `settle` proves that the states have not changed, so neither have these.
    document = context.watches.get(project_id, _STANDINGS, report.model)
    known = _StoredStates.model_validate_json(document) if document is not None else _StoredStates()
    # A check that was stored but whose process died before it reported may be repeated with the same report.
    if known.at == report.until:
        return None
    found = review_signals(report.signals, known.standings, at=report.until, rule=settings.rule)
    is_open = {one.signal.name: one for one in list_alerts(context, project_id, model=report.model, status="open")}
    opened = [_opened(report, name) for name in found.opened]
    # pop, so that what is left in `is_open` are the alerts that stay open.
    closed = [_closed(is_open.pop(name), report) for name in found.closed if name in is_open]
    still = [_seen_again(alert, report) for alert in is_open.values()]
    to_send = [*opened, *closed]
    after = _StoredStates(at=report.until, standings=dict(found.standings)).model_dump_json()
    states = WatchDocument(project_id, _STANDINGS, report.model, after)
    return to_send, _settled(context, settings, states, document, to_send, still)


def close_unwatched(context: Context, project_id: str, watched: Sequence[str]) -> list[Alert]:
    """Close the open alerts of models that are not monitored any more, such as a deployment that was removed.

    No check would ever find them steady. Returns the closed ones, of which receivers are notified as of others.

    Args:
        context: The home.
        project_id: The project.
        watched: Its monitored models.
    """
    is_open = {one.model for one in list_alerts(context, project_id, status="open")}
    return [alert for model in sorted(is_open - set(watched)) for alert in _close_all(context, project_id, model)]


def _close_all(context: Context, project_id: str, model: str) -> list[Alert]:
    while True:
        document = context.watches.get(project_id, _STANDINGS, model)
        until = context.access.now()
        report = WatchReport(
            project_id=project_id, model=model, since=until, until=until, num_exchanges=0, num_with_text=0
        )
        closed = [_closed(one, report) for one in list_alerts(context, project_id, model=model, status="open")]
        if not closed:
            return []
        # Without any state: should it be monitored again, its looks begin with the first.
        states = WatchDocument(project_id, _STANDINGS, model, _StoredStates(at=until).model_dump_json())
        settings = alert_settings(context, project_id)
        if context.alerts.settle(project_id, _settled(context, settings, states, document, closed)):
            break
    for alert in closed:
        log.warning("%s", line_of(alert))
    return closed


def _settled(
    context: Context,
    settings: AlertSettings,
    states: WatchDocument,
    states_before: str | None,
    to_send: Sequence[Alert],
    still: Sequence[Alert] = (),
) -> Settled:
    """What is written for alerts that have changed, and for others that are still open."""
    documents, say = [], words(context.settings.message_language)
    if to_send and settings.emails:
        now = context.access.now()
        # One mail a check, however many alerts it has: a broken deployment changes many signals together.
        subject, text = subject_of(to_send, say), text_of(to_send, say)
        mail = mails.waiting(states.project_id, settings.emails, subject, text, now=now)
        documents.append(mail)
    events = [_event(alert, say) for alert in to_send]
    # One transaction for alerts, signal states, mail and webhooks: a crash loses all of them or none, and the
    # next check sees states that match the alerts.
    return Settled([*to_send, *still], states, states_before, documents, events)


def send_test(context: Context, caller: Caller) -> dict[str, str]:
    """Send a test message to all receivers of alerts now; returns the outcome by receiver.

    A mail is sent immediately; the server calls webhooks within seconds.
    """
    came = {"log": "written"}
    log.warning("a test of alerts was requested by %s", caller.name)
    for hook in webhooks.list_webhooks(context, caller.project_id):
        if wants_alerts(hook.event_types):
            webhooks.send_test(context, caller.project_id, hook.webhook_id)
            came[hook.url] = "queued for the server to send; see its deliveries"
    say = words(context.settings.message_language)
    text = say("This is a test: alerts of this project are sent to this address.") + "\n"
    emails = alert_settings(context, caller.project_id).emails
    for address in track(context.progress, "Sending mail", emails, "receivers"):
        now = context.access.now()
        mail = mails.Mail(
            mail_id=new_id("mail"), to=(address,), subject=say("Luthier: test alert"), text=text, created_at=now
        )
        try:
            mails.deliver(context.settings, mail)
            came[address] = "sent"
        except WorkError as error:
            came[address] = f"failed: {error.came}"
    return came


def wants_alerts(event_types: Sequence[EventType]) -> bool:
    """Whether a webhook receives alerts."""
    return "luthier.alert.opened" in event_types or "luthier.alert.closed" in event_types


class _StoredStates(FrozenModel):
    """The states of a model's signals. at: the end of the check that set them, in seconds since 1970."""

    at: float | None = None
    standings: dict[str, AlertState] = Field(default_factory=dict)


def _opened(report: WatchReport, name: str) -> Alert:
    signal = report.signal(name)
    assert signal is not None  # only what was seen changed is opened
    return Alert(
        alert_id=new_id("alert"),
        project_id=report.project_id,
        model=report.model,
        signal=signal,
        opened_at=report.until,
    )


def _closed(alert: Alert, report: WatchReport) -> Alert:
    signal = report.signal(alert.signal.name)
    if signal is None:
        # A signal that a report lacks counts as steady; its alert closes with the last known figures.
        signal = alert.signal.model_copy(update={"sentence": _UNWATCHED})
    return alert.model_copy(update={"status": "closed", "closed_at": report.until, "signal": signal})


def _seen_again(alert: Alert, report: WatchReport) -> Alert:
    """An open alert with the newest signal; start and examples stay where this check has none."""
    signal = report.signal(alert.signal.name)
    if signal is None:
        return alert
    kept: Signal = alert.signal
    since = kept.since if kept.since is not None else signal.since
    return alert.model_copy(
        update={"signal": signal.model_copy(update={"since": since, "examples": signal.examples or kept.examples})}
    )


def _event(alert: Alert, say: Callable[[str], str]) -> Event:
    return "luthier.alert.opened" if alert.status == "open" else "luthier.alert.closed", document_of(alert, say)
