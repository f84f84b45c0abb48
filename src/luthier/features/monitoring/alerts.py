"""Use cases: a project's monitored models and alert receivers; checks open and close alerts and notify.

Each alert goes to the log of the server, to webhooks that want `luthier.alert.opened` and `luthier.alert.closed`, and
by mail, one mail a check. Messages are stored in the transaction that writes the alert, and sent later: a
receiver that hangs or refuses delays no check, and loses no message.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from pydantic import Field, ValidationError

from luthier.core.access import Caller
from luthier.core.errors import RequestError, WorkError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import new_id
from luthier.core.records.alert import Alert, AlertSettings, AlertStatus
from luthier.core.results.signal import Signal, WatchReport
from luthier.features.monitoring.alert_format import document_of, line_of, subject_of, text_of
from luthier.features.monitoring.alerts_store import Event, Settled
from luthier.ml.drift.alerts import Standing, review_signals
from luthier.platform.audit_log.service import record
from luthier.platform.db.monitor_state import WatchDocument
from luthier.platform.home.context import Context
from luthier.platform.notifications import mails, webhooks
from luthier.platform.notifications.records import EventType

log = logging.getLogger("luthier.alerts")

_SETTINGS: Final = "alerting"
_STANDINGS: Final = "standings"


def alert_settings(context: Context, project_id: str) -> AlertSettings:
    """A project's monitored models, and who is notified."""
    document = context.watches.get(project_id, _SETTINGS)
    return AlertSettings() if document is None else AlertSettings.model_validate_json(document)


def change_settings(context: Context, caller: Caller, changes: dict[str, Any]) -> AlertSettings:
    """Change some of the settings of the caller's project. changes: by the names of `AlertSettings`.

    Raises RequestError for a value that cannot be.
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
                f"{place} {first['input']!r}"[:300], expected=first["msg"], do="correct it; `luthier alerts settings`"
            ) from None

    # Merged inside the swap: two people who change different settings at once keep both changes.
    after = context.watches.change(caller.project_id, _SETTINGS, "", change)
    assert after is not None
    record(context, caller, "alerts.settings_changed", caller.project_id, changes)
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
        told, settled = changed
        # Where another check of the model was written meanwhile, this one is compared with the states after that.
        if context.alerts.settle(project_id, settled):
            break
    for alert in told:
        log.warning("%s", line_of(alert))
    return told


def _reviewed(context: Context, project_id: str, report: WatchReport) -> tuple[list[Alert], Settled] | None:
    """The alerts that a check opens and closes, and all that is written for it; None where it was written before."""
    settings = alert_settings(context, project_id)
    # The states before the open alerts: `settle` proves that the states have not changed, hence neither have these.
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
    told = [*opened, *closed]
    after = _StoredStates(at=report.until, standings=dict(found.standings)).model_dump_json()
    documents = []
    if told and settings.emails:
        now = context.access.now()
        # One mail a check, however many alerts it has: a broken deployment changes many signals at once.
        documents.append(mails.waiting(project_id, settings.emails, subject_of(told), text_of(told), now=now))
    # One transaction for alerts, signal states, mail and webhooks: a crash loses all of them or none, and the
    # next check sees states that match the alerts.
    states = WatchDocument(project_id, _STANDINGS, report.model, after)
    return told, Settled([*told, *still], states, document, documents, [_event(alert) for alert in told])


def send_test(context: Context, caller: Caller) -> dict[str, str]:
    """Send a test message to all receivers of alerts now; returns the outcome by receiver.

    A mail is sent at once; the server calls webhooks within seconds.
    """
    came = {"log": "written"}
    log.warning("a test of alerts was asked for by %s", caller.name)
    for hook in webhooks.list_webhooks(context, caller.project_id):
        if wants_alerts(hook.event_types):
            webhooks.send_test(context, caller.project_id, hook.webhook_id)
            came[hook.url] = "written down for the server to send; see its deliveries"
    text = "This is a test: alerts of this project come to this address.\n"
    for address in alert_settings(context, caller.project_id).emails:
        now = context.access.now()
        mail = mails.Mail(
            mail_id=new_id("mail"), to=(address,), subject="Luthier: a test of alerts", text=text, created_at=now
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
    standings: dict[str, Standing] = Field(default_factory=dict)


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
        signal = alert.signal.model_copy(update={"sentence": "It is not watched any more."})
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


def _event(alert: Alert) -> Event:
    return "luthier.alert.opened" if alert.status == "open" else "luthier.alert.closed", document_of(alert)
