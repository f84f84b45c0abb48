"""Trackio: experiments in files of this machine, on a server (TRACKIO_SERVER_URL) or in a Space (TRACKIO_SPACE_ID)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from luthier.ml.tracking.protocol import Point, RemoteRun, RunOutcome, TrackedRun, Tracker, TrackerRules
from luthier.ml.tracking.registry import TRACKERS


class Trackio(Tracker):
    """A run of Trackio, continued by its name."""

    rules: ClassVar[TrackerRules] = TRACKERS["trackio"]

    def __init__(self) -> None:
        self._run: Any = None
        self._name = ""

    def begin(self, run: TrackedRun) -> RemoteRun:
        """Begin the run or continue it, with the parameters as its config."""
        import trackio

        self._name = run.run_id
        # Trackio continues whichever run has this name.
        name = run.tracker_run_id or run.unique_name
        self._run = trackio.init(
            project=run.folder_project,
            name=name,
            server_url=run.location,
            config=dict(run.parameters) | dict.fromkeys(run.plan.tags, True),
            resume="allow",
            embed=False,
            # The run's machine is in its own events; this process trains nothing.
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return RemoteRun(name, run.location or "")

    def log(self, points: Sequence[Point]) -> None:
        """Hand figures to Trackio, which stores them in batches."""
        for point in points:
            self._run.log(dict(point.values), step=point.step)

    def end(self, outcome: RunOutcome) -> list[str]:
        """Store figures and texts at the last step, report and weights as artifacts, and finish."""
        self._run.log({**outcome.summary, **outcome.texts, "status": outcome.status}, step=outcome.step)
        if outcome.report is not None:
            self._run.log_artifact(str(outcome.report), name=f"{self._name}-report", type="report")
        if outcome.weights is not None:
            self._run.log_artifact(str(outcome.weights), name=f"{self._name}-weights", type="model")
        self.close()
        return []

    def close(self) -> None:
        """Store what is left in memory."""
        if self._run is not None:
            import trackio

            self._run = None
            trackio.finish()
