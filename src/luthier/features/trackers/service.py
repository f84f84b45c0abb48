"""What trackers have of a run, and use cases: deliver what they have not.

The events themselves are in the database. A file for each tracker in the folder of the run holds the position up to
which the tracker has them, so that a delivery can continue after any kill.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from luthier.core.data_sources import LOOPBACK
from luthier.core.errors import ConflictError, RequestError, UnsupportedError
from luthier.core.frozen_model import FrozenModel
from luthier.core.plan import Plan
from luthier.core.recipe import Recipe
from luthier.core.registry import TRACKERS
from luthier.core.system.extras import command_for
from luthier.core.system.files import is_held, replace_text
from luthier.core.tracking import TrackerPlan, TrackerRecipe, hide_folders, is_address
from luthier.ml.tracking.protocol import TrackerRules
from luthier.ml.tracking.registry import absolute_location, chosen, lacks_credentials, source_of
from luthier.platform.home.context import Context

FOLDER: Final = "trackers"
_SECTION: Final = "tracking"
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
    """Store a state, whole or not at all.

    Raises:
        StorageFullError: The disk is full.
    """
    path = state_path(run_folder, state.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, state.model_dump_json())


class DeliveredElsewhere(FrozenModel):
    """What a machine has delivered of a run to the server of a tracker, as it goes to the next machine with its upload.

    Without the id of the run there, which the next one finds by the id of ours: whoever may write to the bucket must
    not have figures sent into other runs.

    Attributes:
        name: The tracker.
        project: The project there.
        number: Which of the runs there it is.
        last_step: The last step of training that is delivered.
        last_validation: The same of validations.
        last_at: When that was, in seconds since 1970.
    """

    name: str
    project: str
    number: Annotated[int, Field(ge=1)] = 1
    last_step: Annotated[int, Field(ge=0)] = 0
    last_validation: Annotated[int, Field(ge=0)] = 0
    last_at: float | None = None


def delivered_here(context: Context, run_id: str) -> list[dict[str, Any]]:
    """What the servers of a run's trackers have of it, as documents; folders and databases stay with this machine."""
    folder = context.settings.run_folder(run_id)
    states = [load_state(folder, one.name) for one in context.runs.plan(run_id).tracking]
    names = set(DeliveredElsewhere.model_fields)
    return [
        one.model_dump(mode="json", include=names) for one in states if one.tracker_run_id and _is_elsewhere(one.url)
    ]


def _is_elsewhere(url: str) -> bool:
    """Whether it is the address of a server that other machines find there, too."""
    return is_address(url) and urlsplit(url).hostname not in LOOPBACK


def adopt_deliveries(context: Context, run_id: str, documents: Any) -> None:
    """Note what another machine has delivered of a run, so that this one does not send it again.

    Args:
        context: The home, which knows the run.
        run_id: Of the run.
        documents: As `delivered_here` gives them; what cannot be read is passed over.
    """
    from luthier.features.trackers.delivery import own_plan

    folder, project_id = context.settings.run_folder(run_id), context.runs.project_of(run_id)
    plans = {one.name: one for one in context.runs.plan(run_id).tracking}
    for document in documents if isinstance(documents, list) else ():
        try:
            theirs = DeliveredElsewhere.model_validate(document)
        except ValidationError:
            continue
        # In another project of the tracker there is another run.
        plan = plans.get(theirs.name)
        if plan is None or own_plan(plan, project_id, TrackerState(name=plan.name)).project != theirs.project:
            continue
        here = load_state(folder, theirs.name)
        if here.number < theirs.number:
            here = TrackerState(name=theirs.name, number=theirs.number)
        if here.number == theirs.number and here.last_step < theirs.last_step:
            known = theirs.model_dump(include={"last_step", "last_validation", "last_at"})
            save_state(folder, here.model_copy(update=known))


def with_tracking(context: Context, plan: Plan, recipe: Recipe, environment: Mapping[str, str]) -> Plan:
    """A plan with its trackers: those of the recipe, else those that the environment names.

    A tracker that only the environment names is left out where its package is not installed; the plan says so.

    Raises:
        RequestError: The package of one that the recipe names is not installed.
    """
    found, left_out = [], []
    for one in _chosen(context, recipe.tracking, environment):
        rules: TrackerRules = TRACKERS.declaration(one.name)
        if one.source and rules.missing():
            left_out.append(f"{one.source} is set, but not reported to: {command_for(rules.install)}")
        else:
            rules.check_installed(one.name)
            found.append(one)
    if not found and not left_out:
        return plan
    return plan.model_copy(
        update={"tracking": tuple(found), "sources": plan.sources | {_SECTION: source_of(found, left_out)}}
    )


def refuse_locations(recipe: Recipe) -> None:
    """Raise RequestError where a recipe of a client names a server or folder.

    The server would write there, or send requests into its own network.
    """
    for one in recipe.tracking or ():
        if one.location is not None:
            raise RequestError(
                f"tracking: {one.name} with location {one.location!r}",
                expected="no location: where this server reports to is set in its environment",
                do="leave `location` out, and ask the operator of the server to set it",
            )


def check_wandb(environment: Mapping[str, str], *, num: int = 1) -> None:
    """Raise UnsupportedError where this server cannot report to Weights & Biases, or not to `num` projects at once."""
    rules: TrackerRules = TRACKERS.declaration("wandb")
    expected, do = "a server with luthier[wandb] and WANDB_API_KEY, or WANDB_MODE=offline", "leave `integrations` out"
    if missing := rules.missing():
        reason = f"{', '.join(missing)} is not installed on this server"
    elif lacks_credentials(rules, environment):
        reason = "this server has no key of Weights & Biases"
    elif num > 1:
        reason, expected, do = f"{num} of them", "one", "name one project"
    else:
        return
    raise UnsupportedError(
        f"integrations: wandb, {reason}",
        expected=expected,
        do=do,
        code="unsupported_integration",
        param="integrations",
    )


def without_locations(document: dict[str, Any]) -> dict[str, Any]:
    """The document of a run (`RunDetails.as_json`) without folders and databases that trackers write to."""
    hide_folders(document["plan"])
    for state in document["trackers"]:
        state["url"] = state["url"] if is_address(state["url"]) else ""
        state["tracker_run_id"] = "" if state["tracker_run_id"].startswith("/") else state["tracker_run_id"]
    return document


def states(context: Context, run_id: str) -> list[TrackerState]:
    """What each tracker of a run has: those of its plan, then others that it was reported to.

    `delivering` only while a process does so.

    Raises:
        NotFoundError: There is no such run.
    """
    plan, folder = context.runs.plan(run_id), context.settings.run_folder(run_id)
    project_id = context.runs.project_of(run_id)
    from luthier.features.trackers.delivery import own_plan

    projects = {one.name: own_plan(one, project_id, load_state(folder, one.name)).project for one in plan.tracking}
    others = sorted(path.stem for path in (folder / FOLDER).glob("*.json") if path.stem not in projects)
    found = []
    for name in [*projects, *others]:
        state = load_state(folder, name)
        state = state.model_copy(update={"project": projects.get(name, state.project)})
        if state.status == "delivering" and not _is_delivering(context, run_id, name):
            state = state.model_copy(update={"status": "waiting"})
        found.append(state)
    return found


def deliver(
    context: Context, run_id: str, *, asked: Sequence[str] = (), from_start: bool = False
) -> list[TrackerState]:
    """Deliver to the trackers of a run what they have not yet; errors are in their states.

    Args:
        context: The home.
        run_id: Of the run.
        asked: Names of trackers; those of its plan if empty. Others report a run that had none, with the settings of
            the environment.
        from_start: Deliver everything again, into new runs of the trackers.

    Raises:
        NotFoundError: There is no such run, or no such tracker.
        RequestError: The run has no tracker and none is named, or the package of one is not installed.
        ConflictError: The run is being trained, and reports by itself.
    """
    import os

    plan = context.runs.plan(run_id)
    known = {one.name: one for one in plan.tracking}
    for name in asked:
        TRACKERS.declaration(name)  # raises for an unknown name
    added = _chosen(context, [TrackerRecipe(name=name) for name in asked if name not in known], os.environ)
    trackers = [known[name] for name in asked if name in known] + added if asked else list(plan.tracking)
    if not trackers:
        raise RequestError(
            f"run {run_id} has no tracker",
            expected="a tracker in the recipe, or one that is named",
            do=f"name one: luthier runs track {run_id} --to mlflow",
        )
    folder = context.settings.run_folder(run_id)
    for one in trackers:
        TRACKERS.declaration(one.name).check_installed(one.name)
        if _is_delivering(context, run_id, one.name):
            raise ConflictError(
                f"run {run_id} is being delivered to {one.name}",
                expected="no process that delivers it",
                do="wait until the run ends or pauses: it delivers by itself during training",
            )
    if from_start:
        for one in trackers:
            # A new number, too: trackers that find the run by our id would continue with the one that they have.
            known_before = load_state(folder, one.name)
            number = known_before.number + (known_before.tracker_run_id != "")
            save_state(folder, TrackerState(name=one.name, number=number))
    from luthier.features.trackers.delivery import Delivery

    return [Delivery(context, run_id, one).deliver() for one in trackers]


def _chosen(
    context: Context, asked: Sequence[TrackerRecipe] | None, environment: Mapping[str, str]
) -> list[TrackerPlan]:
    """`chosen`, each with a place in the home where neither recipe nor environment nor tracker has one.

    A folder of the environment counts from the current one, and from there on for each later delivery, wherever it is
    started; those of recipes are absolute.
    """
    found = []
    for one in chosen(asked, environment):
        place = TRACKERS.declaration(one.name).default_location.format(home=context.home)
        location = absolute_location(one.location, Path.cwd()) or place or None
        found.append(one.model_copy(update={"location": location}))
    return found


def _is_delivering(context: Context, run_id: str, name: str) -> bool:
    lock = context.settings.run_folder(run_id) / FOLDER / f"{name}.lock"
    return lock.exists() and is_held(lock)
