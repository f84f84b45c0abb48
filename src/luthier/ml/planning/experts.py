"""Whether adapters on experts have room on a machine: where nobody asked for them by name, they are left out if not."""

from __future__ import annotations

from dataclasses import replace

from luthier.core.errors import RequestError
from luthier.core.plan import Plan
from luthier.ml.inference.models.structure import Structure
from luthier.ml.planning.devices import this_machine
from luthier.ml.planning.hardware import Hardware
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.workload import workload_of

NAME = "method.expert_targets"


def experts_do_not_fit(plan: Plan, structure: Structure, hardware: Hardware) -> str:
    """Why the adapters of experts that a group such as `all-linear` brings are better left out; empty where not.

    They are where the predicted peak with them is beyond the machine's memory, and without them is not. A machine whose
    memory nobody knows keeps them.
    """
    if not plan.method.expert_targets or plan.sources[NAME].source == "asked":
        return ""
    try:
        device = this_machine(hardware)
    except RequestError:
        return ""
    workload = workload_of(plan, structure, device)
    routed = sum(
        workload.expert_rank * x.num_matrices * (x.num_inputs + x.num_outputs) for x in workload.targeted_experts
    )
    without = replace(workload, expert_targets=(), expert_rank=0, trainable=workload.num_trainable - routed)
    # By the upper end: experts that nobody requested by name must not make a run fail.
    peak, lower = (predict_memory(one, device).total_bytes.high for one in (workload, without))
    if peak <= device.memory_bytes or lower > device.memory_bytes:
        return ""
    gib = 2**30
    return (
        f"experts have no room: up to {peak / gib:,.1f} GiB with them, {lower / gib:,.1f} GiB without, "
        f"{device.memory_bytes / gib:,.1f} GiB on {device.title}; method.targets: [all-linear, experts] asks for them"
    )
