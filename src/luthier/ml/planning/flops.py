"""Floating-point operations of a training step, from the architecture; a multiply-add counts as two.

Kaplan et al., 2020, arXiv:2001.08361, section 2.1: 2 N forward and 4 N backward a token. A frozen base needs no
gradient of its weights, which leaves 2 N + 2 N, and its adapters 6 times their own parameters. Experts count as far as
a token meets them; padding counts, since it is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.ml.planning.activations import FUSED_QUERIES, keeps_probabilities, num_keys
from luthier.ml.planning.workload import Workload

_FIRST = ("q_proj", "k_proj", "v_proj", *FUSED_QUERIES)


@dataclass(frozen=True, slots=True)
class StepFlops:
    """Operations of one optimizer step on all devices together.

    Attributes:
        matrices: layers, adapters and head.
    """

    matrices: float
    attention: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.matrices + self.attention


def step_flops(workload: Workload) -> StepFlops:
    """Forward and backward of one global batch, recomputation included, and what an objective computes beside it."""
    b = workload.batches
    at_head = b.num_learned if workload.loss in ("learned_chunks", "own_chunks") else b.num_computed
    beside = workload.step_passes * forward_flops(workload, b.num_computed)
    return StepFlops(
        matrices=b.num_computed * layers_flops(workload) + at_head * head_flops(workload) + beside,
        attention=b.num_computed * attention_flops(workload, b.length),
    )


def validation_flops(workload: Workload) -> float:
    """One pass forward over the validation rows, and what an objective computes beside it."""
    return (1 + workload.step_passes) * forward_flops(workload, workload.num_validation_tokens)


def forward_flops(workload: Workload, num_tokens: float) -> float:
    """One pass forward over that many tokens, the head at as large a share of them as in a step; without attention."""
    s, b = workload.structure, workload.batches
    # A multiply and an add for each parameter and token.
    forward = 2.0 * s.num_active_parameters + 2.0 * _adapter_parameters(workload)
    learned = b.num_learned / max(1.0, b.num_computed)
    return num_tokens * (forward + learned * 2.0 * s.head_parameters)


def teacher_flops(workload: Workload) -> float:
    """A teacher's one pass forward over all rows, up to its last hidden states; its head is not asked."""
    teacher = workload.teacher
    if teacher is None:
        return 0.0
    return teacher.num_tokens * 2.0 * max(0, teacher.num_parameters - teacher.head_parameters)


def layers_flops(workload: Workload) -> float:
    """A token's operations in the matrices of all layers, there and back."""
    count, adapters = workload.structure.num_active_parameters, _adapter_parameters(workload)
    # A parameter takes 2 operations forward, 2 for the gradient of inputs, 2 for that of weights, which a frozen
    # base does not need.
    passes = 6.0 if workload.method == "full" else 4.0
    again = 2.0 * (count + adapters) - _not_again(workload) if workload.gradient_checkpointing else 0.0
    return passes * count + 6.0 * adapters + again - _nothing_below(workload)


def _nothing_below(workload: Workload) -> float:
    """What the first layer's adapters save: below queries, keys and values nothing is trained, so no gradient goes.

    Not with checkpoints: they ask for the gradient of what goes into a layer.
    """
    if workload.gradient_checkpointing:
        return 0.0
    first = [layer for layer in workload.targeted if ".layers.0." in f".{layer.name}" and layer.kind in _FIRST]
    return sum(
        2.0 * (layer.num_inputs * layer.num_outputs + workload.adapter_rank * layer.num_inputs) for layer in first
    )


def _not_again(workload: Workload) -> float:
    """The last product of a layer, which is not computed again unless its adapter or a norm keeps something of it."""
    s = workload.structure
    if s.num_experts or s.num_norms > 2 or any(layer.kind == "down_proj" for layer in workload.targeted):
        return 0.0
    return 2.0 * s.num_layers * s.hidden_size * s.intermediate_size


def head_flops(workload: Workload) -> float:
    """A learned token's operations in the output head, there and back; in a teacher's head only there."""
    is_trained = workload.method == "full" or workload.adapts_head
    passes = (6.0 if is_trained else 4.0) + (2.0 if workload.loss == "own_chunks" else 0.0)  # formed again, going back
    own = passes * workload.structure.head_parameters
    return own + (2.0 * workload.teacher.head_parameters if workload.teacher else 0.0)


def attention_flops(workload: Workload, length: float) -> float:
    """A token's operations in queries x keys and probabilities x values, there and back, in rows of that length.

    Kept probabilities: twice as much on the way back. Fused (Dao, 2023, arXiv:2307.08691, section 4.1), or formed
    again: the way back computes the scores once more. Pairs ahead are skipped except for those inside a block of
    queries; on a CPU windows skip nothing.
    """
    s = workload.structure
    # In units of the forward pass (two products): four products back, or five where the scores are formed again.
    back = 2.0 if keeps_probabilities(workload, length) else 2.5
    again = 1.0 if workload.gradient_checkpointing else 0.0
    if workload.attention in ("by_length", "eager"):
        pairs = s.num_layers * num_keys(workload, length)
    else:
        window = min(length, float(s.sliding_window or length))
        # a row of T tokens that look back w at most has T w - w^2 / 2 pairs
        windowed = window - window**2 / (2 * length)
        pairs = (s.num_layers - s.num_windowed_layers) * length / 2 + s.num_windowed_layers * windowed
    return 4.0 * s.num_heads * s.head_size * pairs * (1.0 + back + again)


def _adapter_parameters(workload: Workload) -> float:
    return 0.0 if workload.method == "full" else workload.num_active_trainable
