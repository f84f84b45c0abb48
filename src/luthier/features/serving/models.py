"""Use cases: the models available by name: base models on this machine, tuned models and deployments of a project."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import Field

from luthier.core.access import Caller
from luthier.core.conversation import AS_THEY_ARE, OptedTurns
from luthier.core.engine_rates import NUM_MANY, EngineSpeed, rates_for
from luthier.core.errors import ConflictError, LuthierError, NotFoundError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import is_id, sha256_document
from luthier.core.recipe import TemplateOption
from luthier.core.records.base_model import LocalModel
from luthier.core.records.deployment import NAME, Deployment
from luthier.core.stream import Decoding, LoadedModel, RequestFeature, Served, TextRequest
from luthier.core.task_head import TaskHead, TaskHeadKind, readable_task_head_in, task_head_in
from luthier.features.models.names import is_tuned_name
from luthier.features.models.store import TunedModel
from luthier.features.models.uses import refuse_in_use, remove_unused
from luthier.features.serving.engine_choice import known_copy
from luthier.features.serving.model_facts import Capability, capabilities_of, context_tokens_of
from luthier.features.serving.targets import (
    base_model,
    local_base_models,
    served_share,
    served_target,
)
from luthier.platform.audit_log.service import record
from luthier.platform.db.store import LRUCache
from luthier.platform.home.context import Context

_folders: Final[LRUCache[str]] = LRUCache(1_000)
"""The folder that a revision of a deployment routes most users to, by home, deployment and revision."""


class EngineView(FrozenModel):
    """An engine of a model.

    Attributes:
        engine: Its name.
        is_loaded: Whether the model is in memory with it.
        min_answers: With how many answers at once it begins to be the faster one; None where there is no lower limit.
        max_answers: With how many answers at once it is still the faster one; None where there is no upper limit.
        features: Of requests that it answers whatever the load is.
        speed: As timed on this machine; None where it was not timed beside another one.
    """

    engine: str
    is_loaded: bool
    min_answers: int | None = None
    max_answers: int | None = None
    features: tuple[RequestFeature, ...] = ()
    speed: EngineSpeed | None = None


def engines_of(served: Served, loaded: Sequence[LoadedModel]) -> tuple[EngineView, ...]:
    """The engines that answer for a model, the one for a single answer first.

    Args:
        served: The model.
        loaded: What is in memory.
    """

    def is_loaded(model: Served) -> bool:
        return any(one.answers(model) for one in loaded)

    own = served.fallback
    if own is None:
        return (EngineView(engine=served.engine, is_loaded=is_loaded(served)),)
    rates = rates_for(served.rates, 1)
    copy_view = EngineView(engine=served.engine, is_loaded=is_loaded(served))
    own_view = EngineView(engine=own.engine, is_loaded=is_loaded(own), features=served.hands_over)
    if rates is None:
        return copy_view, own_view
    copy_view = copy_view.model_copy(update={"speed": rates.engine})
    own_view = own_view.model_copy(update={"speed": rates.fallback})
    first, second = (own_view, copy_view) if rates.takes_fallback(1) else (copy_view, own_view)
    # One is the faster at every load that was timed: there is no number of answers at which they change.
    if (at := rates.switch_at) is None:
        return first, second
    return first.model_copy(update={"max_answers": at - 1}), second.model_copy(update={"min_answers": at})


def describe_engines(engines: Sequence[EngineView]) -> str:
    """Which engine answers when, in one line."""
    return "; ".join(_describe(one, is_only=len(engines) == 1) for one in engines)


def _describe(view: EngineView, *, is_only: bool) -> str:
    when = []
    if view.max_answers is not None:
        when.append(f"up to {view.max_answers:,} {'answer' if view.max_answers == 1 else 'answers'} at once")
    if view.min_answers is not None:
        when.append(f"from {view.min_answers:,} answers at once on")
    if view.features:
        when.append(f"always for {', '.join(view.features)}")
    words = view.engine if is_only or not when else f"{view.engine} {', '.join(when)}"
    if (speed := view.speed) is None:
        return words
    many = "" if speed.many is None else f", {speed.many:.1f} of {NUM_MANY}"
    return f"{words} ({speed.alone:.1f} new tokens/s alone, {speed.crowd:.1f} of {speed.num_crowd:,}{many} at once)"


class NamedModel(FrozenModel):
    """An entry of the model list.

    Attributes:
        model_id: Its name in the API.
        created_at: Seconds since 1970.
        owned_by: `system`, or the project that tuned it.
        template_options: Options of the chat template that it was trained with.
        opted_turns: How its conversations are rewritten by default.
        decoding: Its decoding path; None while it is not loaded.
        task_head: Its task head; None for a text model.
        engines: What answers for it; empty where its files are not on this machine.
        max_model_len: The most tokens of prompt and answer together; None where its files do not say it.
        capabilities: Which requests it answers; empty where its files are not on this machine.
    """

    model_id: str
    created_at: float
    owned_by: str
    template_options: dict[str, TemplateOption] = Field(default_factory=dict)
    opted_turns: OptedTurns = AS_THEY_ARE
    decoding: Decoding | None = None
    task_head: TaskHeadKind | None = None
    engines: tuple[EngineView, ...] = ()
    max_model_len: int | None = None
    capabilities: dict[Capability, bool] = Field(default_factory=dict)


def list_models(context: Context, caller: Caller) -> list[NamedModel]:
    """The models of a project: its deployments and tuned models, permitted checkpoints, base models on this machine.

    If the server was started for specific models, only those.
    """
    if context.only is not None:
        return [_only_view(context, name, served) for name, served in context.only.items()]
    # Deployments first: their names win over models of the same name when a request is routed.
    here = local_base_models(context, caller.project_id)
    routes = [_view(context, caller, one, one.name, here) for one in context.deployments.list(caller.project_id)]
    tuned = [*context.tuned_models.list(caller.project_id), *context.tuned_models.permitted(caller.project_id)]
    bases = [_view(context, caller, model, name, here) for name, model in here.items()]
    return [*routes, *(_view(context, caller, model, model.model_id, here) for model in tuned), *bases]


def get_model(context: Context, caller: Caller, name: str) -> NamedModel:
    """One model by its name.

    Raises:
        NotFoundError: The project has no such model, and shares none of that name.
    """
    if context.only is not None:
        return _only_view(context, name, _only(context.only, name))
    return _view(context, caller, _find(context, caller, name), name, local_base_models(context))


def delete_model(context: Context, caller: Caller, name: str) -> TunedModel:
    """Delete a tuned model of this project and return it; its run and files are kept.

    Raises:
        NotFoundError: The project has no such model.
        ConflictError: It is a base model, a permitted checkpoint or a deployment, a deployment routes to it, or a run
            that has not ended needs it.
    """
    if context.only is not None:
        raise ConflictError(
            f"{name!r} is served, not kept here", expected="a server of a home", do="ask the server of the home"
        )
    found = _find(context, caller, name)
    if isinstance(found, Deployment):
        raise ConflictError(
            f"{name!r} is a deployment, not a model",
            expected="the name of a tuned model (ft:...)",
            do=f"luthier deployments {name} --remove, or DELETE /api/v1/deployments/{name}",
        )
    if isinstance(found, LocalModel):
        raise ConflictError(
            f"{name!r} is a base model, which all projects of this server share",
            expected="the name of a tuned model (ft:...)",
            do=f"on the machine itself: luthier models rm {name}",
        )
    if found.project_id != caller.project_id:
        raise ConflictError(
            f"{name!r} belongs to another project, which lets this one use it",
            expected="a model that this project has tuned",
            do="ask that project to delete it, or to take the permission back",
        )
    if names := context.deployments.routing_to(name):
        raise ConflictError(
            f"{name!r} is what {len(names)} deployments route to",  # no names: they may belong to another project
            expected="a model that no deployment routes to",
            do="deploy another one first, or remove the deployment",
        )

    def delete() -> None:
        # With its entry in the audit log, or not at all.
        with context.database.transaction():
            context.tuned_models.delete(caller.project_id, name)
            record(context, caller, "model.deleted", name, {"job_id": found.job_id, "step": found.step})

    remove_unused(context, lambda: refuse_in_use(context, caller, name), delete)
    return found


@dataclass(frozen=True, slots=True)
class Routed:
    """The target of a request.

    Attributes:
        model: The name that was requested.
        target: The resolved target; differs from `model` only for deployments.
        served: How the target is loaded.
        is_canary: Whether the target is the canary of a deployment.
    """

    model: str
    target: str
    served: Served
    is_canary: bool = False


def served_model(context: Context, caller: Caller, name: str, user: str = "") -> Served:
    """A model in loadable form: requests never download anything. user, errors: see `route`."""
    return route(context, caller, name, user).served


def route(context: Context, caller: Caller, name: str, user: str = "") -> Routed:
    """Resolve a name to a target.

    Args:
        context: The home.
        caller: Whose project it is.
        name: The name in the request.
        user: The end user, by which a deployment chooses its target; the same user gets the same one.

    Raises:
        NotFoundError: There is no such model, or its files or base model are not on this machine.
    """
    if context.only is not None:
        return Routed(name, name, _only(context.only, name))
    deployment = _deployment(context, caller, name)
    if deployment is None:
        # Names of runs are never routed, even where one would fit: callers are to depend on a name that can be moved.
        if is_id(name, "run"):
            raise NotFoundError(
                f"the model {name!r} does not exist: runs are asked by the name of a deployment",
                expected="a model or a deployment of this project",
                do=f"give it a name: luthier deploy {name} --as NAME",
            )
        return Routed(name, name, fastest(context, served_target(context, caller, name)))
    # By a digest of the user, so that the choice needs no state and is the same on every server.
    share = deployment.chosen(user)
    is_canary = share.target == deployment.revision.canary
    return Routed(name, share.target, fastest(context, served_share(context, caller, share)), is_canary)


def fastest(context: Context, served: Served) -> Served:
    """A model as its proved copy, where one was made and found faster; nothing is made for a request."""
    return (known_copy(context, served) if context.settings.serving_engine == "auto" else None) or served


def head_of(served: Served) -> TaskHead | None:
    """The task head of a model; None for a text model.

    Raises:
        ModelSourceError: Its file is damaged.
    """
    return task_head_in(served.adapter_path or served.path)


def head_of_deployment(context: Context, caller: Caller, deployment: Deployment) -> TaskHead | None:
    """The task head of a deployment's first target.

    None for a text model, a damaged head, or missing files.
    """
    # A revision never changes, so lists of deployments find the folder once; the head itself is read each time.
    key = f"{context.home} {deployment.deployment_id} {deployment.revision.number}"
    folder = _folders.find(key)
    if folder is None:
        served = _of_deployment(context, caller, deployment)
        folder = None if served is None else _folders.keep(key, served.adapter_path or served.path)
    return None if folder is None else readable_task_head_in(folder)


def user_of(caller: Caller, requests: Sequence[TextRequest], named: str | None = None) -> str:
    """The identity for routing: the user named in the request, otherwise the key with the beginning of the
    conversation.

    So all turns of a conversation go to the same target without an explicit session.
    """
    if named:
        return f"user {named}"
    request = requests[0] if requests else TextRequest()
    messages = [] if request.conversation is None else request.conversation.messages
    first = next((message for message in messages if message.role == "user"), None)
    # Only the parts that all turns share: the system prompt and the first user message.
    begin = [message.content for message in messages if message.role in ("system", "developer")][:1]
    words = [caller.key_id, request.text, *begin, None if first is None else first.content]
    return f"talk {sha256_document([str(word or '') for word in words])}"


def _find(context: Context, caller: Caller, name: str) -> TunedModel | LocalModel | Deployment:
    if is_tuned_name(name):
        return context.tuned_models.get(caller.project_id, name)
    return _deployment(context, caller, name) or base_model(context, name, caller.project_id)


def _deployment(context: Context, caller: Caller, name: str) -> Deployment | None:
    """Names that cannot be deployments are not looked up."""
    return context.deployments.find(caller.project_id, name) if NAME.fullmatch(name) else None


def _only(only: Mapping[str, Served], name: str) -> Served:
    # Once: it may look at the files of the model.
    if (found := only.get(name)) is not None:
        return found
    raise NotFoundError(
        f"the model {name!r} is not served here", expected=f"one of {', '.join(only)}", do="ask one of these"
    )


def _only_view(context: Context, name: str, served: Served) -> NamedModel:
    place = Path(served.adapter_path or served.path)
    created_at = place.stat().st_mtime if place.exists() else 0.0
    return _as_served(context, name, created_at, "system", served)


def _view(
    context: Context,
    caller: Caller,
    found: TunedModel | LocalModel | Deployment,
    name: str,
    here: Mapping[str, LocalModel],
) -> NamedModel:
    """The list entry of a model. here: the base models on this machine."""
    if isinstance(found, LocalModel):
        folder = Path(found.path)
        created_at = folder.stat().st_mtime if folder.is_dir() else 0.0
        served: Served | None = Served(path=found.path, sha256=found.sha256)
        return _as_served(context, name, created_at, "system", served)
    if isinstance(found, Deployment):
        served = _of_deployment(context, caller, found)
        return _as_served(context, name, found.created_at, found.project_id, served)
    served, base = _of_tuned(context, found), None
    if served is not None and served.adapter_path is not None:
        base = next((one.path for one in here.values() if one.sha256 == served.sha256), None)
    return _as_served(context, name, found.created_at, found.project_id, served, base)


def _as_served(
    context: Context, name: str, created_at: float, owner: str, served: Served | None, base: str | None = None
) -> NamedModel:
    """The list entry of a loadable model.

    Args:
        context: The home.
        name: Of the entry.
        created_at: In seconds since 1970.
        owner: A project, or `system`.
        served: None if its files are missing.
        base: The folder of its base where `served` does not name it.
    """
    if served is None:
        return NamedModel(model_id=name, created_at=created_at, owned_by=owner)
    asked = served if context.only is not None else fastest(context, served)
    in_memory = context.inference_client.loaded
    loaded = next((one for one in in_memory if one.answers(asked)), None)
    head = readable_task_head_in(served.adapter_path or served.path)
    read = served if base is None else served.model_copy(update={"path": base})
    return NamedModel(
        model_id=name,
        created_at=created_at,
        owned_by=owner,
        template_options=dict(served.template_options),
        opted_turns=served.opted_turns,
        decoding=None if loaded is None else loaded.decoding,
        task_head=None if head is None else head.kind,
        engines=engines_of(asked, in_memory),
        max_model_len=context_tokens_of(read),
        capabilities=capabilities_of(read, None if head is None else head.kind),
    )


def _of_tuned(context: Context, tuned: TunedModel) -> Served | None:
    """Its loadable form, from its run's files only: lists are long."""
    try:
        plan = context.runs.plan(tuned.run_id)
    except NotFoundError:
        return None
    # Full fine-tuning leaves whole weights in the same folder, without an adapter_config.json.
    is_adapter = (Path(tuned.adapter_path) / "adapter_config.json").is_file()
    return Served(
        path=tuned.adapter_path,
        sha256=plan.base_model.sha256 if is_adapter else "",
        adapter_path=tuned.adapter_path if is_adapter else None,
        precision=plan.training.precision,
        quantisation=plan.method.quantisation if is_adapter else None,
        template_options=tuple(sorted(plan.data.template_options.items())),
        opted_turns=OptedTurns.of(plan.data),
    )


def _of_deployment(context: Context, caller: Caller, deployment: Deployment) -> Served | None:
    """Its first target; None if its files are not on this machine."""
    share = deployment.revision.shares[0]  # the canary is the last one
    with contextlib.suppress(LuthierError):
        return served_share(context, caller, share)
    return None
