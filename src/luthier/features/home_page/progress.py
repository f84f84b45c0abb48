"""How far a project is on its way to a first verdict: five steps, the next one, and the page that it is done on.

Pages show it as a rail on top until the first verdict (`platform/ui/templates/rail.html`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from luthier.core.access import Scope
from luthier.features.home_page.service import last_verdicts
from luthier.platform.auth.members_store import Session
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import OPEN
from luthier.platform.ui.render import GROUP_TITLES, Group

State = Literal["done", "next", "later"]
_MAX_EVALUATIONS: Final = 20


@dataclass(frozen=True, slots=True)
class Step:
    """One of the five steps.

    Attributes:
        name: The group of pages that it is done on.
        title: Its name on pages.
        state: Whether it is done, the next one, or comes later.
    """

    name: Group
    title: str
    state: State


@dataclass(frozen=True, slots=True)
class Progress:
    """The way of a project.

    Attributes:
        steps: All five, in order.
        next_step: What to do now, in one short sentence.
        action: The words of its link.
        address: Where it is done.
        scope: What a visitor needs to do it.
    """

    steps: tuple[Step, ...]
    next_step: str
    action: str
    address: str
    scope: Scope


class Rail:
    """The progress of projects, for the pages of one server. Its methods may be called by any thread."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._judged: set[str] = set()
        """Projects with a verdict: that cannot change back in the life of a server, and costs no more queries."""

    def of(self, session: Session | None) -> Progress | None:
        """The progress to show to this visitor; None after the first verdict, and where it is not theirs to see."""
        if session is None or not session.caller.may("read"):
            return None
        project_id = session.caller.project_id
        if project_id in self._judged:
            return None
        found = progress_of(self._context, project_id)
        if found is None:
            self._judged.add(project_id)
        return found


def progress_of(context: Context, project_id: str) -> Progress | None:
    """How far a project is; None from its first verdict on."""
    if last_verdicts(context, project_id, limit=_MAX_EVALUATIONS):
        return None
    found: Progress | None = None
    for look in (_data, _training, _evaluation):
        found = found or look(context, project_id)
    assert found is not None, "without a verdict the evaluation is the next step at the latest"
    return found


def _at(name: Group, words: str, action: str, address: str, scope: Scope) -> Progress:
    names = list(GROUP_TITLES)
    place = names.index(name)
    states: list[State] = ["done" if n < place else "next" if n == place else "later" for n in range(len(names))]
    steps = tuple(Step(one, GROUP_TITLES[one], state) for one, state in zip(names, states, strict=True))
    return Progress(steps, words, action, address, scope)


def _data(context: Context, project_id: str) -> Progress | None:
    # Runs without a dataset come from commands, which train on files.
    if context.datasets.all_versions(project_id, 1) or context.runs.of_project(project_id, limit=1):
        return None
    return _at("data", "Add files with examples or documents.", "Add your data", "/datasets/new", "train")


def _training(context: Context, project_id: str) -> Progress | None:
    # By kind: the newest job may be one that reads documents or answers a batch.
    if jobs := context.jobs.list(status=("running", "queued"), kinds=("train",), project_id=project_id, limit=1):
        return _at("train", "A run is in progress.", "Follow it", f"/runs/{jobs[0].run_id}", "read")
    if context.runs.of_project(project_id, limit=1, status="succeeded"):
        return None
    if jobs := context.jobs.list(status="paused", kinds=("train",), project_id=project_id, limit=1):
        return _at("train", "A run is paused.", "Continue it", f"/runs/{jobs[0].run_id}", "read")
    return _at("train", "Your data is here.", "Train a model on it", "/start", "train")


def _evaluation(context: Context, project_id: str) -> Progress:
    if jobs := context.jobs.list(status=OPEN, kinds=("evaluation",), project_id=project_id, limit=1):
        address = f"/evaluations/orders/{jobs[0].job_id}"
        return _at("evaluate", "An evaluation is in progress.", "Follow it", address, "read")
    run = context.runs.of_project(project_id, limit=1, status="succeeded")[0]
    address = f"/evaluations/new?model={run.run_id}"
    return _at("evaluate", "The model is trained, and not evaluated yet.", "Evaluate it", address, "train")
