"""What an optimizer holds, moves and computes, in bytes and operations; all devices together.

This project's own declare it beside their update rules (`ml/training/optimizers/rules.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from luthier.ml.inference.models.structure import LinearLayer
from luthier.ml.planning.workload import BYTES, OWN, Workload
from luthier.ml.training.optimizers.rules import Matrices, OptimizerRules, StateBytes, TrainedSizes, rules_of

# Of what other tools hold: moments as wide as the weights, in eight bits, or in the host's memory.
_WITHOUT_MASTERS: Final[dict[str, float | None]] = {
    "adamw": None,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 0.0,
}
# Bytes a parameter that a step of AdamW moves: masters, two moments, summed gradients and the rounded weight are read
# and written, and gradients added up.
_MOVED: Final = 40.0
# A PCIe 4.0 link of 16 lanes does 31.5 GB/s at most; transfers of some megabytes reach about this.
_HOST_GB_PER_SECOND: Final = 25.0


def has_masters(kind: str) -> bool:
    """Whether fp32 copies of the weights and fp32 sums of gradients are held: this project's own always are."""
    return kind not in _WITHOUT_MASTERS


def moment_bytes(workload: Workload, *, on_device: bool = True) -> float:
    """Bytes of what the rule remembers.

    Args:
        workload: Whose optimizer is asked about.
        on_device: Without what lies in the host's memory.

    Returns:
        Bytes, all devices together.
    """
    if not has_masters(workload.optimizer):
        each = _WITHOUT_MASTERS[workload.optimizer]
        own = BYTES[workload.compute if workload.method == "full" else workload.adapters]
        return workload.num_trainable * (2 * own if each is None else each)
    found = _state(workload)
    return found.device if on_device else found.device + found.host


def passing_bytes(workload: Workload) -> float:
    """Bytes that come and go while a step is made, beside masters, moments and gradients."""
    return _rules(workload).passing_bytes(_sizes(workload)) if has_masters(workload.optimizer) else 0.0


def moved_bytes(workload: Workload, *, is_cpu: bool) -> float:
    """Bytes that one step moves in the device's memory, where a device has all of what is trained."""
    beside = _rules(workload).moved_bytes[0 if is_cpu else 1] if has_masters(workload.optimizer) else 0.0
    return workload.num_trainable * (_MOVED + beside)


def host_seconds(workload: Workload) -> float:
    """Seconds that paged moments are on their way from the host's memory and back."""
    if not has_masters(workload.optimizer):
        return 0.0
    return 2 * _state(workload).host / (_HOST_GB_PER_SECOND * 1e9)


def step_flops(workload: Workload) -> float:
    """Operations of a step's products, in bf16."""
    return _rules(workload).step_flops(_sizes(workload)) if has_masters(workload.optimizer) else 0.0


def _rules(workload: Workload) -> OptimizerRules:
    return rules_of(workload.optimizer.removeprefix(OWN))


def _state(workload: Workload) -> StateBytes:
    return _rules(workload).state_bytes(_sizes(workload))


def _sizes(workload: Workload) -> TrainedSizes:
    structure = workload.structure
    if workload.method != "full":
        rank = workload.adapter_rank
        # An adapter is two thin matrices: A [rank, inputs] and B [outputs, rank].
        thin = [Matrices(1, rank, x.num_inputs) for x in workload.targeted]
        thin += [Matrices(1, x.num_outputs, rank) for x in workload.targeted]
        return TrainedSizes(workload.num_trainable, is_full=False, matrices=tuple(thin))
    width, vocabulary = structure.hidden_size, structure.vocabulary_size
    matrices = [Matrices(1, x.num_outputs, x.num_inputs) for x in structure.linear_layers]
    if structure.num_matrix_parameters > _num(structure.linear_layers):
        # experts as one block a layer: gate and up side by side, and down
        num, inner = structure.num_layers * structure.num_experts, structure.intermediate_size
        matrices += [Matrices(num, 2 * inner, width, is_stacked=True), Matrices(num, width, inner, is_stacked=True)]
    return TrainedSizes(
        workload.num_trainable,
        is_full=True,
        matrices=tuple(matrices),
        tables=(Matrices(1 if structure.ties_embeddings else 2, vocabulary, width),),
        num_looked_up=structure.head_parameters,
        num_in_vectors=structure.num_parameters - structure.num_matrix_parameters - structure.num_embedding_parameters,
    )


def _num(layers: Iterable[LinearLayer]) -> int:
    return sum(x.num_inputs * x.num_outputs for x in layers)
