"""A model by any of its names, as commands on this machine take it.

    a run · a tuned model (ft:...) or a checkpoint of it · a deployment · a base model
    the folder of a model, of an adapter or of an export · a GGUF file

Every command that takes a model resolves its name here. A request over the network never names a file:
`features/serving/models.py` finds what it may name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ids import is_id, project_of_tuned_name
from luthier.core.records.base_model import CatalogEntry, LocalModel
from luthier.core.system.files import expanded
from luthier.core.text.suggest import suggest_ids
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import base_models

if TYPE_CHECKING:
    from luthier.core.records.deployment import Deployment
    from luthier.features.models.store import TunedModel

ANY_MODEL: Final = "a run, a tuned model (ft:...), a deployment, a base model, a folder or a GGUF file"
"""What a name may be, as `platform/cli/command.py` says it in help texts, too."""
_PREFIXES: Final = ("hub:", "layers:", "http://", "https://", ".", "~")
_ADAPTER: Final = "adapter_config.json"
_LOCAL: Final = Caller()


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """What a name means.

    Attributes:
        asked: The name as given.
        name: What has it: the id of a run, the name of a checkpoint (`ft:...`), a base model as recipes name it, or a
            path. Outcomes of jobs and what deployments route to come by their run.
        run_id: The run that has made it; None for a base model, a folder and a file.
        tuned: The tuned model, where the name is that of one.
        deployment: The deployment, where the name is that of one.
    """

    asked: str
    name: str
    run_id: str | None = None
    tuned: TunedModel | None = None
    deployment: Deployment | None = None

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is what a run had learned after one of its epochs."""
        return self.tuned is not None and self.tuned.step is not None

    @property
    def note(self) -> str:
        """What a deployment routes to, as a sentence; empty for other names."""
        if self.deployment is None:
            return ""
        revision = self.deployment.revision
        main = revision.main_share
        rest = ", ".join(one.target for one in revision.shares if one != main)
        others = f"; its other targets are left out: {rest}" if rest else ""
        project_id = self.deployment.project_id
        of = "" if project_id == _LOCAL.project_id else f" of the project {project_id}"
        return f"{self.asked} is a deployment{of}, whose revision {revision.number} routes to {main.target}{others}."


def find_model(context: Context, name: str, caller: Caller = _LOCAL, *, takes_exports: bool = True) -> ResolvedModel:
    """What a name means.

    Args:
        context: The home.
        name: Of any kind, see above. A deployment goes before a folder of the same name here: write `./NAME` for that.
        caller: Whose deployments and tuned models these are. A command takes those of all projects: deployments of the
            project that it works in first, then of `default`, then the only one of the name.
        takes_exports: Whether a deployment may route to an export, in a separate format and maybe with fewer bits.

    Raises:
        NotFoundError: No model has the name; the nearest ones are named.
        RequestError: The name is that of a deployment of an export, and none is taken, or of deployments of several
            projects, neither of which the command works in.
    """
    found = find_unheld(context, name, caller, takes_exports=takes_exports)
    if context.model_leases is not None:
        model_id = None if found.tuned is None else found.tuned.model_id
        context.model_leases.hold(name, found.name, found.run_id, model_id)
    return found


def find_unheld(context: Context, name: str, caller: Caller = _LOCAL, *, takes_exports: bool = True) -> ResolvedModel:
    """As `find_model`, by who does not use the model: a command keeps none of it from removal.

    Args:
        context: The home.
        name: Of any kind.
        caller: Whose deployments and tuned models these are.
        takes_exports: Whether a deployment may route to an export.

    Raises:
        NotFoundError: No model has the name.
        RequestError: The name is that of a deployment that cannot be taken.
    """
    # Not needed by a training, whose start would wait for it.
    from luthier.core.records.deployment import NAME

    if is_id(name, "run"):
        return ResolvedModel(name, name, run_id=name)
    if is_tuned_name(name):
        # `ft:BASE:PROJECT:SUFFIX:ID`: a command, which is in no project, takes the models of all.
        project_id = project_of_tuned_name(name) if caller == _LOCAL else None
        try:
            tuned = context.tuned_models.get(project_id or caller.project_id, name)
        except NotFoundError as error:
            raise _no_such_model(context, name, caller) from error
        return ResolvedModel(name, tuned.run_id if tuned.step is None else name, tuned.run_id, tuned)
    if NAME.fullmatch(name) and (found := _deployment_named(context, name, caller)) is not None:
        return _of_deployment(context, found, takes_exports=takes_exports)
    if (run_id := _run_of_folder(context, name)) is not None:
        return ResolvedModel(name, run_id, run_id)
    known = base_models(context)
    # A name of the catalogue is never a folder here; a folder has priority over other short names.
    if name.startswith(_PREFIXES) or "/" in name or ".gguf" in name or (name not in known and _is_there(name)):
        return ResolvedModel(name, name)
    if name not in known:
        raise _no_such_model(context, name, caller)
    return ResolvedModel(name, name if _is_there(name) else known[name])


def runs_of(context: Context, names: Iterable[str]) -> tuple[str, ...]:
    """The runs that have made models, each once; a checkpoint and a deployment lead to theirs, too.

    Args:
        context: The home.
        names: As `find_model` takes them, and addresses of servers, which no run has made.

    Raises:
        NotFoundError: No model has one of the names.
    """
    found = (find_model(context, name).run_id for name in names)
    return tuple(dict.fromkeys(run_id for run_id in found if run_id is not None))


def is_tuned_name(name: str) -> bool:
    """Whether it has the form of a tuned model's name, and PostgreSQL takes it in a text."""
    # PostgreSQL has no way to store a zero character.
    return name.startswith("ft:") and "\0" not in name


def is_adapter_folder(path: Path) -> bool:
    """Whether it contains an adapter, and no model."""
    return (path / _ADAPTER).is_file() and not (path / "config.json").is_file()


def base_of_adapter(context: Context, folder: Path, sha256: str | None = None) -> tuple[str, LocalModel | None]:
    """The base model that an adapter names, and that model where it is on this machine.

    It is known by its place, its repository on the hub, or the last part of its name.

    Args:
        context: The home.
        folder: Of the adapter.
        sha256: The digest of the base where it is known: a model with these weights goes before others.

    Raises:
        RequestError: The adapter names none.
    """
    from luthier.ml.inference.models import catalog, sources

    try:
        written = str(json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{folder} has an {_ADAPTER} that names no base model",
            expected="an adapter as PEFT writes it, with base_model_name_or_path",
            do="export it again, or write the name of its base model there",
        ) from error
    local, known = sources.local_models(context.home), catalog.entries()
    named = [model for model in local if written in _names_of(model, known.get(model.name))]
    same = [model for model in local if model.sha256 == sha256]
    # Of equal weights the one that is named: another one may have another chat template.
    found = [model for model in named if model in same] or same or named
    return written, next(iter(found), None)


def _names_of(model: LocalModel, entry: CatalogEntry | None) -> tuple[str, ...]:
    """The names by which adapters know a base model."""
    repositories = [model.name.removeprefix("hub:"), *([entry.hub] if entry is not None and entry.hub else [])]
    places = (model.path, model.name, Path(model.name).name)
    return (*places, *(one.partition("@")[0] for one in repositories))


def _deployment_named(context: Context, name: str, caller: Caller) -> Deployment | None:
    if caller != _LOCAL:
        return context.deployments.find(caller.project_id, name)
    found = context.deployments.named(name)
    meant = nearest_deployment(found, (context.cache_project_id, caller.project_id))
    if meant is None and found:
        names = {project.project_id: project.name for project in context.access.projects()}
        projects = ", ".join(names[one.project_id] for one in found)
        raise RequestError(
            f"{name!r} is a deployment of the projects {projects}",
            expected="the name of one deployment",
            do="name what it routes to, which `luthier deployments --project P` shows",
        )
    return meant


def nearest_deployment(named: Sequence[Deployment], project_ids: Sequence[str]) -> Deployment | None:
    """Which of the deployments of one name is meant: that of the first of these projects, else the only one.

    Args:
        named: The deployments of all projects.
        project_ids: The projects, the nearest first.
    """
    own = (one for project_id in project_ids for one in named if one.project_id == project_id)
    return next(own, named[0] if len(named) == 1 else None)


def _of_deployment(context: Context, deployment: Deployment, *, takes_exports: bool) -> ResolvedModel:
    share = deployment.revision.main_share
    if share.folder is None:
        target = find_unheld(context, share.target, Caller(project_id=deployment.project_id))
    elif takes_exports:
        target = ResolvedModel(share.target, share.folder)
    else:
        raise RequestError(
            f"{deployment.name} routes to an export, {share.folder}",
            expected="a model in the form in which it was trained: a run, a tuned model or a base model",
            do="name the run that the export was made from; `luthier chat` and `luthier serve` can use the export",
        )
    return replace(target, asked=deployment.name, deployment=deployment)


def _run_of_folder(context: Context, name: str) -> str | None:
    """The run whose result is in a folder of this home: its plan knows more than the folder does."""
    path = expanded(name)
    if "/" not in name or not path.is_dir():
        return None
    place, runs = path.resolve(), context.settings.runs_folder.resolve()
    run_id = place.relative_to(runs).parts[0] if place.is_relative_to(runs) and place != runs else ""
    if not is_id(run_id, "run"):
        return None
    try:
        result = context.runs.get(run_id).result
    except NotFoundError:
        return None
    made = None if result is None else result.adapter_path
    return run_id if made is not None and Path(made).resolve() == place else None


def _is_there(name: str) -> bool:
    # No file system takes a longer name; to look for one is an error.
    return 0 < len(name) < 256 and expanded(name).exists()


def _no_such_model(context: Context, name: str, caller: Caller) -> NotFoundError:
    own = {caller.project_id, context.cache_project_id} if caller == _LOCAL else {caller.project_id}
    deployed = [one.name for project_id in sorted(own) for one in context.deployments.list(project_id)]
    tuned = [one.model_id for project_id in sorted(own) for one in context.tuned_models.list(project_id)]
    return NotFoundError(
        f"the model {name[:255]!r} does not exist; {suggest_ids(name, [*deployed, *tuned, *base_models(context)])}",
        expected=ANY_MODEL,
        do="list them: luthier models list, luthier deployments, luthier runs list; a model on the hub is written "
        "hub:ORGANISATION/NAME",
    )
