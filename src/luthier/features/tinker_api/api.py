"""/tinker/api/v1: what the Tinker SDK calls with TINKER_BASE_URL=http://HOST:PORT/tinker.

Most calls begin a request and answer with its id; `retrieve_future` waits for its result. What the SDK offers and this
server does not is refused by name. Errors of numbered requests are results: `{"error": ..., "category": ...}`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, RequestError
from luthier.core.records.base_model import LocalModel
from luthier.features.serving.targets import local_base_models
from luthier.features.tinker_api import checkpoints, service, wire
from luthier.features.tinker_api.bodies import (
    CreateModelRequest,
    FutureObject,
    LoadRequest,
    ModelIdRequest,
    OpenBody,
    OptimStepRequest,
    PathRequest,
    RetrieveRequest,
    SampleRequest,
    SamplingSessionIdRequest,
    SamplingSessionRequest,
    SaveExternalRequest,
    SaveForSamplerRequest,
    SaveRequest,
    SessionIdRequest,
    SessionRequest,
    TtlRequest,
)
from luthier.features.tinker_api.live import PendingRequest
from luthier.features.tinker_api.records import CheckpointKind, TinkerCheckpoint, TinkerModel, parse_path
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import Asker, HomeContext, Reader, Trainer, TrainerOrAsker
from luthier.platform.http.errors import ApiError, documented
from luthier.platform.http.routes import Id

router = APIRouter(prefix="/tinker/api/v1", tags=["tinker"])
_WAIT_SECONDS: Final = 10.0
_CHUNK_BYTES: Final = 2_000_000


@router.post("/client/config", response_model=dict[str, Any], responses=documented())
def client_config(_: OpenBody, __: TrainerOrAsker, context: HomeContext) -> dict[str, Any]:
    """How the SDK is to behave here: keys and no tokens made of them, smaller requests, one after the other."""
    most = min(_CHUNK_BYTES, context.settings.max_request_bytes // 2)
    return {
        "pjwt_auth_enabled": False,
        "parallel_fwdbwd_chunks": False,
        "proto_compress_fwdbwd": False,
        "fwdbwd_max_chunk_bytes_count": most,
        "sample_use_retrieve_futures": False,
        "custom_loss_server_side": False,
        "sample_join_sampling_session": True,
        "sample_max_concurrent_requests": 500,
        # Every machine is slow for some model: results are waited for.
        "sample_enable_stuck_detection": False,
    }


@router.post("/client/dynamic_config", response_model=dict[str, Any], responses=documented())
def dynamic_config(_: OpenBody, __: TrainerOrAsker) -> dict[str, Any]:
    """What the SDK looks at every few minutes."""
    return {"refresh_interval_sec": 300, "sample_cancel_enabled": False}


@router.post("/telemetry", response_model=dict[str, str], responses=documented())
def telemetry(_: OpenBody, __: TrainerOrAsker) -> dict[str, str]:
    """Reports of the SDK about itself. They are not kept."""
    return {"status": "accepted"}


@router.get("/healthz", response_model=dict[str, str], responses=documented())
def healthz(_: TrainerOrAsker) -> dict[str, str]:
    """Whether the server answers."""
    return {"status": "ok"}


@router.get("/get_server_capabilities", response_model=dict[str, Any], responses=documented())
def capabilities(caller: TrainerOrAsker, context: HomeContext) -> dict[str, Any]:
    """The base models on this machine."""
    models = local_base_models(context, caller.project_id).items()
    return {"supported_models": [_supported(name, model) for name, model in models]}


def _supported(name: str, model: LocalModel) -> dict[str, Any]:
    context_tokens = model.context_length_tokens
    return {"model_name": name, "max_context_length": context_tokens, "trainable": True, "sampleable": True}


@router.post("/create_session", response_model=dict[str, Any], responses=documented())
def create_session(body: SessionRequest, caller: TrainerOrAsker, context: HomeContext) -> dict[str, Any]:
    """Open a session. It ends when it is closed, or when no heartbeat comes for two minutes."""
    if body.project_id is not None and body.project_id != caller.project_id:
        raise RequestError(
            f"project_id {body.project_id[:100]!r}",
            expected=f"the project of the key, {caller.project_id}",
            do="leave project_id and TINKER_PROJECT_ID out, or use a key of that project",
        )
    labels = {"user_metadata": body.user_metadata, "display_name": body.display_name, "tags": body.tags}
    made = context.tinker_sessions.open(caller, labels)
    return {"type": "create_session", "session_id": made.session_id}


@router.post("/session_heartbeat", response_model=dict[str, str], responses=documented(404))
def heartbeat(body: SessionIdRequest, caller: TrainerOrAsker, context: HomeContext) -> dict[str, str]:
    """Keep a session alive."""
    service.session_of(context, caller, body.session_id)
    context.tinker_sessions.beat(caller.project_id, body.session_id)
    return {"type": "session_heartbeat"}


@router.post("/sessions/{tinker_session_id}/finish", status_code=204, responses=documented(404))
def finish_session(tinker_session_id: Id, _: OpenBody, caller: TrainerOrAsker, context: HomeContext) -> Response:
    """End a session; what it holds in memory is dropped."""
    context.tinker_sessions.finish(service.session_of(context, caller, tinker_session_id))
    return Response(status_code=204)


@router.get("/sessions", response_model=dict[str, list[str]], responses=documented())
def list_sessions(caller: Reader, context: HomeContext) -> dict[str, list[str]]:
    """The sessions of the project that are alive, newest first."""
    return {"sessions": context.tinker_sessions.ids(caller.project_id)}


@router.get("/sessions/{tinker_session_id}", response_model=dict[str, Any], responses=documented(404))
def get_session(tinker_session_id: Id, caller: Reader, context: HomeContext) -> dict[str, Any]:
    """A session that is alive."""
    found = context.tinker_sessions.session(caller.project_id, tinker_session_id)
    shown = {name: found.labels.get(name) for name in ("user_metadata", "display_name")}
    return {"training_run_ids": list(found.models), "sampler_ids": list(found.samplers)} | shown


@router.post("/create_model", response_model=FutureObject, responses=documented(404))
def create_model(body: CreateModelRequest, caller: Trainer, context: HomeContext) -> FutureObject:
    """Make a training client: a LoRA adapter on a base model."""
    service.refuse_optimizer(body.optimizer_config.type)
    session = service.session_of(context, caller, body.session_id)
    options = body.lora_config.model_dump()
    made = service.create_model(
        context, caller, session, body.model_seq_id, body.base_model, options, body.user_metadata
    )
    return _future(made)


@router.post("/get_info", response_model=dict[str, Any], responses=documented(404))
def get_info(body: ModelIdRequest, caller: Trainer, context: HomeContext) -> dict[str, Any]:
    """A training client: its base model and the rank of its adapter."""
    found = service.trained_info(context, caller, body.model_id)
    name = found.base_model
    return {
        "type": "get_info",
        "model_data": {"arch": None, "model_name": name, "tokenizer_id": service.hub_name(name)},
        "model_id": found.model_id,
        "is_lora": True,
        "lora_rank": found.options.rank,
        "model_name": name,
    }


@router.post("/unload_model", response_model=dict[str, str], responses=documented(404))
def unload_model(body: ModelIdRequest, caller: Trainer, context: HomeContext) -> dict[str, str]:
    """Drop a training client and its weights from memory; what it has saved stays."""
    service.unload(context, caller, body.model_id)
    return {"model_id": body.model_id, "type": "unload_model"}


@router.post("/forward_backward", response_model=FutureObject, responses=documented(404, 413))
async def forward_backward(request: Request, caller: Trainer, context: HomeContext) -> FutureObject:
    """Log-probabilities and loss of some data, and their gradients unless only the forward pass is asked for.

    The body is a `ForwardBackwardRequest` of the SDK, in Protocol Buffers.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != wire.PROTO:
        raise ApiError(
            400,
            f"The body is not a {wire.PROTO}; expected: the message as tinker 0.38 writes it; what to do: use that "
            "version, or a later one with the same messages",
            code="invalid_value",
        )
    # Its size is limited by a middleware before this line; parsing and the database are left to a thread.
    body = await request.body()
    return _future(await run_in_threadpool(service.forward_backward, context, caller, body))


@router.post("/optim_step", response_model=FutureObject, responses=documented(404))
def optim_step(body: OptimStepRequest, caller: Trainer, context: HomeContext) -> FutureObject:
    """One optimizer step with the gradients since the last one."""
    adam = None
    if body.adam_params is not None and body.optimizer_params is None:
        given = body.adam_params.model_dump()
        adam = given | {"epsilon": given.pop("eps"), "clip_norm": given.pop("grad_clip_norm")}
    return _future(service.optim_step(context, caller, body.model_id, body.seq_id, adam), body.model_id)


@router.post("/save_weights", response_model=FutureObject, responses=documented(404))
def save_weights(body: SaveRequest, caller: Trainer, context: HomeContext) -> FutureObject:
    """Save a state that training can continue from."""
    return _future(_saved(context, caller, body, "training", overwrites=body.overwrite), body.model_id)


@router.post("/save_weights_for_sampler", response_model=FutureObject, responses=documented(404))
def save_weights_for_sampler(body: SaveForSamplerRequest, caller: Trainer, context: HomeContext) -> FutureObject:
    """Save weights to sample from: as files under a name, or in memory for a new sampling client."""
    if body.path is None and body.sampling_session_seq_id is not None:
        number = body.sampling_session_seq_id
        made = service.snapshot(context, caller, body.model_id, body.seq_id, number)
    else:
        made = _saved(context, caller, body, "sampler")
    return _future(made, body.model_id)


def _saved(
    context: Context,
    caller: Caller,
    body: SaveRequest | SaveForSamplerRequest,
    kind: CheckpointKind,
    *,
    overwrites: bool = False,
) -> PendingRequest:
    return checkpoints.save(
        context,
        caller,
        body.model_id,
        body.seq_id,
        kind,
        body.path,
        ttl_seconds=body.ttl_seconds,
        overwrites=overwrites,
        user_metadata=body.user_metadata,
    )


@router.post("/save_weights_external", response_model=FutureObject, responses=documented(404))
def save_weights_external(body: SaveExternalRequest, caller: Trainer, context: HomeContext) -> FutureObject:
    """Save the adapter for other programs, in the form of PEFT."""
    made = checkpoints.save(
        context, caller, body.model_id, body.seq_id, "external", body.path, ttl_seconds=body.ttl_seconds
    )
    return _future(made, body.model_id)


@router.post("/load_weights", response_model=FutureObject, responses=documented(404))
def load_weights(body: LoadRequest, caller: Trainer, context: HomeContext) -> FutureObject:
    """Go on from a saved state, with a new client or with one that there is."""
    if body.weights_access_token is not None:
        raise RequestError(
            "weights_access_token", expected="a state of the project of the key", do="leave weights_access_token out"
        )
    if body.optimizer_config is not None:
        service.refuse_optimizer(body.optimizer_config.type)
    if body.model_id is not None and body.session_id is None:
        made = service.load_weights(context, caller, body.model_id, body.seq_id, body.path, optimizer=body.optimizer)
    elif body.session_id is not None and body.model_seq_id is not None and body.model_id is None:
        session = service.session_of(context, caller, body.session_id)
        made = service.create_from_state(
            context,
            caller,
            session,
            body.model_seq_id,
            body.path,
            body.user_metadata,
            base_name=body.base_model,
            optimizer=body.optimizer,
        )
    else:
        raise RequestError(
            "load_weights for no client or for two",
            expected="model_id and seq_id, or session_id and model_seq_id",
            do="use the package tinker",
        )
    return _future(made)


@router.post("/create_sampling_session", response_model=dict[str, str], responses=documented(404))
def create_sampling_session(body: SamplingSessionRequest, caller: Asker, context: HomeContext) -> dict[str, str]:
    """Make a sampling client, for a base model or for saved weights."""
    session = service.session_of(context, caller, body.session_id)
    number = body.sampling_session_seq_id
    made = service.create_sampler(context, caller, session, number, body.base_model, body.model_path)
    return {"type": "create_sampling_session", "sampling_session_id": made.sampler_id}


@router.post("/join_sampling_session", response_model=dict[str, Any], responses=documented(404))
def join_sampling_session(body: SamplingSessionIdRequest, caller: Asker, context: HomeContext) -> dict[str, Any]:
    """A number for a copy of a sampling client in another process."""
    sessions = context.tinker_sessions
    number = sessions.join(sessions.sampler(caller.project_id, body.sampling_session_id))
    return {"type": "join_sampling_session", "client_counter": number}


@router.get("/samplers/{sampler_id}", response_model=dict[str, Any], responses=documented(404))
def get_sampler(sampler_id: Id, caller: Asker, context: HomeContext) -> dict[str, Any]:
    """A sampling client."""
    found = context.tinker_sessions.sampler(caller.project_id, sampler_id)
    return {"sampler_id": sampler_id, "base_model": found.base_model, "model_path": found.model_path}


@router.post("/asample", response_model=FutureObject, responses=documented(404))
def sample(body: SampleRequest, caller: Asker, context: HomeContext) -> FutureObject:
    """Sample answers to a prompt, with log-probabilities."""
    made, ids = service.sample(context, caller, body.sampling_session_id, body.seq_id, _order(body))
    return FutureObject(request_id=made.request_id, sample_sequence_ids=ids)


def _order(body: SampleRequest) -> dict[str, Any]:
    """The request by the names of `adapter_sampler.SampleOrder`."""
    params = body.sampling_params
    stop = [params.stop] if isinstance(params.stop, str) else params.stop
    texts = [one for one in stop or () if isinstance(one, str)]
    return {
        "prompt": [token for chunk in body.prompt.chunks for token in chunk.tokens],
        "num_samples": body.num_samples,
        "max_tokens": params.max_tokens,
        "seed": params.seed,
        "stop_ids": None if stop is None else [one for one in stop if not isinstance(one, str)],
        "stop_texts": texts,
        "temperature": params.temperature,
        "top_k": None if params.top_k == -1 else params.top_k,
        "top_p": params.top_p,
        "scores_prompt": bool(body.prompt_logprobs),
        "num_scored": body.prompt_logprobs_last_n,
        "num_top_of_prompt": body.topk_prompt_logprobs,
        "num_top": body.topk_sample_logprobs,
    }


def _future(made: PendingRequest, model_id: str | None = None) -> FutureObject:
    return FutureObject(request_id=made.request_id, model_id=model_id)


@router.post("/retrieve_future", response_model=None, responses=documented(404) | {408: {"description": "Not done"}})
async def retrieve_future(body: RetrieveRequest, caller: TrainerOrAsker, context: HomeContext) -> Response:
    """The result of a request, once it is done; 408 after a while, to be asked again."""
    found = await run_in_threadpool(service.fetch, context, caller, body.request_id)
    try:
        # Shielded: a client that gives up must not cancel the result, which it fetches again later.
        waiting = asyncio.shield(asyncio.wrap_future(found.result))
        answer = await asyncio.wait_for(waiting, _WAIT_SECONDS)
    except TimeoutError:
        again = {"type": "try_again", "request_id": found.request_id, "queue_state": "active"}
        return JSONResponse(again, status_code=408)
    await run_in_threadpool(service.fetch, context, caller, body.request_id)  # it is fetched from now on
    if answer.error is not None:
        # 200 with an error inside, as the SDK expects it: it would retry a status of 5xx, with the same result.
        return JSONResponse(_failed(answer.error))
    if answer.document is not None:
        return JSONResponse(answer.document)
    return Response(answer.message, media_type=wire.PROTO)


def _failed(error: LuthierError) -> dict[str, str]:
    """An error as the result of a request."""
    return {"error": error.in_one_line, "category": "user" if isinstance(error, RequestError) else "server"}


@router.get("/training_runs", response_model=dict[str, Any], responses=documented())
def list_training_runs(
    caller: Reader,
    context: HomeContext,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
) -> dict[str, Any]:
    """The training clients of the project, newest first; those whose session has ended, too."""
    found, count = context.tinker.models(caller.project_id, limit=limit, offset=offset)
    cursor = {"offset": offset, "limit": limit, "total_count": count}
    return {"training_runs": [_training_run(context, one) for one in found], "cursor": cursor}


@router.get("/training_runs/{training_run_id}", response_model=dict[str, Any], responses=documented(404))
def get_training_run(training_run_id: Id, caller: Reader, context: HomeContext) -> dict[str, Any]:
    """A training client."""
    return _training_run(context, service.trained_info(context, caller, training_run_id))


def _training_run(context: Context, model: TinkerModel) -> dict[str, Any]:
    saved, _ = context.tinker.checkpoints(model.project_id, model_id=model.model_id)
    # Newest first, so that the first of a kind is its last one.
    last = {kind: next((one for one in saved if one.kind == kind), None) for kind in ("training", "sampler")}
    metadata = model.user_metadata
    return {
        "training_run_id": model.model_id,
        "base_model": model.base_model,
        "model_owner": model.owner,
        "is_lora": True,
        "lora_rank": model.options.rank,
        "last_request_time": _time(max([model.created_at, *(one.created_at for one in saved)])),
        "last_checkpoint": None if last["training"] is None else _checkpoint(last["training"]),
        "last_sampler_checkpoint": None if last["sampler"] is None else _checkpoint(last["sampler"]),
        "user_metadata": None if metadata is None else {key: str(value) for key, value in metadata.items()},
    }


@router.get("/training_runs/{training_run_id}/checkpoints", response_model=dict[str, Any], responses=documented(404))
def list_checkpoints(training_run_id: Id, caller: Reader, context: HomeContext) -> dict[str, Any]:
    """What a training client has saved, newest first."""
    service.trained_info(context, caller, training_run_id)
    found, _ = context.tinker.checkpoints(caller.project_id, model_id=training_run_id)
    return {"checkpoints": [_checkpoint(one) for one in found]}


@router.get("/checkpoints", response_model=dict[str, Any], responses=documented())
def list_user_checkpoints(
    caller: Reader,
    context: HomeContext,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
) -> dict[str, Any]:
    """What the training clients of the project have saved, newest first."""
    found, count = context.tinker.checkpoints(caller.project_id, limit=limit, offset=offset)
    cursor = {"offset": offset, "limit": limit, "total_count": count}
    return {"checkpoints": [_checkpoint(one) for one in found], "cursor": cursor}


def _checkpoint(one: TinkerCheckpoint) -> Mapping[str, Any]:
    return {
        "checkpoint_id": one.short_path,
        "checkpoint_type": one.kind,
        "time": _time(one.created_at),
        "tinker_path": one.path,
        "size_bytes": one.num_bytes,
        "public": False,
        "user_metadata": one.user_metadata,
        "expires_at": None if one.expires_at is None else _time(one.expires_at),
        "served_name": one.served_name,
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


@router.delete(
    "/training_runs/{training_run_id}/checkpoints/{tinker_kind}/{tinker_name}",
    status_code=204,
    responses=documented(404),
)
def delete_checkpoint(
    training_run_id: Id, tinker_kind: Id, tinker_name: Id, caller: Trainer, context: HomeContext
) -> Response:
    """Delete what a training client has saved."""
    checkpoints.delete(context, caller, *_named(training_run_id, tinker_kind, tinker_name))
    return Response(status_code=204)


@router.put(
    "/training_runs/{training_run_id}/checkpoints/{tinker_kind}/{tinker_name}/ttl",
    status_code=204,
    responses=documented(404),
)
def set_ttl(
    training_run_id: Id, tinker_kind: Id, tinker_name: Id, body: TtlRequest, caller: Trainer, context: HomeContext
) -> Response:
    """Change how long a checkpoint is kept."""
    checkpoints.set_ttl(context, caller, *_named(training_run_id, tinker_kind, tinker_name), body.ttl_seconds)
    return Response(status_code=204)


def _named(model_id: str, segment: str, name: str) -> tuple[str, CheckpointKind, str]:
    return parse_path(f"tinker://{model_id}/{segment}/{name}")


@router.post("/weights_info", response_model=dict[str, Any], responses=documented(404))
def weights_info(body: PathRequest, caller: TrainerOrAsker, context: HomeContext) -> dict[str, Any]:
    """The base model and adapter of what was saved."""
    model_id, kind, name = parse_path(body.tinker_path)
    context.tinker.checkpoint(caller.project_id, model_id, kind, name)
    found = service.trained_info(context, caller, model_id)
    options = found.options
    return {
        "base_model": found.base_model,
        "is_lora": True,
        "lora_rank": options.rank,
        "train_unembed": options.train_unembed,
        "train_mlp": options.train_mlp,
        "train_attn": options.train_attn,
    }
