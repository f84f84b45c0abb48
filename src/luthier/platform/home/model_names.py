"""Base models by the name that the API knows them by: never a path, regardless of their source."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ids import is_id
from luthier.platform.home.context import Context

_HUB: Final = "hub:"
_LAYERS: Final = "layers:"
"""What names of students begin with that are made of the layers of a teacher: `layers:6@TEACHER`."""


def base_models(context: Context) -> dict[str, str]:
    """Name in the API -> name in a recipe, of all base models: the catalogue's, then those that were pulled.

    A model that was made from a folder or a file is known by the last part of its path; one that is made of the layers
    of such a model is, too.
    """
    from luthier.ml.inference.models import catalog, sources

    found = {name: name for name in catalog.entries()}
    for model in sources.local_models(context.home):
        name = model.name
        if model.source in ("folder", "gguf"):
            name = Path(model.name).stem if model.source == "gguf" else Path(model.name).name
        elif model.source == "layers":
            layers, _, teacher = model.name.partition("@")
            name = f"{layers}@{Path(teacher).name}" if teacher.startswith("/") else model.name
        # setdefault: a folder that is called like a model of the catalogue does not take its name.
        found.setdefault(name, model.name)
    return found


def may_use_base(context: Context, project_id: str | None, recipe_name: str) -> bool:
    """Whether a project may use a base model, by its name in a recipe: all but students of another project's run.

    The layers of a run's model have learned what the run has. None, a person at this machine, may use all.
    """
    run_id = recipe_name.rpartition("@")[2] if recipe_name.startswith(_LAYERS) else ""
    return project_id is None or not is_id(run_id, "run") or context.runs.project_of(run_id) == project_id


def stored_names(name: str) -> tuple[str, ...]:
    """The names that a base model may be stored under: one of the hub without a revision is that of its default branch.

    Args:
        name: As it is asked for.
    """
    return (name, f"{name}@main") if name.startswith(_HUB) else (name,)


def find_base_model(context: Context, name: str, project_id: str | None = None) -> str:
    """The name in a recipe of the base model that the API knows by this name.

    Args:
        context: The home.
        name: In the API.
        project_id: Only a model that this project may use; None for any.

    Raises:
        NotFoundError: No base model has this name.
    """
    known = {one: own for one, own in base_models(context).items() if may_use_base(context, project_id, own)}
    found = next((known[one] for one in stored_names(name) if one in known), None)
    if found is None:
        raise NotFoundError(
            f"the base model {name!r} is not known here",
            expected=f"one of {', '.join(known)}",
            do="choose one of these; others come with `luthier models pull` on the server",
        )
    return found


def local_base_models(context: Context, project_id: str | None = None) -> list[str]:
    """The base models on this machine that a project may use (None: all), by the names that the API knows them by."""
    from luthier.ml.inference.models import sources

    there = {model.name for model in sources.local_models(context.home)}
    found = base_models(context).items()
    return sorted(name for name, own in found if own in there and may_use_base(context, project_id, own))


def model_digest(context: Context, name: str) -> str:
    """The digest of a base model on this machine, by the name that the API knows it by; empty where it is not here."""
    from luthier.ml.inference.models import sources

    recipe_name = base_models(context).get(name)
    return next((model.sha256 for model in sources.local_models(context.home) if model.name == recipe_name), "")


def check_is_local(context: Context, name: str) -> None:
    """Raise RequestError for a base model that would have to be fetched first, or that is unknown."""
    there = local_base_models(context)
    if name not in there:
        raise RequestError(
            f"the base model {name[:100]!r} is not on this machine",
            expected=f"one of {', '.join(there)}" if there else "a base model that was pulled",
            do="choose one of these; `luthier models pull NAME` on the server adds another",
        )
