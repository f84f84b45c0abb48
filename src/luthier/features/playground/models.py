"""Use cases: the models of the playground: deployments, tuned models, runs and base models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from luthier.core.access import Caller
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import is_id
from luthier.core.stream import TextRequest
from luthier.features.serving.models import Routed, route, user_of
from luthier.features.serving.targets import local_base_models, served_target
from luthier.platform.home.context import Context

_MAX_RUNS: Final = 50


class PlaygroundModel(FrozenModel):
    """A model or run by its name.

    Attributes:
        name: By which it is asked.
        kind: Its group, in the plural.
        note: A hint beside the name.
        run_id: The run that made a tuned model, and is then not listed beside it.
    """

    name: str
    kind: str
    note: str = ""
    run_id: str | None = None


def list_playground_models(context: Context, caller: Caller) -> Sequence[PlaygroundModel]:
    """Deployments, tuned models, runs that have succeeded, and base models on this machine, the newest of each first.

    Of runs the newest 50.
    """
    found = [
        PlaygroundModel(
            name=one.name, kind="deployments", note=", ".join(share.target for share in one.revision.shares)
        )
        for one in context.deployments.list(caller.project_id)
    ]
    tuned = [*context.tuned_models.list(caller.project_id), *context.tuned_models.permitted(caller.project_id)]
    found += [
        PlaygroundModel(name=one.model_id, kind="tuned models", run_id=one.run_id if one.step is None else None)
        for one in tuned
    ]
    named = {one.run_id for one in found}
    for run in context.runs.of_project(caller.project_id, limit=_MAX_RUNS):
        made = None if run.result is None else run.result.adapter_path
        if run.status == "succeeded" and made is not None and run.run_id not in named and Path(made).is_dir():
            found.append(PlaygroundModel(name=run.run_id, kind="runs", note=f"{run.base_model}, {run.method}"))
    return [*found, *(PlaygroundModel(name=name, kind="base models") for name in local_base_models(context))]


def route_to(context: Context, caller: Caller, name: str, requests: Sequence[TextRequest]) -> Routed:
    """Who answers to a name, or what a run of the project has made. Raises NotFoundError and ConflictError."""
    if is_id(name, "run"):
        return Routed(name, name, served_target(context, caller, name))
    return route(context, caller, name, user_of(caller, requests))
