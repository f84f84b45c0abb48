"""The arguments of a model's forward, and its path from hidden states to logits: head, scale and cap.

Arguments of the forward are read from its signature; for models that also take images, those for text only.

The model's own head (with any scales, caps, shifts or further layers) is used by calling its forward with a body that
returns given hidden states, so that transformers' own code computes the logits. Logits are computed for one chunk of
positions at a time and recomputed in the backward pass, so that at most one chunk of them exists.

Where the head is a product with a scale and a soft cap, both are measured rather than read from the config, since every
model family uses different names:

    logits = cap * tanh(scale * product / cap)        only the scale if there is no cap

States so large that a cap saturates reveal the cap; with it, ordinary states reveal the scale. The result is only a
candidate until the caller has compared it with the model's own logits (`forward_proof`, `likelihood`).
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
"""Exceptions of model code that does not support a computation."""


def accepted(module: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments that the module's forward accepts, by name or by **kwargs."""
    names, is_open = _parameters(cast(Hashable, type(module)))
    return arguments if is_open else {name: value for name, value in arguments.items() if name in names}


def names_parameter(module: nn.Module, name: str) -> bool:
    """Whether the module's forward has a parameter of exactly that name."""
    return name in _parameters(cast(Hashable, type(module)))[0]


def text_inputs(causal: PreTrainedModel, ids: Tensor) -> dict[str, Any]:
    """Additional forward arguments for ids [rows, T] that are only text."""
    also: dict[str, Any] = accepted(causal, {"use_cache": False})
    if is_composite(causal.config):  # which tokens represent images: none
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
    """The output of a body of any class: hidden states, router logits, and None for every other name."""

    last_hidden_state: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class OwnHead:
    """Computes logits [N, vocabulary] from hidden states [N, width] with the forward of a causal model.

    Args:
        causal: the model whose forward is used.
        body: the inner module that computes hidden states.
    """

    def __init__(self, causal: PreTrainedModel, body: nn.Module) -> None:
        self._causal, self._body = causal, body

    def __call__(self, states: Tensor) -> Tensor:
        # Arbitrary ids: the replaced body ignores them.
        ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
        with self._handing_on(states[None]):
            logits: Tensor = self._causal(input_ids=ids, **text_inputs(self._causal, ids)).logits
        return logits[0]

    def router_loss(self, router_logits: tuple[Tensor, ...], states: Tensor) -> Tensor:
        """The loss, a scalar, that the model's forward computes from its router logits.

        Args:
            router_logits: of each layer with a router, as returned by its body.
            states: any hidden states [1, 1, width]; the logits of this token are computed along with the loss.
        """
        ids = torch.zeros(1, 1, dtype=torch.int64, device=states.device)
        with self._handing_on(states, router_logits):
            also = text_inputs(self._causal, ids) | {"output_router_logits": True}
            loss: Tensor = self._causal(input_ids=ids, **also).aux_loss
        return loss

    @contextmanager
    def _handing_on(self, states: Tensor, router_logits: tuple[Tensor, ...] | None = None) -> Iterator[None]:
        # An instance may already have its own forward (compiled or offloaded): it is restored.
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
"""Products of these magnitudes have the same largest logit if there is a cap."""
_UNBENT: Final = 0.5
"""Logits up to this share of a cap can be inverted; above it, rounding errors are amplified."""
_DIGITS: Final = 6


Head = Callable[[Tensor], Tensor]
"""Maps states [N, width] to logits [N, vocabulary]."""


@dataclass(frozen=True, slots=True)
class ScaledHead:
    """The scale and cap applied to the product of hidden states and the head's matrix.

    Attributes:
        scale: factor of the product.
        cap: of the soft cap after scaling; None for no cap.
    """

    scale: float = 1.0
    cap: float | None = None

    def of(self, product: Tensor) -> Tensor:
        """Logits of a product, which is not modified."""
        logits = product if self.scale == 1.0 else product * self.scale
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap

    def has_gradient_of(self, head: Head, product: Head, states: Tensor, tolerance: float) -> bool:
        """Whether a random sum of logits has the same gradient by the states as with the model's own head.

        Args:
            head: the model's own, from states to logits.
            product: the plain product with the head's matrix, which this scaling is applied to.
            states: hidden states [N, width].
            tolerance: the largest difference, relative to the norm of the own gradient.
        """
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
    """Scale and cap of a model's head, measured on some states; None if neither fits.

    Args:
        head: the model's own function from states to logits.
        matrix_product: states times the matrix of the head.
        states: [N, width].
        tolerance: of logits, as a share of the largest.
    """
    product = matrix_product(states).double()
    size = float(product.abs().max().clamp_min(1e-30))
    try:
        logits = head(states).double()
        # Ten times the input but the same largest logit: it is capped.
        first, second = (float(head(states * (large / size)).double().abs().max()) for large in _SATURATED)
    except FORWARD_ERRORS:
        return None
    if logits.shape != product.shape or not bool(logits.isfinite().all()):
        return None
    cap = _plain_number(second, tolerance) if abs(first - second) <= tolerance * second else None
    if cap is not None:
        is_unbent = logits.abs() <= _UNBENT * cap
        product = product[is_unbent]
        # The cap is inverted where that is well conditioned; then the scale is linear.
        logits = (logits[is_unbent] / cap).atanh() * cap
    # Least squares through the origin, in float64.
    scale = float((logits * product).sum() / product.square().sum().clamp_min(1e-30))
    return ScaledHead(_plain_number(scale, tolerance), cap) if scale and abs(scale) < float("inf") else None


def _plain_number(value: float, tolerance: float) -> float:
    """The shortest decimal number, or reciprocal of one, within the error of a measured value.

    This keeps rounding, which differs between devices, out of the loss.
    """
    if not value:
        return value
    error = max(tolerance / 64, 1e-7) * abs(value)  # the error of one logit averages out over many
    for digits in range(1, _DIGITS + 1):
        found = (float(f"{value:.{digits}g}"), 1 / float(f"{1 / value:.{digits}g}"))
        nearer = min(found, key=lambda one: abs(one - value))
        if abs(nearer - value) <= error:
            return nearer
    return value
