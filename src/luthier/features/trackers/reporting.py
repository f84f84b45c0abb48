"""Reports of a run that is being trained: a process for each tracker, from the start of the run to its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from luthier.core.child_process.process import ChildEndedError, ChildProcess
from luthier.core.errors import LuthierError
from luthier.core.plan import Plan
from luthier.core.tracking import TrackerPlan
from luthier.features.trackers.service import FOLDER, TrackerState, load_state, save_state
from luthier.platform.home.context import Context

_SERVE: Final = "luthier.features.trackers.delivery:serve"
_SECONDS_AFTER_ERROR: Final = 15.0
_SECONDS_OF_PAUSE: Final = 15.0
"""For the rest where the run pauses: whoever has stopped it waits, and a worker kills what takes a minute."""


@contextmanager
def reported(context: Context, run_id: str, plan: Plan) -> Iterator[list[TrackerState]]:
    """Report a run to the trackers of its plan while the block trains it.

    Yields a list, which after the block holds what each tracker has. At the end of the block it waits for them as long
    as `tracker_wait_seconds` says; what is not delivered by then stays for `luthier runs track`.
    """
    found: list[TrackerState] = []
    if not plan.tracking:
        yield found
        return
    folder = context.settings.run_folder(run_id)
    with ExitStack() as stack:
        children = [(tracker, _start(context, run_id, tracker, stack)) for tracker in plan.tracking]
        try:
            yield found
        finally:
            # An error of the run, too, is something that its trackers show.
            for _, child in children:
                if child is not None:
                    with suppress(OSError):
                        child.send({"is_over": True})
            deadline = time.monotonic() + _seconds_left(context, run_id)
            for tracker, child in children:
                if child is not None:
                    _wait(child, deadline, has_failed=bool(load_state(folder, tracker.name).error))
                    child.kill()
                found.append(_left(load_state(folder, tracker.name)))


def _left(state: TrackerState) -> TrackerState:
    """The state as nobody delivers any more: one that was ended in the middle of a delivery has stored none."""
    return state.model_copy(update={"status": "waiting"}) if state.status == "delivering" else state


def _seconds_left(context: Context, run_id: str) -> float:
    """How long the end of a run waits for its trackers."""
    seconds = context.settings.tracker_wait_seconds
    try:
        is_paused = context.runs.get(run_id).status == "paused"
    except LuthierError:  # the database does not answer: nor do the processes that read it
        is_paused = True
    return min(seconds, _SECONDS_OF_PAUSE) if is_paused else seconds


def _start(context: Context, run_id: str, tracker: TrackerPlan, stack: ExitStack) -> ChildProcess | None:
    """The process of one tracker; None where none can be started, which the state says."""
    folder = context.settings.run_folder(run_id)
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    document = {
        "home": str(context.home),
        "run_id": run_id,
        "tracker": tracker.model_dump(mode="json"),
    }
    try:
        child = ChildProcess(
            _SERVE,
            document,
            title=f"the delivery to {tracker.name}",
            num_threads=1,
            log=folder / FOLDER / f"{tracker.name}.log",
        )
    except OSError as error:
        state = load_state(folder, tracker.name)
        save_state(folder, state.model_copy(update={"status": "waiting", "error": f"no process: {error}"}))
        return None
    stack.callback(_close, child)
    return child


def _wait(child: ChildProcess, deadline: float, *, has_failed: bool) -> None:
    """Until all is delivered or the time is up, which ends its process. has_failed: whether its last attempt did."""
    left = max(0.0, deadline - time.monotonic())
    try:
        child.result(timeout_seconds=min(left, _SECONDS_AFTER_ERROR) if has_failed else left)
    except (ChildEndedError, LuthierError, OSError, MemoryError):
        # What it has not delivered is in the database, and the state says how far it came.
        return


def _close(child: ChildProcess) -> None:
    child.kill()
    child.close()


def undelivered(states: Sequence[TrackerState], run_id: str) -> list[str]:
    """What is to be said of trackers that have not everything, with the command that delivers it."""
    return [
        f"{state.name} lacks part of this run"
        + (f" ({state.error})" if state.error else "")
        + f"; deliver the rest with: luthier runs track {run_id}"
        for state in states
        if state.status != "delivered"
    ]
