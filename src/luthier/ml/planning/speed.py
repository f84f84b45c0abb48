"""Time of a step: few terms, each from the workload and the device, each with one factor.

    seconds = f_products  * FLOPs of matrices / rate
            + f_attention * FLOPs of attention / rate            (kept, or fused and formed again: a factor each)
            + f_traffic   * bytes that elementwise work moves / bandwidth
            + f_adapters  * bytes that thin products move / bandwidth
            + f_dropout   * bytes that masks of dropout move / bandwidth
            + f_calls     * calls of layers and adapters
            + f_optimizer * bytes that the optimizer moves / bandwidth
            + f_link      * seconds that devices send at their links' rates, less what computing hides
                            (ml/planning/communication.py)

The bubble of a pipeline lengthens all but the last. The roofline model (Williams et al., 2009,
doi:10.1145/1498765.1498785) with the two roofs added up, since training alternates between them. Factors are one per
class of device, never per figure; benchmarks/published_figures.py shows how far they are off, and a calibration
replaces them by this very machine's.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from luthier.core.estimate import Estimate
from luthier.core.results.cost import Device
from luthier.ml.planning import memory, step_counts
from luthier.ml.planning.communication import FSDP_OVERLAP, bubble, communication, micro_batches
from luthier.ml.planning.devices import Family, family_of
from luthier.ml.planning.inference_cost import judging_seconds as _judging_seconds
from luthier.ml.planning.rollout_cost import grading_seconds as _grading_seconds
from luthier.ml.planning.rollout_cost import rollout_seconds
from luthier.ml.planning.workload import AttentionKind, ByIdentity, Layers, Workload, widths_of

if TYPE_CHECKING:
    from luthier.ml.planning.predict import Calibration

# Share of the data sheet's rate (measured rate on a CPU) that large products reach in training.
PRODUCT_UTILISATION: Final[dict[Family, float]] = {
    "cpu": 0.70,
    "small": 0.60,
    "consumer": 0.80,
    "workstation": 0.60,
    "datacentre": 0.68,
    "hopper": 0.60,
}
# Attention's products are small, and softmax comes between them.
_ATTENTION_SHARE: Final = {"cpu": 0.7, "gpu": 0.5}
_FUSED_SHARE: Final = {"cpu": 0.6, "gpu": 0.5}
# Share of the memory's rate that elementwise work and thin products reach. A CPU computes where a copy only moves: it
# rounds, draws random words, and reads thin matrices (fitted over all runs of benchmarks/plan_accuracy.py).
_BANDWIDTH_SHARE: Final = {"cpu": 0.28, "gpu": 0.7}
# An input that is drawn for, there and back: random words, their signs spread to a mask, and the input multiplied with
# it.
_DROPOUT_BYTES: Final = 14.0
# Shares of both with loops compiled by Numba. Of one thread alone they are 0.66 and 0.3; two threads of one core gain
# less, and whole runs became 1.15 times as fast (docs/log.md).
_NUMBA_TRAFFIC: Final = 0.8
_NUMBA_DROPOUT: Final = 0.4
# Of the traffic's factor, what thin products take on a CPU beside their calls, which are counted by themselves.
_ADAPTER_TRAFFIC: Final = {"cpu": 0.6, "gpu": 1.0}
_READS_WITH: Final = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Matrices that read the input of another one, by the names that training knows."""
# Of each input and output of a matrix with an adapter: the thin product reads and adds to it, there and back.
_ADAPTER_PASSES: Final = 4.0
# Each kept tensor is written, read on the way back, and met by a gradient of its size that is written and read.
_PASSES_FUSED: Final = 4.0
_PASSES_PLAIN: Final = 6.0
_PASSES_COMPILED: Final = 3.0
# Of logits that autograd goes through: formed, widened, their log-probabilities, all again on the way back, and the
# gradients of each; the fused loss passes over them in caches. Of all tokens: formed, with their gradient in memory.
_OWN_LOGIT_PASSES: Final = 12.0
_ALL_LOGIT_PASSES: Final = 5.0
# Of one layer as answers are written, without gradients.
_CALL_SECONDS: Final = {"cpu": 2e-4, "gpu": 1.2e-3, "compiled": 4e-4}
# On a CPU, what a micro-batch costs however few tokens it has, in such calls: of a layer, there and back, and of a
# matrix with an adapter, whose thin products and elementwise work are some twenty small operations. SmolLM2-135M takes
# as long for 200 tokens as for these calls and for reading its weights (docs/log.md).
_LAYER_CALLS: Final = 6.0
_ADAPTER_CALLS: Final = 3.0
# NF4 weights are unpacked to bf16 before every product: read packed, written and read unpacked.
_UNPACK_BYTES: Final = 4.5
# Of an NVLink or network link's rate, collectives reach about this: 235 of 300 GB/s measured on eight A100, 396 of 450
# between two H200 (stas00/ml-engineering, network/README.md, read 2026-11-29).
_LINK_SHARE: Final = 0.8
TIME_SPREAD: Final = {"cpu": 0.6, "gpu": 0.45, "experts": 0.75}
"""Compared with figures that others have published, each source left out in turn (benchmarks/published_figures.py,
docs/scale.md). Several accelerators need 0.25 with copies and tensor parallel, but full rows alone are published: they
keep the interval of one. `experts`: several accelerators with a mixture of experts, or a pipeline."""


def time_terms(workload: Workload, device: Device) -> dict[str, float]:
    """Ideal seconds of each term for one step, before any factor; `calls` is a number of calls."""
    b = workload.batches
    # Every layout divides operations and activations evenly; sequence parallel is taken with tensor parallel.
    count = float(device.num_devices)
    tflops = device.float32_tflops if workload.compute == "float32" else device.bfloat16_tflops
    work = step_counts.step_flops(workload)
    # One pass forward and two back (gradients of inputs and of weights); checkpoints add a second one forward.
    passes = 4.0 if workload.gradient_checkpointing else 3.0
    bandwidth = device.memory_gb_per_second * 1e9
    layout, num_micro_batches = workload.layout, micro_batches(workload, device)
    attention = work.attention / count / (tflops * 1e12)
    # Muon's products, which each of several devices makes for itself
    iterations = memory.step_flops(workload) / (device.bfloat16_tflops * 1e12)
    is_fused = not step_counts.keeps_probabilities(workload, b.length)
    return {
        "products": work.matrices / count / (tflops * 1e12) + iterations,
        "attention": 0.0 if is_fused else attention,
        "fused_attention": attention if is_fused else 0.0,
        "traffic": (
            _traffic_bytes(workload) / count
            + num_micro_batches * _weight_bytes(workload, device) / layout.model_parallel
        )
        / bandwidth,
        "adapters": _adapter_bytes(workload) / count / bandwidth,
        "dropout": _dropout_bytes(workload, device) / count / bandwidth,
        "calls": _calls(workload, device) / layout.pipeline_parallel * passes / 3.0,
        "optimizer": _optimizer_bytes(workload, device) / bandwidth + memory.host_seconds(workload),
        "link": communication(workload, device).total,
    }


def prior_factors(device: Device, workload: Workload) -> dict[str, float]:
    """The factors of a device that no probe has run on."""
    utilisation = PRODUCT_UTILISATION[family_of(device)]
    place = "cpu" if device.is_cpu else "gpu"
    traffic = 1.0 / _BANDWIDTH_SHARE[place]
    return {
        "products": 1.0 / utilisation,
        "attention": 1.0 / (utilisation * _ATTENTION_SHARE[place]),
        "fused_attention": 1.0 / (utilisation * _FUSED_SHARE[place]),
        "traffic": traffic,
        "adapters": traffic * _ADAPTER_TRAFFIC[place],
        "dropout": traffic,
        "calls": _CALL_SECONDS["compiled" if workload.is_compiled and not device.is_cpu else place],
        "optimizer": traffic,
        "link": 1.0 / _LINK_SHARE,
    }


def step_seconds(workload: Workload, device: Device, calibration: Calibration | None = None) -> Estimate:
    """Seconds of one step, with the interval that the factors' own scatter leaves.

    Where answers are drawn, the time of writing and grading them is in it (ml/planning/rollout_cost.py), and that of
    all updates with them.

    Args:
        workload: the run.
        device: one kind of device, and how many of them.
        calibration: of measured runs; None takes the factors of the kind of device.
    """
    learning = learning_seconds(workload, device, calibration)
    if workload.rollouts is None:
        return learning
    factors, spread = _writing_factors(workload, device, calibration)
    drawn = learning.plus(rollout_seconds(workload, device, factors, spread))
    return drawn.plus(grading_seconds(workload, device, calibration))


def grading_seconds(workload: Workload, device: Device, calibration: Calibration | None = None) -> Estimate:
    """Seconds of one step in which models grade its answers; 0 where none does.

    Args:
        workload: the run.
        device: one kind of device, and how many of them.
        calibration: of measured runs; None takes the factors of the kind of device.
    """
    factors, spread = _writing_factors(workload, device, calibration)
    return _grading_seconds(workload, device, factors, spread)


def _writing_factors(
    workload: Workload, device: Device, calibration: Calibration | None
) -> tuple[dict[str, float], float]:
    """The factors of answers that are written, and how far their time may be off."""
    factors = prior_factors(device, workload) | (calibration.factors if calibration else {})
    return factors, calibration.time_spread if calibration else _spread(workload, device)


def learning_seconds(workload: Workload, device: Device, calibration: Calibration | None = None) -> Estimate:
    """Seconds of all updates of one step on rows that are there: without drawing answers and grading them.

    Args:
        workload: the run.
        device: one kind of device, and how many of them.
        calibration: of measured runs; None takes the factors of the kind of device.
    """
    factors = calibration.factors if calibration else prior_factors(device, workload)
    terms = time_terms(workload, device)
    computing = sum(factors[name] * seconds for name, seconds in terms.items() if name != "link")
    computing *= 1.0 + bubble(workload, device)
    hidden = min(FSDP_OVERLAP * factors["link"] * communication(workload, device).sharding, computing)
    value = (computing + factors["link"] * terms["link"] - hidden) * workload.step_updates
    spread = calibration.time_spread if calibration else _spread(workload, device)
    # Symmetric in ratios: twice as long is as likely as half as long.
    return Estimate(value=value, low=value / (1 + spread), high=value * (1 + spread))


def _spread(workload: Workload, device: Device) -> float:
    if device.is_cpu:
        return TIME_SPREAD["cpu"]
    is_known_less = workload.structure.num_experts or workload.layout.pipeline_parallel > 1
    return TIME_SPREAD["experts" if device.num_devices > 1 and is_known_less else "gpu"]


def slowdown(workload: Workload, device: Device) -> float:
    """By how much longer a step takes by the path of this workload than if every fast piece had been proved."""
    attention: AttentionKind = "by_length" if device.is_cpu else "flash"
    fast = replace(workload, attention=attention, loss="learned_chunks")
    return step_seconds(workload, device).value / step_seconds(fast, device).value


def judging_seconds(
    workload: Workload, device: Device, step: Estimate, calibration: Calibration | None = None
) -> Estimate:
    """Seconds of judging the held-out rows after the last step; 0 where nothing is evaluated.

    Args:
        workload: the run, with what is evaluated of it.
        device: where it runs.
        step: seconds of one.
        calibration: of the device; None uses the priors.
    """
    if workload.judging is None:
        return Estimate(value=0.0, low=0.0, high=0.0)
    if workload.rollouts is not None:
        # Rows are scored at the pace of learning: a step that mostly writes answers says nothing about it.
        step = learning_seconds(replace(workload, step_updates=1), device, calibration)
    factors = prior_factors(device, workload) | (calibration.factors if calibration else {})
    work = step_counts.forward_flops(workload, workload.judging.num_scored_tokens)
    scoring = step.value * device.num_devices * work / max(1.0, step_counts.step_flops(workload).total)
    # What a probe measured of training says less about writing answers: the interval stays the wide one.
    spread = TIME_SPREAD["cpu" if device.is_cpu else "gpu"]
    return _judging_seconds(workload, device, scoring, factors, spread)


def validation_seconds(workload: Workload, step: Estimate, learning: Estimate) -> Estimate:
    """Seconds of one validation: forward only, at the pace that a training step has for its own operations.

    Where answers are drawn a validation draws and grades them too, one a row: it takes what that takes of a step,
    answer for answer, and learns nothing.

    Args:
        workload: the run.
        step: seconds of one.
        learning: of `learning_seconds`, under the same load.
    """
    if workload.rollouts is not None:
        return step.minus(learning).times(workload.rollouts.num_validated / workload.rollouts.num_answers)
    ratio = step_counts.validation_flops(workload) / max(1.0, step_counts.step_flops(workload).total)
    return step.times(ratio)


def reference_seconds(workload: Workload, step: Estimate) -> Estimate:
    """Seconds of what an objective computes once before the first step, at the pace of a step's own operations."""
    work = step_counts.forward_flops(workload, workload.num_reference_tokens)
    return step.times(work / max(1.0, step_counts.step_flops(workload).total))


def teacher_seconds(workload: Workload, step: Estimate) -> Estimate:
    """Seconds of a teacher's pass over all rows, at the pace that a training step has for its own operations.

    A larger model computes faster for each operation than a small one, and a step does more than operations: the lower
    end is half of that pace.
    """
    found = step.times(step_counts.teacher_flops(workload) / max(1.0, step_counts.step_flops(workload).total))
    return Estimate(value=found.value, low=found.low / 2, high=found.high)


def _traffic_bytes(workload: Workload) -> float:
    """Bytes that norms, activations, softmax and residuals move in a step, all devices together."""
    b = workload.batches
    count = step_counts.layer_count(workload, max(1, int(b.length)))
    passes = _PASSES_FUSED if workload.has_fused_kernels else _PASSES_PLAIN
    if workload.is_compiled:
        passes = _PASSES_COMPILED
    if workload.gradient_checkpointing:
        # One more forward pass in addition to two and a half: norms and activations are written once more, and read.
        passes += passes / 4
    layers = b.num_computed * workload.structure.num_layers * (count.kept + count.recomputed) * passes
    return layers * (_NUMBA_TRAFFIC if workload.has_numba_kernels else 1.0) + _logit_traffic_bytes(workload)


def _logit_traffic_bytes(workload: Workload) -> float:
    """Bytes of logits that a model forms by itself move in a step; 0 of the fused loss."""
    if workload.loss not in ("own_chunks", "own_all"):
        return 0.0
    b, vocabulary = workload.batches, workload.structure.vocabulary_size
    learned = b.num_learned * vocabulary * 4.0 * _OWN_LOGIT_PASSES
    if workload.loss == "own_chunks":
        return learned
    return learned + b.num_computed * vocabulary * workload.element_bytes * _ALL_LOGIT_PASSES


def _adapter_bytes(workload: Workload) -> float:
    """Bytes that the thin products of adapters move in a step, all devices together."""
    widths = widths_of(workload.targeted)
    passes = _ADAPTER_PASSES * (4.0 / 3.0 if workload.gradient_checkpointing else 1.0)
    return workload.batches.num_computed * widths * workload.element_bytes * passes


def _dropout_bytes(workload: Workload, device: Device) -> float:
    """Bytes that masks of dropout move in a step; a mask is drawn in every pass over an adapter's input."""
    if not workload.dropout:
        return 0.0
    # Plain products of one input are computed together on a CPU, with one mask (ml/training/methods/lora.py).
    # DoRA's are not; it is counted as LoRA.
    are_joined = device.is_cpu and workload.base == workload.compute
    inputs = _masked_inputs(ByIdentity(workload.targeted), are_joined=are_joined)
    bytes_an_input = _DROPOUT_BYTES * (_NUMBA_DROPOUT if workload.has_numba_kernels else 1.0)
    return workload.batches.num_computed * inputs * (3.0 if workload.gradient_checkpointing else 2.0) * bytes_an_input


@lru_cache(maxsize=64)
def _masked_inputs(targeted: ByIdentity[Layers], *, are_joined: bool) -> int:
    """The inputs for which masks are drawn; one that several matrices read counts once where products are joined."""
    layers = targeted.value
    kinds: set[tuple[int | None, str | None]] = {(one.layer, one.kind) for one in layers} if are_joined else set()
    return sum(layer.num_inputs for layer in layers if (layer.layer, _READS_WITH.get(layer.kind)) not in kinds)


def _weight_bytes(workload: Workload, device: Device) -> float:
    """Bytes of weights that a micro-batch moves however few tokens it has: to unpack a quantised base, once a pass.

    On a CPU also to read the others, which its products put into tiles at each call. On a GPU that is hidden behind
    the products.
    """
    each = _UNPACK_BYTES if workload.base == "nf4" else workload.element_bytes if device.is_cpu else 0.0
    passes = 3.0 if workload.gradient_checkpointing else 2.0
    return passes * workload.structure.num_matrix_parameters * each


def _calls(workload: Workload, device: Device) -> float:
    """Calls in a step, of which each costs the same; those of workers that compute side by side count once."""
    num, layers = micro_batches(workload, device), workload.structure.num_layers
    if not device.is_cpu:
        return num * layers
    calls = _LAYER_CALLS * layers + _ADAPTER_CALLS * len(workload.targeted)
    return num / min(workload.num_workers, num) * calls


def _optimizer_bytes(workload: Workload, device: Device) -> float:
    """Moments, masters and gradients are read and written once a step, and gradients added up each micro-batch."""
    # Each device updates what it holds: under DDP each copy of the model repeats the whole update.
    copies = workload.layout.data_parallel(device.num_devices) if workload.sharding == "fsdp" else 1
    return memory.moved_bytes(workload, is_cpu=device.is_cpu) / (copies * workload.layout.model_parallel)
