"""Merging of adapters into their base, so that every engine can use the result: matrices are merged, prompts become
tokens.

A trained prompt becomes embedding rows after the vocabulary, so that it can be prepended to a text as virtual tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from luthier.core.errors import RequestError
from luthier.core.plan import Quantisation
from luthier.core.task_head import is_task_model
from luthier.ml.inference.models.loading import attach_adapter, load_model
from luthier.ml.inference.models.quantised import unpack
from luthier.ml.inference.models.quiet import quiet_peft

PackedFrom = Literal["float32", "bfloat16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def merged_model(
    base_path: str | Path,
    adapter_path: str | Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"],
    quantisation: Quantisation | None = None,
    packed_from: PackedFrom = "bfloat16",
) -> PreTrainedModel:
    """The base with the adapter's update in its weights, in eval mode on the CPU.

    Merged in float32 and rounded once, for any `dtype`: in bfloat16 an update smaller than 1/256 of a weight would
    be lost in the sum.

    Args:
        base_path: folder of the base.
        adapter_path: folder of the PEFT adapter.
        dtype: of the result.
        quantisation: how the base was packed during training: the adapter was trained with the rounding of packing, so
            the update is added to the unpacked matrices.
        packed_from: the precision in which training read the base before packing.

    Raises:
        RequestError: a trained prompt, which cannot be merged, or weights that overflow float16.
        NotFoundError, ModelSourceError: base or adapter is missing or damaged.
    """
    writes = not is_task_model(adapter_path)
    adapted = attach_adapter(wide_model(base_path, quantisation, packed_from, writes=writes), adapter_path)
    if adapted.active_peft_config.is_prompt_learning:
        raise RequestError(
            f"{adapter_path} holds a trained prompt",
            expected="an adapter that changes matrices",
            do="serve the prompt with its base: it cannot be merged",
        )
    merged = merge(adapted)
    if dtype == "float16":
        check_room(merged)
    return merged.to(_DTYPES[dtype]).eval()


def merge(adapted: PeftModel) -> PreTrainedModel:
    """The model with the update of its adapter, which is no trained prompt, in its weights; changed in place."""
    # Before the merge, which changes matrices in place.
    _untie(adapted)
    base = adapted.get_base_model()
    is_tied = _originals_are_one(base)
    configs = (base.config, base.config.get_text_config())
    flags = [getattr(config, "tie_word_embeddings", None) for config in configs]
    with quiet_peft():
        merged: PreTrainedModel = adapted.merge_and_unload()
    if is_tied:
        is_one = _tie_again(merged)
        for config, flag in zip(configs, flags, strict=True):
            if flag is not None:
                config.tie_word_embeddings = flag and is_one
    return merged


@contextmanager
def without_adapter(model: PreTrainedModel) -> Iterator[bool]:
    """Within the block a model is its base alone, without its adapter.

    Yields False, and changes nothing, if its layers have no adapter (a trained prompt is none), and if that changes
    embeddings or head, whose weights are also read directly.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    # PEFT keeps a module that it replaces by a trained copy under this name.
    has_copies = any(hasattr(module, "original_module") for module in model.modules())
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if not layers or has_copies or any(isinstance(end, BaseTunerLayer) for end in ends):
        yield False
        return
    # PEFT makes the weights of an adapter trainable when it enables it.
    flags = [(weight, weight.requires_grad) for layer in layers for weight in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield True
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
        for weight, was_trainable in flags:
            weight.requires_grad_(was_trainable)


@torch.no_grad()
def round_weights(model: nn.Module, dtype: Literal["bfloat16", "float16"]) -> None:
    """Round all weights in place to what a file of 16 bits holds; they keep their own type.

    Raises:
        RequestError: a weight overflows float16.
    """
    if dtype == "float16":
        check_room(model)
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.copy_(weight.to(_DTYPES[dtype]))


def wide_model(
    path: str | Path,
    quantisation: Quantisation | None = None,
    packed_from: PackedFrom = "bfloat16",
    *,
    writes: bool = True,
) -> PreTrainedModel:
    """A model in float32 on the CPU; with `quantisation`, its matrices include the rounding of packing.

    Args:
        path: folder of the model.
        quantisation: how its matrices were packed; None for unpacked.
        packed_from: the precision in which training read the base before packing.
        writes: as for `load_model`.
    """
    if quantisation is None:
        return load_model(path, dtype="float32", attention="sdpa", writes=writes)
    # Read as in training: a base stored in float32 packs differently if it is first rounded to bfloat16.
    model = load_model(path, dtype=packed_from, attention="sdpa", quantisation=quantisation, writes=writes)
    unpack(model)
    return model.float()


def check_room(model: nn.Module) -> None:
    """Raise RequestError if a weight overflows float16."""
    most = torch.finfo(torch.float16).max
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and (largest := float(weight.detach().abs().max())) > most:
            raise RequestError(
                f"{name} holds a weight of {largest:.4g}",
                expected=f"weights up to {most:,.0f}, the most that float16 can hold",
                do="export in bfloat16 or float32 instead",
            )


def _untie(adapted: PeftModel) -> None:
    """Untie embeddings and head if an adapter changes only one of them, or each differently.

    PEFT would add the update of one to the shared matrix.
    """
    base = adapted.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if not any(isinstance(layer, BaseTunerLayer) for layer in (embedding, head)):
        return
    table, matrix = (x.get_base_layer() if isinstance(x, BaseTunerLayer) else x for x in (embedding, head))
    if table.weight is matrix.weight:
        matrix.weight = nn.Parameter(matrix.weight.detach().clone(), requires_grad=False)
        base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False


def _originals_are_one(base: PreTrainedModel) -> bool:
    """Whether embeddings and head share one matrix, trained copies of them (`modules_to_save`) aside."""
    embedding, head = (
        getattr(module, "original_module", module)
        for module in (base.get_input_embeddings(), base.get_output_embeddings())
    )
    return getattr(embedding, "weight", None) is getattr(head, "weight", embedding)


def _tie_again(merged: PreTrainedModel) -> bool:
    """Whether embeddings and head are one matrix; two copies of the same numbers become one."""
    embedding, head = merged.get_input_embeddings(), merged.get_output_embeddings()
    if head.weight is not embedding.weight and torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
    return head.weight is embedding.weight


@torch.no_grad()
def virtual_tokens(model: PreTrainedModel | PeftModel) -> tuple[int, ...]:
    """The virtual token ids of the model's trained prompt; empty if there is none.

    The first call appends the prompt's rows to the input embedding, in place. The output head keeps its rows, even if
    the two were tied: virtual tokens are never predicted.
    """
    if not isinstance(model, PeftModel) or not model.active_peft_config.is_prompt_learning:
        return ()
    prompt = model.prompt_encoder[model.active_adapter].embedding.weight
    embedding = model.get_base_model().get_input_embeddings()
    size = model.get_base_model().get_output_embeddings().weight.shape[0]
    # Done once: afterwards the embedding table is longer than the head.
    if embedding.num_embeddings == size:
        scale = getattr(embedding, "embed_scale", 1.0)  # some models scale input embeddings
        rows = (prompt / scale).to(embedding.weight)
        embedding.weight = nn.Parameter(torch.cat([embedding.weight, rows]), requires_grad=False)
        embedding.num_embeddings += len(rows)
    return tuple(range(size, size + len(prompt)))
