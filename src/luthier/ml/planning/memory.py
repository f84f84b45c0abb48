"""Peak memory of one device, part by part, and what an optimizer holds, moves and computes.

The bytes of weights, gradients and optimizer state are those that this project's optimizers really hold, which they
declare in `ml/training/optimizers/rules.py`. Activations: ml/planning/step_counts.py.

Sources: Rajbhandari et al., 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
arXiv:1910.02054, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from luthier.core.estimate import Estimate
from luthier.core.results.cost import Device, MemoryPrediction
from luthier.ml.inference.models.structure import LinearLayer, Structure
from luthier.ml.planning import step_counts
from luthier.ml.planning.communication import keeps_experts_gathered, keeps_gathered
from luthier.ml.planning.inference_cost import WORKER_BYTES, judging_bytes
from luthier.ml.planning.rollout_cost import cache_bytes
from luthier.ml.planning.workload import BYTES, OWN, WHOLE_COPIES, ByIdentity, Layers, Workload
from luthier.ml.training.optimizers.rules import (
    Matrices,
    OptimizerRules,
    StateBytes,
    TrainedSizes,
    gradient_buffers,
    rules_of,
)

if TYPE_CHECKING:
    from luthier.ml.planning.predict import Calibration

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
        workload: The run with the optimizer.
        on_device: Without what is in the host's memory.

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
    """Temporary bytes during a step, besides masters, moments and gradients."""
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
    if workload.method == "full":
        return _full_sizes(ByIdentity(workload.structure), workload.num_trainable)
    thin = _adapter_sizes(ByIdentity(workload.targeted), workload.adapter_rank, workload.num_trainable)
    if not workload.num_saved:
        return thin
    s = workload.structure
    num = 1 if s.ties_embeddings else int(workload.trains_embeddings) + int(workload.trains_head)
    return replace(
        thin,
        tables=(Matrices(num, s.vocabulary_size, s.hidden_size),),
        num_looked_up=s.head_parameters if workload.trains_embeddings else 0,
    )


@lru_cache(maxsize=64)
def _adapter_sizes(targeted: ByIdentity[Layers], rank: int, num_trainable: int) -> TrainedSizes:
    # An adapter is two thin matrices: A [rank, inputs] and B [outputs, rank].
    thin = [Matrices(1, rank, x.num_inputs) for x in targeted.value]
    thin += [Matrices(1, x.num_outputs, rank) for x in targeted.value]
    return TrainedSizes(num_trainable, is_full=False, matrices=tuple(thin))


@lru_cache(maxsize=64)
def _full_sizes(of: ByIdentity[Structure], num_trainable: int) -> TrainedSizes:
    structure = of.value
    width, vocabulary = structure.hidden_size, structure.vocabulary_size
    matrices = [Matrices(1, x.num_outputs, x.num_inputs) for x in structure.linear_layers]
    if structure.num_matrix_parameters > _num(structure.linear_layers):
        # experts as one block a layer: gate and up side by side, and down
        num, inner = structure.num_layers * structure.num_experts, structure.intermediate_size
        matrices += [Matrices(num, 2 * inner, width, is_stacked=True), Matrices(num, width, inner, is_stacked=True)]
    return TrainedSizes(
        num_trainable,
        is_full=True,
        matrices=tuple(matrices),
        tables=(Matrices(1 if structure.ties_embeddings else 2, vocabulary, width),),
        num_looked_up=structure.head_parameters,
        num_in_vectors=structure.num_parameters - structure.num_matrix_parameters - structure.num_embedding_parameters,
    )


def _num(layers: Iterable[LinearLayer]) -> int:
    return sum(x.num_inputs * x.num_outputs for x in layers)


_FP32: Final = 4.0
_PACKED: Final = ("nf4", "int8")


def _is_packed(workload: Workload) -> bool:
    """Whether matrices are held otherwise than they are computed with."""
    return workload.base in _PACKED or BYTES[workload.base] < BYTES[workload.compute]


# Resident size of a process that has imported what a run needs, before a model is loaded (measured: docs/log.md).
_CPU_RUNTIME_BYTES: Final = 0.62e9
# Context, libraries and their workspaces on an accelerator.
_GPU_RUNTIME_BYTES: Final = 0.7e9
# What the allocators hold beyond what is requested, as a share of the temporary part.
_CPU_SLACK, _CPU_SLACK_HIGH = 0.10, 0.90
_GPU_SLACK, _GPU_SLACK_HIGH = 0.06, 0.30
# Where layers are recomputed, a small block that is kept follows the large temporary ones of each layer, so that the
# heap of the C library grows with gaps which later layers fill only in part: so many times what is recomputed and
# kept (measured: docs/log.md), up to what there would be without recomputing.
_CPU_GAPS = 3.0
# What was not measured on an accelerator may be off by this much (benchmarks/published_figures.py: 9 of 10 are inside).
_LOW_SHARE, _GPU_HIGH_SHARE = 0.80, 1.35
# Where several devices share a copy of the model, engines hold buffers that are not counted: 1.46 times the expected
# peak was published (benchmarks/published_scale.yaml).
_SHARED_HIGH_SHARE = 1.5


def predict_memory(workload: Workload, device: Device, calibration: Calibration | None = None) -> MemoryPrediction:
    """Peak memory on one of the devices, each with its share of the model and of its sharded copies.

    Args:
        workload: the run.
        device: one kind of device, and how many of them.
        calibration: of measured runs; None predicts with a wider range.
    """
    held_share = _Share.of(workload, device)
    # What is gathered to compute is whole but for what tensor, pipeline and expert parallel divide.
    weights = _weights(workload) * held_share.base + _gathered(workload, device) + _teacher_head(workload)
    weights += workload.judges_bytes
    adapters = _adapters(workload) * held_share.trained
    # Bytes of fp32 masters, optimizer moments, accumulated gradients, and gradients in the precision of the backward
    # pass.
    masters, moments, sums, narrow = _optimizer(workload)
    optimizer = (masters + moments + _average(workload) + _first_weights(workload)) * held_share.trained
    gradients = sums * held_share.trained
    # The peak micro-batch may be the one with most tokens or the one with the longest row.
    activation_part, logits_part, narrow_part = max(
        (_passing(one, narrow * held_share.passing) for one in _peaks(workload)), key=lambda parts: sum(parts)
    )
    factor, offset = (calibration.memory_factor, calibration.memory_offset_bytes) if calibration else (1.0, 0.0)
    slack = 0.0 if calibration else (_CPU_SLACK if device.is_cpu else _GPU_SLACK)
    gaps = factor * _gaps(workload, device, narrow * held_share.passing)
    activation_part, logits_part = activation_part * factor + _expert_copies(workload), logits_part * factor
    # Each worker computes its own micro-batch; masters and sums stay with the training process.
    activation_part, logits_part = activation_part * workload.num_workers, logits_part * workload.num_workers
    narrow_part = narrow_part if workload.num_workers == 1 else _worker_gradients(workload, narrow)
    runtime = max(0.0, _runtime(device) + offset) + slack * (activation_part + logits_part)
    runtime += _own_of_workers(workload.num_workers) + gaps
    gradients += narrow_part
    held = weights + adapters + optimizer + gradients
    training = held + activation_part + logits_part + runtime
    # A plan must also survive what happens before the first step: reading the base, and the teacher's pass.
    loading = max(_loading(workload, device) * held_share.base, _asking(workload, device)) + _runtime(device)
    runtime += max(0.0, loading - training)
    training = max(training, loading)
    # the run's own model is freed by then, and systems are evaluated one after another
    num_judging = workload.judging.num_workers if workload.judging is not None and device.is_cpu else 1
    # The trained copies of embeddings and head stay beside those of the base.
    judging = _loading(workload, device) + adapters + _saved(workload) * held_share.trained + _runtime(device)
    judging += num_judging * judging_bytes(workload) + _own_of_workers(num_judging)
    judging = max(judging, _reflecting(workload, device))
    generation = max(0.0, judging - training) if workload.judging is not None else 0.0
    # answers are drawn with the optimizer in memory, but between the activations of two steps
    generation = max(generation, held + cache_bytes(workload) + _runtime(device) - training)
    total = training + generation
    return MemoryPrediction(
        weights_bytes=weights,
        adapters_bytes=adapters,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        activations_bytes=activation_part,
        logits_bytes=logits_part,
        generation_bytes=generation,
        runtime_bytes=runtime,
        total_bytes=_interval(workload, total, held, activation_part + logits_part + gaps, device, calibration),
    )


def _reflecting(workload: Workload, device: Device) -> float:
    """Bytes while a reflection model of this machine writes, when the base is not in memory; 0 without one."""
    share = (workload.judging.reflection_share or 0.0) if workload.judging is not None else 0.0
    return share * (_loading(workload, device) + judging_bytes(workload)) + _runtime(device) if share else 0.0


def _own_of_workers(num: int) -> float:
    """Bytes of that many processes besides what they compute; one is the process itself."""
    return float(num * WORKER_BYTES) if num > 1 else 0.0


@dataclass(frozen=True, slots=True)
class _Share:
    """Shares of a model that one device holds.

    Attributes:
        base: of the base's weights.
        trained: of what is trained, its summed gradients and optimizer state.
        passing: of the gradients of one backward pass.
    """

    base: float
    trained: float
    passing: float

    @classmethod
    def of(cls, workload: Workload, device: Device) -> _Share:
        copies = workload.layout.data_parallel(device.num_devices)
        shards = copies if workload.sharding == "fsdp" else 1
        dense, base = _held(workload, shards, shards)
        passing = _held(
            workload,
            1 if keeps_gathered(workload) else shards,
            1 if keeps_experts_gathered(workload) else shards,
        )
        is_full = workload.method == "full"
        return cls(base, base if is_full else dense, passing[1] if is_full else passing[0])


def _held(workload: Workload, shards: int, expert_shards: int) -> tuple[float, float]:
    """Share of the matrices that all tokens meet, and of the whole model, where they are sharded that many times."""
    s, layout = workload.structure, workload.layout
    dense = 1.0 / (layout.model_parallel * shards)
    # Experts are divided even where copies are not sharded; sharding spreads them over all copies as well.
    routed = 1.0 / (layout.model_parallel * max(expert_shards, layout.expert_parallel))
    return dense, dense + s.num_routed_parameters / s.num_parameters * (routed - dense)


def _worker_gradients(workload: Workload, narrow: float) -> float:
    """Gradients of one micro-batch as a worker computes them, and the buffers in which it hands them over."""
    return workload.num_workers * narrow * (1 + gradient_buffers(narrow))


def _peaks(workload: Workload) -> list[Workload]:
    """The workload with each of its largest micro-batches as the largest."""
    batches = workload.batches
    shapes = [(batches.peak_rows, batches.peak_length), *batches.other_peaks]
    return [
        replace(workload, batches=replace(batches, peak_rows=rows, peak_length=length, other_peaks=()))
        for rows, length in shapes
    ]


def _passing(workload: Workload, narrow: float) -> tuple[float, float, float]:
    """What comes and goes in one micro-batch, at its peak: activations, logits, gradients as they come (`narrow`)."""
    # Tensor parallel (with sequence parallel) divides activations, vocabulary parallel logits. A pipeline keeps as many
    # micro-batches as it has stages, of as many times fewer layers.
    inner = workload.layout.tensor_parallel
    kept, logits = step_counts.saved_activation_bytes(workload) / inner, step_counts.logits_bytes(workload) / inner
    backward = step_counts.backward_bytes(workload) / inner + _dispatched(workload)
    if inner > 1:
        # Before a product states are gathered, after it partial sums are whole; the way back has gradients of both.
        whole = workload.batches.peak_tokens * workload.structure.hidden_size * workload.element_bytes
        logits, backward = logits + 2 * whole, backward + 4 * whole
    # Four moments compete: the loss on top of all that was kept, the start of the way back, its end, where activations
    # are freed but every gradient exists, and the optimizer's step.
    one = workload.structure.head_parameters * workload.element_bytes / inner
    table = one if workload.trains_embeddings else 0.0
    # A task head takes the place of the output head, which then has no gradient.
    head = one if workload.trains_head and workload.loss != "task_head" else 0.0
    at_loss, going_back = kept + logits, kept + backward + head
    # The embeddings' own gradient comes last of all; tied, it is added to the head's.
    is_tied = workload.structure.ties_embeddings
    if narrow or workload.optimizer_in_backward:
        at_end = max(narrow + backward - (0.0 if is_tied else head), narrow + (head if is_tied else 0.0))
    else:  # added to the sums as they come: the embeddings' alone is there, and the head's where it waits for that
        at_end = table + (head if is_tied else 0.0)
    peak = max(at_loss, going_back, at_end, passing_bytes(workload))
    logits_part = logits if peak == at_loss else 0.0
    narrow_part = min(narrow, peak) if peak == at_end else 0.0
    return peak - logits_part - narrow_part, logits_part, narrow_part


def _gaps(workload: Workload, device: Device, narrow: float) -> float:
    """Bytes of the heaps of all workers that recomputed layers leave unused on a CPU; 0 where none is recomputed."""
    if not (device.is_cpu and workload.gradient_checkpointing):
        return 0.0
    recomputed, kept = (
        max((_passing(one, narrow) for one in _peaks(each)), key=sum)[0]
        for each in (workload, replace(workload, gradient_checkpointing=False))
    )
    return workload.num_workers * min(_CPU_GAPS * recomputed, max(0.0, kept - recomputed))


def _dispatched(workload: Workload) -> float:
    """Tokens of one layer on their way to experts of other devices, and their answers on the way back."""
    s, layout = workload.structure, workload.layout
    if layout.expert_parallel == 1:
        return 0.0
    tokens = workload.batches.peak_tokens / layout.tensor_parallel
    return 2.0 * tokens * s.num_active_experts * s.hidden_size * workload.element_bytes


def memory_terms(workload: Workload, device: Device) -> tuple[float, float, float]:
    """Uncalibrated: bytes that are certain, bytes that grow with the batch, bytes of the runtime.

    Where loading the base is the peak, nothing of it grows with the batch.
    """
    found = predict_memory(workload, device)
    runtime = _runtime(device)
    loading = max(_loading(workload, device), _asking(workload, device))
    if found.total_bytes.value <= loading + runtime:
        return loading, 0.0, runtime
    growing = found.activations_bytes + found.logits_bytes
    # Workers are known to hold what they do: only the runtime itself is fitted, and `predict_memory` adds theirs again.
    held = found.total_bytes.value - growing - found.runtime_bytes + _own_of_workers(workload.num_workers)
    narrow = _optimizer(workload)[3] * _Share.of(workload, device).passing
    return held, growing + _gaps(workload, device, narrow), runtime


def _interval(
    workload: Workload,
    total: float,
    held: float,
    growing: float,
    device: Device,
    calibration: Calibration | None,
) -> Estimate:
    if calibration is not None:
        spread = calibration.memory_spread
        return Estimate(value=total, low=total * (1 - spread), high=total * (1 + spread))
    more = _CPU_SLACK_HIGH if device.is_cpu else _GPU_SLACK_HIGH
    high = total + more * growing + 0.03 * held + 0.25 * _runtime(device)
    if not device.is_cpu:
        high = max(high, (_GPU_HIGH_SHARE if workload.layout == WHOLE_COPIES else _SHARED_HIGH_SHARE) * total)
    return Estimate(value=total, low=max(min(held, 0.97 * total), total * _LOW_SHARE), high=high)


def _weights(workload: Workload) -> float:
    """The base as it is held; packing takes linear layers only, the rest (experts in one tensor, too) stays wide."""
    s = workload.structure
    if _is_packed(workload):
        packed = s.num_packed_parameters
        return packed * BYTES[workload.base] + (s.num_parameters - packed) * BYTES[workload.compute]
    return s.num_parameters * BYTES[workload.base]


def _expert_copies(workload: Workload) -> float:
    """Where products of experts cannot be computed next to theirs, PEFT adds each update into a copy of the tensor.

    Kept for the way back, with checkpoints of one layer at a time; a gradient as large comes with it.
    """
    tensors = workload.targeted_experts
    if not tensors or workload.structure.fuses_experts:
        return 0.0
    every = sum(layer.num_parameters for layer in tensors) * workload.element_bytes
    one = every / max(1, workload.structure.num_layers)
    # With checkpoints: one copy and its gradient. Without: every layer's copy is kept, and one gradient.
    return 2 * one if workload.gradient_checkpointing else every + one


def _gathered(workload: Workload, device: Device) -> float:
    """Two layers (one computes, one is on its way) and the embeddings, where the rest is sharded over copies.

    In a pipeline all layers of the stage, and of experts that are divided all layers.
    """
    s, layout = workload.structure, workload.layout
    if workload.sharding != "fsdp" or layout.data_parallel(device.num_devices) == 1:
        return 0.0
    if keeps_gathered(workload):
        return s.num_parameters * _held(workload, 1, 1)[1] * BYTES[workload.compute]
    # FSDP prefetches the next layer while one computes; experts that are divided stay gathered in all layers.
    routed = s.num_routed_parameters / layout.expert_parallel
    routed *= 1.0 if keeps_experts_gathered(workload) else 2 / s.num_layers
    dense = 2 * (s.num_matrix_parameters - s.num_routed_parameters) / s.num_layers
    return (dense + routed + s.head_parameters) * BYTES[workload.compute] / layout.tensor_parallel


def _adapters(workload: Workload) -> float:
    num = workload.num_trainable - workload.num_saved  # what is trained in whole is part of the base
    return 0.0 if workload.method == "full" else num * BYTES[workload.adapters]


def _saved(workload: Workload) -> float:
    """Embeddings and head that are trained in whole beside adapters, as they are computed with."""
    return workload.num_saved * BYTES[workload.adapters]


def _first_weights(workload: Workload) -> float:
    """Of embeddings and head at the start, and as they are while those are put back; adapters are too small."""
    return 2 * _saved(workload) if workload.keeps_first_weights else 0.0


def _optimizer(workload: Workload) -> tuple[float, float, float, float]:
    """Bytes of masters, moments, summed gradients, and the gradients of one backward pass as they come."""
    count, own = workload.num_trainable, BYTES[workload.compute if workload.method == "full" else workload.adapters]
    # Where weights stay gathered, gradients of several micro-batches add up in fp32 before they are reduced.
    in_flight = 0.0 if workload.optimizer_in_backward else count * (_FP32 if keeps_experts_gathered(workload) else own)
    extra = 3 * _FP32 * count if workload.method == "adalora" else 0.0  # importances and their averages
    wide = count * _FP32 if has_masters(workload.optimizer) else 0.0
    moments = moment_bytes(workload) + extra
    if _updates_in_place(workload):
        # Gradients are added to the sums as they come, a matrix at a time. Workers have theirs, and move the weights
        # away from the masters.
        return (0.0, moments, wide, 0.0) if workload.num_workers == 1 else (wide, moments, wide, in_flight)
    return wide, moments, wide, in_flight


def _updates_in_place(workload: Workload) -> bool:
    """Whether weights and gradients have the precision of masters and sums, so that they are the same tensors
    (ml/training/optimizer.py): float32, not sharded, by an optimizer of this project."""
    own = workload.compute if workload.method == "full" else workload.adapters
    return BYTES[own] >= _FP32 and workload.sharding != "fsdp" and has_masters(workload.optimizer)


def _average(workload: Workload) -> float:
    """Of the weights over the steps, where one is kept: as precise as the masters."""
    return workload.num_trainable * _FP32 if workload.keeps_average else 0.0


def _loading(workload: Workload, device: Device) -> float:
    """Bytes at the peak of loading the base.

    On a CPU, the mapped file and the weights made of it are in memory together. A base that is packed is read whole, in
    the precision that is computed in, before its first matrix is packed; a GPU gets its matrices one at a time.
    """
    if device.is_cpu:
        if not _is_packed(workload):
            return 2.0 * _weights(workload)
        # In 16 bits it is read as it is kept, and what is not packed is widened afterwards.
        read_as = workload.base if workload.base == "bfloat16" else workload.compute
        return max(2.0 * workload.structure.num_parameters * BYTES[read_as], _weights(workload))
    return _weights(workload)


def _teacher_head(workload: Workload) -> float:
    """What stays of a teacher while the student learns."""
    return workload.teacher.head_parameters * BYTES[workload.teacher.compute] if workload.teacher else 0.0


def _asking(workload: Workload, device: Device) -> float:
    """While a teacher is read and asked there is no student yet."""
    if workload.teacher is None:
        return 0.0
    teacher = workload.teacher
    if device.is_cpu:  # read whole before it is packed, as in `_loading`
        read_as = teacher.compute if teacher.stored in _PACKED else teacher.stored
        return 2.0 * teacher.num_parameters * BYTES[read_as]
    return teacher.num_parameters * BYTES[teacher.stored]


def _runtime(device: Device) -> float:
    return _CPU_RUNTIME_BYTES if device.is_cpu else _GPU_RUNTIME_BYTES
