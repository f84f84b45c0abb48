"""The delivery of a run to one tracker: from the run's own events in the database, as far as it is behind.

Training never waits for it: it runs in its own process with low priority (`reporting`), and what it could not
deliver stays in the database. A tracker's library may raise anything; its error is stored, and the delivery is tried
again.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.child_process.channel import Channel
from luthier.core.errors import ConflictError, LuthierError
from luthier.core.events import BillUpdated, Event, MachineSampled, StepDone, ValidationDone, WarningRaised
from luthier.core.plan import Plan
from luthier.core.registry import TRACKERS
from luthier.core.run import RunRecord
from luthier.core.system.process_setup import lower_priority, start_daemon
from luthier.core.text.names import shortened
from luthier.core.tracking import TrackerPlan, without_credentials
from luthier.features.models.result_files import report_page
from luthier.features.trackers.service import FOLDER, TrackerState, load_state, save_state
from luthier.ml.tracking.figures import Clock, parameters_of, points_of, summary_of, texts_of
from luthier.ml.tracking.protocol import RunOutcome, TextModel, TrackedRun, Tracker
from luthier.ml.tracking.registry import location_of, make_tracker, within_project
from luthier.platform.home.context import Context

_BATCH: Final = 500
_POLL_SECONDS: Final = 2.0
_FIRST_PAUSE_SECONDS: Final = 5.0
_LONGEST_PAUSE_SECONDS: Final = 60.0
_MAX_ERROR: Final = 500
_LOCK_SECONDS: Final = 1.0
_USER: Final = re.compile(r"://[^/\s@]+@")
_QUERY: Final = re.compile(r"(\?[^\s?#=&'\"]{1,64}=)[^\s'\")]+")
"""The query of an address, from its first value on."""
_SECRET: Final = re.compile(r"(?:TOKEN|KEY|PASSWORD|SECRET)$", re.IGNORECASE)
_MIN_SECRET: Final = 8
_NICENESS: Final = 10


class Delivery:
    """One tracker of one run, for one process.

    Args:
        context: The home.
        run_id: Of the run.
        tracker: Its settings, as in the plan of the run.
    """

    def __init__(self, context: Context, run_id: str, tracker: TrackerPlan) -> None:
        self._context, self._run_id = context, run_id
        self._folder = context.settings.run_folder(run_id)
        self._plan = own_plan(tracker, context.runs.project_of(run_id), load_state(self._folder, tracker.name))
        self._tracker: Tracker | None = None
        self._load()

    def deliver(self) -> TrackerState:
        """Deliver all that there is, once; where the run has ended or paused, its outcome, too.

        An error is not raised but stored in the state, which is then `waiting`.

        Raises:
            ConflictError: Another process delivers this run to this tracker.
        """
        with self._held():
            self._load()
            self._finish()
        return self.state

    def follow(self, is_over: threading.Event) -> TrackerState:
        """Deliver while the run continues, and its outcome once `is_over` is set. Errors are stored, as by `deliver`.

        Another process that delivers what an earlier part of the run has left is waited for.

        Raises:
            ConflictError: It still does so when `is_over` is set.
        """
        pause = _FIRST_PAUSE_SECONDS
        with ExitStack() as stack:
            self._wait_for_turn(stack, is_over)
            self._load()
            while not is_over.is_set():
                if self._attempt(is_over=False):
                    pause = _FIRST_PAUSE_SECONDS
                    is_over.wait(_POLL_SECONDS)
                else:
                    is_over.wait(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            self._finish()
        return self.state

    def _wait_for_turn(self, stack: ExitStack, is_over: threading.Event) -> None:
        while True:
            try:
                stack.enter_context(self._held())
                return
            except ConflictError:
                if is_over.is_set():
                    raise
                is_over.wait(_POLL_SECONDS)

    def _load(self) -> None:
        """Read the state behind the lock: whoever had it before has delivered more."""
        state = load_state(self._folder, self._plan.name)
        self.state = state.model_copy(update={"project": self._plan.project})

    def _finish(self) -> None:
        """The last attempt. A run that has neither ended nor paused, as after a kill, stays open in the tracker."""
        if self._attempt(is_over=True):
            self._drop()
            if not self.state.error:
                self._note(status="delivered")

    def _held(self) -> Any:
        from luthier.core.system.files import file_lock

        what = f"the delivery of {self._run_id} to {self._plan.name}"
        lock = self._folder / FOLDER / f"{self._plan.name}.lock"
        return file_lock(lock, what=what, timeout_seconds=_LOCK_SECONDS)

    def _attempt(self, *, is_over: bool) -> bool:
        """Deliver what there is; whether that worked. The state is stored in both cases."""
        try:
            record, plan = self._context.runs.get(self._run_id), self._context.runs.plan(self._run_id)
            if is_over and self.state.ended == _end_of(record) and not self._has_more():
                self._note(status="delivered", error="")
                return True
            if self._tracker is None:
                self._begin(record, plan)
            self._deliver_events()
            if is_over and record.status in ("succeeded", "failed", "paused"):
                self._end(record, plan)
        except Exception as error:  # noqa: BLE001 - a tracker's library may raise anything, and training must not see it
            self._note(status="waiting", error=_reason(error, os.environ))
            self._drop()
            return False
        return True

    def _has_more(self) -> bool:
        events, _ = self._context.runs.appended(self._run_id, self.state.position, limit=1)
        return bool(events)

    def _begin(self, record: RunRecord, plan: Plan) -> None:
        folder = self._folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._tracker = make_tracker(self._plan.name)
        remote = self._tracker.begin(
            TrackedRun(
                run_id=self._run_id,
                plan=self._plan,
                parameters=parameters_of(self._run_id, plan),
                plan_hash=plan.hash,
                base_model=plan.base_model.name.rstrip("/").rpartition("/")[2],
                created_at=_seconds(record.created_at),
                folder=folder,
                tracker_run_id=self.state.tracker_run_id,
                number=self.state.number,
                location=location_of(self._plan, os.environ),
            )
        )
        self._note(status="delivering", tracker_run_id=remote.tracker_run_id, url=remote.url, error="")

    def _deliver_events(self) -> None:
        assert self._tracker is not None
        began = _seconds(self._context.runs.get(self._run_id).created_at)
        while True:
            events, position = self._context.runs.appended(self._run_id, self.state.position, limit=_BATCH)
            if not events:
                return
            clock = Clock(self.state.last_at, began)
            points = points_of(self._new(events), clock)
            if points:
                self._tracker.log(points)
            steps = [event.step for event in events if isinstance(event, StepDone)]
            validations = [event.step for event in events if isinstance(event, ValidationDone)]
            self._note(
                status="delivering",
                position=position,
                last_at=clock.last,
                last_step=max([self.state.last_step, *steps]),
                last_validation=max([self.state.last_validation, *validations]),
                num_events=self.state.num_events + len(events),
            )

    def _new(self, events: Sequence[Event]) -> list[Event]:
        """The events without steps that were trained again after a kill: their figures are the same.

        Nor with what the machine did before the last step: another machine may have sent that.
        """
        state = self.state
        return [
            event
            for event in events
            if not (isinstance(event, StepDone) and event.step <= state.last_step)
            and not (isinstance(event, ValidationDone) and event.step <= state.last_validation)
            and not (isinstance(event, MachineSampled | BillUpdated) and event.step < state.last_step)
        ]

    def _end(self, record: RunRecord, plan: Plan) -> None:
        assert self._tracker is not None
        notes = self._tracker.end(self._outcome(record, plan))
        self._drop()
        self._note(status="delivered", ended=_end_of(record), notes=tuple(notes), error="")

    def _outcome(self, record: RunRecord, plan: Plan) -> RunOutcome:
        context, has_ended = self._context, record.status == "succeeded"
        evaluation = context.evaluations.get(record.evaluation_id) if record.evaluation_id and has_ended else None
        found = context.runs.of_kinds(self._run_id, ["warning"])
        warnings = [event.message for event in reversed(found) if isinstance(event, WarningRaised)]
        has_files = has_ended and self._plan.artifacts is not False
        # Fetched where another machine has trained the run.
        report = report_page(context, self._run_id) if has_files else None
        weights = _weights(record, self._plan) if has_ended else None
        return RunOutcome(
            status=record.status,
            reason=record.stopped_because or "",
            step=record.step,
            summary=summary_of(record.result, evaluation) if has_ended else {},
            texts=texts_of(evaluation, warnings),
            report=report if report is not None and report.is_file() else None,
            weights=weights,
            model=None if weights is None else _text_model(plan, weights),
        )

    def _note(self, **changes: Any) -> None:
        self.state = self.state.model_copy(update={**changes, "updated_at": time.time()})
        save_state(self._folder, self.state)

    def _drop(self) -> None:
        """Close the tracker after an error or its end: the next attempt begins with a new one."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            try:
                tracker.close()
            except Exception as error:  # noqa: BLE001 - as in `_attempt`
                self._note(status="waiting", error=self.state.error or _reason(error, os.environ))


def own_plan(tracker: TrackerPlan, project_id: str | None, state: TrackerState) -> TrackerPlan:
    """A tracker of a run with the names of the run's project; a run that has begun under other names keeps them.

    Args:
        tracker: As in the plan of the run.
        project_id: The project of the run.
        state: What the tracker has of it.
    """
    if state.tracker_run_id and state.project == tracker.project:
        return tracker
    return within_project(tracker, project_id or DEFAULT_PROJECT)


def _end_of(record: RunRecord) -> str:
    """Names an end of a run: it may pause, continue and end again."""
    return f"{record.status} {record.step} {record.evaluation_id or ''}"


def _weights(record: RunRecord, tracker: TrackerPlan) -> Path | None:
    """The folder of the weights, if they are uploaded: those of a whole model only where that was asked for."""
    path = record.result.adapter_path if record.result is not None else None
    if path is None or tracker.artifacts is False or not Path(path).is_dir():
        return None
    is_small = (Path(path) / "adapter_config.json").is_file()
    return Path(path) if is_small or tracker.artifacts else None


def _text_model(plan: Plan, weights: Path) -> TextModel | None:
    if plan.objective.task_head is not None:
        return None
    return TextModel(weights, plan.base_model.template)


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _reason(error: Exception, environment: Mapping[str, str]) -> str:
    """An error in one line, without credentials: members of the project see it."""
    text = str(error) if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    named = {name for name in environment if _SECRET.search(name)}
    for rules in TRACKERS.declarations().values():
        named |= {*rules.credentials}
        # The address as it is set may hold a token in its query.
        if location := environment.get(rules.location_variable, "") if rules.location_variable else "":
            text = text.replace(location, without_credentials(location))
    text = _QUERY.sub(r"\1…", _USER.sub("://…@", text))
    # The longest first: one may begin another.
    secrets = {environment.get(name, "") for name in named}
    for secret in sorted((one for one in secrets if len(one) >= _MIN_SECRET), key=len, reverse=True):
        text = text.replace(secret, "…")
    return shortened(text, _MAX_ERROR)


def serve(document: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """The process that delivers a run to one tracker while it is trained.

    Args:
        document: `home`, `run_id`, and `tracker`, a `TrackerPlan`.
        channel: A request of any kind says that the run has ended or paused; so does its end.

    Returns:
        The last state.
    """
    # Training has the processor first.
    lower_priority(_NICENESS)
    is_over = threading.Event()

    def listen() -> None:
        next(channel.requests(), None)
        is_over.set()

    start_daemon(listen, "luthier-tracker-listen")
    tracker = TrackerPlan.model_validate(document["tracker"])
    with Context.open(Path(document["home"])) as context:
        return Delivery(context, document["run_id"], tracker).follow(is_over).model_dump(mode="json")
