"""A model's own way from hidden states to logits, whatever it is: scales, caps, shifts, further layers.

The model's forward is called with a body that hands on the hidden states which it is given, so that what transformers
does with them afterwards is done by transformers. Logits are formed for a chunk of positions at a time and formed
again in the backward pass, so that no more than one chunk of them exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from luthier.ml.inference.models.forward_arguments import text_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class _Given(ModelOutput):  # type: ignore[misc]  # transformers is not typed
    """What a body returns, of whatever class: hidden states, logits of routers, nothing under every other name."""

    last_hidden_state: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class OwnHead:
    """Forms logits [N, vocabulary] of hidden states [N, width] by the forward of a causal model.

    Args:
        body: the module inside that makes hidden states.
    """

    def __init__(self, causal: PreTrainedModel, body: nn.Module) -> None:
        self._causal, self._body = causal, body

    def __call__(self, states: Tensor) -> Tensor:
        # Any ids: the body that hands states on ignores them.
        ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
        with self._handing_on(states[None]):
            logits: Tensor = self._causal(input_ids=ids, **text_inputs(self._causal, ids)).logits
        return logits[0]

    def router_loss(self, router_logits: tuple[Tensor, ...], states: Tensor) -> Tensor:
        """The loss that the model's forward makes of the logits of its routers, a scalar.

        Args:
            router_logits: of each layer with a router, as its body gives them.
            states: any hidden states [1, 1, width]; logits of this one token are formed beside the loss.
        """
        ids = torch.zeros(1, 1, dtype=torch.int64, device=states.device)
        with self._handing_on(states, router_logits):
            also = text_inputs(self._causal, ids) | {"output_router_logits": True}
            loss: Tensor = self._causal(input_ids=ids, **also).aux_loss
        return loss

    @contextmanager
    def _handing_on(self, states: Tensor, router_logits: tuple[Tensor, ...] | None = None) -> Iterator[None]:
        # An instance may have a forward of its own already (compiled, or offloaded): it is put back.
        before = vars(self._body).get("forward")
        made = _Given(last_hidden_state=states, router_logits=router_logits)

        def hand_on(*_given: Any, **_named: Any) -> Any:
            return made

        # An attribute of the instance hides the forward of the class.
        self._body.forward = hand_on
        try:
            yield
        finally:
            if before is None:
                del self._body.forward
            else:
                self._body.forward = before
