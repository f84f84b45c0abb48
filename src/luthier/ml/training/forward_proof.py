"""Selects the path that computes a model's loss: each fast piece is compared with the model's own forward at load time.

    hidden states   our attention (`attention.py`), else transformers' own for this model
    logits          hidden states times the head's matrix in fused chunks, scaled and capped as the model's own head
                    is measured to do it (`scaled_head.py`), else that head on hidden states, else its whole forward

Models scale, cap, shift and mask, each under different names in its config (`logit_scale`, `attn_logit_softcapping`,
`lm_head_multiplier`, sinks, ALiBi, chunks). A list of these names would miss the next one, and the loss would be
silently wrong. So a row longer than a block of attention, and longer than windows and chunks (which are shortened for
it), goes through the first layers of the model (at least one of each kind, in fp32 where that fits), once with
transformers' eager attention and once with each fast piece, forward and backward. A piece that computes the same is
used; one that does not is skipped, and the reason is reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.errors import RequestError
from luthier.core.forward_path import ForwardPath
from luthier.ml.inference.accelerator import forked_random
from luthier.ml.inference.models.architecture import (
    causal_model,
    language_model,
    outside_modules,
    text_config,
)
from luthier.ml.inference.models.attention_proof import (
    SPAN_TOKENS,
    attention_by,
    attention_of,
    code_key,
    shallow_and_wide,
    why_eager,
)
from luthier.ml.inference.models.forward import (
    FORWARD_ERRORS,
    PLAIN,
    OwnHead,
    ScaledHead,
    measured,
    names_parameter,
    text_inputs,
)
from luthier.ml.inference.models.prefix_lm import PREFIX_LM, PREFIX_LM_ADVICE, is_prefix_lm
from luthier.ml.training import attention
from luthier.ml.training.body import last_hidden_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NUM_PREDICTED: Final = 8
_TOLERANCES: Final = {torch.float64: 2e-5, torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Tolerance for hidden states and gradients, relative to their norm. Rounding adds up over a deep model; eager
attention uses fp32 even where the model is wider."""
_HEAD_TOLERANCES: Final = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}
"""Tolerance for logits of the same hidden states, relative to the largest."""
_LARGE: Final = 100.0
"""Logits of this size reveal a cap that does not change small ones."""


@dataclass(frozen=True, slots=True)
class _Passed:
    """Result of a pass over the probe: hidden states [1, T, width], and the gradient of the embeddings, same shape."""

    states: Tensor
    gradient: Tensor


def prove_forward(base: PreTrainedModel) -> ForwardPath:
    """Find the fastest path that computes what the model's own forward computes.

    Args:
        base: a model as loaded, before anything in it is replaced. The model and all random number generators are left
            unchanged.

    Raises:
        RequestError: it is not a causal language model (it has no head, or an earlier token sees a later one, be it in
            prompts alone), or its outputs are not finite.
    """
    was_training = base.training
    # Made-up weights and dropout draw numbers: a run must not depend on whether its model was proved before.
    with forked_random(base.device):
        base.eval()
        try:
            with shallow_and_wide(base):
                return _Proof(base).path()
        finally:
            base.train(was_training)


_MAX_KNOWN: Final = 16
_known: dict[tuple[object, ...], ForwardPath] = {}


def known_forward(base: PreTrainedModel, folder: Path) -> ForwardPath:
    """The path of `prove_forward`, which is found once a process for the same files.

    The trials of a study, and a run that is resumed, load one base again and again.

    Args:
        base: as loaded from the folder, before anything in it is replaced.
        folder: of its config and weights.

    Raises:
        RequestError: `prove_forward` refuses it.
    """
    # Weights, too: where they are no numbers the proof says so.
    files = [(file.name, file.stat()) for file in folder.iterdir() if file.suffix in (".json", ".safetensors")]
    stamp = tuple(sorted((name, status.st_size, status.st_mtime_ns) for name, status in files))
    key = (*code_key(base), attention_of(language_model(base)), str(folder), stamp)
    if key not in _known:
        found = prove_forward(base)
        if len(_known) == _MAX_KNOWN:
            del _known[next(iter(_known))]  # the oldest
        _known[key] = found
    return _known[key]


class _Proof:
    def __init__(self, base: PreTrainedModel) -> None:
        self.base, self.causal, self.body = base, causal_model(base), language_model(base)
        self.own_attention = attention_of(self.body)
        self.head = base.get_output_embeddings()
        if self.head is None:
            raise _refused(base, "it has no output head")
        self.ids = _probe(base)
        self.dtype = next(p.dtype for p in self.body.parameters() if p.is_floating_point())
        self.reasons: list[str] = []

    def path(self) -> ForwardPath:
        try:
            states, logits, gradient = self._own_forward()
        except FORWARD_ERRORS as error:
            raise _refused(self.base, f"its own forward fails: {_error_summary(error)}") from error
        if not bool(logits.isfinite().all()):
            raise _refused(self.base, "its logits on made-up tokens are not finite")
        self._refuse_later_tokens()
        own = None if states is None or gradient is None else _Passed(states, gradient)
        # Without hidden states or a gradient there is nothing to compare with: the model computes its logits itself.
        computed = None if own is None else self._attention(own)
        if own is None or computed is None:
            self.reasons.append("logits: they do not follow from what its body gives")
            return ForwardPath(
                attention="eager", logits="model", reasons=tuple(self.reasons), attention_function="eager"
            )
        how, scaled = self._logits(OwnHead(self.causal, self.body), own, logits)
        computed = "eager" if how == "model" else computed
        return ForwardPath(
            attention=computed,
            logits=how,
            attention_function={"model": self.own_attention, "eager": "eager"}.get(computed),
            reasons=tuple(self.reasons),
            logit_scale=scaled.scale,
            logit_cap=scaled.cap,
            positions="shared" if how == "model" or self._shares_positions(own, computed) else "by_row",
        )

    def _own_forward(self) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Hidden states, logits and gradient of the embeddings by transformers' forward with eager attention."""
        seen: list[Any] = []
        hook = self.body.register_forward_hook(lambda _module, _given, out: seen.append(out))
        try:
            with attention_by(self.body, "eager"), _embeddings(self.base) as inputs, torch.enable_grad():
                few = {"logits_to_keep": _NUM_PREDICTED} if names_parameter(self.causal, "logits_to_keep") else {}
                out = self.causal(input_ids=self.ids, **few, **text_inputs(self.causal, self.ids))
                states = getattr(seen[0], "last_hidden_state", None) if len(seen) == 1 else None
                if few and states is not None and states.shape[1] != self.ids.shape[1]:
                    # a body with shared keys computes its later layers for the requested positions only (Gemma 4)
                    seen.clear()
                    out = self.causal(input_ids=self.ids, **text_inputs(self.causal, self.ids))
                    states = getattr(seen[0], "last_hidden_state", None) if len(seen) == 1 else None
                gradient = None if states is None or not inputs else _gradient(states, inputs[-1])
        finally:
            hook.remove()
        # [predicted, vocabulary] of the last tokens, which have seen all others: an error anywhere reaches them.
        logits = out.logits.detach()[0, -_NUM_PREDICTED:].float()
        return None if states is None else states.detach(), logits, gradient

    @torch.no_grad()
    def _refuse_later_tokens(self) -> None:
        """Check that changing a token changes nothing before it."""
        # Twelve tokens are enough: a mask that lets the future through does so at any distance.
        few = self.ids[:, :12]
        other = few.clone()
        other[0, -1] = (other[0, -1] + 1) % int(self.base.get_input_embeddings().weight.shape[0])
        if self._is_seen(few, other):
            raise _refused(self.base, "earlier tokens see later ones in it")
        if is_prefix_lm(self.base):
            raise _refused(self.base, f"{PREFIX_LM}, and rows are read from left to right", do=PREFIX_LM_ADVICE)

    def _is_seen(self, ids: Tensor, other: Tensor) -> bool:
        """Whether the last token, in which both differ, changes logits before it."""
        with attention_by(self.body, "eager"):
            one, two = (
                self.causal(input_ids=x, **text_inputs(self.causal, x)).logits[0, :-1].float() for x in (ids, other)
            )
        return not _close(one, two, _TOLERANCES[self.dtype])

    def _attention(self, own: _Passed) -> Any:
        """The first attention that gives the same hidden states: ours, the one as loaded, or the eager one."""
        why_not = self._why_not_ours(own)
        if why_not is None:
            return "fast"
        self.reasons.append(f"attention: {why_not}")
        if why_eager(self.base):
            self.reasons.append(f"attention: {why_eager(self.base)}")
        # The one as loaded first, since it is the faster; a dict, so that it is not tried twice where it is eager.
        for name in dict.fromkeys((self.own_attention, "eager")):
            if self._differs(own, name) is None:
                return "model" if name == self.own_attention and not why_eager(self.base) else "eager"
        return None

    def _why_not_ours(self, own: _Passed) -> str | None:
        if (why_not := self._differs(own, attention.install())) is not None:
            return why_not
        few = self.ids[:, :4]
        self.base.train()
        try:
            with attention_by(self.body, attention.install()), torch.no_grad():
                last_hidden_states(self.body, _positions(few), input_ids=few)
        except attention.NotComputedError as error:  # dropout, which is only drawn in training
            return str(error)
        finally:
            self.base.eval()
        return None

    def _differs(self, own: _Passed, name: str) -> str | None:
        """How hidden states or gradients with that attention differ from the model's own; None if they do not."""
        try:
            with attention_by(self.body, name), _embeddings(self.base) as inputs, torch.enable_grad():
                states = last_hidden_states(self.body, _positions(self.ids), input_ids=self.ids)
                gradient = _gradient(states, inputs[-1])
        except FORWARD_ERRORS as error:
            return _error_summary(error)
        tolerance = _TOLERANCES[self.dtype]
        for what, one, other in (("hidden states", own.states, states), ("gradients", own.gradient, gradient)):
            if one.shape != other.shape:
                return f"its {what} have the shape {tuple(other.shape)}, not {tuple(one.shape)}"
            if not _close(one, other, tolerance):
                return f"its {what} differ by {_apart(one, other):.2g} of their size"
        return None

    @torch.no_grad()
    def _shares_positions(self, own: _Passed, computed: str) -> bool:
        """Whether two rows with one row of positions have the hidden states that each has by itself."""
        if not names_parameter(self.body, "position_ids"):
            return True
        two = self.ids.repeat(2, 1)
        name = {"fast": attention.NAME, "model": self.own_attention}.get(computed, computed)
        try:
            with attention_by(self.body, name):
                states = last_hidden_states(self.body, _positions(two), input_ids=two)
        except FORWARD_ERRORS:
            return False
        return _close(own.states.repeat(2, 1, 1), states, _TOLERANCES[self.dtype])

    @torch.no_grad()
    def _logits(self, head: OwnHead, own: _Passed, logits: Tensor) -> tuple[Any, ScaledHead]:
        """How logits are computed from hidden states: by the head's matrix, the model's own head, or only the whole
        model.

        Also returned: the scale and cap of the product with that matrix.
        """
        # [predicted, width], of the same tokens as the logits.
        last = own.states[0, -_NUM_PREDICTED:]
        try:
            formed = head(last).float()
        except FORWARD_ERRORS as error:
            self.reasons.append(f"logits: {_error_summary(error)}")
            return "model", PLAIN
        tolerance = _HEAD_TOLERANCES[self.dtype]
        if formed.shape != logits.shape or not _near(formed, logits, 4 * tolerance):
            self.reasons.append("logits: its forward does more with hidden states than its head")
            return "model", PLAIN
        if (why_not := self._why_not_the_matrix()) is None:
            why_not = self._why_no_product(head, last, tolerance, PLAIN)
            if why_not is None:
                return "product", PLAIN
            # Some models scale or cap their logits (Granite, Gemma 2): measured by values, not read from a config.
            scaled = measured(head, self._product, last, tolerance)
            if scaled is not None and self._why_no_product(head, last, tolerance, scaled) is None:
                return "product", scaled
        self.reasons.append(f"logits: {why_not}")
        return "head", PLAIN

    def _product(self, states: Tensor) -> Tensor:
        return F.linear(states, self.head.weight.to(states.dtype))

    def _why_not_the_matrix(self) -> str | None:
        """What else contributes to the logits in addition to the matrix of the head."""
        # Even a bias of zeros, or scales of one: full fine-tuning would never train them.
        if beside := [name for name, _ in self.head.named_parameters() if name != "weight"]:
            return f"its head has a {beside[0]}"
        if further := _further_parameters(self.base, self.body, self.head):
            return f"{further[0]} is between its hidden states and its logits"
        return None

    def _why_no_product(self, head: OwnHead, last: Tensor, tolerance: float, scaled: ScaledHead) -> str | None:
        """Why logits are not the scaled product with the head's matrix, tested on states of several magnitudes."""
        size = float(self._product(last).float().abs().max().clamp_min(1e-30))
        # Plain states, states whose logits reach a cap, and zeros, which make an added constant visible.
        for states in (last, last * (_LARGE / size), torch.zeros_like(last)):
            ours, theirs = scaled.of(self._product(states).float()), head(states).float()
            if ours.shape != theirs.shape:
                return f"it gives {theirs.shape[-1]:,} logits where its head has {ours.shape[-1]:,} rows"
            if not _near(ours, theirs, tolerance):
                largest = float(theirs.abs().max())
                return f"it changes what its head gives, by {float((ours - theirs).abs().max()):.3g} of {largest:.3g}"
            if scaled is not PLAIN and not scaled.has_gradient_of(head, self._product, states, _TOLERANCES[self.dtype]):
                return "its gradients are not those of a product that is scaled and capped"
        return None


def _further_parameters(base: PreTrainedModel, body: nn.Module, head: nn.Module) -> list[str]:
    """Names of parameters outside the body, the head and the towers."""
    # By identity: a head that is tied to the embeddings is a parameter of the body, too.
    known = {id(p) for part in (body, head) for p in part.parameters()}
    known |= {id(p) for name in outside_modules(base) for p in base.get_submodule(name).parameters()}
    return [name for name, p in base.named_parameters() if id(p) not in known]


def _probe(base: PreTrainedModel) -> Tensor:
    """Random ids [1, T], longer than a block of attention and than the shortened windows and chunks."""
    longest = getattr(text_config(base.config), "max_position_embeddings", None)
    # Three more, so that the last block of attention is not a full one.
    num = max(attention.BLOCK_TOKENS, SPAN_TOKENS) + 3
    num = min(num, longest) if isinstance(longest, int) and longest > 0 else num
    vocabulary = int(base.get_input_embeddings().weight.shape[0])
    return torch.randint(vocabulary, (1, num), generator=torch.Generator().manual_seed(0)).to(base.device)


def _positions(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1], device=ids.device)[None]


@contextmanager
def _embeddings(base: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Within the block the embeddings are a leaf tensor that requires a gradient; the list holds it."""
    given: list[Tensor] = []

    def keep(_: nn.Module, __: object, out: Tensor) -> Tensor:
        given.append(out.detach().requires_grad_())
        return given[-1]

    hook = base.get_input_embeddings().register_forward_hook(keep)
    try:
        yield given
    finally:
        hook.remove()


def _gradient(states: Tensor, inputs: Tensor) -> Tensor:
    """The gradient of a random weighted sum of the states with respect to the embeddings."""
    # Random weights: in a plain sum errors of opposite sign would cancel.
    weight = torch.randn(states.shape, generator=torch.Generator().manual_seed(1)).to(states)
    (found,) = torch.autograd.grad(states, inputs, weight)
    return found


def _apart(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().float(), other.detach().float()
    return float((one - other).norm() / one.norm().clamp_min(1e-30))


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return _apart(one, other) <= tolerance  # also False if one of them is NaN


def _near(one: Tensor, other: Tensor, tolerance: float) -> bool:
    # The absolute part lets logits that are zero throughout compare equal.
    return float((one - other).abs().max()) <= tolerance * float(one.abs().max()) + 1e-6 * tolerance


def _error_summary(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _refused(base: PreTrainedModel, why: str, *, do: str = "choose another base model") -> RequestError:
    return RequestError(
        f"{type(base).__name__}: {why}",
        expected="a language model that predicts each token from those before it",
        do=do,
    )
