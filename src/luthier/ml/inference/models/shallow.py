"""A loaded model as its first layers in fp32, for a proof that must be exact and cheap; then as it was, to the bit.

Layers that are built alike compute alike, so the shortest prefix that holds one of each kind represents all. Windows
and chunks of attention are shortened, so that short rows are longer than these. Nothing is copied but the weights of
that prefix, of the embeddings and of the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

import psutil
import torch
from torch import nn

from luthier.ml.inference.models.architecture import causal_model, language_model, text_config
from luthier.ml.inference.models.forward_arguments import text_inputs
from luthier.ml.inference.models.layer_kinds import layers_of, prefix_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPAN_TOKENS: Final = 48
"""How far back attention looks at most, where its layers look back by a window or a chunk."""
_SPANS: Final = ("window", "attention_chunk")
_SHARE: Final = 0.25
"""Of the memory that is free, what wide copies may take."""
_NARROW: Final = (torch.bfloat16, torch.float16)


@contextmanager
def shallow_and_wide(base: PreTrainedModel) -> Iterator[None]:
    """Inside this block the model is its first layers with short windows, in fp32 where the memory has room for these.

    A model that cannot run with fewer layers keeps all of them.
    """
    with shallow(base), _short_spans(base), _wide(base):
        yield


@contextmanager
def shallow(base: PreTrainedModel) -> Iterator[None]:
    """Inside this block the model is its first layers, one of each kind; one that cannot run so keeps all of them."""
    with _shallow(base) as is_shallow:
        if is_shallow and not _runs(base):
            is_shallow = False
    # Entered a second time: the trial must end before the block, so that an error of the block is its own.
    with _shallow(base) if is_shallow else nullcontext():
        yield


@contextmanager
def _shallow(base: PreTrainedModel) -> Iterator[bool]:
    found = layers_of(base)
    num = None if found is None else prefix_length(base, found[2])
    if found is None or num is None or num >= len(found[2]):
        yield False
        return
    parent, name, layers = found
    setattr(parent, name, nn.ModuleList(list(layers)[:num]))
    try:
        yield True
    finally:
        setattr(parent, name, layers)


@torch.no_grad()
def _runs(base: PreTrainedModel) -> bool:
    ids = torch.zeros(1, 2, dtype=torch.int64, device=base.device)
    causal = causal_model(base)
    try:
        causal(input_ids=ids, **text_inputs(causal, ids))
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return False
    return True


@contextmanager
def _short_spans(base: PreTrainedModel) -> Iterator[None]:
    """Windows and chunks of attention, wherever a module or a config holds their size, are at most `SPAN_TOKENS`."""
    body = language_model(base)
    configs = {id(c): c for m in body.modules() if (c := getattr(m, "config", None)) is not None}
    long = [
        (holder, name, value)
        for holder in (*body.modules(), *configs.values(), text_config(base.config))
        for name, value in list(vars(holder).items())
        if type(value) is int and value > SPAN_TOKENS and any(part in name for part in _SPANS)
    ]
    try:
        for holder, name, _ in long:
            setattr(holder, name, SPAN_TOKENS)
        yield
    finally:
        for holder, name, value in reversed(long):
            setattr(holder, name, value)


@contextmanager
def _wide(base: PreTrainedModel) -> Iterator[None]:
    parts = [language_model(base), base.get_output_embeddings()]
    narrow = {id(p): p for part in parts if part is not None for p in part.parameters() if p.dtype in _NARROW}
    # Only the kept layers: `_shallow` has taken the others out by now.
    num_bytes = sum(4 * p.numel() for p in narrow.values())
    if not narrow or num_bytes > _SHARE * _free_bytes(base.device):
        yield
        return
    kept = [(p, p.data) for p in narrow.values()]
    try:
        for p in narrow.values():
            # The data is exchanged, not the parameter: tied weights stay tied.
            p.data = p.data.float()
        yield
    finally:
        for p, data in kept:
            p.data = data


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
