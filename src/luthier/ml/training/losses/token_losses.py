"""Losses over given target tokens with per-token inputs, as clients of the Tinker API name them.

A datum is a sequence of T tokens with a target for each position, or K of them; all other inputs have the shape of the
targets. Every loss is a sum, not a mean: a client that wants a mean divides its weights. p are the probabilities of the
model, q those at which the tokens were sampled, A the advantages, w the weights:

    cross_entropy         - sum w log p
    importance_sampling   - sum (p / q) A
    ppo                   - sum min((p / q) A, clip(p / q, low, high) A)
    cispo                 - sum clip(p / q, low, high) A log p, with no gradient through the clipped ratio

Sources: Schulman et al., 2017, "Proximal Policy Optimization Algorithms", arXiv:1707.06347, equation 7. MiniMax, 2025,
"MiniMax-M1", arXiv:2506.13585, equations 4 and 5 (CISPO).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.core.errors import OverlongError, RequestError

Array = NDArray[Any]
TARGETS: Final = "target_tokens"
WEIGHTS: Final = "weights"
_SAMPLED, _ADVANTAGES = "logprobs", "advantages"
MAX_TARGETS: Final = 1 << 18
"""Targets of one datum with several for each token: the state before each of them is in memory."""
_CLIPPING: Final = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
_ONE_SIDED: Final = {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}
"""Of CISPO, as in its paper: only large ratios are clipped. A lower bound would keep up the weight of tokens that have
become unlikely."""


@dataclass(frozen=True, slots=True)
class Datum:
    """One sequence.

    Attributes:
        tokens: int32 [T].
        inputs: by name; `target_tokens` int64 [T] or [T, K], all others float32 of that shape.
    """

    tokens: Array
    inputs: Mapping[str, Array]

    @property
    def targets(self) -> Array:
        """The targets, [T, K]."""
        return self.inputs[TARGETS].reshape(len(self.tokens), -1)

    def flat(self, name: str) -> Array:
        """Another input, [T * K]."""
        return self.inputs[name].reshape(-1)


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """A loss.

    Attributes:
        needed: names of the inputs besides the targets.
        factor: the input that every term is multiplied by: where it is 0 a token adds nothing to loss and gradient.
        compute: the sum, from log p [N], the inputs [N] by name, and the settings.
        settings: by name, with their defaults.
    """

    needed: tuple[str, ...]
    factor: str
    compute: Callable[[Tensor, Mapping[str, Tensor], Mapping[str, float]], Tensor]
    settings: Mapping[str, float]


def _cross_entropy(log_p: Tensor, given: Mapping[str, Tensor], _: Mapping[str, float]) -> Tensor:
    # Both [N] float32, whatever the precision of the weights: a bf16 sum over thousands of tokens loses small terms.
    return -(given[WEIGHTS] * log_p).sum()


def _ratio(log_p: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    # In the log domain until here: each probability alone may underflow in float32, their ratio does not.
    return (log_p - given[_SAMPLED]).exp()


def _clipped(ratio: Tensor, settings: Mapping[str, float]) -> Tensor:
    return ratio.clamp(settings["clip_low_threshold"], settings["clip_high_threshold"])


def _importance_sampling(log_p: Tensor, given: Mapping[str, Tensor], _: Mapping[str, float]) -> Tensor:
    # The gradient goes through the ratio; q and A are constants from the client.
    return -(_ratio(log_p, given) * given[_ADVANTAGES]).sum()


def _ppo(log_p: Tensor, given: Mapping[str, Tensor], settings: Mapping[str, float]) -> Tensor:
    ratio, advantages = _ratio(log_p, given), given[_ADVANTAGES]
    # The smaller of the two products: a step that leaves the range in the wrong direction is still corrected, and one
    # that leaves it in the right direction gets no further gradient.
    return -torch.minimum(ratio * advantages, _clipped(ratio, settings) * advantages).sum()


def _cispo(log_p: Tensor, given: Mapping[str, Tensor], settings: Mapping[str, float]) -> Tensor:
    # detach: the clipped ratio is a weight without gradient
    return -(_clipped(_ratio(log_p, given), settings).detach() * given[_ADVANTAGES] * log_p).sum()


_POLICY: Final = (_SAMPLED, _ADVANTAGES)
LOSSES: Final[Mapping[str, TokenLoss]] = {
    "cross_entropy": TokenLoss((WEIGHTS,), WEIGHTS, _cross_entropy, {}),
    "importance_sampling": TokenLoss(_POLICY, _ADVANTAGES, _importance_sampling, {}),
    "ppo": TokenLoss(_POLICY, _ADVANTAGES, _ppo, _CLIPPING),
    "cispo": TokenLoss(_POLICY, _ADVANTAGES, _cispo, _ONE_SIDED),
}


def find_loss(name: str, settings: Mapping[str, float | str]) -> tuple[TokenLoss, dict[str, float]]:
    """A loss by its name, and all of its settings.

    Raises:
        RequestError: there is no such loss, or it has no such setting.
    """
    if name not in LOSSES:
        raise RequestError(
            f"the loss {name[:100]!r}",
            expected=f"one of {', '.join(LOSSES)}",
            do="choose one of these, or compute another loss in the client with forward_backward_custom",
        )
    loss = LOSSES[name]
    if unknown := sorted(set(settings) - set(loss.settings)):
        raise RequestError(
            f"the setting {unknown[0][:100]!r} of the loss {name}",
            expected=f"only {', '.join(loss.settings)}" if loss.settings else "no settings",
            do="leave it out",
        )
    found = dict(loss.settings)
    for key, value in settings.items():
        # The wire format allows strings as settings; none of these losses has one.
        if isinstance(value, str) or not np.isfinite(value) or value < 0:
            raise RequestError(
                f"{key} is {value!r}", expected="a finite number of at least 0", do="correct the setting of the loss"
            )
        found[key] = float(value)
    if found and found["clip_low_threshold"] > found["clip_high_threshold"]:
        raise RequestError(
            f"clip_low_threshold {found['clip_low_threshold']:g} above clip_high_threshold "
            f"{found['clip_high_threshold']:g}",
            expected="a lower bound of the ratio that is below the upper one",
            do="correct the settings of the loss",
        )
    return loss, found


def checked(datum: Datum, number: int, loss: TokenLoss, vocabulary: int, context_tokens: int) -> Datum:
    """The datum, complete and checked: missing weights are 1.

    Args:
        datum: as it was sent.
        number: its place in the request, from 0 on, for messages.
        loss: what is to be computed.
        vocabulary: number of token ids.
        context_tokens: the longest sequence of the model.

    Raises:
        RequestError: an input is missing, unknown, of another length, or not finite; a token id is out of range.
        OverlongError: the sequence is too long.
    """
    num, name = len(datum.tokens), f"datum {number}"
    if not num:
        raise RequestError(f"{name} has no tokens", expected="at least one", do="leave the datum out")
    if num > context_tokens:
        raise OverlongError(
            f"{name} has {num:,} tokens",
            expected=f"at most {context_tokens:,}, the context of the base model",
            do="cut the sequence, or choose a base model with a longer context",
        )
    inputs = dict(datum.inputs)
    if WEIGHTS in loss.needed and WEIGHTS not in inputs and TARGETS in inputs:
        # The client library leaves weights out where all targets count alike.
        inputs[WEIGHTS] = np.ones(inputs[TARGETS].shape, dtype=np.float32)
    wanted = (TARGETS, *loss.needed)
    for key in wanted:
        if key not in inputs:
            raise RequestError(
                f"{name} has no {key}", expected=f"{', '.join(wanted)} for this loss", do="add it to loss_fn_inputs"
            )
    if unknown := sorted(set(inputs) - set(wanted)):
        raise RequestError(
            f"{name} has the input {unknown[0][:100]!r}", expected=f"only {', '.join(wanted)}", do="leave it out"
        )
    targets = inputs[TARGETS]
    if targets.ndim not in (1, 2) or len(targets) != num or not targets.size:
        raise RequestError(
            f"{name} has {num:,} tokens and target_tokens of shape {list(targets.shape)}",
            expected=f"one target for each token, [{num}], or K of them, [{num}, K]",
            do="give tokens[:-1] as model input and tokens[1:] as targets",
        )
    # With one target a token this is always met: the context bounds the number of tokens.
    if targets.size > max(num, MAX_TARGETS):
        raise RequestError(
            f"{name} has {targets.size:,} target_tokens",
            expected=f"at most {MAX_TARGETS:,} in one datum",
            do="give fewer targets for each token, or cut the sequence",
        )
    for key in loss.needed:
        if inputs[key].shape != targets.shape:
            raise RequestError(
                f"{name} has {key} of shape {list(inputs[key].shape)} and target_tokens of {list(targets.shape)}",
                expected="the same shape",
                do=f"give one value of {key} for each target",
            )
        if not np.isfinite(inputs[key]).all():
            raise RequestError(
                f"{name} has {key} that are not finite", expected="finite numbers", do="correct or leave out the datum"
            )
    for what, ids in (("model_input", datum.tokens), (TARGETS, targets)):
        check_ids(ids, f"{what} of {name}", vocabulary)
    return Datum(datum.tokens, inputs)


def check_ids(ids: Array, what: str, vocabulary: int) -> None:
    """Raise RequestError where a token id is out of range.

    Args:
        ids: token ids of any shape.
        what: what they are, for the message.
        vocabulary: number of token ids.
    """
    # Before the embedding: an index out of range ends a CUDA process with an assertion that cannot be caught.
    if len(ids) and not (ids.min() >= 0 and ids.max() < vocabulary):
        wrong = int(ids[(ids < 0) | (ids >= vocabulary)].reshape(-1)[0])
        raise RequestError(
            f"token id {wrong} in {what}",
            expected=f"0 to {vocabulary - 1:,}, the vocabulary of the base model",
            do="encode the text with the tokenizer of the base model",
        )
