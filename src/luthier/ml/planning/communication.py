"""What the devices of a run send each other in one step, and how long that takes at the links' own rates.

    data parallel      DDP all-reduces the gradients once a step; FSDP gathers the weights of every layer twice a
                       micro-batch (forward, backward) and reduce-scatters the gradients of what is trained; in a
                       pipeline, whose stages compute one micro-batch after another, each once a step, and so
                       of experts that are divided among devices
    tensor parallel    two all-reduces of a layer's activations forward, two backward, two more where it is recomputed
    expert parallel    tokens are sent to their experts and back (all-to-all), as often as activations are computed
    pipeline parallel  activations of a micro-batch go to the next stage, their gradients come back; a stage waits while
                       the pipeline fills and drains (the bubble)

Bytes are those of rings: an all-gather or reduce-scatter over n devices moves (n - 1) / n of the tensor into each, an
all-reduce twice that. A ring over several machines enters each of them once, through the network cards of all of its
devices together, so the slower of the two links decides. Devices are placed as usual: tensor parallel innermost, then
data parallel, pipeline stages outermost.

Sources: Rajbhandari et al., 2020, "ZeRO", arXiv:1910.02054, section 7. Shoeybi et al., 2019, "Megatron-LM",
arXiv:1909.08053, section 3. Korthikanti et al., 2022, arXiv:2205.05198, section 4.2. Narayanan et al., 2021,
arXiv:2104.04473, section 2.2. Lepikhin et al., 2020, "GShard", arXiv:2006.16668, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from luthier.core.results.cost import Device
from luthier.ml.planning.workload import BYTES, OWN, Workload

FSDP_OVERLAP: Final = 0.5
"""Share of what FSDP moves that is hidden behind computing, where there is that much to compute: the next layer is
fetched while one computes, but the first and the last wait, and transfers take cores and memory from products. Set by
hand, not fitted; tensor and expert parallel hide nothing here (async TP and the like do better)."""
_HOP_SECONDS: Final = 1e-5
"""From machine to machine, once a step of a ring; assumed. Within a machine it is a hundredth of what a layer takes."""
_GRADIENT_BYTES: Final = 4.0
"""FSDP sums gradients in fp32 (`MixedPrecisionPolicy(reduce_dtype=torch.float32)`), and so do whole copies of this
project (`World.sum_gradients`)."""


@dataclass(frozen=True, slots=True)
class Communication:
    """Seconds of one step at the links' own rates.

    Attributes:
        sharding: FSDP's gathers and reduce-scatters, part of which overlaps with computing.
        blocking: what computing waits for.
    """

    sharding: float
    blocking: float

    @property
    def total(self) -> float:
        """Both."""
        return self.sharding + self.blocking


def communication(workload: Workload, device: Device) -> Communication:
    """What one step of a workload sends; nothing on one device, or where the device has no link."""
    if device.num_devices == 1 or not device.link_gb_per_second:
        return Communication(0.0, 0.0)
    blocking = _tensor_parallel(workload, device) + _expert_parallel(workload, device) + _stages(workload, device)
    if workload.sharding == "fsdp":
        return Communication(_fsdp(workload, device), blocking)
    return Communication(0.0, blocking + _ddp(workload, device))


def bubble(workload: Workload, device: Device) -> float:
    """Time that a pipeline waits, as a share of its computing: (stages - 1) / micro-batches (1F1B)."""
    layout = workload.layout
    return (layout.pipeline_parallel - 1) / (layout.virtual_stages * micro_batches(workload, device))


def micro_batches(workload: Workload, device: Device) -> float:
    """Micro-batches of one copy of the model in a step; `Batches` counts those of all copies."""
    return max(1.0, workload.batches.num_micro_batches / workload.layout.data_parallel(device.num_devices))


def keeps_gathered(workload: Workload) -> bool:
    """Whether weights, once gathered, stay whole until the step ends, as engines do it in a pipeline (torchtitan)."""
    return workload.sharding == "fsdp" and workload.layout.pipeline_parallel > 1


def keeps_experts_gathered(workload: Workload) -> bool:
    """The same of experts: where they are divided among devices they stay so as well (NeMo AutoModel)."""
    return keeps_gathered(workload) or (workload.sharding == "fsdp" and workload.layout.expert_parallel > 1)


def _fsdp(workload: Workload, device: Device) -> float:
    s, layout = workload.structure, workload.layout
    copies, inner, experts = layout.data_parallel(device.num_devices), layout.tensor_parallel, layout.expert_parallel
    num_routed = s.num_routed_parameters / (layout.model_parallel * experts)
    num_dense = (s.num_parameters - s.num_routed_parameters) / layout.model_parallel
    trains_all, each = workload.method == "full", micro_batches(workload, device)
    collectives = s.num_layers / layout.pipeline_parallel * (2.0 if keeps_gathered(workload) else 3.0 * each)
    seconds = collectives * _hops(copies, inner, device)
    # Experts are divided among `expert_parallel` devices first, and what each has is sharded over those that have the
    # same, which have that distance.
    for count, trained, size, stride, once in (
        (
            num_dense,
            num_dense if trains_all else workload.num_trainable / layout.model_parallel,
            copies,
            inner,
            keeps_gathered(workload),
        ),
        (
            num_routed,
            num_routed if trains_all else 0.0,
            copies // experts,
            inner * experts,
            keeps_experts_gathered(workload),
        ),
    ):
        gathered = _ring(count * BYTES[workload.base], size, stride, device)
        reduced = _ring(trained * _GRADIENT_BYTES, size, stride, device)
        seconds += gathered + reduced if once else each * (2.0 * gathered + reduced)
    return seconds


def _ddp(workload: Workload, device: Device) -> float:
    """Once a step: gradients of several micro-batches are added up before."""
    s, layout = workload.structure, workload.layout
    copies, inner, experts = layout.data_parallel(device.num_devices), layout.tensor_parallel, layout.expert_parallel
    num_routed = s.num_routed_parameters if workload.method == "full" else 0.0
    # This project's loop reduces its fp32 sums; others reduce what the backward pass gives.
    num_bytes = _GRADIENT_BYTES if workload.optimizer.startswith(OWN) else BYTES[workload.adapters]
    each = num_bytes / layout.model_parallel
    seconds = _ring((workload.num_trainable - num_routed) * each, copies, inner, device)
    seconds += _ring(num_routed / experts * each, copies // experts, inner * experts, device)
    return 2.0 * (seconds + _hops(copies, inner, device))


def _passes(workload: Workload) -> float:
    """How often the activations between two layers are sent: forward, backward, and forward again where recomputed."""
    return 3.0 if workload.gradient_checkpointing else 2.0


def _tensor_parallel(workload: Workload, device: Device) -> float:
    s, layout = workload.structure, workload.layout
    tokens = workload.batches.num_computed / layout.data_parallel(device.num_devices)
    one = _ring(tokens * s.hidden_size * workload.element_bytes, layout.tensor_parallel, 1, device)
    # After attention and after the MLP; an all-reduce is a reduce-scatter and an all-gather.
    return 2.0 * 2.0 * one * _passes(workload) * s.num_layers / layout.pipeline_parallel


def _expert_parallel(workload: Workload, device: Device) -> float:
    s, layout = workload.structure, workload.layout
    size = layout.expert_parallel
    if size == 1 or not s.num_experts:
        return 0.0
    machines = _placed(size, layout.tensor_parallel, device)[1]
    tokens = workload.batches.num_computed / (layout.data_parallel(device.num_devices) * layout.tensor_parallel)
    one = tokens * s.hidden_size * workload.element_bytes
    seconds = s.num_active_experts * one * (size - 1) / size / (device.link_gb_per_second * 1e9)
    if machines > 1:
        # A token is sent once to each other machine that has one of its experts: of m machines, k experts drawn
        # uniformly meet m (1 - (1 - 1 / m)^k).
        met = machines * (1.0 - (1.0 - 1.0 / machines) ** s.num_active_experts) * (machines - 1) / machines
        seconds = max(seconds, met * one / (device.network_gb_per_second * 1e9))
        seconds += (machines - 1) * _HOP_SECONDS * micro_batches(workload, device)
    num_layers = len({layer.layer for layer in s.experts}) or s.num_layers
    # To the experts and back, each time.
    return 2.0 * _passes(workload) * seconds * num_layers / layout.pipeline_parallel


def _stages(workload: Workload, device: Device) -> float:
    """Forward to the next stage and gradients back; stages are on other machines where one uses a machine's devices."""
    layout = workload.layout
    if layout.pipeline_parallel == 1:
        return 0.0
    copies = layout.data_parallel(device.num_devices)
    sent = workload.batches.num_computed / copies * workload.structure.hidden_size * workload.element_bytes
    is_far = device.num_nodes > 1
    rate = device.network_gb_per_second if is_far else device.link_gb_per_second
    return 2.0 * layout.virtual_stages * sent / layout.tensor_parallel / (rate * 1e9)


def _ring(num_bytes: float, size: int, stride: int, device: Device) -> float:
    """Seconds of an all-gather or reduce-scatter of a tensor over `size` devices, every `stride`-th of the run."""
    if size <= 1:
        return 0.0
    in_machine, machines = _placed(size, stride, device)
    seconds = num_bytes * (size - 1) / size / (device.link_gb_per_second * 1e9)
    if machines == 1:
        return seconds
    network = in_machine * device.network_gb_per_second * 1e9
    return max(seconds, num_bytes * (machines - 1) / machines / network)


def _hops(size: int, stride: int, device: Device) -> float:
    """Seconds that the first byte of a ring needs from machine to machine."""
    return (_placed(size, stride, device)[1] - 1) * _HOP_SECONDS


def _placed(size: int, stride: int, device: Device) -> tuple[int, int]:
    """Of a group of devices: how many are in one machine, and in how many machines they are."""
    most = max(1, device.node_devices // stride) if device.num_nodes > 1 else size
    in_machine = min(size, most)
    return in_machine, -(-size // in_machine)
