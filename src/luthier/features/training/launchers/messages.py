"""What the processes of a run say while they train: events, a result, or what is wrong. `launcher_child` says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luthier.core.errors import LuthierError, error_from
from luthier.core.events import RunStarted, StepDone, event_adapter
from luthier.core.ports import EventSink, ProgressTask
from luthier.core.run import TrainResult


@dataclass(slots=True)
class Answers:
    """The answers of one start of all processes. began_at: the step that it went on from, once it is known."""

    emit: EventSink
    bar: ProgressTask
    result: TrainResult | None = None
    refused_by: str | None = None
    error: LuthierError | None = None
    began_at: int | None = None

    def take(self, document: dict[str, Any]) -> None:
        """Take one answer; of several errors the first counts."""
        if "error" in document:
            self.error = self.error or error_from(document["error"])
        if "result" in document:
            self.result = TrainResult.model_validate(document["result"])
            self.refused_by = document["refused_by"]
        if "event" not in document:
            return
        event = event_adapter.validate_python(document["event"])
        self.emit(event)
        if isinstance(event, RunStarted):
            self.began_at = event.from_step
        elif isinstance(event, StepDone):
            self.bar.advance()
            self.bar.note(f"loss {event.loss:.3f}  {event.num_tokens / event.seconds:,.0f} tokens/s")
