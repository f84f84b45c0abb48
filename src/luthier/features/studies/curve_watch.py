"""The curve of a trial while it trains: whether it can still become the best, said after each of its validations."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.events import Event, ValidationDone
from luthier.core.workflows.study import StudySpec, Trial
from luthier.ml.search.extrapolation import Finished

HOPELESS = "it cannot become the best: "
"""What a run that was stopped for it says first."""


class CurveWatch:
    """Follows the validations of a trial.

    Args:
        finished: The trials that it is compared with.
        num_steps: Of the whole training.
    """

    def __init__(self, finished: Finished, num_steps: int) -> None:
        self._finished, self._num_steps = finished, num_steps
        self._losses: dict[int, float] = {}

    def begin(self, events: Sequence[Event], from_step: int) -> None:
        """Take over what an earlier part of the training has measured up to a step; a kill may have left more."""
        found = [event for event in events if isinstance(event, ValidationDone) and event.step <= from_step]
        self._losses = {event.step: event.loss for event in found}

    def note(self, event: Event) -> None:
        """Take in what has happened."""
        if isinstance(event, ValidationDone):
            self._losses[event.step] = event.loss

    def stop_requested(self) -> str | None:
        """Why the training is to stop now; None where it may go on."""
        curve = [(step / self._num_steps, loss) for step, loss in sorted(self._losses.items())]
        reason = self._finished.why_hopeless(curve)
        return HOPELESS + reason if reason else None


def finished_trials(spec: StudySpec, trials: Sequence[Trial]) -> Finished:
    """What other trials are held against; nothing where the study stops none, or has other goals than quality."""
    if not spec.stops_hopeless or len(spec.goals) > 1:
        return Finished(())
    return Finished(tuple(t.curve for t in trials if t.kind == "search" and t.state == "done" and t.curve))


def may_be_stopped(trial: Trial) -> bool:
    """Whether a trial may be stopped for its curve: not the recipe as it came, which all are held against."""
    return trial.kind == "search" and trial.number > 0
