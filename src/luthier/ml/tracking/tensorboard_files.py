"""TensorBoard: event files in the folder of the run, or below `location`; written without TensorFlow and torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from luthier.ml.tracking.event_files import EventFile, hyperparameters, scalars, text
from luthier.ml.tracking.protocol import Point, RemoteRun, RunOutcome, TrackedRun, Tracker, TrackerRules
from luthier.ml.tracking.registry import TRACKERS


class TensorBoard(Tracker):
    """Scalars by step, parameters in the HParams tab, verdict and report's findings in the Text tab.

    Each delivery writes a file of its own into the same folder; TensorBoard shows them as one run.
    """

    rules: ClassVar[TrackerRules] = TRACKERS["tensorboard"]

    def __init__(self) -> None:
        self._file: EventFile | None = None
        self._folder = Path()

    def begin(self, run: TrackedRun) -> RemoteRun:
        """Open an event file; the first one of a run holds its parameters."""
        if run.tracker_run_id:
            self._folder = Path(run.tracker_run_id)
        else:
            own = "tensorboard" if run.number == 1 else f"tensorboard-{run.number}"
            self._folder = Path(run.location) / run.unique_name if run.location else run.folder / own
        self._file = EventFile(self._folder)
        if not run.tracker_run_id:
            summary = hyperparameters(run.parameters, run_id=run.run_id, began=run.created_at)
            self._add(summary, 0, run.created_at)
            self._add_text("parameters", _table(run.parameters), 0, run.created_at)
            self._flush()
        return RemoteRun(str(self._folder), str(self._folder))

    def log(self, points: Sequence[Point]) -> None:
        """Write scalars with their times, all in one write."""
        for point in points:
            self._add(scalars(point.values), point.step, point.at)
        self._flush()

    def end(self, outcome: RunOutcome) -> list[str]:
        """Write the figures of the result at the last step, and texts. Files stay where the run has them."""
        now = time.time()
        self.log([Point(outcome.step, now, outcome.summary)] if outcome.summary else [])
        texts = {"status": f"{outcome.status}: {outcome.reason}", **outcome.texts}
        for name, path in (("report", outcome.report), ("weights", outcome.weights)):
            if path is not None:
                texts[name] = str(path)
        for name, content in texts.items():
            self._add_text(name, content, outcome.step, now)
        self._flush()
        return []

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _add_text(self, name: str, content: str, step: int, at: float) -> None:
        self._add(text(name, content.replace("\n", "\n\n")), step, at)

    def _add(self, summary: Any, step: int, at: float) -> None:
        assert self._file is not None, "begun"
        self._file.add(summary, step, at)

    def _flush(self) -> None:
        assert self._file is not None, "begun"
        self._file.flush()


def _table(parameters: Any) -> str:
    """Parameters as a table of Markdown, which the Text tab draws."""
    rows = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in parameters.items()]
    return "\n".join(["| parameter | value |", "|---|---|", *rows])
