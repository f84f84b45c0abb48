"""How far a run is reported to a tracker: a file for each tracker in the folder of the run.

The events themselves are in the database; what is stored here is the position up to which a tracker has them, so that
a delivery can go on after any kill.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from luthier.core.frozen_model import FrozenModel

FOLDER: Final = "trackers"
DeliveryStatus = Literal["waiting", "delivering", "delivered"]
TITLES: Final[dict[DeliveryStatus, str]] = {
    "waiting": "not delivered",
    "delivering": "delivering",
    "delivered": "delivered",
}


class TrackerState(FrozenModel):
    """What a tracker has of a run.

    Attributes:
        name: The tracker.
        status: `waiting`: there is more to deliver, and nothing is at work or the last attempt failed; `delivered`:
            all that there was when the run ended or paused last.
        project: The project there.
        tracker_run_id: The id of the run there; empty before it was begun.
        number: Which of the runs there it is: one more with each delivery from the start.
        url: Its page or folder; empty where there is none.
        position: Up to which events of the run are delivered (`RunStore.appended`).
        last_step: The last step of training that is delivered; the same again after a resume is left out.
        last_validation: The same of validations.
        num_events: Events that are delivered.
        last_at: When the last of them happened, in seconds since 1970; None before the first.
        ended: Status and time of the last end of the run that is delivered; empty before.
        error: Why the last attempt failed; empty if it did not.
        notes: What a person should know of what is delivered.
        updated_at: When this was stored, in seconds since 1970.
    """

    name: str
    status: DeliveryStatus = "waiting"
    project: str = ""
    tracker_run_id: str = ""
    number: int = 1
    url: str = ""
    position: int = 0
    last_step: int = 0
    last_validation: int = 0
    num_events: int = 0
    last_at: float | None = None
    ended: str = ""
    error: str = ""
    notes: tuple[str, ...] = ()
    updated_at: float = 0.0

    @property
    def summary(self) -> str:
        """As a line: `delivered, 120 events; http://...`, or why not."""
        parts = [TITLES[self.status], f"{self.num_events:,} events"]
        if self.error:
            parts.insert(1, self.error)
        return ", ".join(parts) + (f"; {self.url}" if self.url else "")

    def as_json(self) -> dict[str, Any]:
        """What documents of a run hold of it."""
        shown = ("name", "status", "project", "tracker_run_id", "url", "num_events", "error", "notes")
        document = self.model_dump(mode="json")
        return {name: document[name] for name in shown}


def state_path(run_folder: Path, name: str) -> Path:
    """The file of a tracker's state."""
    return run_folder / FOLDER / f"{name}.json"


def load_state(run_folder: Path, name: str) -> TrackerState:
    """The state of a tracker; that of one that has nothing yet, where the file is missing or cannot be read.

    Then events are delivered again from the first: figures twice are better than none.
    """
    try:
        document = json.loads(state_path(run_folder, name).read_text(encoding="utf-8"))
        known = {key: value for key, value in document.items() if key in TrackerState.model_fields}
        return TrackerState.model_validate(known)
    except (OSError, ValueError, AttributeError):
        return TrackerState(name=name)


def save_state(run_folder: Path, state: TrackerState) -> None:
    """Store a state, whole or not at all. Raises OSError where the disk is full."""
    path = state_path(run_folder, state.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(state.model_dump_json(), encoding="utf-8")
    partial.replace(path)
