"""Proof that a model's logits are its last hidden state times the matrix of its head: what the loss is computed from.

Models scale, cap or shift what their head gives, each under another name in its config (`logit_scale`,
`logits_scaling`, `final_logit_softcapping`, `lm_head_multiplier`). A list of these names would miss the next one, and
the loss would be wrong without a word. So a few tokens go through the model both ways instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F

from luthier.core.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NUM_TOKENS: Final = 4
_RELATIVE: Final = 2**-7
"""bfloat16 keeps 8 bits: what it rounds may differ by that share of the largest logit."""


@torch.no_grad()
def refuse_other_heads(base: PreTrainedModel) -> None:
    """Compare the model's own logits with head times last hidden state, on a few tokens.

    Args:
        base: a causal language model as it was loaded, before anything in it is replaced.

    Raises:
        RequestError: they differ, or the model has no head; a loss that is computed so would be wrong.
    """
    head = base.get_output_embeddings()
    if head is None:
        raise _refused(base, "it has no output head")
    if getattr(head, "bias", None) is not None:  # even one of zeros: trained in full, it would learn nothing
        raise _refused(base, "its head has a bias")
    was_training = base.training
    base.eval()
    try:
        tokens = torch.arange(_NUM_TOKENS, device=base.device)[None] % head.weight.shape[0]
        expected = base(input_ids=tokens, use_cache=False).logits.float()
        hidden = base.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
    finally:
        base.train(was_training)
    ours = F.linear(hidden, head.weight.to(hidden.dtype)).float()
    if ours.shape != expected.shape:
        raise _refused(base, f"it gives {expected.shape[-1]:,} logits where its head has {ours.shape[-1]:,} rows")
    difference, largest = float((ours - expected).abs().max()), float(expected.abs().max())
    if not difference <= _RELATIVE * largest + 1e-6:  # also where one of them is no number
        raise _refused(base, f"its logits differ by {difference:.3g} (the largest is {largest:.3g})")


def _refused(base: PreTrainedModel, why: str) -> RequestError:
    return RequestError(
        f"{type(base).__name__}: {why}",
        expected="a model whose logits are its last hidden state times the matrix of its head",
        do="choose another base model: it scales, caps or shifts its logits, and a loss without that would be wrong",
    )
