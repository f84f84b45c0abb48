"""TensorBoard: event files in the folder of the run, or below `location`; written without TensorFlow and torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from luthier.ml.tracking.protocol import Point, RemoteRun, RunOutcome, TrackedRun, Tracker, TrackerRules
from luthier.ml.tracking.registry import TRACKERS


class TensorBoard(Tracker):
    """Scalars by step, parameters in the HParams tab, verdict and report's findings in the Text tab.

    Each delivery writes a file of its own into the same folder; TensorBoard shows them as one run.
    """

    rules: ClassVar[TrackerRules] = TRACKERS["tensorboard"]

    def __init__(self) -> None:
        self._writer: Any = None
        self._folder = Path()

    def begin(self, run: TrackedRun) -> RemoteRun:
        """Open an event file; the first one of a run holds its parameters."""
        from tensorboard.plugins.hparams import summary_v2 as hparams
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if run.tracker_run_id:
            self._folder = Path(run.tracker_run_id)
        else:
            own = "tensorboard" if run.number == 1 else f"tensorboard-{run.number}"
            self._folder = Path(run.location) / run.unique_name if run.location else run.folder / own
        self._folder.mkdir(parents=True, exist_ok=True)
        # The suffix keeps two files of one second and process apart.
        self._writer = EventFileWriter(str(self._folder), filename_suffix=f".{time.time_ns()}")
        if not run.tracker_run_id:
            summary = hparams.hparams_pb(dict(run.parameters), trial_id=run.run_id, start_time_secs=run.created_at)
            self._add(summary, 0, run.created_at)
            self._add_text("parameters", _table(run.parameters), 0, run.created_at)
        return RemoteRun(str(self._folder), str(self._folder))

    def log(self, points: Sequence[Point]) -> None:
        """Write scalars with their times, and sync them."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for point in points:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            self._add(Summary(value=values), point.step, point.at)
        self._writer.flush()

    def end(self, outcome: RunOutcome) -> list[str]:
        """Write the figures of the result at the last step, and texts. Files stay where the run has them."""
        now = time.time()
        self.log([Point(outcome.step, now, outcome.summary)] if outcome.summary else [])
        texts = {"status": f"{outcome.status}: {outcome.reason}", **outcome.texts}
        for name, path in (("report", outcome.report), ("weights", outcome.weights)):
            if path is not None:
                texts[name] = str(path)
        for name, text in texts.items():
            self._add_text(name, text, outcome.step, now)
        self._writer.flush()
        return []

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _add_text(self, name: str, text: str, step: int, at: float) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._add(text_pb(name, text.replace("\n", "\n\n")), step, at)

    def _add(self, summary: Any, step: int, at: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=at, step=step, summary=summary))


def _table(parameters: Any) -> str:
    """Parameters as a table of Markdown, which the Text tab draws."""
    rows = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in parameters.items()]
    return "\n".join(["| parameter | value |", "|---|---|", *rows])
