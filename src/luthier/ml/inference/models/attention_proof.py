"""Verifies that a model computes the same with fused attention (`sdpa`) as with its eager attention, the reference.

The code of a model may handle a position bias, a cap or a window differently in the two. Such a model would be trained
as one function and evaluated and served as another. So when a model is loaded, a few tokens go through its first layers
both ways: a row longer than windows and chunks, which are shortened for it, and a batch that is padded on both sides.

Layers of the same kind compute the same, so the shortest sequence of first layers with one of each kind represents the
model, in fp32 where that fits. Only the weights of these layers, the embeddings and the head are copied; afterwards the
model is unchanged, to the bit.

The test verifies the code, not the weights: the result holds for all models with the same class, config, precision,
device type and packing in this process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from luthier.core.system.machine_memory import memory_bytes
from luthier.ml.inference import accelerator
from luthier.ml.inference.models.architecture import causal_model, language_model, layers_of, prefix_length, text_config
from luthier.ml.inference.models.forward import FORWARD_ERRORS, accepted, text_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attention_of(body: nn.Module) -> str:
    """The name of the attention implementation that transformers uses for a body."""
    found: str = body.config._attn_implementation  # type: ignore[union-attr, assignment]
    return found


def use_attention(body: nn.Module, name: str) -> None:
    """Set the attention implementation of a body by its name in transformers.

    Set in the config of every submodule, since parts of a composite model may have separate configs.
    """
    held = (getattr(module, "config", None) for module in body.modules())
    for config in {id(config): config for config in held if isinstance(config, PreTrainedConfig)}.values():
        config._attn_implementation_internal = name


@contextmanager
def attention_by(body: nn.Module, name: str) -> Iterator[None]:
    """Use the attention implementation of that name within the block."""
    before = attention_of(body)
    use_attention(body, name)
    try:
        yield
    finally:
        use_attention(body, before)


SPAN_TOKENS: Final = 48
"""The size to which windows and chunks of attention are limited, in tokens."""
_SPANS: Final = ("window", "attention_chunk")
_SHARE: Final = 0.25
"""The share of free memory that fp32 copies may use."""
_NARROW: Final = (torch.bfloat16, torch.float16)


@contextmanager
def shallow_and_wide(base: PreTrainedModel) -> Iterator[None]:
    """Within the block the model is reduced to its first layers with short windows, in fp32 if memory allows.

    A model that cannot run with fewer layers keeps all of them.
    """
    with shallow(base), _short_spans(base), _wide(base):
        yield


@contextmanager
def shallow(base: PreTrainedModel) -> Iterator[None]:
    """Within the block the model has only its first layers, one of each kind; if it cannot run so, it keeps all."""
    with _shallow(base) as is_shallow:
        if is_shallow and not _runs(base):
            is_shallow = False
    # Entered a second time: the trial must end before the block, so that errors of the block are not caught here.
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
    """Limit windows and chunks of attention to `SPAN_TOKENS`, in all modules and configs that store their size."""
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
    # Only the kept layers: `_shallow` has already removed the others.
    num_bytes = sum(4 * p.numel() for p in narrow.values())
    if not narrow or num_bytes > _SHARE * _free_bytes(base.device):
        yield
        return
    kept = [(p, p.data) for p in narrow.values()]
    try:
        for p in narrow.values():
            # The data is replaced, not the parameter: tied weights stay tied.
            p.data = p.data.float()
        yield
    finally:
        for p, data in kept:
            p.data = data


def _free_bytes(device: torch.device) -> int:
    if accelerator.is_accelerator(device):
        return accelerator.free_bytes(device)
    return memory_bytes()[1]


_NUM_PADDED: Final = 5
_TOLERANCES: Final = {torch.float64: 2e-5, torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Tolerance for logits, relative to their norm. Eager attention has its softmax in fp32 even in narrower models."""

_proved: dict[tuple[object, ...], str] = {}
_reasons: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def use_proved_attention(base: PreTrainedModel) -> None:
    """Keep the attention of a newly loaded model, or switch to eager attention if the two differ.

    A model without weights (`meta`), one that already uses eager attention, and one whose eager attention fails or
    returns NaN are left unchanged.
    """
    body = language_model(base)
    if base.device.type == "meta" or attention_of(body) == "eager":
        return
    key = code_key(base)
    if key not in _proved:
        found = _why_eager(base)
        if found is None:
            return
        _proved[key] = found
    if reason := _proved[key]:
        use_attention(body, "eager")
        _reasons[base] = reason


def why_eager(model: nn.Module) -> str:
    """Why a loaded model uses eager attention instead of the requested fused one; empty if it does not."""
    return _reasons.get(model, "")


def code_key(base: PreTrainedModel) -> tuple[object, ...]:
    """Models with equal keys run the same code: of one class, config, precision, device type and packing."""
    config = json.loads(base.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    kinds = frozenset(type(module) for module in base.modules())  # packed matrices among them
    dtypes = frozenset(p.dtype for p in base.parameters())
    return (type(base), json.dumps(config, sort_keys=True), kinds, dtypes, base.device.type)


def _why_eager(base: PreTrainedModel) -> str | None:
    """How fused attention differs; empty if it does not; None if it cannot be tested."""
    body, fused = language_model(base), attention_of(language_model(base))
    was_proved = False
    with accelerator.forked_random(base.device), torch.no_grad(), shallow_and_wide(base):
        tolerance = _TOLERANCES[next(p.dtype for p in body.parameters() if p.is_floating_point())]
        for ids, mask in _probes(base):
            try:
                with attention_by(body, "eager"):
                    expected = _logits(base, ids, mask)
            except FORWARD_ERRORS:
                continue  # no reference to compare with: the error appears when the model runs
            if not bool(expected.isfinite().all()):
                continue
            was_proved = True
            what = "a row" if mask is None else "padded rows"
            try:
                with attention_by(body, fused):
                    found = _logits(base, ids, mask)
            except FORWARD_ERRORS as error:
                return f"{fused} attention fails on {what}: {' '.join(str(error).split())[:200]}"
            apart = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
            # `not <=` and not `>`: a NaN must fail.
            if not apart <= tolerance:
                return f"by {fused} attention the logits of {what} differ by {apart:.2g} of their size"
    return "" if was_proved else None


def _logits(base: PreTrainedModel, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Logits [tokens, vocabulary] in float32 of all tokens except padding."""
    causal = causal_model(base)
    also = text_inputs(causal, ids)
    if mask is None:
        logits: Tensor = causal(input_ids=ids, **also).logits
        return logits[0].float()
    logits = causal(input_ids=ids, **also, **accepted(causal, {"attention_mask": mask})).logits
    return logits[mask.bool()].float()


def _probes(base: PreTrainedModel) -> list[tuple[Tensor, Tensor | None]]:
    """Random ids [rows, T] and a mask [rows, T] of non-padding: one row, and two padded rows."""
    longest = getattr(text_config(base.config), "max_position_embeddings", None)
    num = SPAN_TOKENS + 3
    num = min(num, longest) if isinstance(longest, int) and longest > 0 else num
    vocabulary = int(base.get_input_embeddings().weight.shape[0])
    ids = torch.randint(vocabulary, (3, num), generator=torch.Generator().manual_seed(0)).to(base.device)
    mask = torch.ones_like(ids)
    padding = min(_NUM_PADDED, num // 2)
    mask[1, num - padding :] = 0  # padded on the right
    mask[2, :padding] = 0  # padded on the left
    return [(ids[:1], None), (ids[1:], mask[1:])]
