"""What each optimizer holds, moves and computes, in bytes and operations; all devices together."""

from __future__ import annotations

from typing import Final

from luthier.ml.planning.workload import BYTES, OptimizerKind, Workload

_FP32: Final = 4.0
# Two codes of one byte, and two scales of four bytes for each 256 of them (ml/training/optimizers/blockwise.py).
_PACKED: Final = 2.0 + 2 * _FP32 / 256
# Of what other tools hold: moments as wide as the weights, in eight bits, or in the host's memory.
_WITHOUT_MASTERS: Final[dict[OptimizerKind, float | None]] = {
    "adamw": None,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 0.0,
}
_ITERATIONS: Final = 5
# Bytes a parameter that a step moves: masters, two moments, summed gradients and the rounded weight are read and
# written, and gradients added up. What packing and Adafactor's full-size intermediates cost beyond that is fitted on a
# CPU (docs/log.md); on a GPU nobody has measured it, and each of their elementwise passes counts.
_MOVED: Final = 40.0
_MOVED_BESIDE: Final[dict[OptimizerKind, tuple[float, float]]] = {
    "master_adamw_8bit": (28.0, 190.0),
    "master_paged_adamw_8bit": (28.0, 190.0),
    "master_adafactor": (28.0, 60.0),
    "master_muon": (8.0, 8.0),
}
# A PCIe 4.0 link of 16 lanes does 31.5 GB/s at most; transfers of some megabytes reach about this.
_HOST_GB_PER_SECOND: Final = 25.0


def has_masters(kind: OptimizerKind) -> bool:
    """Whether fp32 copies of the weights and fp32 sums of gradients are held: this project's own always are."""
    return kind not in _WITHOUT_MASTERS


def moment_bytes(workload: Workload, *, on_device: bool = True) -> float:
    """Bytes of what the rule remembers.

    Args:
        on_device: without what lies in the host's memory.
    """
    count, kind = float(workload.num_trainable), workload.optimizer
    is_full = workload.method == "full"
    table = float(workload.structure.head_parameters) if is_full else 0.0
    if kind in _WITHOUT_MASTERS:
        each = _WITHOUT_MASTERS[kind]
        own = BYTES[workload.compute if is_full else workload.adapters]
        return count * (2 * own if each is None else each)
    if kind == "master_adamw_8bit":
        return 2 * _FP32 * table + _PACKED * (count - table)
    if kind == "master_paged_adamw_8bit":
        return 2 * _FP32 * table + (0.0 if on_device else _PACKED * (count - table))
    if kind == "master_adafactor":
        return _FP32 * _rows_and_columns(workload)
    if kind == "master_muon":
        # Muon holds one momentum for a linear layer, and AdamW's two moments for everything else.
        return 2 * _FP32 * count - _FP32 * sum(x.num_inputs * x.num_outputs for x in workload.structure.linear_layers)
    return 2 * _FP32 * count


def passing_bytes(workload: Workload) -> float:
    """Bytes that come and go while a step is made, beside masters, moments and gradients: of the largest matrix."""
    structure = workload.structure
    if workload.optimizer == "master_adafactor" and workload.method == "full":
        widest = max(x.num_inputs * x.num_outputs for x in structure.linear_layers)
        return 2 * _FP32 * max(widest, structure.head_parameters)
    if workload.optimizer == "master_muon":  # the update in fp32, and in bf16 before and after an iteration
        return (_FP32 + 4.0) * max(x.num_inputs * x.num_outputs for x in structure.linear_layers)
    return 0.0


def moved_bytes(workload: Workload, *, is_cpu: bool) -> float:
    """Bytes that one step moves in the device's memory, where a device has all of what is trained."""
    beside = _MOVED_BESIDE.get(workload.optimizer, (0.0, 0.0))
    return workload.num_trainable * (_MOVED + beside[0 if is_cpu else 1])


def host_seconds(workload: Workload) -> float:
    """Seconds that paged moments are on their way from the host's memory and back."""
    if workload.optimizer != "master_paged_adamw_8bit":
        return 0.0
    paged = moment_bytes(workload, on_device=False) - moment_bytes(workload)
    return 2 * paged / (_HOST_GB_PER_SECOND * 1e9)


def step_flops(workload: Workload) -> float:
    """Operations of Muon's iterations, in bf16: x x^T, its square, and their product with x, each time."""
    if workload.optimizer != "master_muon":
        return 0.0
    total = 0.0
    for layer in workload.structure.linear_layers:
        short, long = sorted((layer.num_inputs, layer.num_outputs))
        total += _ITERATIONS * (4.0 * short * short * long + 2.0 * short**3)
    return total


def _rows_and_columns(workload: Workload) -> float:
    """How many numbers represent Adafactor's second moments."""
    structure = workload.structure
    if workload.method != "full":
        return float(sum(2 * workload.adapter_rank + x.num_inputs + x.num_outputs for x in workload.targeted))
    matrices = sum(x.num_inputs + x.num_outputs for x in structure.linear_layers)
    if structure.num_matrix_parameters > sum(x.num_inputs * x.num_outputs for x in structure.linear_layers):
        # experts as one block a layer: gate and up side by side, and down
        sides = 3 * structure.intermediate_size + 2 * structure.hidden_size
        matrices += structure.num_layers * structure.num_experts * sides
    tables = 1 if structure.ties_embeddings else 2
    vectors = structure.num_parameters - structure.num_matrix_parameters - structure.num_embedding_parameters
    return float(matrices + tables * (structure.vocabulary_size + structure.hidden_size) + vectors)
