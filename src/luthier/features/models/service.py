"""Base models: those in the catalogue and those on this machine, as one list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from luthier.core.errors import NotFoundError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ports import Progress
from luthier.core.records.base_model import TrainingMemory
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.records.base_model import CatalogEntry, LocalModel


class ModelView(FrozenModel):
    """A base model as pages and commands show it.

    Attributes:
        name: As recipes name it.
        title: As people name it.
        source: `catalog`, or where the files on this machine come from.
        licence: An SPDX id, or the licence's own name.
        licence_url: Where its text is.
        num_parameters: All parameters.
        context_length_tokens: The longest sequence, in tokens.
        has_chat_template: Whether its tokenizer has a chat template.
        note: A remark of the catalogue.
        path: Its transformers folder; None before it is pulled.
        num_bytes: Size on this machine.
        sha256: The digest of its files.
        architecture: The class of its configuration.
        num_active_parameters: Parameters that one token meets; None where that is all, or unknown.
        is_gated: Whether the hub requires accepted terms.
        template_options: Options of the chat template, each with its values.
        training_memory: Predicted peak memory (ml/planning/hypothetical_run.py); None without a figure.
        hub: The repository of a catalogue entry.
        is_pinned: Whether the catalogue names a commit.
        commit: The commit that was pulled.
        never_fetched: Code and pickles of the repository that were left there.
        sources: Where the catalogue's figures come from.
        unchecked: Fields that no public file has confirmed.
    """

    name: str
    title: str
    source: str
    licence: str
    licence_url: str | None
    num_parameters: int
    context_length_tokens: int
    has_chat_template: bool
    note: str
    path: str | None
    num_bytes: int | None
    sha256: str | None
    architecture: str | None
    num_active_parameters: int | None = None
    is_gated: bool = False
    template_options: dict[str, tuple[bool | str, ...]] = Field(default_factory=dict)
    training_memory: TrainingMemory | None = None
    hub: str | None = None
    is_pinned: bool = True
    commit: str | None = None
    never_fetched: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


def list_models(context: Context) -> list[ModelView]:
    """All that the catalogue knows, in its order, then what else is on this machine."""
    from luthier.ml.inference.models import catalog, sources

    # A name that is both in the catalogue and pulled is one view; facts of the files win where there are any.
    local = {model.name: model for model in sources.local_models(context.home)}
    known = catalog.entries()
    origins = {name: sources.origin(name, context.home) for name in local}
    views = [_view(entry, local.get(name), origins.get(name, {})) for name, entry in known.items()]
    return views + [_view(None, model, origins[name]) for name, model in local.items() if name not in known]


def pull_model(context: Context, name: str, *, progress: Progress | None = None) -> ModelView:
    """Make sure that a model is on this machine.

    Args:
        context: The home.
        name: Of the model in a recipe.
        progress: What shows the download; None takes that of the context.

    Raises:
        NotFoundError: No such model.
        ModelSourceError: Its files cannot be fetched, or are damaged.
    """
    from luthier.ml.inference.models import catalog, sources

    model = sources.pull(name, context.home, progress or context.progress)
    return _view(catalog.entries().get(model.name), model, sources.origin(model.name, context.home))


def show_model(context: Context, name: str) -> ModelView:
    """One model, pulled or in the catalogue.

    Raises NotFoundError for neither, ModelSourceError where its files are damaged.
    """
    from luthier.ml.inference.models import catalog, sources

    entry, model = catalog.entries().get(name), sources.find(name, context.home)
    if entry is None and model is None:
        raise NotFoundError(
            f"base model {name!r} was not pulled",
            expected="a name in the catalogue, or a model that is on this machine",
            do=f"run `luthier models pull {name}` first",
        )
    return _view(entry, model, sources.origin(name, context.home) if model else {})


def remove_model(context: Context, name: str) -> ModelView:
    """Delete what Luthier stores of a model; returns the deleted one.

    Raises:
        NotFoundError: It was not pulled.
        ConflictError: Another process is pulling it.
    """
    from luthier.ml.inference.models import catalog, sources

    # Read before the removal, which deletes the record of the origin with the weights.
    origin = sources.origin(name, context.home)
    model = sources.remove(name, context.home, context.progress)
    return _view(catalog.entries().get(model.name), model, origin)


def _view(entry: CatalogEntry | None, model: LocalModel | None, origin: Mapping[str, str]) -> ModelView:
    known = entry or model
    if known is None:
        raise AssertionError("a view needs an entry or a model")
    return ModelView(
        name=known.name,
        title=entry.title if entry else known.name,
        source=model.source if model else "catalog",
        # The catalogue names sources for its licence; that of a folder is only what its own files claim.
        licence=entry.licence if entry else known.licence,
        licence_url=entry.licence_url if entry else None,
        num_parameters=model.num_parameters if model else known.num_parameters,
        context_length_tokens=model.context_length_tokens if model else known.context_length_tokens,
        has_chat_template=model.has_chat_template if model else known.has_chat_template,
        note=entry.note if entry else "",
        path=model.path if model else None,
        num_bytes=model.num_bytes if model else None,
        sha256=model.sha256 if model else None,
        architecture=model.architecture if model else None,
        **_of_catalogue(entry),
        commit=origin.get("commit"),
        never_fetched=tuple(origin.get("never_fetched", "").split()),
    )


def _of_catalogue(entry: CatalogEntry | None) -> dict[str, Any]:
    """What only the catalogue knows."""
    if entry is None:
        return {}
    from luthier.ml.planning.hypothetical_run import known_memory

    return {
        "num_active_parameters": entry.num_active_parameters,
        "is_gated": entry.is_gated,
        "template_options": entry.template_options,
        "training_memory": known_memory(entry),
        "hub": entry.hub,
        "is_pinned": entry.is_pinned,
        "sources": entry.sources,
        "unchecked": entry.unchecked,
    }
