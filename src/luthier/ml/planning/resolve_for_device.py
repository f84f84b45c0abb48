"""What a plan leaves to the device: packing, workers, compiled layers, gradient checkpointing, adapters on experts.

Accelerators get packed rows and compiled layers. Activations are computed again only where they would not
fit, since that costs time. Adapters on experts that are not requested by name are left out where they have no room.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from luthier.core.errors import RecipeError, RequestError
from luthier.core.plan import DataPlan, ObjectivePlan, Plan, ValueSource
from luthier.core.recipe import OrderName, Switch, TrainingRecipe
from luthier.core.registry import METHODS
from luthier.core.results.cost import Device
from luthier.core.system.facilities import can_fork
from luthier.core.system.libraries import has_numba
from luthier.core.text import byte_sizes
from luthier.ml.inference.models.structure import Structure
from luthier.ml.planning import defaults
from luthier.ml.planning.batch_shapes import usual_batch_size
from luthier.ml.planning.defaults import Provenance
from luthier.ml.planning.devices import this_machine
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.prompt_variants import in_order
from luthier.ml.planning.speed import step_seconds
from luthier.ml.planning.workload import Workload, workload_of
from luthier.ml.training.methods.rules import rules_of as method_rules
from luthier.ml.training.objectives.rules import rules_of as objective_rules

if TYPE_CHECKING:
    from luthier.ml.planning.hardware import Hardware

COMPILE_SECONDS: Final = 180.0
"""What compiling the layers of a model is assumed to take, forward and backward, once a run: it was not measured
on an accelerator for this project, so a run must be predicted to gain more than that."""

NUMBA_SECONDS: Final = 2.0
"""What a run must be predicted to gain: loading the loops takes one second, compiling them five at the first use on a
machine (docs/log.md)."""
NUMBA_MAX_THREADS: Final = 4
"""Threads of one process above which torch's operations on all of them are taken to be faster than loops on one.
Assumed: on one thread the loops take a quarter to two thirds of their time."""

_EACH_CORE: Final = (
    "each core computes its own micro-batches, in steps and validations, with one thread: none waits for another"
)
_NO_FORK: Final = "workers are forked, which this system does not do (docs/platforms.md)"
_EACH_JUDGING_CORE: Final = (
    "each core takes its own batches, with one thread: none waits for another; of fewer batches than that, one "
    "process computes all with all threads"
)


def packs(asked: Switch | None, hardware: Hardware, sources: Provenance) -> bool:
    """Whether the rows of a micro-batch are packed: as requested, else on an accelerator."""
    if isinstance(asked, bool):
        sources.note("training.packing", "asked", "in the recipe")
        return asked
    if hardware.device == "cpu":
        sources.note("training.packing", "derived", "batches of like length are faster on a CPU, and need no mask")
        return False
    if hardware.device == "mps":
        sources.note("training.packing", "derived", "torch has no FlexAttention for mps, which packed rows need")
        return False
    sources.note(
        "training.packing",
        "derived",
        f"on {hardware.device} rows end to end waste nothing on padding; first the model proves to train the same",
    )
    return True


def side_by_side(
    training: TrainingRecipe,
    objective: ObjectivePlan,
    data: DataPlan,
    hardware: Hardware,
    num_threads: int,
    batch: int,
    sources: Provenance,
) -> tuple[int, int]:
    """How many workers compute the micro-batches of a step, and into how many these are cut at least.

    Args:
        training: Of the recipe.
        objective: Some must see the rows of a whole step.
        data: Of the plan.
        hardware: Workers compute on its processor.
        num_threads: Of the plan.
        batch: Examples a step.
        sources: Gets the reasons.

    Raises:
        RecipeError: Several are requested where there can be none.
    """
    name, asked = "training.micro_batch_workers", training.micro_batch_workers
    why_not = None
    if hardware.device != "cpu":
        why_not = f"micro-batches follow one another on {hardware.device}"
    elif not can_fork():
        why_not = _NO_FORK
    elif objective_rules(objective.name).sees_step:
        why_not = f"objective {objective.name} sees the rows of a step together"
    elif data.stream is not None and objective_rules(objective.name).reference_passes:
        why_not = "the reference of streamed rows is computed with the first weights put back, which workers share"
    elif training.compile is True:
        why_not = "compiled layers start their own threads"
    elif batch < 2:
        why_not = "a step is one example"
    if isinstance(asked, int) and asked > 1 and why_not is not None:
        raise RecipeError(f"{name} is {asked}, but {why_not}", expected="1", do=f"remove {name}")
    if why_not is None and asked in (None, "auto") and num_threads < 2:
        why_not = "one thread"
    num = 1 if why_not is not None else num_threads if asked in (None, "auto") else int(asked)
    if isinstance(asked, int):
        sources.note(name, "asked", "in the recipe")
    else:
        why = why_not or _EACH_CORE
        sources.note(name, "derived", why)
    why = "micro-batches follow one another" if num == 1 else "one for each worker, where there are rows for it"
    sources.note("training.min_micro_batches", "derived", why)
    # No more than that: each micro-batch has an overhead of some hundred milliseconds (docs/log.md).
    return num, num


def without_workers_if_memory_is_short(plan: Plan, structure: Structure, hardware: Hardware) -> Plan:
    """The plan without workers, where they were not requested and would not fit into memory."""
    training, asked = plan.training, plan.recipe.training.micro_batch_workers if plan.recipe.training else None
    if training.micro_batch_workers == 1 or isinstance(asked, int):
        return plan
    try:
        device = this_machine(hardware)
    except RequestError:
        return plan
    alone = plan.model_copy(
        update={"training": training.model_copy(update={"micro_batch_workers": 1, "min_micro_batches": 1})}
    )
    # The upper ends: what ends for lack of memory has to be started again.
    high, less = (predict_memory(workload_of(p, structure, device), device).total_bytes.high for p in (plan, alone))
    # Where fewer workers would not help either, the plan keeps them and the quote says that it does not fit.
    if high <= device.memory_bytes or less >= high:
        return plan
    needed, there = byte_sizes.size(high, device.memory_bytes), byte_sizes.size(device.memory_bytes)
    why = f"{training.micro_batch_workers} would take up to {needed}, {there} on {device.title}"
    found = {"training.micro_batch_workers": ValueSource(source="derived", why=why)}
    return alone.model_copy(update={"sources": plan.sources | found})


def with_judging_workers(plan: Plan, structure: Structure, hardware: Hardware) -> Plan:
    """The plan with how many processes score rows and write answers side by side, where rows are held out."""
    if plan.data.held_out is None:
        return plan
    training, asked = plan.training, plan.recipe.training.micro_batch_workers if plan.recipe.training else None
    num, why = training.num_threads, _EACH_JUDGING_CORE
    if training.device != "cpu":
        num, why = 1, f"batches follow one another on {training.device}"
    elif not can_fork():
        num, why = 1, _NO_FORK
    elif isinstance(asked, int):
        num, why = asked, "as many as training.micro_batch_workers in the recipe"
    elif num < 2:
        why = "one thread"
    else:
        num, why = _that_fit(plan, num, why, structure, hardware)
    found = {"evaluation.num_workers": ValueSource(source="derived", why=why)}
    evaluation = plan.evaluation.model_copy(update={"num_workers": num})
    return plan.model_copy(update={"evaluation": evaluation, "sources": in_order(plan.sources, found)})


def _that_fit(plan: Plan, num: int, why: str, structure: Structure, hardware: Hardware) -> tuple[int, str]:
    """The number of workers for evaluation and why; one where they would not fit into memory and it would."""
    try:
        device = this_machine(hardware)
    except RequestError:
        return num, why

    def peak_bytes(workers: int) -> float:
        evaluation = plan.evaluation.model_copy(update={"num_workers": workers})
        workload = workload_of(plan.model_copy(update={"evaluation": evaluation}), structure, device)
        return predict_memory(workload, device).total_bytes.high

    high = peak_bytes(num)
    if high <= device.memory_bytes or peak_bytes(1) >= high:
        return num, why
    needed, there = byte_sizes.size(high, device.memory_bytes), byte_sizes.size(device.memory_bytes)
    return 1, f"{num} would take up to {needed}, {there} on {device.title}"


def usual_order(objective: ObjectivePlan, *, is_packed: bool) -> tuple[OrderName, str]:
    """The default order of rows, and why: sorting by length pays where rows would be padded.

    Not for objectives that compare the rows of a step with one another: the negatives of a search would all be as long
    as what is searched for.
    """
    if objective_rules(objective.name).compares_rows:
        return defaults.ORDER_COMPARED
    return defaults.ORDER_PACKED if is_packed else defaults.ORDER


def attention_on(hardware: Hardware, sources: Provenance) -> Literal["by_length", "sdpa"]:
    """How attention over rows side by side is computed."""
    sources.note("training.attention", "derived", f"the faster kind on {hardware.device} at each length")
    return "by_length" if hardware.device == "cpu" else "sdpa"


def accelerated(plan: Plan, structure: Structure, hardware: Hardware) -> Plan:
    """The plan with layers compiled by torch or elementwise work compiled by Numba, where requested or worthwhile.

    Raises:
        RecipeError: One of both is requested and cannot be.
    """
    return with_numba_kernels_if_they_pay(compiled_for(plan, structure, hardware), structure, hardware)


def compiled_for(plan: Plan, structure: Structure, hardware: Hardware) -> Plan:
    """The plan with its layers compiled or not: as asked, else where an accelerator gains more than it costs.

    So it does with an objective for which the model writes answers between its steps, token by token.

    Raises:
        RecipeError: it is requested with a method whose matrices a compiler does not see through: those over a packed
            base are unpacked by a kernel of another library, and others keep something from one call to the next.
    """
    asked = plan.recipe.training.compile if plan.recipe.training else None
    if asked is True and plan.objective.draws:
        raise RecipeError(
            f"training.compile is true with objective {plan.objective.name}",
            expected="an objective that learns from given rows: writing answers would compile the layers each time",
            do="remove training.compile",
        )
    if asked is True and not method_rules(plan.method.name).can_be_compiled:
        compiled = ", ".join(name for name, rules in METHODS.declarations().items() if rules.can_be_compiled)
        raise RecipeError(
            f"training.compile is true with method {plan.method.name}",
            expected=f"one of the methods {compiled}",
            do="remove training.compile, or choose one of these methods",
        )
    if asked is True and plan.method.expert_targets:
        raise RecipeError(
            f"training.compile is true with adapters on experts ({', '.join(plan.method.expert_targets)})",
            expected="matrices that a compiler sees through: which expert a token meets is known only as it runs",
            do="remove training.compile, or leave experts out of method.targets",
        )
    if asked is True and plan.objective.router_aux_loss is not None:
        raise RecipeError(
            "training.compile is true with objective.router_aux_loss",
            expected="layers that return only their states: the loss reads the logits of their routers",
            do="remove training.compile, or set objective.router_aux_loss: off",
        )
    if isinstance(asked, bool):
        return _with(plan, "compile", asked, ValueSource(source="asked", why="in the recipe"))
    does, why = _pays(plan, structure, hardware)
    return _with(plan, "compile", does, ValueSource(source="derived", why=why))


def with_numba_kernels_if_they_pay(plan: Plan, structure: Structure, hardware: Hardware) -> Plan:
    """The plan with loops compiled by Numba or not: as requested, else where a CPU gains more than their start takes.

    Raises:
        RecipeError: They are requested where there is no CPU, no Numba, or a compiler that does their work.
    """
    asked = plan.recipe.training.numba_kernels if plan.recipe.training else None
    why_not = _why_no_numba(plan, hardware)
    if asked is True and why_not is not None:
        raise RecipeError(
            f"training.numba_kernels is true, but {why_not}",
            expected=f"a CPU with Numba, at most {NUMBA_MAX_THREADS} threads a process, and training.compile off",
            do="remove training.numba_kernels",
        )
    if isinstance(asked, bool):
        return _with(plan, "numba_kernels", asked, ValueSource(source="asked", why="in the recipe"))
    if why_not is not None:
        return _with(plan, "numba_kernels", False, ValueSource(source="derived", why=why_not))
    device = this_machine(hardware)
    plain = workload_of(plan, structure, device)
    faster = replace(plain, has_numba_kernels=True)
    saved = plan.training.num_steps * (step_seconds(plain, device).value - step_seconds(faster, device).value)
    why = f"predicted to save {saved:,.0f} s of this run; loading them takes about 1 s, and 5 s more at the first use"
    return _with(plan, "numba_kernels", saved > NUMBA_SECONDS, ValueSource(source="derived", why=why))


def _why_no_numba(plan: Plan, hardware: Hardware) -> str | None:
    training = plan.training
    if hardware.device != "cpu":
        return f"the loops are for CPUs, and this device is {hardware.device}"
    if not has_numba():
        return "Numba is not installed"
    if training.compile:
        return "compiled layers fuse elementwise work by themselves"
    if training.micro_batch_workers == 1 and training.num_threads > NUMBA_MAX_THREADS:
        return "torch spreads its operations over all threads of the process"
    return None


def _with(plan: Plan, field: Literal["compile", "numba_kernels"], does: bool, source: ValueSource) -> Plan:
    name, sources = f"training.{field}", {}
    # next to this one, where a reader looks for it
    before = {"compile": "training.packing", "numba_kernels": "training.compile"}[field]
    for other, found in plan.sources.items():
        if other != name:
            sources[other] = found
        if other == before:
            sources[name] = source
    return plan.model_copy(update={"training": plan.training.model_copy(update={field: does}), "sources": sources})


def _pays(plan: Plan, structure: Structure, hardware: Hardware) -> tuple[bool, str]:
    if hardware.device == "cpu":
        return False, "on a CPU it gains a few percent and costs minutes"
    # Here, since the module loads torch: what is wrong with a row is found before.
    from luthier.ml.inference.accelerator import has_triton

    if not has_triton(hardware.device):
        return False, f"torch's compiler is not tested on {hardware.device}"
    if plan.objective.draws:
        return False, "the model writes answers between steps, for which compiled layers would be compiled again"
    if plan.method.expert_targets:
        return False, "a compiler does not see through experts: which one a token meets is known only as it runs"
    if plan.objective.router_aux_loss is not None:
        return False, "the loss of the routers reads their logits out of the layers"
    if not method_rules(plan.method.name).can_be_compiled:
        return False, f"a compiler does not see through the matrices of method {plan.method.name}"
    try:
        device = this_machine(hardware)
    except RequestError as error:
        return False, f"what it would gain is not known: {error.came} is not in the table of devices"
    plain = workload_of(plan, structure, device)
    # Both by the same model, so that its errors largely cancel in the difference.
    faster = replace(plain, is_compiled=True)
    # Over the whole run: compiling is paid once.
    saved = plan.training.num_steps * (step_seconds(plain, device).value - step_seconds(faster, device).value)
    why = f"predicted to save {saved:,.0f} s of this run, for about {COMPILE_SECONDS:,.0f} s of compiling (assumed)"
    return saved > COMPILE_SECONDS, why


CHECKPOINTING = "training.gradient_checkpointing"


def is_automatic(plan: Plan) -> bool:
    """Whether the recipe left it open, so that each device decides for itself."""
    asked = plan.recipe.training.gradient_checkpointing if plan.recipe.training else None
    return asked in (None, "auto")


def decided_for(plan: Plan, structure: Structure, hardware: Hardware) -> Plan:
    """The plan with the answer for this machine and its reason; unchanged where the recipe gives one.

    A machine with unknown memory, with an accelerator that the table lacks, does without.
    """
    if not is_automatic(plan):
        return plan
    try:
        device = this_machine(hardware)
    except RequestError as error:
        why = f"its memory is not known: {error.came} is not in the table of devices"
        return _with_checkpointing(plan, False, ValueSource(source="default", why=why))
    is_needed, why = need(workload_of(plan, structure, device), device)
    return _with_checkpointing(plan, is_needed, ValueSource(source="derived", why=why))


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
    total = device.memory_bytes
    memory, without = byte_sizes.size(total), f"up to {byte_sizes.size(kept.high, total)} without it"
    # The upper end decides: running out of memory ends a run, recomputing only slows it.
    if kept.high <= device.memory_bytes:
        return False, f"not needed: {without}, {memory} on {device.title}; it would cost about a third more time"
    # By the expected values: the upper ends differ in their slack, too.
    if again.value >= kept.value:
        return False, f"of no use: {without}, {memory} on {device.title}, but activations are not what takes the most"
    return True, f"needed: {without}, {memory} on {device.title}; about a third more time"


def _with_checkpointing(plan: Plan, value: bool, source: ValueSource) -> Plan:
    training = plan.training.model_copy(update={"gradient_checkpointing": value})
    sources = {name: source if name == CHECKPOINTING else known for name, known in plan.sources.items()}
    return plan.model_copy(update={"training": training, "sources": sources})


def with_steps_on(plan: Plan, device: Device) -> Plan:
    """The plan with the steps and micro-batches that the same recipe has on another kind of device.

    Where the recipe leaves the size of steps open it depends on the device, and their number with it. Workers on the
    cores of a CPU need a micro-batch each; an accelerator computes them one after another.

    Args:
        plan: Made for this machine.
        device: Where its run is quoted.
    """
    training = plan.training
    if device.is_cpu == (training.device == "cpu"):
        return plan
    changed: dict[str, int] = {} if device.is_cpu else {"min_micro_batches": 1, "micro_batch_workers": 1}
    kind = "cpu" if device.is_cpu else "cuda"
    size, _ = usual_batch_size(plan.recipe, plan.method, plan.objective, plan.data, kind)
    if plan.sources["training.global_batch_size"].source == "default" and size != training.global_batch_size:
        # Sizes differ only where nothing is replayed and epochs decide how many steps there are.
        per_epoch = math.ceil(plan.data.train.num_examples / size)
        steps = max(1, math.ceil(training.epochs * per_epoch - 1e-9))
        every = training.validate_every_steps
        if every and plan.sources["training.validate_every_steps"].source == "default":
            every = max(1, math.ceil(steps / defaults.NUM_VALIDATIONS))
        changed |= {"global_batch_size": size, "num_steps_per_epoch": per_epoch, "num_steps": steps}
        changed["validate_every_steps"] = every
    return plan.model_copy(update={"training": training.model_copy(update=changed)})


def steps_elsewhere(plan: Plan, device: Device) -> tuple[str, ...]:
    """A sentence where the same recipe has other steps on a device than this plan has."""
    there = with_steps_on(plan, device).training
    if there.global_batch_size == plan.training.global_batch_size:
        return ()
    return (f"a plan that is made there has {there.global_batch_size} examples a step, and {there.num_steps:,} steps",)


_EXPERT_TARGETS = "method.expert_targets"


def experts_do_not_fit(plan: Plan, structure: Structure, hardware: Hardware) -> str:
    """Why the adapters of experts that a group such as `all-linear` brings are better left out; empty where not.

    They are where the predicted peak with them is beyond the machine's memory, and without them is not. A machine with
    unknown memory keeps them.
    """
    if not plan.method.expert_targets or plan.sources[_EXPERT_TARGETS].source == "asked":
        return ""
    try:
        device = this_machine(hardware)
    except RequestError:
        return ""
    workload = workload_of(plan, structure, device)
    routed = sum(
        workload.expert_rank * x.num_matrices * (x.num_inputs + x.num_outputs) for x in workload.targeted_experts
    )
    # Predicted without the adapters of experts, and with as many fewer trained parameters.
    without = replace(workload, expert_targets=(), expert_rank=0, trainable=workload.num_trainable - routed)
    # By the upper end: experts that were not requested by name must not make a run fail.
    peak, lower = (predict_memory(one, device).total_bytes.high for one in (workload, without))
    if peak <= device.memory_bytes or lower > device.memory_bytes:
        return ""
    most, least = (byte_sizes.size(one, device.memory_bytes) for one in (peak, lower))
    return (
        f"experts have no room: up to {most} with them, {least} without, "
        f"{byte_sizes.size(device.memory_bytes)} on {device.title}; method.targets: [all-linear, experts] requests them"
    )
