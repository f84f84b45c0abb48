"""/v1/models: the available models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from luthier.core.access import Caller
from luthier.core.conversation import OptedTurns
from luthier.core.engine_rates import NUM_MANY
from luthier.core.errors import ConflictError, NotFoundError
from luthier.features.serving import models as served_models
from luthier.features.serving.api.anthropic_models import anthropic_model, anthropic_page
from luthier.features.serving.models import EngineView, NamedModel
from luthier.platform.home.context import Context
from luthier.platform.http.anthropic import check_headers, is_anthropic
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
        message = f"{error.came}; expected: {error.expected}; what to do: {error.do}"
        raise ApiError(403, message, param="model", code="model_cannot_be_deleted") from error
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
    message = f"{error.came}; expected: {error.expected}; what to do: {error.do}"
    return ApiError(404, message, param="model", code="model_not_found")
