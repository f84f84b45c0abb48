"""Use cases: the models that can be asked by name: base models on this machine, and what a project has tuned."""

from __future__ import annotations

from pathlib import Path

from luthier.core.access import Caller
from luthier.core.base_model import LocalModel
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.frozen import Frozen
from luthier.core.stream import Served
from luthier.core.tuned_model import TunedModel
from luthier.service.audit_log import record
from luthier.service.base_models import base_models
from luthier.service.context import Context


class NamedModel(Frozen):
    """A model as it is listed. created_at: seconds since 1970. owned_by: `system`, or the project that tuned it."""

    model_id: str
    created_at: float
    owned_by: str


def list_models(context: Context, caller: Caller) -> list[NamedModel]:
    """What this project can ask: its tuned models, checkpoints that it was permitted, base models on this machine."""
    tuned = [*context.tuned_models.list(caller.project_id), *context.tuned_models.permitted(caller.project_id)]
    bases = [_base_view(name, model) for name, model in _base_models(context).items()]
    return [_tuned_view(model) for model in tuned] + bases


def get_model(context: Context, caller: Caller, name: str) -> NamedModel:
    """One model by its name. Raises NotFoundError, also for another project's."""
    found = _find(context, caller, name)
    return _tuned_view(found) if isinstance(found, TunedModel) else _base_view(name, found)


def delete_model(context: Context, caller: Caller, name: str) -> TunedModel:
    """Forget a tuned model of this project; its run and files stay. Returns it as it was.

    Raises NotFoundError, also for another project's; ConflictError for a base model, which all projects share, and for
    a checkpoint that this project was only permitted.
    """
    found = _find(context, caller, name)
    if isinstance(found, LocalModel):
        raise ConflictError(
            f"{name!r} is a base model, which all projects of this server share",
            expected="the name of a tuned model (ft:...)",
            do=f"on the machine itself: luthier models remove {name}",
        )
    if found.project_id != caller.project_id:
        raise ConflictError(
            f"{name!r} belongs to another project, which lets this one use it",
            expected="a model that this project has tuned",
            do="ask that project to delete it, or to take the permission back",
        )
    context.tuned_models.delete(caller.project_id, name)
    record(context, caller, "model.deleted", name, {"job_id": found.job_id, "step": found.step})
    return found


def served_model(context: Context, caller: Caller, name: str) -> Served:
    """A model as it is loaded: nothing is fetched for an ask.

    Raises NotFoundError where there is no such model, or its files or its base model are not on this machine.
    """
    found = _find(context, caller, name)
    if isinstance(found, LocalModel):
        return Served(path=found.path, sha256=found.sha256)
    plan = context.runs.plan(found.run_id)
    folder = Path(found.adapter_path)
    if not folder.is_dir():
        raise NotFoundError(
            f"the files of {name!r} are not on this machine any more",
            expected="the folder that its job has written",
            do="train it again, or copy the home of the machine where it was trained",
        )
    is_adapter = (folder / "adapter_config.json").is_file()
    base = _base_of(context, plan.base_model.name) if is_adapter else None
    return Served(
        path=str(folder) if base is None else base.path,
        sha256="" if base is None else base.sha256,
        adapter_path=None if base is None else str(folder),
        template=plan.base_model.template,
        precision=plan.training.precision,
        quantisation=plan.method.quantisation if is_adapter else None,
    )


def _find(context: Context, caller: Caller, name: str) -> TunedModel | LocalModel:
    if name.startswith("ft:") and "\0" not in name:  # which PostgreSQL takes in no text
        return context.tuned_models.get(caller.project_id, name)
    return _base_model(context, name)


def _base_of(context: Context, recipe_name: str) -> LocalModel:
    """The base of a tuned model, by the name in its recipe."""
    for model in _base_models(context).values():
        if model.name == recipe_name:
            return model
    name = next((known for known, own in base_models(context).items() if own == recipe_name), recipe_name)
    return _base_model(context, name)


def _base_models(context: Context) -> dict[str, LocalModel]:
    """The base models on this machine, by the name in the API."""
    from luthier.models import sources

    local = {model.name: model for model in sources.local_models(context.home)}
    return {name: local[own] for name, own in base_models(context).items() if own in local}


def _base_model(context: Context, name: str) -> LocalModel:
    """A base model on this machine by its name in the API: what a request names never becomes a path."""
    here = _base_models(context)
    wanted = (name, f"{name}@main") if name.startswith("hub:") else (name,)
    found = next((here[one] for one in wanted if one in here), None)
    if found is not None:
        return found
    is_known = name in base_models(context)
    raise NotFoundError(
        f"the base model {name!r} is not on this machine" if is_known else f"the model {name!r} does not exist",
        expected="a base model that is on this machine, or a model that a job of this project has made",
        do=f"on the machine of the server: luthier models pull {name}" if is_known else "list them: GET /v1/models",
    )


def _tuned_view(model: TunedModel) -> NamedModel:
    return NamedModel(model_id=model.model_id, created_at=model.created_at, owned_by=model.project_id)


def _base_view(name: str, model: LocalModel) -> NamedModel:
    folder = Path(model.path)
    created_at = folder.stat().st_mtime if folder.is_dir() else 0.0
    return NamedModel(model_id=name, created_at=created_at, owned_by="system")
