"""/v1/models: the available models; in Anthropic's form for requests with the header `anthropic-version`.

Source of that form: Anthropic's API reference, "List Models" and "Get a Model".
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams

from luthier.core.access import Caller
from luthier.core.conversation import OptedTurns
from luthier.core.engine_rates import NUM_MANY
from luthier.core.errors import ConflictError, NotFoundError
from luthier.features.serving import models as served_models
from luthier.features.serving.models import EngineView, NamedModel
from luthier.platform.home.context import Context
from luthier.platform.http.anthropic import BETA, check_headers, is_anthropic
from luthier.platform.http.authentication import HomeContext, Looker, Trainer
from luthier.platform.http.errors import ApiError

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
def list_models(request: Request, context: HomeContext, caller: Looker) -> dict[str, Any]:
    """List the project's tuned models, permitted checkpoints, and base models on this machine.

    With the header `anthropic-version` in Anthropic's form, by page.
    """
    is_theirs = _is_anthropic(request)
    if is_theirs:
        return anthropic_page(served_models.list_models(context, caller), request.query_params)
    return {"object": "list", "data": model_documents(context, caller)}


def model_documents(context: Context, caller: Caller) -> list[dict[str, Any]]:
    """The models that a project can ask, as the list has them."""
    return [_show(model) for model in served_models.list_models(context, caller)]


@router.get("/{model:path}")
def retrieve_model(model: str, request: Request, context: HomeContext, caller: Looker) -> dict[str, Any]:
    """Get one model. 404 if this project cannot use it. With the header `anthropic-version` in Anthropic's form."""
    show = anthropic_model if _is_anthropic(request) else _show
    try:
        return show(served_models.get_model(context, caller, model))
    except NotFoundError as error:
        raise _not_found(error) from error


@router.delete("/{model:path}")
def delete_model(model: str, context: HomeContext, caller: Trainer) -> dict[str, Any]:
    """Delete a tuned model; its run and files are kept. 403 for base models and permitted checkpoints."""
    try:
        served_models.delete_model(context, caller, model)
    except NotFoundError as error:
        raise _not_found(error) from error
    except ConflictError as error:
        raise ApiError(403, error.in_one_line, param="model", code="model_cannot_be_deleted") from error
    return {"id": model, "object": "model", "deleted": True}


def _is_anthropic(request: Request) -> bool:
    """Whether the answer is to be in Anthropic's form. Raises ApiError for headers that it refuses."""
    if not is_anthropic(request.url.path, request.headers):
        return False
    check_headers(request.headers)
    return True


def _show(model: NamedModel) -> dict[str, Any]:
    return {
        "id": model.model_id,
        "object": "model",
        "created": int(model.created_at),
        "owned_by": model.owned_by,
        "max_model_len": model.max_model_len,
        "capabilities": model.capabilities,
        "template_options": model.template_options,
        "rewritten_turns": _rewritten(model.opted_turns),
        "task_head": model.task_head,
        "decoding": None if model.decoding is None else model.decoding.model_dump(mode="json"),
        "engines": [_engine(one) for one in model.engines],
    }


def _engine(view: EngineView) -> dict[str, Any]:
    speed = view.speed
    rates = None
    if speed is not None:
        rates = {"alone": speed.alone, "crowd": speed.crowd, "crowd_answers": speed.num_crowd}
        if speed.many is not None:
            rates |= {"many": speed.many, "many_answers": NUM_MANY}
    return {
        "engine": view.engine,
        "is_loaded": view.is_loaded,
        "min_answers": view.min_answers,
        "max_answers": view.max_answers,
        "features": list(view.features),
        "tokens_per_second": rates,
    }


def _rewritten(opted: OptedTurns) -> dict[str, str]:
    """In the recipe's format."""
    asked: dict[str, str | None] = {
        "system": "fold" if opted.folds_system else None,
        "tools": "as_text" if opted.tools_as_text else None,
        "reasoning": opted.reasoning,
    }
    return {name: way for name, way in asked.items() if way is not None}


def _not_found(error: NotFoundError) -> ApiError:
    return ApiError(404, error.in_one_line, param="model", code="model_not_found")


_DEFAULT_LIMIT: Final = 20
_MAX_LIMIT: Final = 1000
_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
PARAMETERS: Final = ("after_id", "before_id", "lifecycle", "lifecycle[]", "limit")


def anthropic_page(models: Sequence[NamedModel], asked: QueryParams) -> dict[str, Any]:
    """One page of a list of models.

    Raises:
        ApiError: A parameter that does not fit.
    """
    if unknown := next((name for name in asked if name not in (*PARAMETERS, BETA)), None):
        raise _wrong(unknown, f"the parameter {unknown}", f"some of {', '.join(PARAMETERS)}", "leave it out")
    wanted = [*asked.getlist("lifecycle"), *asked.getlist("lifecycle[]")]
    if other := next((one for one in wanted if one not in ("active", "deprecated", "retired")), None):
        raise _wrong("lifecycle", f"lifecycle={other!r}", "active, deprecated or retired", "correct it")
    # A model that can be used is active: nothing is deprecated or retired here.
    found = [] if wanted and "active" not in wanted else list(models)
    limit = _limit(asked.get("limit"))
    after, before = asked.get("after_id"), asked.get("before_id")
    if after is not None and before is not None:
        raise _wrong("before_id", "after_id and before_id", "one of them", "leave one out")
    if before is not None:
        place = _place(found, "before_id", before)
        shown, has_more = found[max(0, place - limit) : place], place > limit
    else:
        start = 0 if after is None else _place(found, "after_id", after) + 1
        shown, has_more = found[start : start + limit], len(found) > start + limit
    return {
        "data": [anthropic_model(model) for model in shown],
        "has_more": has_more,
        "first_id": shown[0].model_id if shown else None,
        "last_id": shown[-1].model_id if shown else None,
    }


def anthropic_model(model: NamedModel) -> dict[str, Any]:
    """One model."""
    return {
        "type": "model",
        "id": model.model_id,
        "display_name": model.model_id,
        "created_at": datetime.fromtimestamp(int(model.created_at), UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": model.max_model_len,
        "max_tokens": model.max_model_len,
        "capabilities": _capabilities(model) if model.capabilities else None,
    }


def _capabilities(model: NamedModel) -> dict[str, Any]:
    """Anthropic's names; all that the server refuses of every model is not supported."""
    thinks = model.capabilities.get("thinking", False)
    no, yes_if_thinking = {"supported": False}, {"supported": thinks}
    writes = {"supported": model.capabilities.get("messages", False)}
    return {
        "batch": no,
        "citations": no,
        "code_execution": no,
        "context_management": no,
        "effort": yes_if_thinking | dict.fromkeys(_EFFORTS, yes_if_thinking),
        "image_input": no,
        "pdf_input": no,
        "server_tools": no | {"code_execution": no, "web_search": no},
        "structured_outputs": {"supported": model.capabilities.get("structured_outputs", False)},
        "thinking": yes_if_thinking
        | {"types": {"adaptive": writes, "between_tools": no, "disabled": writes, "enabled": yes_if_thinking}},
    }


def _limit(given: str | None) -> int:
    if given is None:
        return _DEFAULT_LIMIT
    # isdigit alone is true of digits of other scripts; five digits are beyond the limit.
    number = int(given) if given.isascii() and given.isdigit() and len(given) < 5 else 0
    if not 1 <= number <= _MAX_LIMIT:
        raise _wrong("limit", f"limit={given[:20]!r}", f"1 to {_MAX_LIMIT:,}", "correct it")
    return number


def _place(models: Sequence[NamedModel], name: str, model_id: str) -> int:
    place = next((place for place, model in enumerate(models) if model.model_id == model_id), None)
    if place is None:
        raise _wrong(name, f"{name}={model_id[:200]!r}", "the id of a model in the list", "list them: GET /v1/models")
    return place


def _wrong(param: str, came: str, expected: str, do: str) -> ApiError:
    return ApiError(400, f"{came}; expected: {expected}; what to do: {do}", param=param, code="invalid_value")
