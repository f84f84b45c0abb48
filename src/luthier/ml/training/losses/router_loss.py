"""The load-balancing loss of routers, as computed by the model itself.

Fedus et al., 2021, "Switch Transformers", arXiv:2101.03961, section 2.2: for N experts, N times the sum over experts of
the share of tokens routed to it times its mean router probability. The formula is not reimplemented: the model's own
forward computes the loss (`output_router_logits`, `aux_loss`) from the router logits that our pass over the micro-batch
recorded.

Which tokens count. Each token of each row once: padding does not, and a shared prefix counts once for each of its rows.
So the loss of a micro-batch is the same padded, packed and with shared prefixes.

How it is averaged. The balance is computed over the tokens of one micro-batch. A step uses the mean over its
micro-batches, weighted as in the objective (by learned tokens, for example), so `micro_batch_tokens` affects the loss,
as it does in transformers with gradient accumulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from luthier.core.errors import RequestError
from luthier.ml.inference.models.forward import FORWARD_ERRORS, OwnHead, text_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from luthier.ml.training.model import MicroBatch

_ARGUMENT: Final = "output_router_logits"
_TOLERANCES: Final = {torch.float32: 1e-6, torch.float64: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Relative tolerance for the loss of equal router logits."""
_PROBE_LENGTHS: Final = (23, 14)


class RouterLoss:
    """Records router logits while a micro-batch is computed, and lets the model compute its loss from them.

    Attributes:
        coefficient: factor of the router loss in the total loss.
    """

    def __init__(self, causal: PreTrainedModel, body: nn.Module, coefficient: float) -> None:
        """Raise RequestError if the model's forward returns no such loss, or another one than this class computes.

        Args:
            causal: the model whose forward computes the loss.
            body: the same model without its head.
            coefficient: factor of the router loss in the total loss.
        """
        self.coefficient = coefficient
        self._causal, self._body, self._head = causal, body, OwnHead(causal, body)
        self._recorded: list[Any] = []
        self._prove()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Make the body return router logits, and record those of passes with gradients."""
        self._recorded.clear()

        def ask(_body: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            return given, {**named, _ARGUMENT: True}

        def keep(_body: nn.Module, _given: Any, out: Any) -> None:
            # Passes without gradients (reference log-probabilities, sampled answers) are not part of the loss.
            if torch.is_grad_enabled():
                self._recorded.append(out)

        hooks = (
            self._body.register_forward_pre_hook(ask, with_kwargs=True),
            self._body.register_forward_hook(keep),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def of(self, batch: MicroBatch) -> Tensor:
        """The router loss of the last micro-batch, a scalar, before multiplication by the coefficient."""
        # Two passes, such as recomputed layers, would count every token twice.
        if len(self._recorded) != 1:
            raise RuntimeError(f"{len(self._recorded)} passes over a micro-batch were recorded, and one was expected")
        out = self._recorded.pop()
        return self._made(
            out, torch.from_numpy(token_indices(batch)).to(batch.input_ids.device), batch.input_ids.numel()
        )

    def _made(self, out: Any, places: Tensor, num_tokens: int) -> Tensor:
        """The model's loss for the router logits in the output of its body, for the tokens at these positions."""
        logits = tuple(layer.flatten(0, -2) for layer in out.router_logits)  # each [tokens, experts]
        if any(len(layer) != num_tokens for layer in logits):
            raise RuntimeError(f"router logits of {[len(layer) for layer in logits]} tokens, expected {num_tokens}")
        chosen = tuple(layer[places.to(layer.device)] for layer in logits)
        return self._head.router_loss(chosen, out.last_hidden_state[:1, :1].detach()).float()

    def _prove(self) -> None:
        """Compare the loss of two rows of different length with the model's own, whose mask excludes padding."""
        causal, longest = self._causal, max(_PROBE_LENGTHS)
        device = causal.get_input_embeddings().weight.device
        size = int(causal.get_input_embeddings().weight.shape[0])
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(size, (len(_PROBE_LENGTHS), longest), generator=draw).to(device)
        mask = (torch.arange(longest)[None] < torch.tensor(_PROBE_LENGTHS)[:, None]).long().to(device)
        was_training = causal.training
        causal.eval()
        try:
            with torch.enable_grad(), self.recording():
                # The model masks padding in its own loss; ours leaves these positions out. Both must agree.
                given = {"attention_mask": mask, _ARGUMENT: True, **text_inputs(causal, ids)}
                own = getattr(causal(input_ids=ids, **given), "aux_loss", None)
            out = self._recorded.pop() if self._recorded else None
            if own is None or not isinstance(own, Tensor) or not getattr(out, "router_logits", None):
                raise _refused(causal, "its forward gives none")
            with torch.no_grad():
                places = mask.flatten().nonzero().flatten()
                made, wanted = float(self._made(out, places, ids.numel())), float(own.detach())
        except FORWARD_ERRORS as error:
            raise _refused(causal, f"its forward fails: {' '.join(str(error).split())[:200]}") from error
        finally:
            self._recorded.clear()
            causal.train(was_training)
        tolerance = _TOLERANCES.get(next(causal.parameters()).dtype, 2e-2)
        if not abs(made - wanted) <= tolerance * max(abs(wanted), 1e-30):
            raise _refused(causal, f"of the same router logits it makes {wanted:.8g}, and {made:.8g} without padding")


def token_indices(batch: MicroBatch) -> Any:
    """Indices of the tokens of all rows in the flattened ids; a shared prefix is repeated for each row."""
    if batch.layout is None:
        longest = batch.input_ids.shape[1]
        return np.concatenate([row * longest + np.arange(size) for row, size in enumerate(batch.lengths)])
    layout = batch.layout
    first, own = layout.starts()
    pieces = []
    for row, size in enumerate(layout.suffix_tokens):
        group = row // layout.num_suffixes
        pieces.append(first[group] + np.arange(layout.prefix_tokens[group]))
        pieces.append(own[row] + np.arange(size))
    return np.concatenate(pieces).astype(np.int64)


def _refused(causal: PreTrainedModel, why: str) -> RequestError:
    return RequestError(
        f"objective.router_aux_loss with {type(causal).__name__}: {why}",
        expected=f"a mixture of experts whose forward takes {_ARGUMENT} and gives an aux_loss",
        do="set objective.router_aux_loss: off",
    )
