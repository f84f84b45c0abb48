"""What a model's forward takes, and how it gets from hidden states to logits: its head, with scale and cap.

Arguments of the forward are read off its signature, for text alone where it also takes pictures.

The model's own head, whatever it is (scales, caps, shifts, further layers), is used by calling its forward with a body
that hands on given hidden states, so that what transformers does with them afterwards is done by transformers. Logits
are formed for a chunk of positions at a time and formed again in the backward pass, so that no more than one chunk of
them exists.

Where the head is a product with a scale and a soft cap, both are measured, not read in a config, since every family
calls them by another name:

    logits = cap * tanh(scale * product / cap)        scale alone where nothing is capped

States so large that a cap saturates show the cap itself; with it known, ordinary states show the scale. What is
measured is a guess until whoever uses it has held it against the model's own logits (`forward_proof`, `likelihood`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from luthier.ml.inference.models.architecture import is_composite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORWARD_ERRORS: Final = (
    RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, ImportError,
    AssertionError,
)  # fmt: skip
"""What the code of a model raises that cannot compute something."""


def accepted(module: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the keyword arguments that the module's forward has a parameter for, or takes as others."""
    names, is_open = _parameters(cast(Hashable, type(module)))
    return arguments if is_open else {name: value for name, value in arguments.items() if name in names}


def names_parameter(module: nn.Module, name: str) -> bool:
    """Whether the module's forward has a parameter of that very name."""
    return name in _parameters(cast(Hashable, type(module)))[0]


def text_inputs(causal: PreTrainedModel, ids: Tensor) -> dict[str, Any]:
    """What else the forward of a model is given with ids [rows, T] that are text and nothing else."""
    also: dict[str, Any] = accepted(causal, {"use_cache": False})
    if is_composite(causal.config):  # which tokens represent pictures: none
        kinds = ("token_type_ids", "mm_token_type_ids")
        also |= {name: torch.zeros_like(ids) for name in kinds if names_parameter(causal, name)}
    return also


@lru_cache(maxsize=256)
def _parameters(kind: Hashable) -> tuple[frozenset[str], bool]:
    found = inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]
    is_open = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in found.values())
    return frozenset(found), is_open


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


_SATURATED: Final = (1e3, 1e4)
"""Products of these sizes give the same largest logit where there is a cap."""
_UNBENT: Final = 0.5
"""Logits up to this share of a cap say what went into it; above, rounding is blown up in the backward pass."""
_DIGITS: Final = 6


Head = Callable[[Tensor], Tensor]
"""Makes [N, vocabulary] of states [N, width]."""


@dataclass(frozen=True, slots=True)
class ScaledHead:
    """What is done to the product of hidden states and the head's matrix.

    Attributes:
        scale: factor of the product.
        cap: of the soft cap behind it; None for no cap.
    """

    scale: float = 1.0
    cap: float | None = None

    def of(self, product: Tensor) -> Tensor:
        """Logits of a product, which is left as it is."""
        logits = product if self.scale == 1.0 else product * self.scale
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap

    def has_gradient_of(self, head: Head, product: Head, states: Tensor, tolerance: float) -> bool:
        """Whether a random sum of logits has the same gradient by these states [N, width] as that of a model's head."""
        found: list[Tensor] = []
        with torch.enable_grad():
            for form in (head, lambda x: self.of(product(x).float())):
                leaf = states.detach().clone().requires_grad_()
                logits = form(leaf).float()
                weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)).to(logits)
                found += torch.autograd.grad((logits * weight).sum(), leaf)
        own, ours = (gradient.float() for gradient in found)
        return bool((own - ours).norm() <= tolerance * own.norm() + 1e-30)


PLAIN: Final = ScaledHead()


@torch.no_grad()
def measured(head: Head, matrix_product: Head, states: Tensor, tolerance: float) -> ScaledHead | None:
    """Scale and cap of a model's own head, by what it gives for some states; None where neither fits.

    Args:
        head: the model's own way from states to logits.
        matrix_product: states times the matrix of the head.
        states: [N, width].
        tolerance: of logits, as a share of the largest.
    """
    product = matrix_product(states).double()
    size = float(product.abs().max().clamp_min(1e-30))
    try:
        logits = head(states).double()
        # Ten times the input and the same largest logit: it is capped there.
        first, second = (float(head(states * (large / size)).double().abs().max()) for large in _SATURATED)
    except FORWARD_ERRORS:
        return None
    if logits.shape != product.shape or not bool(logits.isfinite().all()):
        return None
    cap = _plain_number(second, tolerance) if abs(first - second) <= tolerance * second else None
    if cap is not None:
        is_unbent = logits.abs() <= _UNBENT * cap
        product = product[is_unbent]
        # The cap is undone where that is well conditioned; then the scale is linear.
        logits = (logits[is_unbent] / cap).atanh() * cap
    # Least squares through the origin, in float64.
    scale = float((logits * product).sum() / product.square().sum().clamp_min(1e-30))
    return ScaledHead(_plain_number(scale, tolerance), cap) if scale and abs(scale) < float("inf") else None


def _plain_number(value: float, tolerance: float) -> float:
    """The shortest decimal number, or one over such a number, that a measured value represents within its error.

    So that rounding, which differs from device to device, does not become part of a loss.
    """
    if not value:
        return value
    error = max(tolerance / 64, 1e-7) * abs(value)  # that of one logit is averaged out over many
    for digits in range(1, _DIGITS + 1):
        found = (float(f"{value:.{digits}g}"), 1 / float(f"{1 / value:.{digits}g}"))
        nearer = min(found, key=lambda one: abs(one - value))
        if abs(nearer - value) <= error:
            return nearer
    return value
