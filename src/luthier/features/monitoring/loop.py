"""Use cases: check the models of all projects from time to time, and store the results for charts.

MonitorThreads (of the server) -> run_due_checks -> check_model -> monitoring.watch -> alerts.review -> messages
                                 -> canaries                                                 -> mails, webhooks
                                      -> scheduled_suites.begin_due
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from pydantic import Field

from luthier.core.errors import LuthierError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import sha256_document
from luthier.core.records.monitoring import Alert, AlertSettings, SignalState, WatchReport
from luthier.core.system.process_setup import start_daemon
from luthier.features.inbox.reminders import remind_due
from luthier.features.monitoring import alerts
from luthier.features.monitoring.alerts import line_of
from luthier.platform.home.context import Context
from luthier.platform.notifications import mails
from luthier.platform.processes.analysis import answer_to
from luthier.platform.processes.result_cache import CachedResult, Subject, cached_result, start_computation

log = logging.getLogger("luthier.alerts")

_CHECK: Final = "look"
_CANARY_CHECK: Final = "canary_look"
_SEEN: Final = "seen"
MAX_PAST_CHECKS: Final = 14 * 24
CHECK_EVERY_SECONDS: Final = 20.0
MAIL_EVERY_SECONDS: Final = 5.0
REMIND_EVERY_SECONDS: Final = 60.0
_REST_SECONDS: Final = 20.0
CANARIES_EVERY_MINUTES: Final = 5


class CheckState(FrozenModel):
    """The state of a model's checks. Times are seconds since 1970.

    Attributes:
        next_at: When the next check is due.
        looked_at: The end of the last check that succeeded.
        problem: Why the last check failed; empty where it did not.
    """

    next_at: float
    looked_at: float | None = None
    problem: str = ""


class SignalSnapshot(FrozenModel):
    """A signal as one check saw it, for a chart.

    Attributes:
        value: The figure; None where there was too little traffic.
        low: The lower end of its 95% interval.
        high: The upper end.
        state: Whether it had changed.
    """

    value: float | None
    low: float | None
    high: float | None
    state: SignalState


class PastCheck(FrozenModel):
    """One check of the past.

    Attributes:
        at: The end of its window, in seconds since 1970.
        signals: What it saw, by the name of the signal.
    """

    at: float
    signals: dict[str, SignalSnapshot]


class CheckHistory(FrozenModel):
    """The results of a model's checks.

    Attributes:
        report: The last report; None before the first.
        past: Up to 336 checks, oldest first, the last one included.
    """

    report: WatchReport | None = None
    past: tuple[PastCheck, ...] = Field(default=())


def monitored_models(context: Context, project_id: str, settings: AlertSettings | None = None) -> list[str]:
    """The monitored models of a project: its deployments, and the models that its settings add."""
    chosen = settings or alerts.alert_settings(context, project_id)
    deployed = {one.name for one in context.deployments.list(project_id)}
    return sorted((deployed - set(chosen.left_out)) | set(chosen.models))


def state_of(context: Context, project_id: str, model: str) -> CheckState | None:
    """The state of a model's checks; None before the first."""
    document = context.watches.get(project_id, _CHECK, model)
    return None if document is None else CheckState.model_validate_json(document)


def check_history(context: Context, project_id: str, model: str) -> CheckHistory:
    """Results of a model's checks."""
    document = context.watches.get(project_id, _SEEN, model)
    return CheckHistory() if document is None else CheckHistory.model_validate_json(document)


def states_of(context: Context, project_id: str) -> dict[str, CheckState]:
    """The states of the checks of all models of a project, by model, in one query."""
    found = context.watches.list(_CHECK, project_id)
    return {one.name: CheckState.model_validate_json(one.document) for one in found}


def check_histories(context: Context, project_id: str) -> dict[str, CheckHistory]:
    """Results of the checks of all models of a project, by model, in one query."""
    found = context.watches.list(_SEEN, project_id)
    return {one.name: CheckHistory.model_validate_json(one.document) for one in found}


def run_due_checks(context: Context) -> int:
    """Check each model that is due, and all canaries; returns the number of models.

    It waits for the checks. A failure of one model does not affect the others.

    Raises:
        LuthierError: A process that checks ended without an outcome; all others have checked.
    """
    due: list[tuple[str, str]] = []
    for project in context.access.projects():
        settings = alerts.alert_settings(context, project.project_id)
        if not settings.is_on:
            continue
        watched = monitored_models(context, project.project_id, settings)
        alerts.close_unwatched(context, project.project_id, watched)
        for model in watched:
            # Claimed before the work starts, so a server that dies in a check blocks the model for one interval only.
            if _claim(context, project.project_id, model, settings):
                due.append((project.project_id, model))
    first, judged = _questions(context, due)
    failures: list[LuthierError | None] = []
    for number, asked in enumerate([*first, *judged]):
        # A judge may take minutes, and a canary that has stopped working must not wait for all of them.
        if number > len(first) and _claim_canaries(context):
            failures.append(_checked_apart(context, {"models": [], "canaries": True}))
        failures.append(_checked_apart(context, asked))
    if (error := next(filter(None, failures), None)) is not None:
        raise error
    return len(due)


def _questions(context: Context, due: Sequence[tuple[str, str]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is checked in one process each: a model that a judge scores is apart, since the judge may be slow or gone.

    Without judges all models and canaries are one question: a process takes seconds to start.

    Returns:
        What is checked first, and the models with a judge.
    """
    from luthier.features.monitoring.scheduled_suites import model_settings

    judged = [one for one in due if model_settings(context, *one).judge is not None]
    plain, has_canaries = [one for one in due if one not in judged], _claim_canaries(context)
    if not judged:
        return ([{"models": plain, "canaries": has_canaries}] if plain or has_canaries else []), []
    found = [{"models": plain, "canaries": False}] if plain else []
    # Canaries have the judges of their models.
    found += [{"models": [], "canaries": True}] if has_canaries else []
    return found, [{"models": [one], "canaries": False} for one in judged]


def _checked_apart(context: Context, asked: dict[str, Any]) -> LuthierError | None:
    """Have a separate process check, whose memory is freed when it ends; the error where it stored no outcome."""
    try:
        answer = answer_to(context, "watch", asked)
    except LuthierError as error:
        for project_id, model in asked["models"]:
            _end(context, project_id, model, context.access.now(), error.came)
        return error
    for line in answer["lines"]:  # the process's own log is not read
        log.warning("%s", line)
    return None


def run_checks(context: Context, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Check models, and canaries where requested; returns lines for the log."""
    lines: list[str] = []
    errors, logger = _ErrorLines(lines), logging.getLogger("luthier")
    logger.addHandler(errors)
    try:
        for project_id, model in asked["models"]:
            lines += [line_of(alert) for alert in check_model(context, project_id, model)]
            state = state_of(context, project_id, model)
            if state is not None and state.problem:
                lines.append(f"the check of {model} failed: {state.problem}")
        if asked["canaries"]:
            from luthier.features.deployments.canary_release import check_canaries

            worse = [one for one in check_canaries(context) if one.state == "worse"]
            lines += [f"canary of {one.name}: {one.sentence}" for one in worse]
    finally:
        logger.removeHandler(errors)
    return {"lines": lines}


class _ErrorLines(logging.Handler):
    """Keeps errors with their tracebacks: the log of the process that checks is not read."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self._lines.append(self.format(record))


def check_model(context: Context, project_id: str, model: str) -> list[Alert]:
    """Check a model now; returns the alerts that were opened or closed.

    A failed check is stored as failed and logged; it raises nothing.
    """
    settings, until, changes, problem = alerts.alert_settings(context, project_id), context.access.now(), [], ""
    try:
        from luthier.features.monitoring.scheduled_suites import begin_due, model_settings
        from luthier.features.monitoring.service import watch

        since = until - settings.window_hours * 3600.0
        # `until` is read once: report, alerts and stored state of a check all carry the same time.
        report = watch(context, project_id, model, since=since, until=until)
        # Alerts first: when a later step fails, what was found has been stored and reported already.
        changes = alerts.review(context, project_id, report)
        _keep(context, report)
        begin_due(context, project_id, model, model_settings(context, project_id, model))
    except LuthierError as error:
        problem = error.came
        log.warning("the check of %s failed: %s", model, problem)
    except Exception:
        problem = "an unexpected error, see the server's log"
        log.exception("the check of %s failed", model)

    # Also after a failure: next_at moves on, so a model that always fails is not tried every 20 seconds.
    _end(context, project_id, model, until, problem)
    return changes


def start_check(context: Context, project_id: str, model: str) -> CachedResult:
    """Check a model now, in a separate process, unless such a check is running already."""
    asked = {"models": [[project_id, model]], "canaries": False}
    return start_computation(context, _manual_check(project_id, model), lambda: answer_to(context, "watch", asked))


def check_progress(context: Context, project_id: str, model: str) -> CachedResult:
    """The progress of the last manual check; its answer has `lines`, one for each alert."""
    return cached_result(context, _manual_check(project_id, model))


def _manual_check(project_id: str, model: str) -> Subject:
    return Subject(sha256_document({"project": project_id, "model": model}), "look-now", {})


class MonitorThreads:
    """Threads that run due checks, remind people and send mails; leaving the `with` block ends them."""

    def __init__(self, context: Context) -> None:
        checks = _RepeatingThread("looks", CHECK_EVERY_SECONDS, lambda: run_due_checks(context))
        self._threads = (
            checks,
            _RepeatingThread("reminders", REMIND_EVERY_SECONDS, lambda: remind_due(context)),
            _RepeatingThread("mails", MAIL_EVERY_SECONDS, lambda: mails.send_due(context)),
        )
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for thread in self._threads:
            self._stack.enter_context(thread)

    def __exit__(self, *_: object) -> None:
        # All stop flags before the first join, so the threads end side by side and not one after the other.
        for thread in self._threads:
            thread.stop.set()
        self._stack.close()


class _RepeatingThread:
    """A thread that repeats one task. It logs a failure, and waits before the next attempt."""

    def __init__(self, name: str, every_seconds: float, work: Callable[[], object]) -> None:
        self.stop = threading.Event()
        self._every_seconds, self._work = every_seconds, work
        self._name = name
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        self._thread = start_daemon(self._repeat, self._name)

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        # A mail in transit is given its full timeout; the thread is a daemon, so a hanging one cannot block the exit.
        if self._thread is not None:
            self._thread.join(mails.MAX_SECONDS + 5)

    def _repeat(self) -> None:
        # Event.wait both sleeps and wakes immediately on stop; time.sleep would delay the shutdown.
        while not self.stop.wait(self._every_seconds):
            try:
                self._work()
            except LuthierError as error:
                log.warning("%s wait: %s", self._name, error.came)
                self.stop.wait(_REST_SECONDS)
            except Exception:
                log.exception("%s continue after an unexpected error", self._name)
                self.stop.wait(_REST_SECONDS)


def _claim(context: Context, project_id: str, model: str, settings: AlertSettings, kind: str = _CHECK) -> bool:
    """Whether a model's check is due and this server has claimed it: two servers may share a database."""
    now, every, is_ours = context.access.now(), 60.0 * settings.every_minutes, False

    def change(before: str | None) -> str | None:
        nonlocal is_ours
        state = None if before is None else CheckState.model_validate_json(before)
        # A time that is further off than one look was written before the clock was set back.
        is_ours = state is None or not now < state.next_at <= now + every
        if not is_ours:
            return before
        taken = CheckState(next_at=now + every) if state is None else state.model_copy(update={"next_at": now + every})
        return taken.model_dump_json()

    # Compare-and-swap: `change` is called again with the newer document where another server wrote first, so
    # the result is in a nonlocal that each call overwrites.
    context.watches.change(project_id, kind, model, change)
    return is_ours


def _claim_canaries(context: Context) -> bool:
    """Whether a check of canaries is due, in any project that has one."""
    every, is_time = AlertSettings(every_minutes=CANARIES_EVERY_MINUTES), False
    for project in context.access.projects():
        found = context.deployments.list(project.project_id)
        if any(one.revision.canary is not None for one in found):
            # No short circuit: every project's claim has to be taken, or the others are due again 20 seconds later.
            is_time |= _claim(context, project.project_id, "", every, kind=_CANARY_CHECK)
    return is_time


def _end(context: Context, project_id: str, model: str, at: float, problem: str) -> None:
    """Store the outcome of a check."""

    def change(before: str | None) -> str:
        every = 60.0 * alerts.alert_settings(context, project_id).every_minutes
        # A failed check keeps the time of the last good one: charts show how old their figures are.
        looked_at = None if before is None else CheckState.model_validate_json(before).looked_at
        state = CheckState(next_at=at + every, looked_at=looked_at if problem else at, problem=problem)
        return state.model_dump_json()

    context.watches.change(project_id, _CHECK, model, change)


def _keep(context: Context, report: WatchReport) -> None:
    signals = {
        one.name: SignalSnapshot(value=one.value, low=one.low, high=one.high, state=one.state) for one in report.signals
    }

    def change(before: str | None) -> str:
        past = () if before is None else CheckHistory.model_validate_json(before).past
        # Bounded, since the whole history is one document that is rewritten at each check.
        checks = (*past, PastCheck(at=report.until, signals=signals))[-MAX_PAST_CHECKS:]
        return CheckHistory(report=report, past=checks).model_dump_json()

    context.watches.change(report.project_id, _SEEN, report.model, change)
