"""How far a project is on its way to a first verdict: five steps, the next one, and the page that it is done on.

Pages show it as a rail on top until the first verdict (`platform/ui/templates/rail.html`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import ColumnElement, RowMapping, ScalarSelect, bindparam, or_, select

from luthier.core.access import Scope
from luthier.features.home_page.service import last_verdicts
from luthier.features.runs.store import OWNER, WITH_JOBS
from luthier.platform.auth.members_store import Session
from luthier.platform.db.tables import dataset_versions, datasets, jobs, runs
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import OPEN, JobKind, JobStatus
from luthier.platform.ui.render import GROUP_TITLES, Group

State = Literal["done", "next", "later"]
_MAX_EVALUATIONS: Final = 20


def _newest_job(column: ColumnElement[str], kind: JobKind, status: Sequence[JobStatus]) -> ScalarSelect[str]:
    # By kind: the newest job may be one that reads documents or answers a batch.
    # OR: the values of IN are put into the statement at each execution.
    has_status = or_(*(jobs.c.status == one for one in status))
    wanted = (jobs.c.project_id == bindparam("its_project"), jobs.c.kind == kind, has_status)
    return select(column).where(*wanted).order_by(jobs.c.number.desc()).limit(1).scalar_subquery()


def _newest_run(*where: ColumnElement[bool]) -> ScalarSelect[str]:
    found = select(runs.c.run_id).select_from(WITH_JOBS).where(bindparam("its_project") == OWNER, *where)
    return found.order_by(runs.c.number.desc()).limit(1).scalar_subquery()


_HAS_DATASET: Final = (
    select(datasets.c.dataset_id)
    .join(dataset_versions, dataset_versions.c.dataset_id == datasets.c.dataset_id)
    .where(datasets.c.project_id == bindparam("its_project"))
    .limit(1)
    .scalar_subquery()
)
# Every page with a rail asks for this: one statement, built once.
_THERE: Final = select(
    _HAS_DATASET.is_not(None).label("has_dataset"),
    _newest_run().is_not(None).label("has_run"),
    _newest_run(runs.c.status == "succeeded").label("trained_run"),
    _newest_job(jobs.c.run_id, "train", ("running", "queued")).label("open_run"),
    _newest_job(jobs.c.run_id, "train", ("paused",)).label("paused_run"),
    _newest_job(jobs.c.job_id, "evaluation", OPEN).label("evaluation_job"),
)


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
    with context.database.read() as connection:
        there = connection.execute(_THERE, {"its_project": project_id}).mappings().one()
    return _data(there) or _training(there) or _evaluation(there)


def _at(name: Group, words: str, action: str, address: str, scope: Scope) -> Progress:
    names = list(GROUP_TITLES)
    place = names.index(name)
    states: list[State] = ["done" if n < place else "next" if n == place else "later" for n in range(len(names))]
    steps = tuple(Step(one, GROUP_TITLES[one], state) for one, state in zip(names, states, strict=True))
    return Progress(steps, words, action, address, scope)


def _data(there: RowMapping) -> Progress | None:
    # Runs without a dataset come from commands, which train on files.
    if there["has_dataset"] or there["has_run"]:
        return None
    return _at("data", "Add files with examples or documents.", "Add your data", "/datasets/new", "train")


def _training(there: RowMapping) -> Progress | None:
    if there["open_run"] is not None:
        return _at("train", "A run is in progress.", "Follow it", f"/runs/{there['open_run']}", "read")
    if there["trained_run"] is not None:
        return None
    if there["paused_run"] is not None:
        return _at("train", "A run is paused.", "Continue it", f"/runs/{there['paused_run']}", "read")
    return _at("train", "Your data is here.", "Train a model on it", "/start", "train")


def _evaluation(there: RowMapping) -> Progress:
    if there["evaluation_job"] is not None:
        address = f"/evaluations/orders/{there['evaluation_job']}"
        return _at("evaluate", "An evaluation is in progress.", "Follow it", address, "read")
    address = f"/evaluations/new?model={there['trained_run']}"
    return _at("evaluate", "The model is trained, and not evaluated yet.", "Evaluate it", address, "train")
