"""Use cases of the Tinker API: training clients, passes and steps, and sampling. What is saved: `checkpoints`.

What is wrong with a numbered request becomes its result, and does not refuse the call that sends it: a refused call
would leave a gap in the numbers, behind which all later requests of the client wait.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, NotAllowedError, NotFoundError, RequestError
from luthier.core.ids import new_id
from luthier.core.plan import Plan
from luthier.core.records.base_model import LocalModel
from luthier.features.serving.targets import base_model, local_base_models
from luthier.features.tinker_api import wire
from luthier.features.tinker_api.live import Answer, LiveModel, LiveSampler, LiveSession, PendingRequest
from luthier.features.tinker_api.records import AdapterOptions, TinkerCheckpoint, TinkerModel, parse_path
from luthier.features.usage.service import cost_of
from luthier.platform.audit_log.service import record
from luthier.platform.auth.service import charge_tokens
from luthier.platform.auth.store import Use
from luthier.platform.home.context import Context

_HUB: Final = "hub:"
_ADAM: Final = "adamw"


def find_base(context: Context, name: str, project_id: str | None = None) -> tuple[str, LocalModel]:
    """A base model on this machine, and its name in the API.

    Args:
        context: The home.
        name: Its name in the API, or its repository on the hub, `ORGANISATION/NAME`. Where no model came from there,
            the one that is called NAME here, in any case: loops for the hosted service name all models in this form.
        project_id: Only a model that this project may use; None for any.

    Raises:
        NotFoundError: it is not on this machine.
    """
    here = local_base_models(context, project_id)
    last = name.rpartition("/")[2].lower()
    for own in (name, f"{_HUB}{name}", f"{_HUB}{name}@main", *(one for one in here if one.lower() == last)):
        if own in here:
            return own, here[own]
    return name, base_model(context, name, project_id)


def hub_name(name: str) -> str | None:
    """The repository of a base model on the hub, where clients may get its tokenizer; None for other models."""
    return name.removeprefix(_HUB).partition("@")[0] if name.startswith(_HUB) else None


def refuse_optimizer(kind: str) -> None:
    """Raise RequestError for another optimizer than AdamW."""
    if kind != _ADAM:
        raise RequestError(
            f"the optimizer {kind[:100]!r}", expected=_ADAM, do="leave optimizer out, or use AdamOptimizerConfig()"
        )


def session_of(context: Context, caller: Caller, session_id: str) -> LiveSession:
    """A session that a caller may change: its own, or with the scope `train` any of the project.

    Raises:
        NotFoundError: There is no such session in the project.
        NotAllowedError: Another key has opened it, and the caller may not train.
    """
    found = context.tinker_sessions.session(caller.project_id, session_id)
    if not caller.may("train") and caller.key_id != found.caller.key_id:
        raise NotAllowedError(
            f"the key {caller.name!r} for the session {session_id}, which another key has opened",
            expected="the key that has opened the session, or the scope train",
            do="make a ServiceClient of your own with this key",
        )
    return found


def fetch(context: Context, caller: Caller, request_id: str) -> PendingRequest:
    """A request whose result is to be fetched.

    Raises:
        NotFoundError: There is no such request in the project, or its result was fetched.
        NotAllowedError: The caller lacks the scope that the request itself needs.
    """
    found = context.tinker_sessions.known(caller.project_id, request_id)
    if found is not None and not caller.may(found.scope):
        raise NotAllowedError(
            f"the key {caller.name!r} has the scopes {', '.join(caller.scopes)}",
            expected=f"the scope {found.scope} for the result of the request {request_id}",
            do="use or make a key that has it",
        )
    return context.tinker_sessions.fetch(caller.project_id, request_id)


def create_model(
    context: Context,
    caller: Caller,
    session: LiveSession,
    number: int,
    base_name: str,
    options: Mapping[str, Any],
    user_metadata: dict[str, Any] | None,
) -> PendingRequest:
    """A new training client.

    Args:
        context: The home.
        caller: Who makes it.
        session: Its session.
        number: Of the client in its session.
        base_name: The base model.
        options: Rank and the rest; a seed of None is drawn.
        user_metadata: Labels of the client.

    Raises:
        NotFoundError: The base model is not on this machine.
        BusyError: There are as many clients as the server holds.
    """
    name, base = find_base(context, base_name, caller.project_id)
    seed = options.get("seed")
    # A drawn seed is stored with the client, so that a run can be repeated; 31 bits, as recipes have it.
    adapter = AdapterOptions(**{**options, "seed": secrets.randbelow(2**31) if seed is None else seed % 2**31})
    return _new_model(context, caller, session, number, (name, base, adapter), user_metadata, None, optimizer=False)


def create_from_state(
    context: Context,
    caller: Caller,
    session: LiveSession,
    number: int,
    path: str,
    user_metadata: dict[str, Any] | None,
    *,
    base_name: str | None,
    optimizer: bool,
) -> PendingRequest:
    """A new training client that continues from a saved state.

    Args:
        context: The home.
        caller: Who makes it.
        session: Its session.
        number: Of the client in its session.
        path: Of the saved state, `tinker://...`.
        user_metadata: Labels of the client.
        base_name: The base model that the client names; None takes that of the state.
        optimizer: Whether moments and step count are restored.

    Raises:
        NotFoundError: The project has no such state, or its base model is not on this machine.
        RequestError: Weights for sampling hold no state; another base model was named.
    """
    saved, model = saved_state(context, caller, path)
    name, base = find_base(context, model.base_model)
    # By digest and not by name: one model may have several names.
    if base_name is not None and find_base(context, base_name, caller.project_id)[1].sha256 != base.sha256:
        raise RequestError(
            f"the base model {base_name[:100]!r} for a state of {model.base_model}",
            expected=f"{model.base_model}, whose adapter was saved",
            do="leave base_model out",
        )
    given = (name, base, model.options)
    folder = folder_of(context, saved, model)
    return _new_model(context, caller, session, number, given, user_metadata, folder, optimizer=optimizer)


def _new_model(
    context: Context,
    caller: Caller,
    session: LiveSession,
    number: int,
    given: tuple[str, LocalModel, AdapterOptions],
    user_metadata: dict[str, Any] | None,
    load: str | None,
    *,
    optimizer: bool,
) -> PendingRequest:
    sessions = context.tinker_sessions
    request_id = f"{session.session_id}:create:{number}"
    if (found := sessions.known(caller.project_id, request_id)) is not None:
        return found
    name, base, options = given
    # The place is taken before the request is sent, so that two calls at once cannot exceed the limit.
    live = sessions.add_model(session, number)

    def send() -> dict[str, Any]:
        document = {"base": base.model_dump(mode="json"), "options": options.model_dump(mode="json")}
        return {"op": "create", "model": live.model_id, "load": load, "optimizer": optimizer} | document

    def finish(result: dict[str, Any]) -> Answer:
        made = TinkerModel(
            model_id=live.model_id,
            project_id=caller.project_id,
            session_id=session.session_id,
            run_id=new_id("run"),
            base_model=name,
            options=options,
            plan=Plan.model_validate(result["plan"]),
            user_metadata=user_metadata,
            owner=caller.name,
        )
        facts = {"base_model": name, "rank": options.rank, "from_state": load is not None}
        # Only after the process has made it: what is in the database has existed.
        with context.database.transaction():
            context.tinker.add_model(made)
            record(context, caller, "tinker_model.created", live.model_id, facts)
        loaded = {"path": None, "type": "load_weights"} if load is not None else {"type": "create_model"}
        return Answer({"model_id": live.model_id, **loaded})

    def drop_if_failed(done: Future[Answer]) -> None:
        if done.result().error is not None:
            sessions.drop_model(live)

    try:
        made = sessions.start(session, request_id, send, finish)
    except LuthierError:
        sessions.drop_model(live)
        raise
    # Also called where the request has failed already.
    made.result.add_done_callback(drop_if_failed)
    return made


def saved_state(context: Context, caller: Caller, path: str) -> tuple[TinkerCheckpoint, TinkerModel]:
    """A state that training can continue from, and the client that has saved it.

    Raises:
        NotFoundError: The project has no such state.
        RequestError: The path has another form, or names weights for sampling.
    """
    model_id, kind, name = parse_path(path)
    if kind != "training":
        raise RequestError(
            f"{path[:200]} holds weights alone",
            expected="a path of save_state: tinker://MODEL/weights/NAME",
            do="give the path of a saved state",
        )
    found = context.tinker.checkpoint(caller.project_id, model_id, kind, name)
    return found, context.tinker.model(caller.project_id, model_id)


def folder_of(context: Context, one: TinkerCheckpoint, model: TinkerModel) -> str:
    """The folder of a checkpoint."""
    return str(context.settings.run_folder(model.run_id) / "tinker" / one.checkpoint_id)


def forward_backward(context: Context, caller: Caller, body: bytes) -> PendingRequest:
    """A pass over some data, with gradients or without.

    Raises:
        RequestError: The body is no such request, not even up to its number.
        NotFoundError: The client is not in memory, or belongs to another project.
    """
    head = wire.read_head(body)
    if head.fault is not None and not (head.model_id and head.seq_id):
        raise head.fault
    live = context.tinker_sessions.model(caller.project_id, head.model_id)

    def send() -> dict[str, Any]:
        if head.fault is not None:
            raise head.fault
        # In its turn and not on arrival: a request that is never sent costs nothing.
        _charge(context, caller, live, head.num_tokens)
        # The body as it came: tensors are decoded once, in the process that uses them.
        return {"op": "pass", "model": live.model_id, "body": base64.b64encode(body).decode()}

    return numbered(context, caller, live, head.seq_id, send, _message, num_bytes=len(body))


def _message(result: dict[str, Any]) -> Answer:
    return Answer(message=base64.b64decode(result["proto"]))


def _charge(context: Context, caller: Caller, live: LiveModel | LiveSampler, num_tokens: int) -> None:
    """Charge tokens of a request to the key. Raises QuotaError where none are left."""
    model = (
        live.base_model
        if isinstance(live, LiveSampler)
        else context.tinker.model(caller.project_id, live.model_id).base_model
    )
    charge_tokens(context, caller, num_tokens, use=_use(context, caller, model, num_tokens, 0))


def _use(context: Context, caller: Caller, model: str, num_prompt_tokens: int, num_new_tokens: int) -> Use:
    return Use(
        project_id=caller.project_id,
        key_id=caller.key_id or "",
        model=model,
        target=model,
        num_prompt_tokens=num_prompt_tokens,
        num_new_tokens=num_new_tokens,
        cost_usd=cost_of(context, num_prompt_tokens, num_new_tokens),
    )


def optim_step(
    context: Context, caller: Caller, model_id: str, number: int | None, adam: Mapping[str, float] | None
) -> PendingRequest:
    """One optimizer step with the gradients of the passes before it.

    Args:
        context, caller: The home, and whose project it is.
        model_id: The training client.
        number: Of the request among those of this client, from 1 on.
        adam: Settings of AdamW by our names; None where the client has chosen another optimizer.

    Raises:
        NotFoundError: The client is not in memory, or belongs to another project.
        RequestError: The number is missing or out of range.
        BusyError: Too much waits already.
    """
    live = context.tinker_sessions.model(caller.project_id, model_id)

    def send() -> dict[str, Any]:
        if adam is None:
            raise RequestError(
                "optim_step with parameters of another optimizer", expected="AdamParams", do="use AdamParams"
            )
        return {"op": "step", "model": model_id, "adam": dict(adam)}

    return numbered(context, caller, live, number, send, lambda result: Answer({"metrics": result["metrics"]}))


def load_weights(
    context: Context, caller: Caller, model_id: str, number: int | None, path: str, *, optimizer: bool
) -> PendingRequest:
    """Go on from a saved state with an existing client.

    Args:
        context, caller: The home, and whose project it is.
        model_id: The training client.
        number: Of the request among those of this client, from 1 on.
        path: Of the saved state, `tinker://...`.
        optimizer: Whether moments and step count are restored.

    Raises:
        NotFoundError: The client is not in memory, or belongs to another project.
        RequestError: The number is missing or out of range.
        BusyError: Too much waits already.
    """
    live = context.tinker_sessions.model(caller.project_id, model_id)

    def send() -> dict[str, Any]:
        saved, model = saved_state(context, caller, path)
        return {"op": "load", "model": model_id, "folder": folder_of(context, saved, model), "optimizer": optimizer}

    def finish(_: dict[str, Any]) -> Answer:
        return Answer({"path": path, "model_id": model_id, "type": "load_weights"})

    return numbered(context, caller, live, number, send, finish)


def snapshot(
    context: Context, caller: Caller, model_id: str, number: int | None, sampler_number: int
) -> PendingRequest:
    """Weights to sample from, in memory alone, with a sampling client for them.

    Args:
        context, caller: The home, and whose project it is.
        model_id: The training client.
        number: Of the request among those of this client, from 1 on.
        sampler_number: Of the sampling client in its session.

    Raises:
        NotFoundError: The client is not in memory, or belongs to another project.
        RequestError: The number is missing or out of range.
        BusyError: Too much waits already.
    """
    sessions = context.tinker_sessions
    live = sessions.model(caller.project_id, model_id)
    sampler_id = f"{live.session_id}:sample:{sampler_number}"

    def finish(_: dict[str, Any]) -> Answer:
        model = context.tinker.model(caller.project_id, model_id)
        made = LiveSampler(sampler_id, live.session_id, {"snapshot": model_id}, model.base_model)
        sessions.add_sampler(sessions.session(caller.project_id, live.session_id), made)
        return Answer({"path": None, "sampling_session_id": sampler_id, "type": "save_weights_for_sampler"})

    def send() -> dict[str, Any]:
        return {"op": "snapshot", "model": model_id, "sampler": sampler_id}

    return numbered(context, caller, live, number, send, finish)


def numbered(
    context: Context, caller: Caller, live: LiveModel, number: int | None, send: Any, finish: Any, *, num_bytes: int = 0
) -> PendingRequest:
    """A request of a training client, in its turn.

    Args:
        context, caller: The home, and whose project it is.
        live: The training client.
        number: Of the request among those of this client, from 1 on.
        send, finish: Make the request to the process that trains, and the answer from its result.
        num_bytes: That the request takes while it waits.

    Raises:
        RequestError: The number is missing or out of range.
        NotFoundError: The session has ended.
        BusyError: Too much waits already.
    """
    if number is None or not 1 <= number < 2**31:
        raise RequestError(
            f"seq_id {number}", expected="the number of the request, from 1 on", do="use the package tinker"
        )
    sessions = context.tinker_sessions
    session = sessions.session(caller.project_id, live.session_id)
    request_id = f"{live.model_id}:{number}"
    return sessions.start(session, request_id, send, finish, model=live, number=number, num_bytes=num_bytes)


def create_sampler(
    context: Context, caller: Caller, session: LiveSession, number: int, base_name: str | None, path: str | None
) -> LiveSampler:
    """A sampling client for a base model, or for saved weights.

    Args:
        context, caller: The home, and whose project it is.
        session: Its session.
        number: Of the client in its session.
        base_name: A base model by its name in the API; for `path` of None.
        path: Of saved weights, `tinker://...`; None takes the base model.

    Raises:
        NotFoundError: The base model is not on this machine, or the project has no such weights.
        RequestError: Neither was named, or the path has another form.
        BusyError: The session has as many as it may have.
    """
    sampler_id = f"{session.session_id}:sample:{number}"
    if path is not None:
        model_id, kind, name = parse_path(path)
        saved = context.tinker.checkpoint(caller.project_id, model_id, kind, name)
        model = context.tinker.model(caller.project_id, model_id)
        source = {"folder": folder_of(context, saved, model), "plan": model.plan.model_dump(mode="json")}
        made = LiveSampler(sampler_id, session.session_id, source, model.base_model, path)
    elif base_name is not None:
        own, base = find_base(context, base_name, caller.project_id)
        made = LiveSampler(sampler_id, session.session_id, {"base": base.model_dump(mode="json")}, own)
    else:
        raise RequestError(
            "a sampling client without a model", expected="model_path or base_model", do="name one of them"
        )
    return context.tinker_sessions.add_sampler(session, made)


def sample(
    context: Context, caller: Caller, sampler_id: str, number: int, order: Mapping[str, Any]
) -> tuple[PendingRequest, list[str]]:
    """Sample from a prompt; also returned: the ids of the answers.

    Args:
        context: The home.
        caller: Who asks.
        sampler_id: The sampling client.
        number: Of the request, given by the client.
        order: The fields of `adapter_sampler.SampleOrder`.

    Raises:
        NotFoundError: There is no such sampling client.
        BusyError: Too much waits already.
    """
    sessions = context.tinker_sessions
    sampler = sessions.sampler(caller.project_id, sampler_id)
    num_prompt = len(order["prompt"])

    def send() -> dict[str, Any]:
        _charge(context, caller, sampler, num_prompt)
        return {"op": "sample", "sampler": sampler_id, "source": sampler.source, "order": dict(order)}

    def finish(result: dict[str, Any]) -> Answer:
        num_new = result["num_new_tokens"]
        charge_tokens(
            context, caller, num_new, may_refuse=False, use=_use(context, caller, sampler.base_model, 0, num_new)
        )
        return _message(result)

    session = sessions.session(caller.project_id, sampler.session_id)
    request_id = f"{sampler_id}:{number}"
    made = sessions.start(session, request_id, send, finish, num_bytes=8 * num_prompt, scope="infer")
    return made, [f"{request_id}:{place}" for place in range(order["num_samples"])]


def trained_info(context: Context, caller: Caller, model_id: str) -> TinkerModel:
    """A training client that was made, in memory or not. Raises NotFoundError where the project has none of this id."""
    return context.tinker.model(caller.project_id, model_id)


def unload(context: Context, caller: Caller, model_id: str) -> None:
    """Drop a client from memory; what it has saved stays. Raises NotFoundError where the project has none."""
    sessions = context.tinker_sessions
    try:
        sessions.drop_model(sessions.model(caller.project_id, model_id))
    except NotFoundError:
        trained_info(context, caller, model_id)  # it was unloaded before, or its session has ended
