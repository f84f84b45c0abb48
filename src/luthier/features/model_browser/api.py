"""/api/v1/base-models: the base models that a recipe may name, and what it takes to train them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel

from luthier.core.records.base_model import TrainingMemory
from luthier.core.stream import Decoding
from luthier.features.model_cards.service import BaseView, decoding_of_base, find_base, list_bases
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import HomeContext, Reader
from luthier.platform.http.errors import documented
from luthier.platform.http.routes import ListObject

router = APIRouter(prefix="/api/v1/base-models", tags=["base models"])

Name = Annotated[str, Path(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]


class BaseModelView(BaseModel):
    """A base model by the name that a recipe knows it by.

    is_here: whether it is on the server's machine; a run of another one fetches it first. num_active_parameters: those
    that one token meets; null where that is all, or not known. training_memory: peak memory of one accelerator in
    bytes, as the planner predicts it; null where it has no figure. commit: what was fetched from a hub. unchecked:
    fields that no public file has confirmed. decoding: the path that generates text; null while it is not loaded.
    """

    object: Literal["base_model"] = "base_model"
    name: str
    title: str
    is_here: bool
    licence: str
    licence_url: str | None
    is_gated: bool
    hub: str | None
    commit: str | None
    num_parameters: int
    num_active_parameters: int | None
    context_length_tokens: int
    has_chat_template: bool
    template_options: dict[str, tuple[bool | str, ...]]
    training_memory: TrainingMemory | None
    num_bytes: int | None
    sources: tuple[str, ...]
    unchecked: tuple[str, ...]
    note: str
    decoding: Decoding | None


class BaseModelList(ListObject[BaseModelView]):
    """Those on the server's machine first, then the catalogue in its order."""


@router.get("", summary="List base models", responses=documented())
def list_all(context: HomeContext, caller: Reader) -> BaseModelList:
    """All that a recipe may name."""
    return BaseModelList(data=[_view(context, base) for base in list_bases(context, caller.project_id)])


@router.get("/{name:path}", summary="Show a base model", responses=documented(404))
def show(context: HomeContext, caller: Reader, name: Name) -> BaseModelView:
    """One of them."""
    return _view(context, find_base(context, name, caller.project_id))


def _view(context: Context, base: BaseView) -> BaseModelView:
    """No path of the server is in it."""
    model = base.model
    return BaseModelView(
        name=base.name,
        # The title of a model that is no catalogue entry is its name, which may be a folder of the server.
        title=model.title if not model.title.startswith("/") else base.name,
        is_here=base.is_here,
        licence=model.licence,
        licence_url=model.licence_url,
        is_gated=model.is_gated,
        hub=model.hub,
        commit=model.commit,
        num_parameters=model.num_parameters,
        num_active_parameters=model.num_active_parameters,
        context_length_tokens=model.context_length_tokens,
        has_chat_template=model.has_chat_template,
        template_options=model.template_options,
        training_memory=model.training_memory,
        num_bytes=model.num_bytes,
        sources=model.sources,
        unchecked=model.unchecked,
        note=model.note,
        decoding=decoding_of_base(context, base),
    )
