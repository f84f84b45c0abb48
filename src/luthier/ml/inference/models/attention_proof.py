"""Proof that a model computes the same by fused attention (`sdpa`) as by its eager attention, which defines it.

The code of a model may treat a bias of positions, a cap or a window in one of the two and otherwise in the other. Such
a model would be trained as one function and judged and served as another. So when a model is loaded, a few tokens go
through its first layers both ways: a row longer than windows and chunks, which are shortened for it, and a batch that
is padded on both sides.

The first layers stand for the model: layers that are built alike compute alike, so the shortest prefix that holds one
of each kind represents all, in fp32 where that fits. Nothing is copied but the weights of that prefix, of the
embeddings and of the head; afterwards the model is as it was, to the bit.

The code is proved and not its weights: a proof counts for all models of one class, config, precision, kind of device
and packing in this process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from luthier.ml.inference.models.architecture import causal_model, language_model, layers_of, prefix_length, text_config
from luthier.ml.inference.models.forward import FORWARD_ERRORS, accepted, text_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attention_of(body: nn.Module) -> str:
    """The name under which transformers looks up what computes the attention of a body."""
    found: str = body.config._attn_implementation  # type: ignore[union-attr, assignment]
    return found


def use_attention(body: nn.Module, name: str) -> None:
    """Have the attention of a body computed by what transformers knows under that name.

    Set in the config of every module inside, since parts of a composite model may hold a config of their own.
    """
    held = (getattr(module, "config", None) for module in body.modules())
    for config in {id(config): config for config in held if isinstance(config, PreTrainedConfig)}.values():
        config._attn_implementation_internal = name


@contextmanager
def attention_by(body: nn.Module, name: str) -> Iterator[None]:
    """Inside this block the attention of a body is computed by what is known under that name."""
    before = attention_of(body)
    use_attention(body, name)
    try:
        yield
    finally:
        use_attention(body, before)


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


_NUM_PADDED: Final = 5
_TOLERANCES: Final = {torch.float64: 2e-5, torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Of logits, as a share of their norm. Eager attention forms its softmax in fp32 even where the model is narrower."""

_proved: dict[tuple[object, ...], str] = {}
_reasons: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def use_proved_attention(base: PreTrainedModel) -> None:
    """Leave a model that was just loaded with the attention it has, or set eager attention where the two differ.

    A model without weights (`meta`), one with eager attention already, and one whose eager attention fails or gives no
    numbers are left as they are.
    """
    body = language_model(base)
    if base.device.type == "meta" or attention_of(body) == "eager":
        return
    key = _key(base)
    if key not in _proved:
        found = _why_eager(base)
        if found is None:
            return
        _proved[key] = found
    if reason := _proved[key]:
        use_attention(body, "eager")
        _reasons[base] = reason


def why_eager(model: nn.Module) -> str:
    """Why a loaded model has eager attention in place of the fused one that was requested; empty where it has not."""
    return _reasons.get(model, "")


def _key(base: PreTrainedModel) -> tuple[object, ...]:
    config = json.loads(base.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    kinds = frozenset(type(module) for module in base.modules())  # packed matrices among them
    dtypes = frozenset(p.dtype for p in base.parameters())
    return (type(base), json.dumps(config, sort_keys=True), kinds, dtypes, base.device.type)


def _why_eager(base: PreTrainedModel) -> str | None:
    """How fused attention differs; empty where it does not; None where nothing can be proved."""
    body, fused = language_model(base), attention_of(language_model(base))
    devices = [base.device] if base.device.type == "cuda" else []
    was_proved = False
    with torch.random.fork_rng(devices), torch.no_grad(), shallow_and_wide(base):
        tolerance = _TOLERANCES[next(p.dtype for p in body.parameters() if p.is_floating_point())]
        for ids, mask in _probes(base):
            try:
                with attention_by(body, "eager"):
                    expected = _logits(base, ids, mask)
            except FORWARD_ERRORS:
                continue  # no definition to hold anything against: whatever runs this model says why it fails
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
    """[tokens, vocabulary] in float32, of the tokens that are no padding."""
    causal = causal_model(base)
    also = text_inputs(causal, ids)
    if mask is None:
        logits: Tensor = causal(input_ids=ids, **also).logits
        return logits[0].float()
    logits = causal(input_ids=ids, **also, **accepted(causal, {"attention_mask": mask})).logits
    return logits[mask.bool()].float()


def _probes(base: PreTrainedModel) -> list[tuple[Tensor, Tensor | None]]:
    """Random ids [rows, T] and a mask [rows, T] of what is no padding: one row, and two that are padded."""
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
