"""The path that a model uses to compute hidden states and logits."""

from __future__ import annotations

from typing import Literal

from luthier.core.frozen_model import FrozenModel


class ForwardPath(FrozenModel):
    """The path that computes hidden states and logits: found by proof, never by the name of a family.

    Attributes:
        attention: `fast` is Luthier's own; `model` what transformers chooses for this model; `eager` its plain form.
        logits: `product` is hidden states times the head's matrix in fused chunks; `head` the model's own head, chunk
            by chunk; `model` the whole forward. All three compute the same loss.
        reasons: why a fast piece was left out.
        attention_function: the name of transformers' attention where it is not Luthier's own.
        logit_scale, logit_cap: the logits are cap * tanh(scale * product / cap), or scale * product without a cap;
            found by measuring the model's own head.
        positions: `shared` is one row of positions for all rows of a micro-batch; `by_row` one for each, for models
            that look up the positions of a row by its number.
    """

    attention: Literal["fast", "model", "eager"]
    logits: Literal["product", "head", "model"]
    reasons: tuple[str, ...] = ()
    attention_function: str | None = None
    logit_scale: float = 1.0
    logit_cap: float | None = None
    positions: Literal["shared", "by_row"] = "shared"

    @property
    def is_fast(self) -> bool:
        """Whether every fast piece was proved."""
        return self.attention == "fast" and self.logits == "product"

    @property
    def words(self) -> str:
        """What computes it where Luthier's own pieces do not, such as `transformers' eager attention`."""
        attention = {"model": "transformers' attention for this model", "eager": "transformers' eager attention"}
        logits = {"head": "its own head in chunks", "model": "its whole forward, all logits at a time"}
        return " and ".join(
            part for part in (attention.get(self.attention), logits.get(self.logits)) if part is not None
        )
