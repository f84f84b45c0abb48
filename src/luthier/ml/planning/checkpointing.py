"""Whether activations are computed again on the way back: only where they would not fit, since it costs time."""

from __future__ import annotations

from dataclasses import replace

from luthier.core.cost import Device
from luthier.core.errors import RequestError
from luthier.core.plan import Plan, ValueSource
from luthier.ml.inference.models.structure import Structure
from luthier.ml.planning.devices import this_machine
from luthier.ml.planning.hardware import Hardware
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.workload import Workload, workload_of

NAME = "training.gradient_checkpointing"


def is_automatic(plan: Plan) -> bool:
    """Whether the recipe left it open, so that each device decides for itself."""
    asked = plan.recipe.training.gradient_checkpointing if plan.recipe.training else None
    return asked in (None, "auto")


def decided_for(plan: Plan, structure: Structure, hardware: Hardware) -> Plan:
    """The plan with the answer for this machine and its reason; as it is where the recipe gives one.

    A machine whose memory nobody knows, with an accelerator that the table lacks, does without.
    """
    if not is_automatic(plan):
        return plan
    try:
        device = this_machine(hardware)
    except RequestError as error:
        why = f"its memory is not known: {error.came} is not in the table of devices"
        return _with(plan, False, ValueSource(source="default", why=why))
    is_needed, why = need(workload_of(plan, structure, device), device)
    return _with(plan, is_needed, ValueSource(source="derived", why=why))


def chosen_on(plan: Plan, workload: Workload, device: Device) -> Workload:
    """The workload of a plan as it would be carried out on another device than the one that it was made for."""
    if not is_automatic(plan):
        return workload
    return replace(workload, gradient_checkpointing=need(workload, device)[0])


def need(workload: Workload, device: Device) -> tuple[bool, str]:
    """Whether it is needed, and why: the upper end of the predicted peak without it against the device's memory.

    Where it would not lower the peak (loading or answering takes the most), it is not.
    """
    kept, again = (
        predict_memory(replace(workload, gradient_checkpointing=x), device).total_bytes for x in (False, True)
    )
    memory, without = _gib(device.memory_bytes), f"up to {_gib(kept.high)} without it"
    # The upper end decides: running out of memory ends a run, recomputing only slows it.
    if kept.high <= device.memory_bytes:
        return False, f"not needed: {without}, {memory} on {device.title}; it would cost about a third more time"
    # By the expected values: the upper ends differ in their slack, too.
    if again.value >= kept.value:
        return False, f"of no use: {without}, {memory} on {device.title}, but activations are not what takes the most"
    return True, f"needed: {without}, {memory} on {device.title}; about a third more time"


def _with(plan: Plan, value: bool, source: ValueSource) -> Plan:
    training = plan.training.model_copy(update={"gradient_checkpointing": value})
    sources = {name: source if name == NAME else known for name, known in plan.sources.items()}
    return plan.model_copy(update={"training": training, "sources": sources})


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB"
