"""Use case: remove a base model from this machine, unless something on this machine still needs it.

deployments, runs and exports of all projects -> what keeps the model here -> removal -> audit log
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from luthier.core.access import Caller, Project
from luthier.core.errors import ConflictError, LuthierError, NotAllowedError, NotFoundError
from luthier.core.ids import is_id
from luthier.core.ports import track
from luthier.core.records.deployment import Deployment
from luthier.features.model_cards.service import BaseView, find_base, list_bases
from luthier.features.models import service as models
from luthier.features.models.service import ModelView
from luthier.features.models.uses import commands_using, is_given_up, refuse_used_by_commands, uses_of
from luthier.features.serving.targets import served_share
from luthier.platform.audit_log.service import record
from luthier.platform.auth.service import list_projects, may_open_projects
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import OPEN, Job

_UNFINISHED = ("planned", "running", "paused")


@dataclass(frozen=True, slots=True)
class BaseUser:
    """Something that needs a base model.

    Attributes:
        project: Its project.
        name: What people call it.
        address: Its page, for members of the project; empty for work that is no run.
    """

    project: Project
    name: str
    address: str


@dataclass(frozen=True, slots=True)
class BaseUses:
    """What depends on a base model, in all projects.

    Attributes:
        deployments: Deployments that answer with the model, or with an adapter on it, now.
        unfinished: Runs and jobs that train from it, are taught by it or graded by it, and have not ended.
        num_tuned: Finished runs whose result was trained over it. Their adapters cannot answer without it.
        num_exports: Exports that were made of the model itself. Their files stay.
        commands: Commands at terminals that use the model now.
    """

    deployments: tuple[BaseUser, ...]
    unfinished: tuple[BaseUser, ...]
    num_tuned: int
    num_exports: int
    commands: tuple[str, ...] = ()

    @property
    def is_needed(self) -> bool:
        """Whether the removal is refused."""
        return bool(self.deployments or self.unfinished or self.commands)


def may_remove_base(caller: Caller) -> bool:
    """Whether the caller may remove base models, which all projects of the server share."""
    return may_open_projects(caller)


def base_uses(context: Context, caller: Caller, name: str) -> tuple[BaseView, BaseUses]:
    """A base model on this machine by its name in the API, and what depends on it.

    Raises:
        NotAllowedError: The caller is no admin of the project that the server is set up in.
        NotFoundError: There is no base model of this name, or it is not on this machine.
    """
    if not may_remove_base(caller):
        raise NotAllowedError(
            f"{caller.name!r} may not remove a base model: all projects share them",
            expected="an admin of the project 'default', in which the server is set up",
            do="ask one of them",
        )
    base = find_base(context, name, caller.project_id)
    if not base.is_here:
        raise NotFoundError(
            f"the base model {base.name!r} is not on this machine",
            expected="a base model that was downloaded",
            do="see the list of models",
        )
    return base, _uses(context, base)


def _uses(context: Context, base: BaseView) -> BaseUses:
    projects = {project.project_id: project for project in list_projects(context)}
    runs = context.runs.over_base(base.model.name)
    unfinished = {
        run_id: project_id
        for run_id, project_id, status in runs
        if status in _UNFINISHED and not is_given_up(context, run_id, project_id)
    }
    # A job has a run with a record once it trains; before that only the job names the base model.
    known = {run_id for run_id, _, _ in runs}
    for job in context.jobs.list(status=OPEN, kinds=("train",)):
        if job.run_id not in known and _base_of(job) == base.model.name:
            unfinished[job.run_id] = job.project_id
    # Those that are trained from another model, and are taught or graded by this one.
    unfinished |= {use.run_id: use.project_id for use in uses_of(context, base.model.name, base.model.path)}
    names = context.run_labels.names(list(unfinished))
    num_exports = sum(
        export.source == base.name for project_id in projects for export in context.exports.list(project_id)
    )
    return BaseUses(
        deployments=tuple(_deployments(context, base, list(projects.values()))),
        unfinished=tuple(
            BaseUser(projects[project_id], names[run_id], f"/runs/{run_id}" if is_id(run_id, "run") else "")
            for run_id, project_id in unfinished.items()
            if project_id in projects
        ),
        num_tuned=sum(status == "succeeded" for _, _, status in runs),
        num_exports=num_exports,
        commands=commands_using(context, base.model.name, base.model.path),
    )


def remove_base(context: Context, caller: Caller, name: str) -> ModelView:
    """Delete what Luthier stores of a base model that nothing needs; returns the deleted one.

    Args:
        context: The home.
        caller: Whose request it is.
        name: Of the model in the API.

    Raises:
        NotAllowedError: The caller is no admin of the project that the server is set up in.
        NotFoundError: There is no base model of this name, or it is not on this machine.
        ConflictError: A deployment answers with it, or a run that trains from it has not ended, a command uses it, or
            another process is downloading it.
    """
    base, uses = base_uses(context, caller, name)
    return _removed(context, caller, base, uses)


def remove_local_base(context: Context, name: str) -> ModelView:
    """As `remove_base`, by a person at this machine.

    Args:
        context: The home.
        name: Of the model in a recipe.

    Raises:
        NotFoundError: It is not on this machine.
        ConflictError: A deployment answers with it, a run that trains from it has not ended, a command uses it, or
            another process is downloading it.
    """
    from luthier.ml.inference.models import catalog

    known = catalog.parse(name).text
    base = next((one for one in list_bases(context) if one.is_here and one.model.name == known), None)
    if base is None:
        # It says so, and deletes what a download that broke off has left.
        return models.remove_model(context, name)
    return _removed(context, Caller(), base, _uses(context, base))


def _removed(context: Context, caller: Caller, base: BaseView, uses: BaseUses) -> ModelView:
    if uses.deployments:
        shown = ", ".join(f"{one.name} ({one.project.name})" for one in uses.deployments)
        raise ConflictError(
            f"the base model {base.name!r} is needed by the deployments {shown}",
            expected="a base model that no deployment needs",
            do="deploy another model under these names first, or remove the deployments",
        )
    if uses.unfinished:
        shown = ", ".join(f"{one.name} ({one.project.name})" for one in uses.unfinished)
        raise ConflictError(
            f"the base model {base.name!r} is needed by runs that have not ended: {shown}",
            expected="a base model that no run needs",
            do="wait until they have ended, cancel them, or delete them",
        )
    refuse_used_by_commands(context, base.model.name, base.model.path)
    removed = models.remove_model(context, base.model.name)
    # Files first: if they cannot be removed, the log must not say that they were.
    with context.database.transaction():
        facts = {"source": removed.source, "num_bytes": removed.num_bytes, "sha256": removed.sha256}
        record(context, caller, "base_model.removed", base.name, facts)
    return removed


def _base_of(job: Job) -> str | None:
    """The base model of a training job, by its name in a recipe."""
    recipe = job.document.get("recipe")
    found = recipe.get("base_model") if isinstance(recipe, Mapping) else job.document.get("base_model")
    return found if isinstance(found, str) else None


def _deployments(context: Context, base: BaseView, projects: list[Project]) -> Iterator[BaseUser]:
    for project in track(context.progress, "Searching the deployments of projects", projects, "projects"):
        caller = Caller(project_id=project.project_id)
        for one in context.deployments.list(project.project_id):
            if _needs(context, caller, one, base):
                yield BaseUser(project, one.name, f"/deployments/{one.name}")


def _needs(context: Context, caller: Caller, deployment: Deployment, base: BaseView) -> bool:
    """Whether the newest revision of a deployment loads files of the model: as it is, or under an adapter."""
    for share in deployment.revision.shares:
        try:
            # The path that would be loaded: it is that of the base for runs, tuned models and exported adapters, too.
            if served_share(context, caller, share).path == base.model.path:
                return True
        except LuthierError:
            continue  # what cannot be served now does not answer with the model
    return False
