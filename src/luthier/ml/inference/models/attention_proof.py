"""Proof that a model computes the same by fused attention (`sdpa`) as by its eager attention, which defines it.

The code of a model may treat a bias of positions, a cap or a window in one of the two and otherwise in the other. Such
a model would be trained as one function and judged and served as another. So when a model is loaded, a few tokens go
through its first layers (one of each kind at least, in fp32 where that fits) both ways: a row longer than windows and
chunks, which are shortened for it, and a batch that is padded on both sides.

The code is proved and not its weights: a proof counts for all models of one class, config, precision, kind of device
and packing in this process.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from luthier.ml.inference.models.architecture import causal_model, language_model, text_config
from luthier.ml.inference.models.attention_choice import attention_by, attention_of, use_attention
from luthier.ml.inference.models.forward_arguments import FORWARD_ERRORS, accepted, text_inputs
from luthier.ml.inference.models.shallow import SPAN_TOKENS, shallow_and_wide

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
